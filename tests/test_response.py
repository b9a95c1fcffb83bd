"""How an answer's header is read: as http.client does it, whatever is sent."""

from __future__ import annotations

import http.client
import io
import re
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlpool.transfer.response import MAX_FIELDS, StrictResponse, read_fields

LINES = st.sampled_from(
    [b"A: b", b"Content-Length:5", b"X-Y:\t z", b"x:", b" folded", b"\tfolded", b"no colon", b": no name",
     b"space : before", b"a:b:c", b"\xe9: \xe9", b"a: b\rc: d", b"a: \x00", b"Set-Cookie: 1", b"Set-Cookie: 2"]
)  # fmt: skip
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
    response = StrictResponse(cast(Any, Wire(data, piece)), method="GET")
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
    st.sampled_from([b"HTTP/1.1 200 OK", b"HTTP/1.0 206 Partial Content", b"HTTP/1.1 404", b"HTTP/1.1 200 ",
                     b"HTTP/1.1 2000 OK", b"HTTP/2 200 OK", b"HTTP/1.1 103 Early", b"ICY 200 OK", b"HTTP/1.1 20 x"]),
    st.lists(st.tuples(LINES, ENDS), max_size=6), st.sampled_from([b"\r\n", b"\n"]), st.sampled_from([b"\r\n", b"\n"]),
)  # fmt: skip
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
