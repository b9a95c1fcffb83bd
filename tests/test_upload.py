"""``dlpool upload`` against a scripted server: what is sent, what is sent again, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from hashlib import md5
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import make_data, wait_until
from tests.origin import Connection, Origin, Request
from tests.processes import ROOT, Ended, finish, run, start
from tests.proxy import Proxy
from tests.upload_origin import Fault, UploadOrigin, no_fault

CHUNK = 64 * 1024
DATA = make_data(5 * CHUNK + 1000)
ALL = [0, 1, 2, 3, 4, 5]
HASTY = ("--chunk-size", "64K", "--retries", "3", "--retry-delay", "10ms", "--retry-max-delay", "100ms")

Serve = Callable[..., UploadOrigin]


@pytest.fixture
def serve() -> Iterator[Serve]:
    with ExitStack() as stack:
        yield lambda fault=no_fault: stack.enter_context(UploadOrigin(fault))


@pytest.fixture(params=["md5", "sha256"])
def serve_both(request: pytest.FixtureRequest) -> Iterator[Serve]:
    """Servers of both kinds: those that know SHA-256 digests, and older ones."""
    with ExitStack() as stack:
        yield lambda fault=no_fault: stack.enter_context(UploadOrigin(fault, algorithm=request.param))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.bin"
    path.write_bytes(DATA)
    return path


def upload(path: Path, url: str, *options: object) -> Ended:
    return run("upload", path, url, *HASTY, *options)


def once(call: str, strike: Callable[[Connection], object], number: int = 1) -> Fault:
    """A fault that strikes the call with that number only; its answer, if it gives one, is the server's."""

    def fault(
        name: str, _fields: Mapping[str, str], count: int, connection: Connection
    ) -> tuple[int, dict[str, Any]] | None:
        answer = strike(connection) if (name, count) == (call, number) else None
        return answer if isinstance(answer, tuple) else None

    return fault


def always(call: str, status: int, **answer: object) -> Fault:
    return lambda name, _fields, _number, _connection: (status, answer) if name == call else None


# --- what is sent ---


def test_a_file_is_sent_in_chunks_and_merged(serve: Serve, file: Path) -> None:
    origin = serve()
    ended = upload(file, f"{origin.api}/", "--path", "models/new", "--json")
    assert ended.code == 0, ended.err
    assert origin.merged == {"models/new/model.bin": DATA}
    assert sorted(origin.sent()) == ALL
    result = ended.json
    assert (result["status"], result["size"], result["sent"], result["resumed_from"]) == (
        "done",
        len(DATA),
        len(DATA),
        0,
    )
    assert (result["md5"], result["path"]) == (md5(DATA).hexdigest(), "models/new/model.bin")
    assert result["location"] == f"{origin.api}/files/models/new/model.bin"
    chunk = next(fields for call, fields in origin.calls if call == "chunk")
    assert (chunk["total_chunks"], chunk["file_size"], chunk["relative_path"]) == ("6", str(len(DATA)), "models/new")
    assert [call for call, _ in origin.calls[:2]] == ["client", "status"]


@pytest.mark.parametrize("size", [0, 1, CHUNK, 2 * CHUNK])
def test_every_size_arrives_under_the_requested_name(size: int, serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(DATA[:size])
    origin = serve()
    assert upload(path, origin.api, "--name", "naïve name &?.bin").code == 0
    assert origin.merged == {"naïve name &?.bin": DATA[:size]}


def test_only_what_the_server_lacks_is_sent(serve_both: Serve, file: Path) -> None:
    origin = serve_both()
    origin.stored = {index: DATA[index * CHUNK : (index + 1) * CHUNK] for index in (0, 3, 5)}
    ended = upload(file, origin.api, "--json")
    assert ended.code == 0, ended.err
    assert sorted(origin.sent()) == [1, 2, 4]
    assert ended.json["resumed_from"] == 2 * CHUNK + 1000
    assert origin.merged["model.bin"] == DATA


def test_the_same_command_has_the_same_id_and_a_changed_file_another(serve: Serve, file: Path) -> None:
    origin = serve()
    first, again = (upload(file, origin.api, "--json").json["file_id"] for _ in range(2))
    os.utime(file, ns=(1, 1))
    origin.stored.clear()
    changed = upload(file, origin.api, "--json").json["file_id"]
    assert first == again != changed
    assert first.startswith("model.bin-")


def test_a_finished_upload_is_not_sent_again(serve_both: Serve, file: Path) -> None:
    origin = serve_both()
    assert upload(file, origin.api).code == 0
    sent = len(origin.sent())
    ended = upload(file, origin.api, "--json")
    assert (ended.code, ended.json["sent"]) == (0, 0)
    assert len(origin.sent()) == sent


def test_several_files_are_sent_and_one_failure_stops_no_other(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(DATA)
    origin = serve()
    ended = run("upload", tmp_path / "gone", tmp_path / "a", origin.api, "--json", *HASTY)
    assert ended.code == 14
    assert (ended.json["done"], ended.json["failed"]) == (1, 1)
    assert f"{tmp_path / 'gone'}: cannot read" in ended.err
    assert origin.merged == {"a": DATA}


def test_secrets_come_from_files_and_are_never_printed(serve: Serve, file: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("ey.hush\n")
    (tmp_path / "key").write_text("hush too\n")
    origin = serve()
    ended = upload(
        file,
        origin.api,
        "--token-file",
        tmp_path / "token",
        "--secret-key-file",
        tmp_path / "key",
        "-v",
        "--json",
        "-H",
        "X-Own: mine",
    )
    assert ended.code == 0, ended.err
    assert "hush" not in ended.out + ended.err
    for request in origin.requests:
        assert request.headers["authorization"] == "Bearer ey.hush"
        assert (request.headers["x-secret-key"], request.headers["x-own"]) == ("hush too", "mine")


# --- what is sent again ---


def test_a_chunk_that_came_damaged_is_sent_again(serve_both: Serve, file: Path) -> None:
    origin = serve_both(once("chunk", lambda _: (400, {"error": "it came damaged", "code": "md5_mismatch"})))
    ended = upload(file, origin.api, "--json")
    assert (ended.code, ended.json["retries"]) == (0, 1)
    assert len(origin.sent()) == 7
    assert origin.merged["model.bin"] == DATA


def test_a_chunk_that_always_comes_damaged_is_given_up(serve_both: Serve, file: Path) -> None:
    origin = serve_both(always("chunk", 400, error="it came damaged", code="md5_mismatch"))
    ended = upload(file, origin.api)
    assert ended.code == 11
    assert ended.err.splitlines() == [f"dlpool: {file}: the server answered 400: it came damaged"]


@pytest.mark.parametrize("strike", [Connection.reset, Connection.hang_up], ids=["reset", "closed"])
@pytest.mark.parametrize("call", ["status", "chunk", "merge"])
def test_a_lost_connection_costs_one_attempt(
    call: str, strike: Callable[[Connection], None], serve_both: Serve, file: Path
) -> None:
    origin = serve_both(once(call, strike))
    assert upload(file, origin.api).code == 0
    assert origin.merged["model.bin"] == DATA


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_requests_to_a_busy_or_broken_server_are_retried(status: int, serve_both: Serve, file: Path) -> None:
    origin = serve_both(once("chunk", lambda _: (status, {"error": "not now", "code": "busy"}), number=2))
    assert upload(file, origin.api).code == 0
    assert origin.merged["model.bin"] == DATA


def test_chunks_that_the_merge_finds_missing_are_sent_again(serve_both: Serve, file: Path) -> None:
    origin = serve_both()

    def lose(_connection: Connection) -> None:
        for index in (1, 4):
            del origin.stored[index]

    origin.fault = once("merge", lose)
    assert upload(file, origin.api).code == 0
    assert sorted(origin.sent()[6:]) == [1, 4]
    assert origin.merged["model.bin"] == DATA


def test_a_chunk_that_went_bad_at_the_server_is_found_and_sent_again(serve_both: Serve, file: Path) -> None:
    origin = serve_both()

    def rot(_connection: Connection) -> None:
        origin.stored[2] = bytes(CHUNK)

    origin.fault = once("merge", rot)
    assert upload(file, origin.api).code == 0
    assert origin.sent()[6:] == [2]
    assert origin.merged["model.bin"] == DATA


def test_a_server_that_never_makes_the_file_is_given_up(serve_both: Serve, file: Path) -> None:
    origin = serve_both(always("merge", 400, error="the file has another md5", code="file_md5_mismatch"))
    ended = upload(file, origin.api)
    assert ended.code == 11
    assert "has all of its chunks" in ended.err
    assert len(origin.sent()) == 6


def test_a_file_with_another_digest_is_not_called_done(serve_both: Serve, file: Path) -> None:
    answer = {"md5": "0" * 32, "composite_sha256": "0" * 64, "size": len(DATA), "filePath": "f", "relative_path": ""}
    origin = serve_both(always("merge", 200, **answer))
    assert upload(file, origin.api).code == 11


def test_a_merge_that_another_request_is_at_is_waited_for(serve_both: Serve, file: Path) -> None:
    origin = serve_both()

    def merging(_connection: Connection) -> tuple[int, dict[str, Any]]:
        origin.state = "merging"
        return 409, {"error": "it is being merged", "code": "task_merging"}

    origin.fault = once("merge", merging)
    ended = upload(file, origin.api)
    assert ended.code == 0, ended.err
    assert origin.merged["model.bin"] == DATA


def test_the_network_goes_away_and_comes_back(serve_both: Serve, file: Path) -> None:
    origin = serve_both()
    with Proxy(("127.0.0.1", origin.port)) as proxy:

        def cut(_connection: Connection) -> None:
            proxy.refuse()

        origin.fault = once("chunk", cut, number=2)
        process = start(
            "upload",
            file,
            f"http://127.0.0.1:{proxy.port}/go-uploader",
            "--chunk-size",
            "64K",
            "-v",
            "--retries",
            "1000",
            "--retry-delay",
            "10ms",
            "--retry-max-delay",
            "100ms",
        )
        errors = process.stderr
        assert errors is not None
        wait_until(lambda: "label='unreachable'" in errors.readline())
        proxy.pass_on()
        ended = finish(process)
    assert ended.code == 0, ended.err
    assert origin.merged["model.bin"] == DATA


# --- how it ends ---

REFUSALS = [
    (400, "bad_filename", 8),
    (401, "unauthorized", 6),
    (403, "forbidden", 6),
    (404, "not_found", 10),
    (409, "paused", 13),
    (413, "too_large", 12),
    (415, "type_not_allowed", 12),
    (507, "no_space", 9),
]


@pytest.mark.parametrize("call", ["status", "chunk"])
@pytest.mark.parametrize(("status", "code", "exit_code"), REFUSALS)
def test_a_refusal_is_one_sentence_with_an_exit_code(
    call: str, status: int, code: str, exit_code: int, serve: Serve, file: Path
) -> None:
    origin = serve(always(call, status, error="The server says\nwhy.", code=code))
    ended = upload(file, origin.api)
    assert ended.code == exit_code
    [line] = ended.err.splitlines()
    assert line.startswith(f"dlpool: {file}: ")
    assert f"the server answered {status}: The server says why." in line
    assert not origin.merged


def test_a_paused_task_fails_before_the_first_chunk(serve: Serve, file: Path) -> None:
    origin = serve(lambda *_: (200, {"uploaded_chunks": [0], "status": "paused"}))
    ended = upload(file, origin.api)
    assert (ended.code, origin.sent()) == (13, [])
    assert "the upload is paused at the server" in ended.err


def test_a_refusal_that_comes_before_the_body_is_read_is_understood(file: Path) -> None:
    def refuse(request: Request, connection: Connection) -> None:
        if request.method == "GET":
            connection.answer(200, {}, b'{"status": "not_found", "uploaded_chunks": []}')
            return
        connection.answer(413, {"Connection": "close"}, b'{"error": "It is too large.", "code": "too_large"}')
        connection.hang_up()

    file.write_bytes(make_data(1 << 20))
    with Origin(refuse) as origin:
        ended = run("upload", file, f"{origin.url}/go-uploader", "--chunk-size", "1M")
    assert ended.code == 12
    assert "It is too large." in ended.err


@pytest.mark.parametrize(
    ("status", "headers", "body", "exit_code", "sentence"),
    [
        (200, {}, b"<html>Welcome to the hotel's network</html>", 7, "is not that of a dlpool-web"),
        (200, {}, b"[]", 7, "is not that of a dlpool-web"),
        (200, {}, b'{"status": "uploading"}', 7, "has no uploaded_chunks"),
        (302, {"Location": "http://other/"}, b"", 7, "uploads need the URL itself"),
        (404, {}, b"<html>", 10, "the server answered 404"),
    ],
)
def test_a_server_other_than_dlpool_web_is_reported(
    status: int, headers: dict[str, str], body: bytes, exit_code: int, sentence: str, file: Path
) -> None:
    with Origin(lambda _request, connection: connection.answer(status, headers, body)) as origin:
        ended = upload(file, origin.url)
    assert ended.code == exit_code
    assert sentence in ended.err


def test_a_refused_connection_is_a_network_error_with_the_address(file: Path) -> None:
    with Origin(lambda _request, connection: connection.hang_up()) as origin:
        pass
    ended = upload(file, origin.url)
    assert ended.code == 4
    assert f"127.0.0.1 port {origin.port} cannot be reached" in ended.err


def test_a_file_that_changes_while_it_is_sent_is_never_mixed(serve_both: Serve, file: Path) -> None:
    def change(_connection: Connection) -> None:
        with file.open("r+b") as changed:
            changed.write(b"other")

    origin = serve_both(once("chunk", change, number=3))
    ended = upload(file, origin.api, "-c", "1")
    assert ended.code == 3
    assert ended.err.splitlines() == [
        f"dlpool: {file}: the file changed while it was sent: run the command again to send what it is now"
    ]
    assert not origin.merged
    origin.stored.clear()  # the file has another id by now, so that a server would have nothing of it
    assert upload(file, origin.api).code == 0
    assert origin.merged["model.bin"] == b"other" + DATA[5:]


def test_a_file_that_becomes_shorter_ends_the_upload(serve: Serve, file: Path) -> None:
    origin = serve(once("chunk", lambda _: os.truncate(file, 1000)))
    ended = upload(file, origin.api, "-c", "1")
    assert ended.code == 3
    assert not origin.merged


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_the_upload_and_the_next_run_resumes(
    number: signal.Signals, code: int, serve_both: Serve, file: Path
) -> None:
    origin = serve_both(once("chunk", Connection.wait_for_client_to_go, number=3))
    process = start("upload", file, origin.api, *HASTY, "-c", "1", "--json")
    wait_until(lambda: len(origin.sent()) == 3)
    process.send_signal(number)
    ended = finish(process)
    assert ended.code == code
    assert (ended.json["status"], ended.json["exit_code"]) == ("interrupted", code)
    assert ended.err == "dlpool: interrupted; run the same command again to resume\n"
    assert upload(file, origin.api, "--json").json["resumed_from"] == 2 * CHUNK
    assert origin.merged["model.bin"] == DATA


def test_progress_is_printed_as_json_lines(serve: Serve, file: Path) -> None:
    origin = serve(once("chunk", lambda _: time.sleep(1.2), number=4))
    ended = upload(file, origin.api, "--progress", "json", "-c", "1")
    lines = [json.loads(line) for line in ended.err.splitlines() if line.startswith("{")]
    assert lines[0]["path"] == str(file)
    assert (lines[0]["size"], lines[0]["phase"], lines[0]["connections"]) == (len(DATA), "uploading", 1)
    assert 3 * CHUNK <= lines[0]["done"] <= 4 * CHUNK


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["f", "ftp://h/"], "is not an http or https URL"),
        (["f"], "the following arguments are required"),
        (["f", "http://h/", "-c", "0"], "'0' is below 1"),
        (["f", "http://h/", "--chunk-size", "1K"], "'1K' is below 65536"),
        (["f", "http://h/", "--chunk-size", "huge"], "not a number with a unit"),
        (["f", "g", "http://h/", "--name", "x"], "--name is for one file"),
        (["f", "http://h/", "--token-file", "empty"], "empty is empty"),
        ([".", "http://h/"], "only such can be uploaded"),
        (["f", "http://h/", "-H", "Content-Length: 3"], "set by dlpool itself"),
    ],
)
def test_bad_usage_is_one_sentence_and_exit_2(arguments: list[str], sentence: str, tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    (tmp_path / "empty").touch()
    ended = run("upload", *arguments, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert ended.code == 2
    assert sentence in ended.err
    assert len(ended.err.splitlines()) == 1
