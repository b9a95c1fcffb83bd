"""tus 1.0 as the protocol's text has it, asked of a real server by plain requests."""

from __future__ import annotations

import base64
import hashlib
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.conftest import make_data, wait_until
from tests.uploads import files_below
from tests.web import RawClient, WebServer

DATA = make_data(300_000)
PATCH_TYPE = "application/offset+octet-stream"
LARGEST = 1_000_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebServer]:
    settings: Any = {"upload": {"max_file_size": LARGEST, "max_chunk_size": 1000}}
    with WebServer(tmp_path_factory.mktemp("tus"), settings) as server:
        yield server


def base64_of(data: bytes | str) -> str:
    return base64.b64encode(data.encode() if isinstance(data, str) else data).decode()


def ask(server: WebServer, method: str, path: str = "/files", data: Any = b"", **headers: object) -> Any:
    """One request; ``Upload_Length=5`` is the header Upload-Length: 5. A header that is None is not sent."""
    said: dict[str, Any] = {"Tus-Resumable": "1.0.0"}
    said |= {name.replace("_", "-"): value if value is None else str(value) for name, value in headers.items()}
    return requests.request(method, server.root + path, data=data, headers=said, timeout=30)


def begin(server: WebServer, length: int | None = len(DATA), **headers: object) -> str:
    """A new upload; its path."""
    extent: dict[str, Any] = {"Upload_Defer_Length": 1} if length is None else {"Upload_Length": length}
    answer = ask(server, "POST", **(extent | headers))
    assert answer.status_code == 201, answer.text
    return str(answer.headers["Location"])


def patch(server: WebServer, path: str, offset: int, data: Any, **headers: object) -> Any:
    return ask(server, "PATCH", path, data, **{"Content_Type": PATCH_TYPE, "Upload_Offset": offset, **headers})


def offset_of(server: WebServer, path: str) -> int:
    answer = ask(server, "HEAD", path)
    assert (answer.status_code, answer.headers["Cache-Control"]) == (200, "no-store")
    return int(answer.headers["Upload-Offset"])


def merged(server: WebServer, path: str) -> bytes:
    return (server.merged_dir / path.rpartition("/")[2]).read_bytes()


def test_what_the_server_can_do(server: WebServer) -> None:
    for path in ("/files", begin(server)):
        answer = requests.options(server.root + path, timeout=10)
        assert answer.status_code == 200
        assert answer.headers["Tus-Version"] == "1.0.0"
        assert set(answer.headers["Tus-Extension"].split(",")) == {
            "creation",
            "creation-with-upload",
            "creation-defer-length",
            "checksum",
            "expiration",
            "termination",
            "concatenation",
        }
        assert answer.headers["Tus-Max-Size"] == str(LARGEST)
        assert answer.headers["Tus-Checksum-Algorithm"] == "sha1,md5,sha256"


def test_an_upload_in_pieces_becomes_a_file(server: WebServer) -> None:
    note = f"filename {base64_of('a..b über.bin')},relative_path {base64_of('x/y')},empty"
    path = begin(server, Upload_Metadata=note)
    assert offset_of(server, path) == 0
    for offset, end in ((0, 100_000), (100_000, 100_001), (100_001, 300_000)):
        answer = patch(server, path, offset, DATA[offset:end])
        assert (answer.status_code, answer.headers["Upload-Offset"]) == (204, str(end))
        assert answer.headers["Tus-Resumable"] == "1.0.0"
    head = ask(server, "HEAD", path).headers
    assert (head["Upload-Offset"], head["Upload-Length"], head["Upload-Metadata"]) == ("300000", "300000", note)
    assert (server.merged_dir / "x/y/a..b über.bin").read_bytes() == DATA
    task = requests.get(f"{server.url}/tasks/{path.rpartition('/')[2]}", timeout=10).json()
    assert (task["status"], task["file_md5"]) == ("completed", hashlib.md5(DATA).hexdigest())
    answer = patch(server, path, 299_999, b"more")
    assert (answer.status_code, answer.headers["Upload-Offset"]) == (409, "300000")
    assert patch(server, path, 300_000, b"more").status_code == 413
    answer = patch(server, path, 300_000, b"")
    assert (answer.status_code, answer.headers["Upload-Offset"]) == (204, "300000")


def test_creation_with_upload(server: WebServer) -> None:
    answer = ask(server, "POST", data=DATA[:1000], Upload_Length=len(DATA), Content_Type=PATCH_TYPE)
    assert (answer.status_code, answer.headers["Upload-Offset"]) == (201, "1000")
    path = answer.headers["Location"]
    assert patch(server, path, 1000, DATA[1000:]).status_code == 204
    assert merged(server, path) == DATA


def test_an_empty_upload_and_one_with_empty_metadata(server: WebServer) -> None:
    path = begin(server, 0, Upload_Metadata="")
    assert offset_of(server, path) == 0
    assert merged(server, path) == b""


def test_a_length_that_is_said_later(server: WebServer) -> None:
    path = begin(server, None)
    assert patch(server, path, 0, b"abc").status_code == 204
    head = ask(server, "HEAD", path).headers
    assert (head["Upload-Defer-Length"], head.get("Upload-Length")) == ("1", None)
    assert patch(server, path, 3, b"", Upload_Length=2).status_code == 400
    assert patch(server, path, 3, b"", Upload_Length=LARGEST + 1).status_code == 413
    assert patch(server, path, 3, b"d", Upload_Length=5).status_code == 204
    assert patch(server, path, 4, b"", Upload_Length=6).status_code == 400
    assert ask(server, "HEAD", path).headers["Upload-Length"] == "5"
    assert patch(server, path, 4, b"e", Upload_Length=5).status_code == 204
    assert merged(server, path) == b"abcde"


@pytest.mark.parametrize("algorithm", ["sha1", "md5", "sha256"])
def test_a_body_with_a_wrong_checksum_counts_for_nothing(server: WebServer, algorithm: str) -> None:
    path = begin(server)
    right = f"{algorithm} {base64_of(hashlib.new(algorithm, DATA).digest())}"
    answer = patch(server, path, 0, DATA[::-1], Upload_Checksum=right)
    assert (answer.status_code, answer.json()["code"]) == (460, "checksum_mismatch")
    assert offset_of(server, path) == 0
    assert patch(server, path, 0, DATA, Upload_Checksum=right).status_code == 204
    assert merged(server, path) == DATA


@pytest.mark.parametrize(
    ("method", "headers", "status", "code"),
    [
        ("POST", {"Upload_Length": 5, "Tus_Resumable": "0.9"}, 412, "bad_version"),
        ("POST", {"Upload_Length": 5, "Tus_Resumable": None}, 412, "bad_version"),
        ("POST", {}, 400, "bad_length"),
        ("POST", {"Upload_Length": 5, "Upload_Defer_Length": 1}, 400, "bad_length"),
        ("POST", {"Upload_Defer_Length": 2}, 400, "bad_length"),
        ("POST", {"Upload_Length": -1}, 400, "bad_field"),
        ("POST", {"Upload_Length": "x"}, 400, "bad_field"),
        ("POST", {"Upload_Length": LARGEST + 1}, 413, "file_too_large"),
        ("POST", {"Upload_Length": 5, "Upload_Metadata": "a !"}, 400, "bad_base64"),
        ("POST", {"Upload_Length": 5, "Upload_Metadata": "a YQ==,a YQ=="}, 400, "bad_metadata"),
        ("POST", {"Upload_Length": 5, "Upload_Metadata": ","}, 400, "bad_metadata"),
        ("POST", {"Upload_Length": 5, "Upload_Metadata": "a " + "Y" * 5000}, 400, "bad_metadata"),
        ("POST", {"Upload_Length": 5, "Upload_Metadata": f"filename {base64_of('../x')}"}, 400, "bad_filename"),
        ("POST", {"Upload_Length": 5, "Upload_Metadata": f"relative_path {base64_of('/x')}"}, 400, "bad_path"),
        ("POST", {"Upload_Length": 5, "Upload_Concat": "odd"}, 400, "bad_concat"),
        ("POST", {"Upload_Concat": "final;"}, 400, "bad_concat"),
        ("POST", {"Upload_Concat": "final;/files/none"}, 400, "bad_concat"),
        ("POST", {"Upload_Concat": f"final;/files/{'0' * 32}"}, 404, "no_such_task"),
        ("POST", {"Upload_Concat": f"final;/files/{'0' * 32},/files/{'1' * 32}"}, 400, "bad_concat"),
        ("POST", {"Upload_Concat": f"final;/files/{'0' * 32}?x"}, 400, "bad_concat"),
        ("POST", {"Upload_Concat": f"final;/files/{'0' * 32};/files/{'1' * 32}"}, 400, "bad_concat"),
        ("POST", {"Upload_Concat": f"final;ftp://h/files/{'0' * 32}"}, 400, "bad_concat"),
        ("POST", {"Upload_Concat": "final;" + " ".join(["/files/" + "0" * 32] * 101)}, 400, "bad_concat"),
        ("POST", {"Upload_Concat": f"final;/files/{'0' * 32}", "Content_Type": PATCH_TYPE}, 403, "final"),
        ("POST", {"Upload_Length": "9" * 30}, 413, "file_too_large"),
        ("POST", {"Upload_Length": 5, "X_HTTP_Method_Override": "PUT"}, 405, "method_not_allowed"),
        ("PUT", {}, 405, "method_not_allowed"),
    ],
)
def test_what_no_upload_can_begin_with(
    server: WebServer, method: str, headers: dict[str, Any], status: int, code: str
) -> None:
    answer = ask(server, method, **headers)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers.get("Tus-Version") == ("1.0.0" if status == 412 else None)


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"Tus_Resumable": None}, 412, "bad_version"),
        ({"Content_Type": "text/plain"}, 415, "unsupported_type"),
        ({"Upload_Offset": None}, 400, "missing_field"),
        ({"Upload_Offset": "1e3"}, 400, "bad_field"),
        ({"Upload_Offset": 4}, 409, "wrong_offset"),
        ({"Upload_Offset": "9" * 30}, 409, "wrong_offset"),
        ({"Upload_Length": 7}, 400, "bad_length"),
        ({"Upload_Checksum": "crc32 AAAA"}, 400, "bad_checksum"),
        ({"Upload_Checksum": "md5 AAAA"}, 400, "bad_checksum"),
        ({"Upload_Checksum": "md5 !"}, 400, "bad_base64"),
    ],
)
def test_bodies_that_are_refused(server: WebServer, headers: dict[str, Any], status: int, code: str) -> None:
    path = begin(server, 5)
    assert patch(server, path, 0, b"abc").status_code == 204
    answer = patch(server, path, 3, b"d", **headers)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers.get("Upload-Offset") == ("3" if status == 409 else None)
    assert (offset_of(server, path), ask(server, "HEAD", path).headers["Upload-Length"]) == (3, "5")
    for body in (b"defg", iter([b"d", b"efg"])):  # more than there is room for
        answer = patch(server, path, 3, body)
        assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
        assert "may have 5 bytes: no more than 2 can follow" in answer.json()["error"]
        assert offset_of(server, path) == 3


@pytest.mark.parametrize("file_id", ["none", "%2e%2e%2fx", "a%00b", "%ff", "x" * 1500])
def test_uploads_that_are_not_there(server: WebServer, file_id: str) -> None:
    for method in ("HEAD", "PATCH", "DELETE"):
        answer = ask(server, method, f"/files/{file_id}", Content_Type=PATCH_TYPE, Upload_Offset=0)
        assert answer.status_code in (400, 404), method


def test_a_task_of_the_other_protocol_is_left_alone(server: WebServer) -> None:
    path = begin(server)
    answer = requests.post(
        f"{server.url}/upload_chunk?file_id={path.rpartition('/')[2]}&chunk_index=0",
        data=b"x",
        headers={"Content-Type": "application/octet-stream"},
        timeout=10,
    )
    assert (answer.status_code, answer.json()["code"]) == (409, "other_protocol")


def test_a_name_that_is_taken_is_refused_before_a_byte_is_sent(server: WebServer) -> None:
    note = f"filename {base64_of('taken')}"
    path = begin(server, 3, Upload_Metadata=note)
    assert patch(server, path, 0, b"abc").status_code == 204
    answer = ask(server, "POST", Upload_Length=3, Upload_Metadata=note)
    assert (answer.status_code, answer.json()["code"]) == (409, "file_exists")
    assert (server.merged_dir / "taken").read_bytes() == b"abc"


def test_a_name_that_is_taken_meanwhile_is_said_and_the_upload_can_be_forgotten(server: WebServer) -> None:
    note = f"filename {base64_of('meanwhile')}"
    first, second, third = (begin(server, 3, Upload_Metadata=note) for _ in range(3))
    assert patch(server, first, 0, b"one").status_code == 204
    for path in (second, third):
        answer = patch(server, path, 0, b"two")
        assert (answer.status_code, answer.json()["code"], answer.headers["Upload-Offset"]) == (409, "file_exists", "3")
        answer = ask(server, "HEAD", path)
        assert (answer.status_code, answer.headers["Upload-Offset"]) == (409, "3")
    assert ask(server, "DELETE", second).status_code == 204
    assert ask(server, "HEAD", second).status_code == 404
    (server.merged_dir / "meanwhile").unlink()
    assert offset_of(server, third) == 3  # the name is free again
    assert (server.merged_dir / "meanwhile").read_bytes() == b"two"


def test_a_paused_upload_says_how_far_it_is(server: WebServer) -> None:
    path = begin(server, 5)
    assert patch(server, path, 0, b"abc").status_code == 204
    task = f"{server.url}/tasks/{path.rpartition('/')[2]}"
    assert requests.post(f"{task}/pause", timeout=10).status_code == 200
    answer = patch(server, path, 3, b"de")
    assert (answer.status_code, answer.json()["code"], answer.headers["Upload-Offset"]) == (409, "task_paused", "3")
    assert requests.post(f"{task}/resume", timeout=10).status_code == 200
    assert patch(server, path, 3, b"de").status_code == 204


def test_every_answer_names_the_version_and_anybody_may_ask_what_the_server_can_do(tmp_path: Path) -> None:
    settings: Any = {
        "web": {"secret_key": "a secret of some length", "auth": "on", "request_rate": "1/s", "request_burst": 30}
    }
    with WebServer(tmp_path, settings) as server:
        options = requests.options(f"{server.root}/files", timeout=10)
        assert (options.status_code, options.headers["Tus-Version"]) == (200, "1.0.0")
        foreign = {"Origin": "https://else.example", "X-Secret-Key": "a secret of some length"}
        answers = [
            options,
            ask(server, "POST", Upload_Length=5),
            ask(server, "POST", Upload_Length=5, **foreign),
            ask(server, "PUT", X_Secret_Key=foreign["X-Secret-Key"]),
            ask(server, "HEAD", "/files/none"),
        ]
        assert [answer.status_code for answer in answers] == [200, 401, 403, 405, 401]
        while answers[-1].status_code != 429:
            answers.append(ask(server, "HEAD", "/files/none"))
            assert len(answers) < 200
        assert {answer.headers.get("Tus-Resumable") for answer in answers} == {"1.0.0"}


def test_of_many_bodies_at_once_one_is_taken(server: WebServer) -> None:
    path = begin(server)
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: patch(server, path, 0, DATA).status_code, range(8)))
    assert answers.count(204) <= 1  # who is asked to end for another one keeps what has come
    assert set(answers) <= {204, 409, 423}
    offset = offset_of(server, path)
    assert patch(server, path, offset, DATA[offset:]).status_code == 204
    assert merged(server, path) == DATA


def test_termination(server: WebServer) -> None:
    path = begin(server)
    assert patch(server, path, 0, DATA[:5]).status_code == 204
    assert ask(server, "DELETE", path).status_code == 204
    assert ask(server, "HEAD", path).status_code == ask(server, "DELETE", path).status_code == 404
    assert patch(server, path, 5, DATA[5:]).status_code == 404
    path = begin(server, 3)
    answer = ask(server, "POST", path, b"abc", X_HTTP_Method_Override="PATCH", Content_Type=PATCH_TYPE, Upload_Offset=0)
    assert answer.status_code == 204
    assert ask(server, "POST", path, X_HTTP_Method_Override="DELETE").status_code == 204
    assert merged(server, path) == b"abc"  # what was published stays
    assert ask(server, "POST", path).status_code == 405


def test_concatenation(server: WebServer) -> None:
    parts = []
    for data in (DATA[:100], DATA[100:]):
        parts.append(begin(server, len(data), Upload_Concat="partial"))
        assert patch(server, parts[-1], 0, data[:50]).status_code == 204
    concat = f"final;{parts[0]} {server.root}{parts[1]}"
    answer = ask(server, "POST", Upload_Concat=concat)
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_part")
    assert patch(server, parts[0], 50, DATA[50:100]).status_code == 204
    assert ask(server, "HEAD", parts[0]).headers["Upload-Concat"] == "partial"
    assert patch(server, parts[1], 50, DATA[150:]).status_code == 204
    before = files_below(server.merged_dir)
    path = ask(server, "POST", Upload_Concat=concat).headers["Location"]
    assert merged(server, path) == DATA
    assert len(files_below(server.merged_dir)) == len(before) + 1  # parts are not published
    head = ask(server, "HEAD", path).headers
    assert (head["Upload-Concat"], head["Upload-Length"], head["Upload-Offset"]) == (concat, "300000", "300000")
    assert patch(server, path, 300_000, b"").status_code == 403


def test_what_came_of_a_body_that_is_cut_off_counts(server: WebServer) -> None:
    path = begin(server)
    with RawClient(server.port) as client:
        client.post(
            path,
            "Tus-Resumable: 1.0.0",
            f"Content-Type: {PATCH_TYPE}",
            "Upload-Offset: 0",
            f"Content-Length: {len(DATA)}",
            body=DATA[:123_456],
            method="PATCH",
        ).end()
        assert client.answer()[1]["code"] == "truncated"
    assert offset_of(server, path) == 123_456
    checksum = f"Upload-Checksum: md5 {base64_of(hashlib.md5(DATA[123_456:]).digest())}"
    length = f"Content-Length: {len(DATA) - 123_456}"
    with RawClient(server.port) as client:
        client.post(
            path,
            "Tus-Resumable: 1.0.0",
            f"Content-Type: {PATCH_TYPE}",
            "Upload-Offset: 123456",
            checksum,
            length,
            body=DATA[123_456:200_000],
            method="PATCH",
        ).end()
        assert client.answer()[0] == 400
    assert offset_of(server, path) == 123_456
    assert patch(server, path, 123_456, DATA[123_456:]).status_code == 204
    assert merged(server, path) == DATA


@pytest.mark.parametrize("checksum", [None, f"Upload-Checksum: sha1 {base64_of(hashlib.sha1(DATA).digest())}"])
def test_what_a_killed_worker_had_received_counts(server: WebServer, checksum: str | None) -> None:
    path = begin(server)
    with RawClient(server.port) as client:
        sending(server, client, path, checksum)
        for worker in server.workers():
            worker.send_signal(signal.SIGKILL)
        assert client.answer() == (0, {})
    wait_until(lambda: _answers(server))
    have = offset_of(server, path)
    assert have == 0 if checksum else have > 150_000
    assert patch(server, path, have, DATA[have:]).status_code == 204
    assert merged(server, path) == DATA


def sending(server: WebServer, client: RawClient, path: str, *headers: str | None) -> None:
    """Begin to send 300,000 bytes, of which no more than 200,000 come."""
    known = ["Tus-Resumable: 1.0.0", f"Content-Type: {PATCH_TYPE}", "Upload-Offset: 0", "Content-Length: 300000"]
    client.post(path, *known, *filter(None, headers), body=DATA[:200_000], method="PATCH")
    folder = folder_of(server, path)
    wait_until(lambda: sum(file.stat().st_size for file in folder.glob("patch*.tmp")) > 150_000)


def folder_of(server: WebServer, path: str) -> Path:
    return server.upload_dir / "tasks" / hashlib.sha256(path.rpartition("/")[2].encode()).hexdigest()


def test_a_client_that_comes_back_takes_the_upload_over_from_its_old_connection(server: WebServer) -> None:
    path = begin(server)
    with RawClient(server.port) as hanging:
        sending(server, hanging, path)
        have = offset_of(server, path)
        assert have > 150_000  # while it is received
        answer = patch(server, path, have, DATA[have:])
        assert answer.status_code == 204, answer.text
        status, said = hanging.answer()
        assert (status, said["code"], said["offset"]) == (409, "wrong_offset", have)
    assert merged(server, path) == DATA


def test_of_a_body_with_a_checksum_nothing_is_taken_over(server: WebServer) -> None:
    path = begin(server)
    with RawClient(server.port) as hanging:
        sending(server, hanging, path, f"Upload-Checksum: md5 {base64_of(hashlib.md5(DATA).digest())}")
        assert offset_of(server, path) == 0
        assert patch(server, path, 0, DATA).status_code == 204
        assert hanging.answer()[0] == 409
    assert merged(server, path) == DATA


def test_looking_at_an_upload_disturbs_nobody_who_sends(server: WebServer) -> None:
    path = begin(server)
    with RawClient(server.port) as client:
        sending(server, client, path)
        for _ in range(50):
            assert 150_000 < offset_of(server, path) <= 200_000
        client.say(DATA[200_000:])
        assert client.answer()[0] == 204
    assert merged(server, path) == DATA


def test_an_upload_that_is_removed_takes_no_more_bytes(server: WebServer) -> None:
    path = begin(server)
    with RawClient(server.port) as client:
        sending(server, client, path)
        assert ask(server, "DELETE", path).status_code == 204
        assert (client.answer()[0], ask(server, "HEAD", path).status_code) == (404, 404)
    assert not folder_of(server, path).exists()


def test_what_was_under_way_when_an_upload_was_paused_counts(server: WebServer) -> None:
    path = begin(server)
    task = f"{server.url}/tasks/{path.rpartition('/')[2]}"
    assert patch(server, path, 0, DATA[:10]).status_code == 204
    with RawClient(server.port) as client:
        client.post(
            path,
            "Tus-Resumable: 1.0.0",
            f"Content-Type: {PATCH_TYPE}",
            "Upload-Offset: 10",
            "Content-Length: 20",
            body=DATA[10:20],
            method="PATCH",
        )
        wait_until(lambda: offset_of(server, path) == 20)
        assert requests.post(f"{task}/pause", timeout=10).status_code == 200
        assert client.say(DATA[20:30]).answer()[0] == 204
    assert (offset_of(server, path), patch(server, path, 30, DATA[30:]).status_code) == (30, 409)
    assert requests.post(f"{task}/resume", timeout=10).status_code == 200
    assert patch(server, path, 30, DATA[30:]).status_code == 204
    assert merged(server, path) == DATA


def test_a_body_that_stalls_is_to_be_tried_again(tmp_path: Path) -> None:
    """Clients of tus give up after 408."""
    with WebServer(tmp_path, {"web": {"body_timeout": "500ms"}}) as server:
        path = begin(server)
        with RawClient(server.port) as client:
            sending(server, client, path)
            status, said = client.answer()
            assert (status, said["code"]) == (503, "too_slow")
        assert offset_of(server, path) == 200_000
        assert patch(server, path, 200_000, DATA[200_000:]).status_code == 204
        assert merged(server, path) == DATA


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Upload_Offset": 99, "Upload_Length": 3}, 409),
        ({"Upload_Length": 50, "Upload_Checksum": f"sha1 {base64_of(bytes(20))}"}, 460),
        ({"Upload_Length": 50, "Upload_Checksum": "crc32 AAAA"}, 400),
        ({"Upload_Length": 4}, 413),
    ],
)
def test_a_refused_body_sets_no_length(server: WebServer, headers: dict[str, Any], status: int) -> None:
    path = begin(server, None)
    assert patch(server, path, 0, b"abc").status_code == 204
    assert patch(server, path, 3, b"de", **headers).status_code == status
    head = ask(server, "HEAD", path).headers
    assert (head["Upload-Offset"], head["Upload-Defer-Length"], head.get("Upload-Length")) == ("3", "1", None)
    assert patch(server, path, 3, b"de", Upload_Length=7).status_code == 204
    assert patch(server, path, 5, b"fg").status_code == 204
    assert merged(server, path) == b"abcdefg"


def send_all_but_the_end(server: WebServer, path: str) -> None:
    """All 65,536 bytes of an upload, in a chunked body that is cut off before its last chunk."""
    with RawClient(server.port) as client:
        client.post(
            path,
            "Tus-Resumable: 1.0.0",
            f"Content-Type: {PATCH_TYPE}",
            "Upload-Offset: 0",
            "Transfer-Encoding: chunked",
            body=b"10000\r\n" + DATA[:65536],
            method="PATCH",
        )
        assert client.say("\r\n").end().answer()[0] == 400
    task = requests.get(f"{server.url}/tasks/{path.rpartition('/')[2]}", timeout=10).json()
    assert (task["status"], task["chunks"][0]["size"]) == ("uploading", 65536)


def test_a_whole_upload_that_is_removed_is_not_published(server: WebServer) -> None:
    note = f"filename {base64_of('ghost')}"
    path = begin(server, 1000, Upload_Metadata=note)
    with RawClient(server.port) as client:
        client.post(
            path,
            "Tus-Resumable: 1.0.0",
            f"Content-Type: {PATCH_TYPE}",
            "Upload-Offset: 0",
            "Transfer-Encoding: chunked",
            body=b"3e8\r\n" + DATA[:1000] + b"\r\n",
            method="PATCH",
        ).end()
        assert client.answer()[0] == 400
    assert ask(server, "DELETE", path).status_code == 204
    assert not (server.merged_dir / "ghost").exists()


def test_a_post_may_stand_for_any_method(server: WebServer) -> None:
    answer = ask(server, "POST", X_HTTP_Method_Override="OPTIONS")
    assert (answer.status_code, answer.headers["Tus-Version"], "Location" in answer.headers) == (200, "1.0.0", False)
    for path in ("/files", begin(server, 3)):  # its answers have no body, those to a POST have
        assert ask(server, "POST", path, X_HTTP_Method_Override="HEAD").status_code == 405


def test_a_head_is_never_cached(server: WebServer) -> None:
    answer = ask(server, "HEAD", f"/files/{'0' * 32}")
    assert (answer.status_code, answer.headers["Cache-Control"]) == (404, "no-store")


def test_parts_may_be_of_any_kind_and_the_whole_is_looked_at(tmp_path: Path) -> None:
    png = b"\x89PNG\r\n\x1a\n" + bytes(6000)
    with WebServer(tmp_path, {"upload": {"allowed_content_types": "image/png"}}) as server:
        parts = [begin(server, len(data), Upload_Concat="partial") for data in (png[:3000], png[3000:])]
        for part, data in zip(parts, (png[:3000], png[3000:]), strict=True):
            assert patch(server, part, 0, data).status_code == 204
        for order, status in ((parts[::-1], 415), (parts, 201)):
            answer = ask(server, "POST", Upload_Concat=f"final;{' '.join(order)}")
            assert answer.status_code == status, answer.text
        assert merged(server, answer.headers["Location"]) == png
        path = begin(server, len(png))
        for offset, end in ((0, 3), (3, len(png))):  # too few bytes to tell
            assert patch(server, path, offset, png[offset:end]).status_code == 204
        path = begin(server, 5)
        assert patch(server, path, 0, b"plain").status_code == 415
        assert patch(server, begin(server, 6000), 0, bytes(5000)).status_code == 415
        assert len(requests.get(f"{server.url}/tasks", timeout=10).json()["tasks"]) == 4  # no final one that failed


def test_a_final_upload_that_cannot_be_made_leaves_nothing(server: WebServer) -> None:
    parts = [begin(server, 600_000, Upload_Concat="partial") for _ in range(2)]
    for part in parts:
        assert patch(server, part, 0, bytes(600_000)).status_code == 204
    before = requests.get(f"{server.url}/tasks", timeout=10).json()["total"]
    assert ask(server, "POST", Upload_Concat=f"final;{' '.join(parts)}").status_code == 413
    assert requests.get(f"{server.url}/tasks", timeout=10).json()["total"] == before


def _answers(server: WebServer) -> bool:
    try:
        return requests.get(f"{server.url}/health", timeout=5).ok
    except requests.RequestException:
        return False


def test_uploads_expire(tmp_path: Path) -> None:
    with WebServer(tmp_path, {"upload": {"task_expiry": "1s", "cleanup_interval": "200ms"}}) as server:
        answer = ask(server, "POST", Upload_Length=5)
        assert parsedate_to_datetime(answer.headers["Upload-Expires"]).tzinfo is not None
        path = answer.headers["Location"]
        wait_until(lambda: ask(server, "HEAD", path).status_code == 404)
        assert files_below(server.upload_dir / "tasks") == []


def test_damage_behind_our_back_takes_the_offset_back(server: WebServer) -> None:
    path = begin(server)
    for offset in (0, 100_000, 200_000):
        assert patch(server, path, offset, DATA[offset : min(offset + 100_000, 299_999)]).status_code == 204
    folder = server.upload_dir / "tasks" / hashlib.sha256(path.rpartition("/")[2].encode()).hexdigest()
    (folder / "1.chunk").unlink()
    assert offset_of(server, path) == 100_000
    answer = patch(server, path, 299_999, DATA[299_999:])
    assert (answer.status_code, answer.headers["Upload-Offset"]) == (409, "100000")
    assert patch(server, path, 100_000, DATA[100_000:]).status_code == 204
    assert merged(server, path) == DATA


def test_a_whole_upload_that_nobody_asks_for_is_published_by_a_sweep(tmp_path: Path) -> None:
    """Its last request was cut off when all bytes had come."""
    with WebServer(tmp_path, {"upload": {"cleanup_interval": "200ms"}}) as server:
        path = begin(server, 65536)
        send_all_but_the_end(server, path)
        folder = folder_of(server, path)
        os.utime(folder, (0, 0))
        wait_until(lambda: (server.merged_dir / path.rpartition("/")[2]).exists())
        assert merged(server, path) == DATA[:65536]


def test_an_upload_that_has_to_wait_for_its_merge_is_not_lost_to_its_client(tmp_path: Path) -> None:
    """A client that hears 503 to HEAD begins anew."""
    with WebServer(tmp_path, {"web": {"threads": 4, "processes": 1}}) as server:
        path = begin(server, 65536)
        send_all_but_the_end(server, path)
        for index in range(4):
            chunk = {"file_id": "large", "chunk_index": index}
            assert (
                requests.post(
                    f"{server.url}/upload_chunk", data=chunk, files={"chunk": bytes(60_000_000)}, timeout=30
                ).status_code
                == 200
            )
        merge: Any = {"file_id": "large", "filename": "large", "total_chunks": 4}
        with ThreadPoolExecutor(1) as pool:
            merging = pool.submit(requests.post, f"{server.url}/merge_chunks", json=merge, timeout=60)
            statuses = [ask(server, "HEAD", path).status_code for _ in range(3)]
            assert merging.result().status_code in (200, 503)  # a chunked upload may be told to come again
        assert set(statuses) <= {200, 423}
        assert offset_of(server, path) == 65536
        assert merged(server, path) == DATA[:65536]
