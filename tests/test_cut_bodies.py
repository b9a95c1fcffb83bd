"""A body whose end cannot be told from a broken connection never becomes a file."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dlpool import errors
from tests.conftest import Authority, Fetcher
from tests.handlers import Serve, check_file, first
from tests.origin import Connection, Handler, Request
from tests.tunnel import Tunnel

DATA = bytes(range(256)) * 1200
HEAD = b"HTTP/1.1 200 OK\r\nDate: Wed, 02 Oct 2024 10:00:00 GMT\r\n"
CLOSE = HEAD + b"Connection: close\r\n\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
End = Callable[[Connection], None]


def says(data: bytes, end: End = Connection.hang_up) -> Handler:
    """Sends these bytes whatever is asked, and ends the connection."""

    def handle(_request: Request, connection: Connection) -> None:
        connection.send(data)
        end(connection)

    return handle


VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]
WAYS = ["direct", "tunnel", "tls tunnel"]


@pytest.fixture(params=WAYS)
def proxy(request: pytest.FixtureRequest, authority: Authority) -> Iterator[str | None]:
    """No proxy, one for CONNECT, and one that is itself over TLS."""
    if request.param == "direct":
        yield None
        return
    with Tunnel(authority.server_context() if request.param == "tls tunnel" else None) as tunnel:
        yield tunnel.url
        assert tunnel.asked


@pytest.fixture(params=VERSIONS, ids=lambda version: version.name)
def context(request: pytest.FixtureRequest, authority: Authority) -> ssl.SSLContext:
    context = authority.server_context()
    context.minimum_version = context.maximum_version = request.param
    return context


@pytest.fixture
def trusting(authority: Authority, proxy: str | None) -> dict[str, str | None]:
    return {"cacert": str(authority.ca_file), "proxy": proxy}


@pytest.mark.parametrize("size", [0, 1, 100_000, len(DATA)])
def test_over_tls_a_body_without_a_length_needs_close_notify(
    size: int,
    context: ssl.SSLContext,
    trusting: dict[str, str | None],
    serve: Serve,
    fetch: Fetcher,
    tmp_path: Path,
) -> None:
    origin = serve(says(CLOSE + DATA[:size]), tls=context)
    with pytest.raises(errors.ShortBody, match="close_notify") as raised:
        fetch(f"{origin.url}/f", tmp_path / "f", retries=1, retry_delay=0.0, network=trusting)
    assert raised.value.exit_code == 4
    assert not (tmp_path / "f").exists()
    assert len(origin.requests) == 2


def test_over_tls_a_body_that_ends_with_close_notify_is_complete(
    context: ssl.SSLContext,
    trusting: dict[str, str | None],
    serve: Serve,
    fetch: Fetcher,
    tmp_path: Path,
) -> None:
    cut, complete = says(CLOSE + DATA[:1000]), says(CLOSE + DATA, Connection.close_notify)
    origin = serve(first(1, cut, complete), tls=context)
    outcome = fetch(f"{origin.url}/f", tmp_path / "f", retry_delay=0.0, network=trusting)
    check_file(tmp_path / "f", DATA)
    assert outcome.restarts == 1


def test_over_tls_a_body_with_a_length_needs_no_close_notify(
    context: ssl.SSLContext, trusting: dict[str, str | None], serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    head = HEAD + b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(DATA)
    origin = serve(says(head + DATA), tls=context)
    fetch(f"{origin.url}/f", tmp_path / "f", network=trusting)
    check_file(tmp_path / "f", DATA)
    assert len(origin.requests) == 1


def test_over_plain_tcp_a_body_may_end_with_the_connection(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    origin = serve(says(CLOSE + DATA))
    fetch(f"{origin.url}/f", tmp_path / "f")
    check_file(tmp_path / "f", DATA)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


WHOLE = chunk(DATA[:70_000]) + chunk(DATA[70_000:])
CUT = [
    ("header/status line", b"HTTP/1.1 2"),
    ("header/status", b"HTTP/1.1 200 OK\r\n"),
    ("header/field name", HEAD + b"Content-Le"),
    ("header/field", HEAD + b"Content-Length: 1"),
    ("header/last line", HEAD),
    ("header/last byte", CLOSE[:-1]),
    ("length/no body", HEAD + b"Content-Length: 1000\r\n\r\n"),
    ("length/body", HEAD + b"Content-Length: 1000\r\n\r\n" + DATA[:999]),
    ("chunked/no chunk", CHUNKED),
    ("chunked/size", CHUNKED + chunk(DATA[:100]) + b"0"),
    ("chunked/zeros of a size", CHUNKED + chunk(DATA[:100]) + b"000"),
    ("chunked/line end", CHUNKED + chunk(DATA[:100]) + b"0\r"),
    ("chunked/data", CHUNKED + chunk(DATA)[:-100]),
    ("chunked/end of data", CHUNKED + chunk(DATA)[:-1]),
    ("chunked/final chunk", CHUNKED + WHOLE),
]


@pytest.mark.parametrize("is_tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("data", [data for _, data in CUT], ids=[name for name, _ in CUT])
def test_a_cut_answer_is_asked_for_again(
    data: bytes, is_tls: bool, authority: Authority, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    complete = says(CHUNKED + WHOLE + b"0\r\n\r\n")
    origin = serve(first(1, says(data), complete), tls=authority.server_context() if is_tls else None)
    fetch(f"{origin.url}/f", tmp_path / "f", retry_delay=0.0, network={"cacert": str(authority.ca_file)})
    check_file(tmp_path / "f", DATA)
    assert len(origin.requests) == 2


@pytest.mark.parametrize("data", [data for _, data in CUT], ids=[name for name, _ in CUT])
def test_an_answer_that_is_always_cut_is_no_file(data: bytes, serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    origin = serve(says(data))
    with pytest.raises((errors.ShortBody, errors.ConnectionBroken)):
        fetch(f"{origin.url}/f", tmp_path / "f", retries=1, retry_delay=0.0)
    assert not (tmp_path / "f").exists()


@pytest.mark.parametrize("start", [CLOSE, CHUNKED], ids=["close", "chunked"])
def test_a_reset_within_a_body_is_no_end(start: bytes, serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    def reset(_request: Request, connection: Connection) -> None:
        connection.send(start + (chunk(DATA[:100_000]) if start is CHUNKED else DATA[:100_000]))
        connection.reset()

    origin = serve(reset)
    with pytest.raises(errors.ConnectionBroken):
        fetch(f"{origin.url}/f", tmp_path / "f", retries=1, retry_delay=0.0)
    assert not (tmp_path / "f").exists()
    assert len(origin.requests) == 2


@pytest.mark.parametrize(
    "body",
    [
        b"-5\r\nabcde\r\n0\r\n\r\n",
        b"0x3\r\nabc\r\n0\r\n\r\n",
        b"+3\r\nabc\r\n0\r\n\r\n",
        b"1_0\r\n",
        b"\r\n",
        b"3 3\r\nabc\r\n0\r\n\r\n",
        b"zz\r\n",
        b"2\r\nabc\r\n0\r\n\r\n",
        b"f" * 17 + b"\r\n",
    ],
)
def test_a_chunk_that_is_malformed_is_an_error(body: bytes, serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    origin = serve(says(CHUNKED + body))
    with pytest.raises(errors.BadAnswer, match="malformed"):
        fetch(f"{origin.url}/f", tmp_path / "f", retries=0)
    assert not (tmp_path / "f").exists()


def test_chunks_may_have_extensions_and_trailers(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    body = b'0003;a=b;c="d"\r\nabc\r\n1 \r\nd\r\n00;x\r\nX-Trailer: y\r\n\r\n'
    origin = serve(says(CHUNKED + body))
    fetch(f"{origin.url}/f", tmp_path / "f")
    check_file(tmp_path / "f", b"abcd")


@pytest.mark.parametrize("line", [b"X-Trailer: y\r\n", b"y\n", b"y" * 70_000], ids=["fields", "lines", "one line"])
def test_a_trailer_without_an_end_is_an_error(line: bytes, serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    def pours(_request: Request, connection: Connection) -> None:
        connection.send(CHUNKED + b"3\r\nabc\r\n0\r\n")
        for _ in range(20_000):  # what a reader has passed before a bound of this test
            connection.send(line * 100 if len(line) < 100 else line)

    origin = serve(pours)
    with pytest.raises(errors.BadAnswer, match="the trailer has more than 100 fields"):
        fetch(f"{origin.url}/f", tmp_path / "f", retries=0)
    assert not (tmp_path / "f").exists()


# What servers and proxies put among header fields although it is none; a parser of e-mail takes it for the end of them.
NO_FIELDS = {
    "no colon": b"this is no field\r\n",
    "a space before the colon": b"X-Field : y\r\n",
    "a tab before the colon": b"X-Field\t: y\r\n",
    "a name that is not ASCII": b"X-F\xc3\xa9: y\r\n",
    "a control as name": b"\x01: y\r\n",
    "a stray CR": b"X-Field: a\rb\r\n",
    "no name": b": y\r\n",
    "a continuation of nothing": b" y\r\n",
    "markup": b"<!-- y -->\r\n",
    "a second status line": b"HTTP/1.1 200 OK\r\n",
    "a second line without a colon": b"one\r\nX-Field: y\r\ntwo\r\n",
}
ODD = pytest.mark.parametrize("odd", NO_FIELDS.values(), ids=NO_FIELDS.keys())


@ODD
def test_a_line_that_is_no_field_does_not_hide_the_length(
    odd: bytes, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    head = HEAD + odd + b"Content-Length: %d\r\n\r\n" % len(DATA)
    origin = serve(first(2, says(head + DATA[:5000]), says(head + DATA)))
    fetch(f"{origin.url}/f", tmp_path / "f", retry_delay=0.0)
    check_file(tmp_path / "f", DATA)
    assert len(origin.requests) == 3


@ODD
def test_a_line_that_is_no_field_does_not_hide_the_chunks(
    odd: bytes, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    origin = serve(says(HEAD + odd + b"Transfer-Encoding: chunked\r\n\r\n" + WHOLE + b"0\r\n\r\n"))
    fetch(f"{origin.url}/f", tmp_path / "f")
    check_file(tmp_path / "f", DATA)


@pytest.mark.parametrize("name", [b"Content-Length ", b"Content-Length\t", b"content-length \t "])
def test_a_length_with_a_space_before_its_colon_counts(
    name: bytes, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    origin = serve(says(HEAD + name + b": %d\r\n\r\n" % len(DATA) + DATA[:5000]))
    with pytest.raises(errors.ShortBody):
        fetch(f"{origin.url}/f", tmp_path / "f", retries=1, retry_delay=0.0)
    assert not (tmp_path / "f").exists()


@pytest.mark.parametrize("start", [CLOSE, CHUNKED], ids=["close", "chunked"])
def test_a_total_that_a_200_tells_is_the_length_of_a_body_that_has_none(
    start: bytes, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    head = start[:-2] + b"Content-Range: bytes 0-%d/%d\r\n\r\n" % (len(DATA) - 1, len(DATA))
    cut, whole = DATA[:5000], DATA
    if start is CHUNKED:
        cut, whole = (chunk(data) + b"0\r\n\r\n" for data in (cut, whole))
    origin = serve(first(2, says(head + cut), says(head + whole)))
    fetch(f"{origin.url}/f", tmp_path / "f", retry_delay=0.0)
    check_file(tmp_path / "f", DATA)
    assert len(origin.requests) == 3


@pytest.mark.parametrize("coding", [b"identity", b"Identity", b""])
def test_the_coding_that_is_none_leaves_the_length(coding: bytes, serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    head = HEAD + b"Transfer-Encoding: " + coding + b"\r\nContent-Length: %d\r\n\r\n" % len(DATA)
    origin = serve(first(1, says(head + DATA[:5000]), says(head + DATA)))
    fetch(f"{origin.url}/f", tmp_path / "f", retry_delay=0.0)
    check_file(tmp_path / "f", DATA)
    assert len(origin.requests) == 2


@pytest.mark.parametrize("coding", [b"gzip", b"x-gzip", b"deflate", b"gzip, gzip"])
def test_an_encoded_body_that_is_cut_before_its_first_byte_is_no_empty_file(
    coding: bytes, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    origin = serve(says(HEAD + b"Content-Encoding: " + coding + b"\r\n\r\n"))
    with pytest.raises(errors.ShortBody):
        fetch(f"{origin.url}/f", tmp_path / "f", retries=1, retry_delay=0.0)
    assert not (tmp_path / "f").exists()
