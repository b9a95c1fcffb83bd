"""How an answer's header is read: as http.client does it, whatever is sent."""

from __future__ import annotations

import http.client
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlpool.transfer.response import MAX_FIELDS, read_fields

LINES = st.sampled_from(
    [b"A: b", b"Content-Length:5", b"X-Y:\t z", b"x:", b" folded", b"\tfolded", b"no colon", b": no name",
     b"space : before", b"a:b:c", b"\xe9: \xe9", b"a: b\rc: d", b"a: \x00", b"Set-Cookie: 1", b"Set-Cookie: 2"]
)  # fmt: skip
ENDS = st.sampled_from([b"\r\n", b"\n"])


def fields(message: http.client.HTTPMessage) -> list[tuple[str, str]]:
    return [(name, value.rstrip(" \t")) for name, value in message.items()]


@given(st.lists(st.tuples(LINES, ENDS), max_size=8))
def test_the_quick_way_reads_what_http_client_reads(lines: list[tuple[bytes, bytes]]) -> None:
    block = b"".join(line + end for line, end in lines) + b"\r\nbody"
    ours, theirs = io.BytesIO(block), io.BytesIO(block)
    assert fields(read_fields(ours)) == fields(http.client.parse_headers(theirs))
    assert ours.read() == theirs.read() == b"body"


def test_usual_fields_are_found_whatever_their_case() -> None:
    message = read_fields(io.BytesIO(b'Content-RANGE: \t bytes 0-1/2 \t\r\nEtag:"x"\r\n\r\n'))
    assert (message["content-range"], message["ETAG"]) == ("bytes 0-1/2", '"x"')


def test_too_many_fields_are_refused() -> None:
    with pytest.raises(http.client.HTTPException, match=f"more than {MAX_FIELDS} fields"):
        read_fields(io.BytesIO(b"a: b\r\n" * (MAX_FIELDS + 1) + b"\r\n"))
