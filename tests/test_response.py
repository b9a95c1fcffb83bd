"""How an answer's header is read: as http.client does it, whatever is sent."""

from __future__ import annotations

import http.client
import io
import re
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlpool.transfer.http.cancellable import PooledResponse
from dlpool.transfer.http.header_fields import MAX_FIELDS, MAX_HEADER_BYTES, read_fields
from dlpool.transfer.http.http_client_adapter import MAX_INFORMATIONAL, _HeaderReader

LINES = st.sampled_from(
    [
        b"A: b",
        b"Content-Length:5",
        b"X-Y:\t z",
        b"x:",
        b" folded",
        b"\tfolded",
        b"no colon",
        b": no name",
        b"space : before",
        b"a:b:c",
        b"\xe9: \xe9",
        b"a: b\rc: d",
        b"a: \x00",
        b"Set-Cookie: 1",
        b"Set-Cookie: 2",
    ]
)
ENDS = st.sampled_from([b"\r\n", b"\n"])


def fields(message: http.client.HTTPMessage) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in message.items():
        found.setdefault(name.lower(), []).append(re.sub(r"\r?\n[ \t]+", " ", value).rstrip(" \t"))
    return found


class Wire:
    """What a response reads from: bytes that came in one piece, or one by one."""

    def __init__(self, data: bytes, piece: int) -> None:
        self._data, self._piece = io.BytesIO(data), piece

    def makefile(self, _mode: str) -> io.BufferedReader:
        wire = self

        class Raw(io.RawIOBase):
            def readable(self) -> bool:
                return True

            def readinto(self, buffer: Any) -> int:
                data = wire._data.read(min(len(buffer), wire._piece))
                buffer[: len(data)] = data
                return len(data)

        return io.BufferedReader(Raw())


def read(data: bytes, piece: int) -> tuple[Any, ...]:
    response = PooledResponse(cast(Any, Wire(data, piece)), method="GET")
    try:
        response.begin()
        body = response.read()
    except http.client.HTTPException as error:
        return type(error), str(error)
    headers = {name: response.headers.get_all(name) for name in response.headers}
    return response.version, response.status, response.reason, headers, body, response.will_close


@given(st.lists(st.tuples(LINES, ENDS), max_size=8))
def test_the_quick_way_reads_what_http_client_reads(lines: list[tuple[bytes, bytes]]) -> None:
    block = b"".join(line + end for line, end in lines) + b"\r\nbody"
    ours, theirs = io.BytesIO(block), io.BytesIO(block)
    read_by_us = read_fields(ours)
    assert {name: read_by_us.get_all(name) for name in read_by_us} == fields(http.client.parse_headers(theirs))
    assert ours.read() == theirs.read() == b"body"


@given(
    st.sampled_from(
        [
            b"HTTP/1.1 200 OK",
            b"HTTP/1.0 206 Partial Content",
            b"HTTP/1.1 404",
            b"HTTP/1.1 200 ",
            b"HTTP/1.1 2000 OK",
            b"HTTP/2 200 OK",
            b"HTTP/1.1 103 Early",
            b"ICY 200 OK",
            b"HTTP/1.1 20 x",
        ]
    ),
    st.lists(st.tuples(LINES, ENDS), max_size=6),
    st.sampled_from([b"\r\n", b"\n"]),
    st.sampled_from([b"\r\n", b"\n"]),
)
def test_an_answer_that_comes_at_once_is_read_as_one_that_comes_byte_by_byte(
    status: bytes, lines: list[tuple[bytes, bytes]], first_end: bytes, last_end: bytes
) -> None:
    data = status + first_end + b"".join(line + end for line, end in lines) + last_end + b"body\r\n\r\n, and more"
    assert read(data, 1 << 20) == read(data, 1)


def test_usual_fields_are_found_whatever_their_case() -> None:
    message = read_fields(io.BytesIO(b'Content-RANGE: \t bytes 0-1/2 \t\r\nEtag:"x"\r\n\r\n'))
    assert (message["content-range"], message["ETAG"]) == ("bytes 0-1/2", '"x"')


def test_too_many_fields_are_refused() -> None:
    with pytest.raises(http.client.HTTPException, match=f"more than {MAX_FIELDS} fields"):
        read_fields(io.BytesIO(b"a: b\r\n" * (MAX_FIELDS + 1) + b"\r\n"))


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("Content-Range", ["bytes 0-1/2"] * 2, "bytes 0-1/2"),
        ("Content-Length", ["17", "17", "17"], "17"),
        ("Content-Type", ["text/html"] * 2, "text/html"),
        ("ETag", ['"v1"'] * 2, '"v1"'),
        ("Location", ["/a"] * 2, "/a"),
        ("Retry-After", ["7"] * 2, "7"),
        ("Content-Range", ["bytes 0-1/2", "bytes 1-1/2"], "bytes 0-1/2, bytes 1-1/2"),
        ("Content-Length", ["17", "18"], "17, 18"),
        ("ETag", ['"v1"', '"v2"'], '"v1", "v2"'),
        ("Content-Encoding", ["gzip"] * 2, "gzip, gzip"),
        ("Transfer-Encoding", ["chunked"] * 2, "chunked, chunked"),
    ],
)
def test_what_is_no_list_counts_once_if_it_is_repeated_alike(name: str, values: list[str], expected: str) -> None:
    found = read_fields(io.BytesIO("".join(f"{name}: {value}\r\n" for value in values).encode() + b"\r\n"))
    assert found[name.upper()] == found.get(name) == expected
    assert found.get_all(name) == values


# --- framing, one answer at a time ---


class Kept:
    """The pool and the connection of an answer: what becomes of the connection."""

    def __init__(self) -> None:
        self.ends: list[str] = []

    def _put_conn(self, connection: object) -> None:
        assert connection is self
        self.ends.append("kept")

    def close(self) -> None:
        self.ends.append("closed")


def begun(data: bytes, *, method: str = "GET", piece: int = 1 << 20) -> PooledResponse:
    response = PooledResponse(cast(Any, Wire(data, piece)), method=method)
    response.begin()
    return response


def drained(response: PooledResponse, size: int = 7) -> bytes:
    """Read to the end by pieces of ``size`` bytes."""
    body, buffer = bytearray(), bytearray(size)
    while count := response.readinto1(buffer):
        body += buffer[:count]
    return bytes(body)


@pytest.mark.parametrize("piece", [1, 1 << 20])
@pytest.mark.parametrize(
    ("status", "fields", "method", "length", "chunked", "will_close"),
    [
        ("HTTP/1.1 200 OK", "Content-Length: 5", "GET", 5, False, False),
        ("HTTP/1.1 200 OK", "Content-Length: 0", "GET", 0, False, False),
        ("HTTP/1.1 200 OK", "Content-Length: -1", "GET", None, False, True),
        ("HTTP/1.1 200 OK", "Content-Length: x", "GET", None, False, True),
        ("HTTP/1.1 200 OK", "X: y", "GET", None, False, True),
        ("HTTP/1.0 200 OK", "Content-Length: 5", "GET", 5, False, True),
        ("HTTP/1.1 200 OK", "Content-Length: 5\r\nConnection: close", "GET", 5, False, True),
        ("HTTP/1.1 200 OK", "Transfer-Encoding: chunked", "GET", None, True, False),
        ("HTTP/1.1 200 OK", "Transfer-Encoding: Chunked\r\nContent-Length: 5", "GET", None, True, False),
        ("HTTP/1.1 200 OK", "Transfer-Encoding: identity\r\nContent-Length: 5", "GET", 5, False, False),
        ("HTTP/1.1 200 OK", "Transfer-Encoding: chunked\r\nConnection: close", "GET", None, True, True),
        ("HTTP/1.1 200 OK", "Content-Length: 5", "HEAD", 0, False, False),
        ("HTTP/1.1 204 No", "Content-Length: 5", "GET", 0, False, False),
        ("HTTP/1.1 304 No", "Content-Length: 5", "GET", 0, False, False),
        ("HTTP/1.1 101 Switching", "Content-Length: 5", "GET", 0, False, False),
        ("HTTP/1.1 201 Made", "Content-Length: 5", "GET", 5, False, False),
    ],
)
def test_the_framing_of_a_body(
    status: str,
    fields: str,
    method: str,
    length: int | None,
    chunked: bool,
    will_close: bool,
    piece: int,
) -> None:
    response = begun(f"{status}\r\n{fields}\r\n\r\nbody!".encode(), method=method, piece=piece)
    assert (response.length, response.length_remaining) == (length, length)
    assert (response.chunked, response.will_close) == (chunked, will_close)
    assert response.status == response.code == int(status.split()[1])
    assert (response.reason, response.version) == (status.split()[2], 10 if "1.0" in status else 11)
    assert response._original_response is response
    response.begin()
    assert response.length == length, "the header is read once"


@pytest.mark.parametrize("piece", [1, 1 << 20])
@pytest.mark.parametrize("coding", ["gzip", "chunked, gzip", "identity"])
def test_a_coding_that_cannot_be_undone_is_an_error(coding: str, piece: int) -> None:
    with pytest.raises(http.client.HTTPException, match="Transfer-Encoding is"):
        begun(f"HTTP/1.1 200 OK\r\nTransfer-Encoding: {coding}\r\n\r\nbody".encode(), piece=piece)


@pytest.mark.parametrize("piece", [1, 3, 1 << 20])
@pytest.mark.parametrize(
    ("fields", "body", "expected"),
    [
        ("Content-Length: 5", b"12345", b"12345"),
        ("Content-Length: 5", b"1234567890", b"12345"),
        ("Content-Length: 5", b"123", b"123"),
        ("Content-Length: 0", b"rest", b""),
        ("X: y", b"12345", b"12345"),
        (
            "Transfer-Encoding: chunked",
            b"3\r\nabc\r\n0A;x=y\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\nnext",
            b"abc0123456789",
        ),
        ("Transfer-Encoding: chunked", b"0\r\n\r\nnext", b""),
    ],
)
def test_a_body_is_read_up_to_its_end(fields: str, body: bytes, expected: bytes, piece: int) -> None:
    response = begun(f"HTTP/1.1 200 OK\r\n{fields}\r\n\r\n".encode() + body, piece=piece)
    assert drained(response) == expected
    assert response.readinto1(bytearray(5)) == 0
    assert (response.length or 0) == (2 if body == b"123" else 0), "what is missing"


@pytest.mark.parametrize(
    ("body", "error", "said"),
    [
        (b"3\r\nabcd\r\n", http.client.HTTPException, "a chunk is too long"),
        (b"3\r\nabc\r", http.client.IncompleteRead, ""),
        (b"3\r\nabc", http.client.IncompleteRead, ""),
        (b"3", http.client.IncompleteRead, ""),
        (b"", http.client.IncompleteRead, ""),
        (b"xyz\r\n", http.client.HTTPException, "a chunk begins with b'xyz"),
        (b"-1\r\n", http.client.HTTPException, "a chunk begins with b'-1"),
        (b"3\r\nabc\r\n\r\n", http.client.HTTPException, "a chunk begins with"),
    ],
)
def test_a_chunk_that_is_cut_or_malformed_is_no_end(body: bytes, error: type[Exception], said: str) -> None:
    with pytest.raises(error) as caught:
        drained(begun(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body))
    assert said in str(caught.value)
    assert type(caught.value) is error


@pytest.mark.parametrize(
    ("body", "read", "end"),
    [
        (b"Content-Length: 5\r\n\r\n12345", 5, "kept"),
        (b"Content-Length: 5\r\n\r\n12345", 4, "closed"),
        (b"Content-Length: 1\r\n\r\n1", 0, "closed"),
        (b"Content-Length: 0\r\n\r\n", 0, "kept"),
        (b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n", 9, "kept"),
        (b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n", 1, "closed"),
    ],
)
def test_a_connection_is_kept_if_the_body_was_read_to_its_end(body: bytes, read: int, end: str) -> None:
    response, connection = begun(b"HTTP/1.1 200 OK\r\n" + body), Kept()
    response._pool = response._connection = connection
    buffer = bytearray(max(1, read))
    left = read
    while left and (count := response.readinto1(memoryview(buffer)[:left])):
        left -= count
    response.release()
    response.release()
    assert connection.ends == [end]
    assert response.isclosed()


def test_an_answer_without_a_connection_can_be_left() -> None:
    begun(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1").release()


@pytest.mark.parametrize("count", [1, MAX_INFORMATIONAL - 1])
@pytest.mark.parametrize("status", [100, 102, 103, 199])
def test_informational_answers_are_passed_over_up_to_a_number(status: int, count: int) -> None:
    early = f"HTTP/1.1 {status} Early\r\nLink: x\r\n\r\n".encode()
    response = begun(early * count + b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1")
    assert (response.status, drained(response)) == (200, b"1")
    assert response.headers.get("Link") is None
    with pytest.raises(http.client.HTTPException, match="too many informational responses"):
        begun(early * MAX_INFORMATIONAL + b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1")


@pytest.mark.parametrize(
    ("status", "version"), [("HTTP/1.0 200 OK", 10), ("HTTP/1.1 200 OK", 11), ("HTTP/1.2 200 OK", 11)]
)
def test_a_version_is_that_of_the_status_line(status: str, version: int) -> None:
    assert begun(f"{status}\r\nContent-Length: 0\r\n\r\n".encode(), piece=1).version == version


@pytest.mark.parametrize("status", ["HTTP/2 200 OK", "HTTP/2.0 200 OK", "ICY 200 OK"])
def test_another_protocol_is_refused(status: str) -> None:
    with pytest.raises(http.client.HTTPException):
        begun(f"{status}\r\nContent-Length: 0\r\n\r\n".encode())


def header_of(size: int) -> bytes:
    """An answer whose header, with its last line, has ``size`` bytes after the status line's end."""
    status, end = b"HTTP/1.1 200 OK\r\n", b"Content-Length: 0\r\n\r\n"
    fields, left = [], size - len(status) - len(end)
    while left > 0:
        length = min(left, 8000) if left - min(left, 8000) >= 10 or left <= 8000 else left - 10
        fields.append(b"X: " + b"y" * (length - 5) + b"\r\n")
        left -= length
    return status + b"".join(fields) + end


def test_a_header_has_a_largest_size() -> None:
    assert begun(header_of(MAX_HEADER_BYTES), piece=1).status == 200
    with pytest.raises(http.client.HTTPException, match=f"the header is larger than {MAX_HEADER_BYTES} bytes"):
        begun(header_of(MAX_HEADER_BYTES + 1), piece=1)


@pytest.mark.parametrize("piece", [1, 1 << 20])
def test_a_header_has_a_largest_number_of_fields(piece: int) -> None:
    most = b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * (MAX_FIELDS - 1) + b"Content-Length: 0\r\n"
    assert len(begun(most + b"\r\n", piece=piece).headers.get_all("a") or []) == MAX_FIELDS - 1
    with pytest.raises(http.client.HTTPException, match="fields"):
        begun(most + b"a: b\r\n\r\n", piece=piece)


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\nContent-Len",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 2",
    ],
)
def test_a_header_that_is_cut_is_no_header(data: bytes) -> None:
    with pytest.raises(http.client.RemoteDisconnected):
        begun(data)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (b"no colon\r\nContent-Length: 5\r\n\r\n", "5"),
        (b"Content-Length : 5\r\n\r\n", "5"),
        (b"X: a\r\n b\r\nContent-Length: 5\r\n\r\n", "5"),
        (b": no name\r\nContent-Length: 5\r\n\r\n", "5"),
    ],
)
def test_an_odd_line_hides_no_length(header: bytes, expected: str) -> None:
    assert begun(b"HTTP/1.1 200 OK\r\n" + header + b"12345").headers.get("Content-Length") == expected


def test_fields_are_a_mapping() -> None:
    fields = read_fields(io.BytesIO(b"A: 1\r\nB: 2\r\nA: 3\r\n\r\n"))
    assert (list(fields), len(fields), dict(fields)) == (["a", "b"], 2, {"a": "1, 3", "b": "2"})
    assert (fields.get("b"), fields.get("c"), fields.get("c", "d"), fields.get_all("c", [])) == ("2", None, "d", [])
    assert "B" in fields
    assert "c" not in fields


def test_what_reads_a_header_closes_with_it() -> None:
    lines = io.BytesIO(b"x\n")
    reader = _HeaderReader(lines)
    reader.flush()
    assert reader.readline() == b"x\n"
    assert reader.readline() == b""
    reader.close()
    assert lines.closed
