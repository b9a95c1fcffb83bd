"""``dlpool upload`` and a server that is away, turns it away, or says odd things: what it does, when it gives up."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Authority, make_data, wait_until
from tests.origin import Connection, Hangup, Origin, Request
from tests.processes import Ended, finish, run, start
from tests.proxy import Proxy
from tests.upload_origin import Fault, UploadOrigin

CHUNK = 64 * 1024
DATA = make_data(5 * CHUNK + 1000)
HASTY = ("--retry-delay", "10ms", "--retry-max-delay", "100ms")
SMALL = ("--chunk-size", "64K")
Answer = tuple[int, dict[str, Any]]


@pytest.fixture
def origin() -> Iterator[UploadOrigin]:
    with UploadOrigin() as made:
        yield made


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.bin"
    path.write_bytes(DATA)
    return path


def upload(path: Path, url: str, *options: object) -> Ended:
    return run("upload", path, url, *HASTY, "--json", *options)


def at(call: str, numbers: range, strike: Callable[[Connection], Answer | None]) -> Fault:
    """A fault that strikes the calls with those numbers."""

    def fault(name: str, _fields: Mapping[str, str], number: int, connection: Connection) -> Answer | None:
        return strike(connection) if name == call and number in numbers else None

    return fault


def said(status: int, code: str = "") -> Callable[[Connection], Answer]:
    return lambda _connection: (status, {"error": "The server says why.", "code": code})


EVER = range(1, 1_000_000)
FIRST = range(1, 2)


# --- what the server wants ---


def test_the_servers_capabilities_are_requested_once_and_obeyed(origin: UploadOrigin, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(DATA)
    origin.advice = {"concurrent_uploads": 2, "max_chunk_size": 100_000}
    first, second = (upload(tmp_path / "a", origin.api), None)
    assert first.code == 0, first.err
    assert (first.json["connections"], first.json["chunk_size"]) == (2, 100_000)
    origin.stored.clear()
    origin.calls.clear()
    second = upload(tmp_path / "a", origin.api, *SMALL, "-c", "3")
    assert (second.json["connections"], second.json["chunk_size"]) == (3, CHUNK)
    origin.stored.clear()
    origin.calls.clear()
    run("upload", tmp_path / "a", tmp_path / "b", origin.api)
    assert [call for call, _ in origin.calls].count("client") == 1


@pytest.mark.parametrize(("options", "attempts"), [((), 3), (("--retries", "0"), 1), (("--config", "own.ini"), 2)])
def test_the_server_or_the_user_sets_the_attempts_of_a_chunk(
    options: tuple[str, ...], attempts: int, origin: UploadOrigin, file: Path
) -> None:
    (file.parent / "own.ini").write_text("[transfer]\nretries = 1\n")
    origin.advice = {"retry_max_attempts": 3, "retry_initial_delay": 0.01}
    origin.fault = at("chunk", EVER, said(500))
    given = [file.parent / option if option == "own.ini" else option for option in options]
    ended = run("upload", file, origin.api, *given)
    assert ended.code == 8
    assert len(origin.sent()) == attempts


def test_a_file_above_the_servers_limit_fails_before_the_first_chunk(origin: UploadOrigin, file: Path) -> None:
    origin.advice = {"max_file_size": len(DATA) - 1}
    ended = upload(file, origin.api)
    assert (ended.code, origin.sent()) == (12, [])
    assert f"at most {len(DATA) - 1}" in ended.err


def test_a_chunk_size_above_the_servers_limit_fails_before_the_first_chunk(origin: UploadOrigin, file: Path) -> None:
    origin.advice = {"max_chunk_size": 100_000}
    ended = upload(file, origin.api, "--chunk-size", "128K")
    assert (ended.code, origin.sent()) == (12, [])
    assert "use a smaller --chunk-size" in ended.err


def test_the_name_goes_along_with_each_chunk(origin: UploadOrigin, file: Path) -> None:
    assert upload(file, origin.api, *SMALL, "--name", "ü.bin").code == 0
    assert {fields["filename"] for call, fields in origin.calls if call == "chunk"} == {"ü.bin"}


# --- the server is away ---


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_an_unavailable_server_uses_no_attempts(status: int, origin: UploadOrigin, file: Path) -> None:
    origin.fault = at("chunk", range(2, 12), said(status))
    ended = upload(file, origin.api, *SMALL, "--retries", "0")
    assert ended.code == 0, ended.err
    assert origin.merged["model.bin"] == DATA


def test_a_server_that_stays_away_is_given_up_after_network_wait(origin: UploadOrigin, file: Path) -> None:
    origin.fault = at("chunk", EVER, said(503))
    ended = upload(file, origin.api, *SMALL, "--retries", "1000000", "--network-wait", "300ms")
    assert ended.code == 8
    assert "The server says why." in ended.err


def test_an_address_that_cannot_be_reached_for_a_while_is_waited_for(origin: UploadOrigin, file: Path) -> None:
    with Proxy(("127.0.0.1", origin.port)) as proxy:

        def cut(_connection: Connection) -> None:
            proxy.refuse()

        origin.fault = at("chunk", range(2, 3), cut)
        process = start(
            "upload",
            file,
            f"http://127.0.0.1:{proxy.port}/go-uploader",
            *SMALL,
            *HASTY,
            "-v",
            "-c",
            "1",
            "--retries",
            "1",
        )
        errors = process.stderr
        assert errors is not None
        for _ in range(5):
            wait_until(lambda: "label='unreachable'" in errors.readline())
        proxy.pass_on()
        ended = finish(process)
    assert ended.code == 0, ended.err
    assert origin.merged["model.bin"] == DATA


def test_after_an_outage_the_upload_resumes_soon(origin: UploadOrigin, file: Path) -> None:
    origin.fault = at("chunk", range(1, 6), said(502))
    slow = ("--retry-delay", "5m", "--retry-max-delay", "10m")
    ended = run("upload", file, origin.api, *SMALL, "-v", "-c", "1", *slow)
    assert ended.code == 0, ended.err
    delays = [float(text) for text in re.findall(r"retry .*delay_s=([0-9.]+)", ended.err)]
    assert len(delays) == 5
    assert max(delays) <= 2.0


# --- requests that do not end ---


def test_an_error_that_ends_it_does_not_wait_for_other_requests(origin: UploadOrigin, file: Path) -> None:
    def fault(call: str, _fields: Mapping[str, str], number: int, connection: Connection) -> Answer | None:
        if call != "chunk":
            return None
        if number == 1:
            connection.wait_for_client_to_go(120)
        wait_until(lambda: len(origin.sent()) > 1)
        return 403, {"error": "The server says why.", "code": "forbidden"}

    origin.fault = fault
    ended = upload(file, origin.api, *SMALL, "-c", "2", "--read-timeout", "10m")
    assert ended.code == 6
    assert "The server says why." in ended.err


def trickle(connection: Connection, begin: bytes) -> None:
    """An answer that never ends; a byte comes now and then."""
    connection.send(begin)
    for _ in range(1000):
        connection.send(b"x")
        threading.Event().wait(0.1)
    raise Hangup


@pytest.mark.parametrize(
    "begin", [b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n"], ids=["header", "body"]
)
def test_a_trickling_answer_is_cancelled_and_requested_again(begin: bytes, origin: UploadOrigin, file: Path) -> None:
    (file.parent / "own.ini").write_text("[network]\nlow_speed_limit = 1K\nlow_speed_time = 1s\n")

    def strike(connection: Connection) -> None:
        trickle(connection, begin)

    origin.fault = at("chunk", FIRST, strike)
    ended = upload(
        file, origin.api, *SMALL, "--connect-timeout", "1s", "--read-timeout", "1s", "--config", file.parent / "own.ini"
    )
    assert ended.code == 0, ended.err
    assert ended.json["retries"] >= 1


def busy(request: Request, connection: Connection) -> bool:
    """Answer what is asked besides chunks; returns whether this is one."""
    if request.method == "POST":
        return True
    connection.answer(200, {}, b'{"status": "not_found", "uploaded_chunks": []}')
    return False


def test_a_body_that_hardly_moves_is_given_up(file: Path) -> None:
    (file.parent / "own.ini").write_text("[network]\nlow_speed_limit = 1M\nlow_speed_time = 1s\n")
    file.write_bytes(bytes(32 << 20))

    def drip(request: Request, connection: Connection) -> None:
        while busy(request, connection):
            connection.read_body(1)
            connection._buffer = b""
            threading.Event().wait(0.2)

    with Origin(drip) as origin:
        ended = upload(
            file,
            f"{origin.url}/go-uploader",
            "--chunk-size",
            "32M",
            "--retries",
            "0",
            "--config",
            file.parent / "own.ini",
        )
    assert ended.code == 4
    assert "less than low_speed_limit" in ended.err


def test_an_answer_is_heard_while_the_server_reads_no_more(file: Path) -> None:
    file.write_bytes(bytes(32 << 20))
    gone = threading.Event()

    def refuse(request: Request, connection: Connection) -> None:
        if busy(request, connection):
            connection.answer(403, {}, b'{"error": "The server says why.", "code": "forbidden"}')
            gone.wait(60)

    with Origin(refuse) as origin:
        ended = upload(file, f"{origin.url}/go-uploader", "--chunk-size", "32M", "--retries", "0")
        gone.set()
    assert ended.code == 6
    assert "The server says why." in ended.err


@pytest.mark.parametrize("pieces", [(b"HTTP/1.1 100 Continue\r\n\r\n",), (b"HTTP/", b"1.1 100 Continue\r\n\r\n")])
@pytest.mark.parametrize("is_tls", [False, True])
def test_an_interim_answer_does_not_end_a_body(
    pieces: tuple[bytes, ...], is_tls: bool, authority: Authority, file: Path
) -> None:
    """Nobody has asked for it; it may come in pieces, and over a connection that was used before."""
    file.write_bytes(make_data(8 << 20))
    with UploadOrigin(tls=authority.server_context() if is_tls else None) as origin:

        def handle(request: Request, connection: Connection) -> None:
            for piece in pieces:
                connection.send(piece)
                threading.Event().wait(0.1)
            origin._handle(request, connection)

        origin.handler = handle
        ended = upload(file, origin.api, "--chunk-size", "2M", "-c", "1", "--cacert", authority.ca_file)
    assert (ended.code, ended.json["retries"]) == (0, 0), ended.err
    assert origin.merged["model.bin"] == file.read_bytes()


def test_over_tls_a_session_ticket_is_not_taken_for_an_answer(authority: Authority, file: Path) -> None:
    file.write_bytes(make_data(8 << 20))
    with UploadOrigin(tls=authority.server_context()) as origin:
        ended = upload(file, origin.api, "--chunk-size", "1M", "--cacert", authority.ca_file)
    assert (ended.code, ended.json["retries"]) == (0, 0), ended.err
    assert origin.merged["model.bin"] == file.read_bytes()


def test_over_tls_an_answer_is_heard_while_the_server_reads_no_more(authority: Authority, file: Path) -> None:
    file.write_bytes(bytes(32 << 20))
    gone = threading.Event()

    def refuse(request: Request, connection: Connection) -> None:
        if busy(request, connection):
            connection.answer(403, {}, b'{"error": "The server says why.", "code": "forbidden"}')
            gone.wait(60)

    with Origin(refuse, tls=authority.server_context()) as origin:
        ended = upload(
            file, f"{origin.url}/go-uploader", "--chunk-size", "32M", "--retries", "0", "--cacert", authority.ca_file
        )
        gone.set()
    assert ended.code == 6


# --- what came before, or at the same time ---


def test_a_file_missing_at_the_server_is_uploaded_again(origin: UploadOrigin, file: Path) -> None:
    assert upload(file, origin.api, *SMALL).code == 0
    origin.merged.clear()
    ended = upload(file, origin.api, *SMALL)
    assert (ended.code, ended.json["sent"]) == (0, len(DATA))
    assert origin.merged["model.bin"] == DATA


def test_a_file_that_has_another_length_at_the_server_is_sent_again(origin: UploadOrigin, file: Path) -> None:
    assert upload(file, origin.api, *SMALL).code == 0
    origin.merged["model.bin"] = DATA[:-1]
    assert upload(file, origin.api, *SMALL).code == 0
    assert origin.merged["model.bin"] == DATA


def test_a_task_that_cannot_be_restarted_fails(origin: UploadOrigin, file: Path) -> None:
    assert upload(file, origin.api, *SMALL).code == 0
    origin.merged.clear()
    origin.fault = at("delete", EVER, said(403))
    ended = upload(file, origin.api, *SMALL)
    assert ended.code == 15
    assert "its file is not at" in ended.err


@pytest.mark.parametrize("code", ["task_merging", "task_completed"])
def test_the_second_client_of_the_same_file_requests_the_merge(code: str, origin: UploadOrigin, file: Path) -> None:
    def overtake(_connection: Connection) -> Answer:
        origin.stored = {index: DATA[index * CHUNK : (index + 1) * CHUNK] for index in range(6)}
        return 409, {"error": "The server says why.", "code": code}

    origin.fault = at("chunk", range(2, 3), overtake)
    ended = upload(file, origin.api, *SMALL, "-c", "1")
    assert ended.code == 0, ended.err
    assert origin.sent() == [0, 1]
    assert origin.merged["model.bin"] == DATA


def test_an_unfinished_merge_of_another_client_is_requested_again(origin: UploadOrigin, file: Path) -> None:
    origin.fault = at("merge", FIRST, said(409, "task_merging"))
    assert upload(file, origin.api, *SMALL).code == 0
    assert origin.merged["model.bin"] == DATA


def test_a_task_missing_at_the_merge_is_uploaded_again(origin: UploadOrigin, file: Path) -> None:
    def lose(_connection: Connection) -> Answer:
        origin.stored.clear()
        return 404, {"error": "there is no such task", "code": "no_such_task"}

    origin.fault = at("merge", FIRST, lose)
    assert upload(file, origin.api, *SMALL).code == 0
    assert len(origin.sent()) == 12
    assert origin.merged["model.bin"] == DATA


def test_a_task_that_is_always_missing_fails(origin: UploadOrigin, file: Path) -> None:
    origin.fault = at("merge", EVER, said(404, "no_such_task"))
    ended = upload(file, origin.api, *SMALL)
    assert ended.code == 10
    assert "The server says why." in ended.err


def test_a_task_of_another_user_is_reported(origin: UploadOrigin, file: Path) -> None:
    origin.fault = at("status", EVER, said(403, "not_owner"))
    ended = upload(file, origin.api)
    assert ended.code == 6
    assert "another user has begun to upload this file" in ended.err


# --- chunks that do not fit ---


def test_a_chunk_that_came_short_is_sent_again(origin: UploadOrigin, file: Path) -> None:
    origin.fault = at("chunk", FIRST, said(400, "truncated"))
    assert upload(file, origin.api, *SMALL).code == 0
    assert origin.merged["model.bin"] == DATA


def larger_than(size: int) -> Fault:
    """A proxy, or a server, that takes no larger bodies."""

    def fault(call: str, fields: Mapping[str, str], _number: int, _connection: Connection) -> Answer | None:
        is_large = call == "chunk" and int(fields["file_size"]) / int(fields["total_chunks"]) > size
        return (413, {}) if is_large else None

    return fault


def test_chunks_that_are_too_large_on_the_way_are_made_smaller(origin: UploadOrigin, file: Path) -> None:
    file.write_bytes(make_data(3 << 20))
    origin.fault = larger_than(300_000)
    ended = upload(file, origin.api)
    assert (ended.code, ended.json["chunk_size"]) == (0, 1 << 18)
    assert origin.merged["model.bin"] == file.read_bytes()


def test_chunks_that_are_too_large_at_their_smallest_are_given_up(origin: UploadOrigin, file: Path) -> None:
    origin.fault = larger_than(1000)
    assert upload(file, origin.api).code == 12


def test_a_refused_chunk_size_of_the_user_is_reported(origin: UploadOrigin, file: Path) -> None:
    origin.fault = larger_than(1000)
    ended = upload(file, origin.api, *SMALL)
    assert ended.code == 12
    assert "413: use a smaller --chunk-size" in ended.err


def test_a_small_rate_is_not_shared_by_many_connections(origin: UploadOrigin, file: Path) -> None:
    ended = upload(file, origin.api, *SMALL, "-c", "6", "--limit-rate", "64K")
    assert (ended.code, ended.json["connections"]) == (0, 4)
