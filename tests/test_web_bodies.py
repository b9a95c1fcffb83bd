"""Bodies as clients should not send them: cut off, stalled, dripping, too large, ambiguous, bombs.

The others are served meanwhile, and nothing of them stays.
"""

from __future__ import annotations

import hashlib
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.conftest import make_data, wait_until
from tests.web import RawClient, WebServer, multipart

RAW = "Content-Type: application/octet-stream"
UPLOAD = "/go-uploader/upload_chunk"
QUERY = f"{UPLOAD}?file_id=f&chunk_index=0"
IMPATIENT = {"body_timeout": "1s", "body_rate": "10K", "body_rate_time": "1s", "head_timeout": "1s", "threads": 8}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebServer]:
    settings: Any = {"upload": {"max_chunk_size": "1M"}, "web": IMPATIENT}
    with WebServer(tmp_path_factory.mktemp("web"), settings) as server:
        yield server


@pytest.fixture
def client(server: WebServer) -> Iterator[RawClient]:
    with RawClient(server.port) as client:
        yield client


@pytest.fixture(autouse=True)
def nothing_stays(server: WebServer) -> Iterator[None]:
    """After each test there is no task, no temporary file, and no error of the server itself."""
    yield
    assert requests.get(f"{server.url}/tasks", timeout=10).json() == {"tasks": [], "total": 0}
    wait_until(lambda: not [path for path in server.upload_dir.rglob("*.tmp") if path.is_file()])
    assert not server.events("gunicorn_error") and not server.events("request_internal_error"), server.said()


def test_a_body_that_ends_too_early_is_no_chunk(client: RawClient) -> None:
    client.post(QUERY, RAW, "Content-Length: 1000", body=b"x" * 999).end()
    status, said = client.answer()
    assert (status, said["code"]) == (400, "truncated")
    assert "999 of 1000 bytes" in said["error"]


def test_a_chunked_body_that_ends_too_early_is_no_chunk(client: RawClient) -> None:
    client.post(QUERY, RAW, "Transfer-Encoding: chunked", body=b"5\r\nhello\r\n").end()
    status, said = client.answer()
    assert (status, said["code"]) == (400, "truncated")
    assert "the connection was closed before the last chunk" in said["error"]


def test_a_form_without_its_last_boundary_is_no_chunk(client: RawClient) -> None:
    kind, body = multipart({"file_id": "f", "chunk_index": 0}, b"data")
    body = body.removesuffix(b"--xXx--\r\n")
    client.post(UPLOAD, f"Content-Type: {kind}", f"Content-Length: {len(body)}", body=body)
    status, said = client.answer()
    assert (status, said["code"]) == (400, "bad_form")


def test_a_chunked_body_of_bad_framing_is_refused(client: RawClient) -> None:
    client.post(QUERY, RAW, "Transfer-Encoding: chunked", body=b"zz\r\nhello\r\n0\r\n\r\n")
    status, said = client.answer()
    assert (status, said["code"]) == (400, "bad_framing")


def test_a_body_of_another_coding_is_not_taken_for_its_bytes(client: RawClient) -> None:
    client.post(QUERY, RAW, "Transfer-Encoding: gzip, chunked", body=b"5\r\nhello\r\n0\r\n\r\n")
    status, said = client.answer()
    assert (status, said["code"]) == (501, "unsupported_coding")


@pytest.mark.parametrize(
    "headers",
    [
        ("Content-Length: 5", "Transfer-Encoding: chunked"),
        ("Content-Length: 5", "Content-Length: 6"),
        ("Content-Length: -5",),
        ("Content-Length: +5",),
        ("Transfer-Encoding: chunked, identity",),
        ("Transfer-Encoding: xchunked",),
    ],
)
def test_ambiguous_framing_is_refused(headers: tuple[str, ...], client: RawClient) -> None:
    client.post(QUERY, RAW, *headers, body=b"5\r\nhello\r\n0\r\n\r\n")
    status, said = client.answer()
    assert status in (400, 501)
    assert said["code"] == "bad_request"


def test_a_stalled_body_is_given_up(client: RawClient) -> None:
    client.post(QUERY, RAW, "Content-Length: 1000", body=b"x")
    status, said = client.answer()
    assert (status, said["code"]) == (408, "too_slow")


def test_a_dripping_body_is_given_up(client: RawClient) -> None:
    client.post(QUERY, RAW, "Content-Length: 1000000")
    begun = time.monotonic()
    client.sock.settimeout(0.1)
    while time.monotonic() - begun < 20:
        client.say(b"x")
        try:
            if client.sock.recv(1, 2):  # MSG_PEEK
                break
        except TimeoutError:
            continue
    client.sock.settimeout(10)
    status, said = client.answer()
    assert (status, said["code"]) == (408, "too_slow")
    assert "bytes per second" in said["error"]


def test_a_body_of_a_kept_connection_may_take_longer_than_a_head(server: WebServer, client: RawClient) -> None:
    client.post("/go-uploader/health", method="GET")
    assert client.answer()[0] in (200, 503)
    client.post(QUERY, RAW, "Content-Length: 160000")
    for _ in range(4):
        time.sleep(0.4)  # 1.6 s together, and head_timeout is 1 s
        client.say(bytes(40_000))
    assert client.answer()[0] == 200
    assert requests.delete(f"{server.url}/tasks/f", timeout=10).status_code == 200


def test_a_head_that_does_not_end_is_given_up(client: RawClient) -> None:
    client.say("POST /go-uploader/upload_chunk HTTP/1.1\r\nHost: x\r\n")
    status, said = client.answer()
    assert (status, said["code"]) == (408, "too_slow")


@pytest.mark.parametrize("length", [str(1024**2 + 1), str(10**15)])
def test_a_chunk_that_says_it_is_too_large_is_refused_at_once(length: str, client: RawClient) -> None:
    client.post(QUERY, RAW, f"Content-Length: {length}")
    status, said = client.answer()
    assert (status, said["code"]) == (413, "too_large")


def test_a_chunk_that_turns_out_too_large_is_refused(client: RawClient) -> None:
    piece = b"%x\r\n" % 65536 + bytes(65536) + b"\r\n"
    client.post(QUERY, RAW, "Transfer-Encoding: chunked")
    for _ in range(24):
        client.say(piece)
    status, said = client.answer()
    assert (status, said["code"]) in {(413, "too_large"), (413, "chunk_too_large")}


def test_who_waits_for_100_sends_no_body_that_is_refused(client: RawClient) -> None:
    client.post(QUERY, RAW, "Content-Length: 99999999", "Expect: 100-continue")
    with client.sock.makefile("rb") as answer:
        assert answer.readline().startswith(b"HTTP/1.1 413")


def test_who_waits_for_100_gets_it_when_the_body_is_wanted(server: WebServer, client: RawClient) -> None:
    client.post(QUERY, RAW, "Content-Length: 5", "Expect: 100-continue")
    with client.sock.makefile("rb") as answer:
        assert answer.readline() == b"HTTP/1.1 100 Continue\r\n"
        answer.readline()
        client.say(b"hello")
        assert answer.readline().startswith(b"HTTP/1.1 200")
    assert requests.delete(f"{server.url}/tasks/f", timeout=10).status_code == 200


@pytest.mark.parametrize(
    "head", [f"POST {QUERY} HTTP/1.1\r\n{RAW}\r\nContent-Length: 0", "GET /go-uploader/health HTTP/1.1"]
)
def test_where_no_body_comes_there_is_no_100(head: str, server: WebServer, client: RawClient) -> None:
    got = b""
    for answers in (1, 2):
        client.say(f"{head}\r\nHost: localhost\r\nExpect: 100-continue\r\n\r\n")
        while got.count(b"HTTP/1.1 200 OK\r\n") < answers or b"}" not in got[got.rindex(b"HTTP/1.1") :]:
            more = client.sock.recv(65536)
            assert more, got
            got += more
    client.sock.settimeout(0.2)
    with pytest.raises(TimeoutError):
        client.sock.recv(1)
    assert b"Continue" not in got
    requests.delete(f"{server.url}/tasks/f", timeout=10)


def test_who_is_gone_before_its_100_is_no_error_of_ours(server: WebServer) -> None:
    """``nothing_stays`` looks."""
    for number in range(150):
        with RawClient(server.port) as client:
            client.post(QUERY, RAW, "Content-Length: 5", "Expect: 100-continue")
            time.sleep(number % 15 * 0.000_2)
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset


def form(**fields: object) -> tuple[str, bytes]:
    """One that is taken as it is."""
    return multipart({"file_id": "f", "chunk_index": 0, **fields}, b"data")


def many_parts() -> tuple[str, bytes]:
    return form(**{f"field{number}": "x" for number in range(30)})


def many_headers() -> tuple[str, bytes]:
    kind, body = form()
    return kind, body.replace(b"\r\n\r\n", b"\r\n" + b"X-Y: z\r\n" * 20 + b"\r\n", 1)


def long_header() -> tuple[str, bytes]:
    kind, body = form()
    return kind, body.replace(b"\r\n\r\n", b"\r\nX-Y: " + b"z" * 500_000 + b"\r\n\r\n", 1)


def long_field() -> tuple[str, bytes]:
    return form(comment="0" * 500_000)


def twice() -> tuple[str, bytes]:
    kind, body = form()
    return kind, body.replace(
        b"--xXx\r\n", b'--xXx\r\nContent-Disposition: form-data; name="file_id"\r\n\r\ng\r\n--xXx\r\n', 1
    )


def no_name() -> tuple[str, bytes]:
    kind, body = form()
    return kind, body.replace(b'; name="file_id"', b"")


def long_boundary() -> tuple[str, bytes]:
    return multipart({"file_id": "f", "chunk_index": 0}, b"data", "b" * 5000)


def no_boundary() -> tuple[str, bytes]:
    return "multipart/form-data", form()[1]


def never_begun() -> tuple[str, bytes]:
    return "multipart/form-data; boundary=xXx", b"y" * 900_000


def bad_text() -> tuple[str, bytes]:
    kind, body = form(comment="QQ")
    return kind, body.replace(b"QQ", b"\xff\xfe")


def bad_header() -> tuple[str, bytes]:
    kind, body = form(comment="QQ")
    return kind, body.replace(b'name="comment"', b'name="comment\xff"')


@pytest.mark.parametrize(
    ("bomb", "status", "code", "said"),
    [
        (many_parts, 400, "bad_form", "segment"),
        (many_headers, 400, "bad_form", "header"),
        (long_header, 400, "bad_form", "header"),
        (long_field, 413, "form_too_large", "fields of the form are too long"),
        (twice, 400, "bad_form", "'file_id' is repeated"),
        (no_name, 400, "missing_field", "file_id"),
        (long_boundary, 400, "bad_form", "boundary"),
        (no_boundary, 400, "bad_form", "boundary"),
        (never_begun, 400, "bad_form", "end of multipart"),
        (bad_text, 400, "bad_form", "comment is not UTF-8"),
        (bad_header, 400, "bad_form", "header"),
    ],
)
def test_a_multipart_bomb_is_refused(bomb: Any, status: int, code: str, said: str, server: WebServer) -> None:
    kind, body = bomb()
    answer = requests.post(f"{server.root}{UPLOAD}", data=body, headers={"Content-Type": kind}, timeout=20)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert said in answer.json()["error"]
    assert "Error(" not in answer.json()["error"]


def test_a_form_that_is_no_bomb_is_taken(server: WebServer) -> None:
    """What the bombs are made of."""
    for kind, body in (form(), form(comment="x"), form(**{f"field{number}": "x" for number in range(10)})):
        answer = requests.post(f"{server.root}{UPLOAD}", data=body, headers={"Content-Type": kind}, timeout=20)
        assert answer.status_code == 200, answer.text
    assert requests.delete(f"{server.url}/tasks/f", timeout=10).status_code == 200


def stalled_bytes(client: RawClient) -> None:
    client.post(QUERY, RAW, "Content-Length: 1000", body=b"x")


def stalled_form(client: RawClient) -> None:
    kind, body = form()
    client.post(UPLOAD, f"Content-Type: {kind}", f"Content-Length: {len(body)}", body=body[:-20])


def stalled_fields(client: RawClient) -> None:
    kind, body = form()
    client.post(UPLOAD, f"Content-Type: {kind}", f"Content-Length: {len(body)}", body=body[:30])


def stalled_json(client: RawClient) -> None:
    client.post("/go-uploader/merge_chunks", "Content-Type: application/json", "Content-Length: 90", body=b'{"file_id"')


def stalled_chunks(client: RawClient) -> None:
    client.post(QUERY, RAW, "Transfer-Encoding: chunked", body=b"5\r\nhello\r\n")


@pytest.mark.parametrize("begin", [stalled_bytes, stalled_form, stalled_fields, stalled_json, stalled_chunks])
def test_a_body_that_does_not_come_is_given_up_and_keeps_no_other_waiting(begin: Any, server: WebServer) -> None:
    kind, body = multipart({"file_id": "other", "chunk_index": 0}, b"data")
    with ExitStack() as stack:
        slow = [stack.enter_context(RawClient(server.port)) for _ in range(4)]
        for client in slow:
            begin(client)
        answer = requests.post(f"{server.root}{UPLOAD}", data=body, headers={"Content-Type": kind}, timeout=20)
        assert answer.status_code == 200, answer.text
        for client in slow:
            status, said = client.answer()
            assert (status, said["code"]) == (408, "too_slow")
    assert requests.delete(f"{server.url}/tasks/other", timeout=10).status_code == 200


def test_an_unread_body_does_not_become_the_next_request(client: RawClient) -> None:
    smuggled = b"DELETE /go-uploader/tasks/f HTTP/1.1\r\nHost: x\r\n\r\n"
    client.post("/go-uploader/nothing", f"Content-Length: {len(smuggled)}", body=smuggled)
    assert client.answer()[0] == 404
    client.sock.settimeout(3)
    client.post("/go-uploader/health", method="GET")
    status, said = client.answer()
    assert status in (0, 200)
    assert said.get("status", "healthy") == "healthy"


@pytest.mark.parametrize("step", [1_000_000, 700, 7])
def test_requests_that_follow_each_other_at_once_keep_their_bodies(step: int, server: WebServer) -> None:
    """The first bytes of a body come with its head, or with the request before; whatever the client's packets are."""
    data = [b"", b"a", b"bc" * 400, make_data(60_000 if step > 7 else 600), b"the last"]
    chunked = b"3\r\nthe\r\n5\r\n last\r\n0\r\n\r\n"
    sent = b""
    for index, body in enumerate(data):
        framing = "Transfer-Encoding: chunked" if body == b"the last" else f"Content-Length: {len(body)}"
        head = f"POST {UPLOAD}?file_id=p&chunk_index={index} HTTP/1.1\r\nHost: localhost\r\n{RAW}\r\n{framing}\r\n\r\n"
        sent += head.encode() + (chunked if body == b"the last" else body)
    with RawClient(server.port) as client:
        for begin in range(0, len(sent), step):
            client.say(sent[begin : begin + step])
        got = b""
        while got.count(b'"status":"ok"') < len(data) and (more := client.sock.recv(65536)):
            got += more
    try:
        assert got.count(b"HTTP/1.1 200 OK\r\n") == len(data), got
        merged = requests.post(
            f"{server.url}/merge_chunks",
            timeout=20,
            data={"file_id": "p", "filename": f"p{step}", "total_chunks": len(data)},
        )
        assert merged.json()["md5"] == hashlib.md5(b"".join(data)).hexdigest(), merged.text
    finally:
        requests.delete(f"{server.url}/tasks/p", timeout=10)


def test_slow_uploads_keep_nobody_else_waiting(server: WebServer) -> None:
    """200 clients that stall; each is refused, or given up; health answers all the time, an upload after that."""
    data = make_data(300_000)
    with ExitStack() as stack:
        slow = [stack.enter_context(RawClient(server.port)) for _ in range(200)]
        for client in slow:
            client.post(QUERY, RAW, "Content-Length: 1000", body=b"x")
        for _ in range(5):
            said = requests.get(f"{server.url}/health", timeout=10)
            assert said.status_code == 200
        codes = [client.answer()[0] for client in slow]
    assert set(codes) == {408, 429, 503} or set(codes) == {408, 503}
    done = requests.post(
        f"{server.root}{UPLOAD}",
        data={"file_id": "g", "chunk_index": 0, "md5": hashlib.md5(data).hexdigest()},
        files={"chunk": data},
        timeout=20,
    )
    assert done.json()["md5_checked"]
    assert requests.delete(f"{server.url}/tasks/g", timeout=10).status_code == 200


def test_connections_that_say_nothing_keep_nobody_waiting(server: WebServer) -> None:
    with ExitStack() as stack:
        for number in range(100):
            client = stack.enter_context(RawClient(server.port))
            if number % 2:
                client.say("GET /go-upl")
        assert requests.get(f"{server.url}/health", timeout=10).status_code == 200


def test_a_client_that_takes_no_answer_is_given_up(server: WebServer, tmp_path: Path) -> None:
    (server.merged_dir / "large.bin").write_bytes(bytes(30_000_000))
    with ExitStack() as stack:
        for _ in range(10):
            client = stack.enter_context(RawClient(server.port))
            client.post("/go-uploader/files/large.bin", method="GET")
        assert requests.get(f"{server.url}/health", timeout=10).status_code == 200
        wait_until(lambda: requests.head(f"{server.url}/files/large.bin", timeout=10).status_code == 200)
        wait_until(lambda: _is_served(server))
    (server.merged_dir / "large.bin").unlink()


def _is_served(server: WebServer) -> bool:
    said = requests.get(f"{server.url}/files/large.bin", timeout=10)
    return said.status_code == 200 and len(said.content) == 30_000_000
