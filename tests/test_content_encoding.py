"""A body that a server encodes unasked becomes the file that was meant."""

from __future__ import annotations

import gzip
import hashlib
import random
import tracemalloc
import zlib
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlpool import errors
from dlpool.transfer.http.decoding import BLOCK, CodingAction, DecodedReply, coding_action, codings
from dlpool.transfer.http.remote_resource import RemoteResource
from tests.conftest import Fetcher, make_data, sha256
from tests.handlers import Serve, check_file, first
from tests.origin import Connection, File, Handler, Request
from tests.processes import run

TEXT = b"".join(b"line %d of a file that packs well\n" % number for number in range(20_000))
NOISE = make_data(300_000)


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


PACK: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "GZip": gzip.compress,
    "gzip, identity": gzip.compress,
    "deflate": zlib.compress,
    " deflate ": raw_deflate,
    "gzip, gzip": lambda data: gzip.compress(gzip.compress(data)),
    "deflate,gzip": lambda data: gzip.compress(zlib.compress(data)),
}


def encoded(coding: str, body: bytes, **options: Any) -> File:
    extra = {"Content-Encoding": coding, **options.pop("extra", {})}
    return File(body, extra=extra, **options)


def chunked(coding: str, body: bytes) -> Handler:
    """Sends it in chunks, so that its length is not known before."""

    def handle(_request: Request, connection: Connection) -> None:
        head = {"Transfer-Encoding": "chunked", "Content-Encoding": coding}
        connection.answer(200, head, length=False)
        for low in range(0, len(body), 10_000):
            part = body[low : low + 10_000]
            connection.send(b"%x\r\n%s\r\n" % (len(part), part))
        connection.send(b"0\r\n\r\n")

    return handle


@pytest.mark.parametrize("data", [TEXT, NOISE, b"x", b""], ids=["text", "noise", "a byte", "nothing"])
@pytest.mark.parametrize("coding", PACK)
def test_an_encoded_stream_is_decoded(coding: str, data: bytes, serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    origin = serve(encoded(coding, PACK[coding](data), serves_ranges=False))
    outcome = fetch(f"{origin.url}/f", tmp_path / "f", connections=4)
    check_file(tmp_path / "f", data)
    assert len(origin.requests) == 1
    assert outcome.size == len(data)
    assert [event["encoding"] for event in fetch.named("content_decoded")] == [coding.strip().lower()]


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_so_is_one_of_unknown_length(coding: str, serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    origin = serve(chunked(coding, PACK[coding](TEXT)))
    fetch(f"{origin.url}/f", tmp_path / "f")
    check_file(tmp_path / "f", TEXT)


@pytest.mark.parametrize("probe", ["range", "head"])
def test_ranges_of_an_encoded_file_are_not_used(probe: str, serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    body = gzip.compress(NOISE)
    origin = serve(encoded("gzip", body))
    fetch(f"{origin.url}/f", tmp_path / "f", connections=4, probe=probe)
    check_file(tmp_path / "f", NOISE)
    gets = [request for request in origin.requests if request.method == "GET"]
    assert [request.range is None for request in gets] == [False, True]


def test_an_empty_body_is_an_empty_file_whatever_its_coding(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    for handler in (encoded("gzip", b"", serves_ranges=False), chunked("gzip", b""), encoded("br", b"")):
        origin = serve(handler)
        fetch(f"{origin.url}/f", tmp_path / "f")
        check_file(tmp_path / "f", b"")


def test_a_body_that_a_proxy_has_transformed_is_decoded_too(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    origin = serve(lambda _request, connection: connection.answer(203, {"Content-Encoding": "gzip"}, PACKED))
    fetch(f"{origin.url}/f", tmp_path / "f")
    check_file(tmp_path / "f", NOISE)


def test_members_one_after_the_other_are_all_decoded(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    parts = [TEXT[:1], TEXT[1:70_000], b"", TEXT[70_000:]]
    origin = serve(encoded("gzip", b"".join(map(gzip.compress, parts)), serves_ranges=False))
    fetch(f"{origin.url}/f", tmp_path / "f")
    check_file(tmp_path / "f", TEXT)


PACKED = gzip.compress(NOISE)
SPOILT = PACKED[:100_000] + bytes([PACKED[100_000] ^ 1]) + PACKED[100_001:]
BROKEN = [
    ("gzip", "cut", PACKED[:-100_000], errors.ShortBody),
    ("gzip", "cut in its trailer", PACKED[:-1], errors.ShortBody),
    ("gzip", "cut in its header", PACKED[:5], errors.ShortBody),
    ("gzip", "second member cut", PACKED + PACKED[:-1], errors.ShortBody),
    ("gzip", "spoilt", SPOILT, errors.BadAnswer),
    ("gzip", "wrong sum", PACKED[:-8] + b"\0\0\0\0" + PACKED[-4:], errors.BadAnswer),
    ("gzip", "wrong length", PACKED[:-4] + b"\0\0\0\0", errors.BadAnswer),
    ("gzip", "garbage behind it", PACKED + b"garbage", errors.BadAnswer),
    ("gzip", "zeros behind it", PACKED + bytes(10), errors.BadAnswer),
    ("gzip", "not encoded at all", b"plain text" * 1000, errors.BadAnswer),
    ("deflate", "cut", zlib.compress(NOISE)[:-100_000], errors.ShortBody),
    ("deflate", "raw and cut", raw_deflate(NOISE)[:-100], errors.ShortBody),
    ("deflate", "garbage behind it", zlib.compress(NOISE) + b"x", errors.BadAnswer),
    ("deflate", "not encoded at all", b"plain text" * 1000, errors.BadAnswer),
    ("gzip, gzip", "inner one cut", gzip.compress(PACKED[:-1]), errors.ShortBody),
]


@pytest.mark.parametrize(
    ("coding", "body", "error"),
    [(coding, body, error) for coding, _, body, error in BROKEN],
    ids=[f"{coding} {how}" for coding, how, _, _ in BROKEN],
)
@pytest.mark.parametrize(
    "send", [lambda *given: encoded(*given, serves_ranges=False), chunked], ids=["length", "chunks"]
)
def test_a_coding_that_is_cut_or_broken_is_an_error(
    send: Callable[[str, bytes], Handler],
    coding: str,
    body: bytes,
    error: type[errors.DlpoolError],
    serve: Serve,
    fetch: Fetcher,
    tmp_path: Path,
) -> None:
    origin = serve(send(coding, body))
    with pytest.raises(error, match=f"the {coding.split(',')[0]} coding"):
        fetch(f"{origin.url}/f", tmp_path / "f", retries=1, retry_delay=0.0)
    assert not (tmp_path / "f").exists()
    assert len(origin.requests) == 2


def test_a_stream_that_breaks_is_decoded_from_its_beginning_again(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    def cut(_request: Request, connection: Connection) -> None:
        head = {"Content-Length": str(len(PACKED)), "Content-Encoding": "gzip"}
        connection.answer(200, head, PACKED[:150_000], length=False)
        connection.hang_up()

    origin = serve(first(1, cut, encoded("gzip", PACKED, serves_ranges=False)))
    outcome = fetch(f"{origin.url}/f", tmp_path / "f")
    check_file(tmp_path / "f", NOISE)
    assert outcome.restarts == 1


# --- the encoded file itself ---

KEPT = [
    ("/backup.tar.gz", {}, "gzip"),
    ("/backup.tgz", {}, "gzip"),
    ("/dir.v1/DATA.CSV.GZ?x=1", {}, "gzip"),
    ("/a%2Egz", {}, "gzip"),
    ("/picture.svgz", {"Content-Type": "image/svg+xml"}, "gzip"),
    ("/f", {"Content-Type": "application/gzip"}, "gzip"),
    ("/f", {"Content-Type": "application/x-gzip; charset=binary"}, "x-gzip"),
    ("/f", {"Content-Disposition": 'attachment; filename="x.tar.gz"'}, "gzip"),
    ("/f", {"Content-Disposition": "attachment; filename*=UTF-8''x.TGZ"}, "gzip"),
    ("/a.br", {}, "br"),
    ("/a.zst", {}, "zstd"),
    ("/a.Z", {}, "x-compress"),
]


@pytest.mark.parametrize("serves_ranges", [True, False])
@pytest.mark.parametrize(("path", "headers", "coding"), KEPT)
def test_a_file_that_is_meant_to_be_packed_is_kept_so(
    path: str, headers: dict[str, str], coding: str, serves_ranges: bool, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    origin = serve(encoded(coding, PACKED, extra=headers, serves_ranges=serves_ranges))
    outcome = fetch(f"{origin.url}{path}", tmp_path / "f", connections=4)
    check_file(tmp_path / "f", PACKED)
    assert (outcome.connections > 1) is serves_ranges


def test_it_is_also_by_the_name_of_a_redirects_source_or_target(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    paths = {"/latest": "/data.gz", "/named.gz": "/blob"}

    def handle(request: Request, connection: Connection) -> None:
        if request.path in paths:
            connection.answer(302, {"Location": paths[request.path]})
        else:
            encoded("gzip", PACKED)(request, connection)

    origin = serve(handle)
    for path in paths:
        fetch(f"{origin.url}{path}", tmp_path / "f")
        check_file(tmp_path / "f", PACKED)


def test_and_by_the_name_that_the_user_gives_it(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    fetch(f"{serve(encoded('gzip', PACKED)).url}/f", tmp_path / "f.gz")
    check_file(tmp_path / "f.gz", PACKED)


@pytest.mark.parametrize("value", ["identity", "none", "binary", "utf-8", "aws-chunked", ""])
def test_what_is_no_coding_changes_nothing(value: str, serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    for setting in ("auto", "refuse"):
        origin = serve(encoded(value, NOISE))
        outcome = fetch(f"{origin.url}/f", tmp_path / "f", content_encoding=setting, connections=4)
        check_file(tmp_path / "f", NOISE)
        assert outcome.connections > 1


@pytest.mark.parametrize("serves_ranges", [True, False])
@pytest.mark.parametrize("coding", ["gzip", "br", "something"])
def test_keep_stores_every_coding_as_it_comes(
    coding: str, serves_ranges: bool, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    origin = serve(encoded(coding, PACKED, serves_ranges=serves_ranges))
    fetch(f"{origin.url}/f", tmp_path / "f", content_encoding="keep")
    check_file(tmp_path / "f", PACKED)
    assert fetch.named("content_encoded")[0]["encoding"] == coding


@pytest.mark.parametrize("path", ["/f", "/f.gz"])
def test_refuse_refuses_it(path: str, serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    origin = serve(encoded("gzip", PACKED))
    with pytest.raises(errors.PolicyRefused, match=r"encoded as gzip .* content_encoding = refuse") as raised:
        fetch(f"{origin.url}{path}", tmp_path / "f", content_encoding="refuse")
    assert raised.value.exit_code == 12
    assert not (tmp_path / "f").exists()
    assert len(origin.requests) == 1


@pytest.mark.parametrize("coding", ["br", "zstd", "compress", "gzip, br", "something", "gzip," * 5])
def test_a_coding_that_cannot_be_decoded_is_named(coding: str, serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    origin = serve(encoded(coding, PACKED))
    with pytest.raises(errors.ProtocolBroken, match=coding.strip(",").split(",")[0]) as raised:
        fetch(f"{origin.url}/f", tmp_path / "f")
    assert "content_encoding = keep" in str(raised.value)
    assert not (tmp_path / "f").exists()


@pytest.mark.parametrize(("value", "body"), [("auto", NOISE), ("keep", PACKED), ("refuse", None)])
def test_the_command_has_the_option(value: str, body: bytes | None, serve: Serve, tmp_path: Path) -> None:
    origin = serve(encoded("gzip", PACKED))
    ended = run("fetch", f"{origin.url}/f", tmp_path / "f", "--content-encoding", value)
    assert ended.code == (12 if body is None else 0), ended.err
    if body is None:
        assert "content_encoding = refuse" in ended.err
    else:
        check_file(tmp_path / "f", body)


# --- sizes and digests ---


def test_a_checksum_is_that_of_what_is_written(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    origin = serve(encoded("gzip", PACKED))
    outcome = fetch(f"{origin.url}/f", tmp_path / "f", checksum=f"sha256:{sha256(NOISE)}")
    check_file(tmp_path / "f", NOISE)
    assert outcome.checksum == f"sha256:{sha256(NOISE)}"
    with pytest.raises(errors.ChecksumMismatch):
        fetch(f"{origin.url}/f", tmp_path / "g", checksum=f"sha256:{sha256(PACKED)}")
    fetch(f"{origin.url}/f.gz", tmp_path / "f", checksum=f"sha256:{sha256(PACKED)}")
    check_file(tmp_path / "f", PACKED)


@pytest.mark.parametrize("name", ["Repr-Digest", "Content-Digest"])
def test_a_digest_of_the_encoded_body_says_nothing_of_the_decoded_one(
    name: str, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    digest = b64encode(hashlib.sha256(PACKED).digest()).decode()
    origin = serve(encoded("gzip", PACKED, extra={name: f"sha-256=:{digest}:"}))
    outcome = fetch(f"{origin.url}/f", tmp_path / "f")
    check_file(tmp_path / "f", NOISE)
    assert outcome.checksum is None


ZEROS = 64 * 1024 * 1024


@pytest.mark.parametrize("body", [gzip.compress(bytes(ZEROS)), gzip.compress(gzip.compress(bytes(ZEROS)))])
def test_the_limit_is_one_of_the_decoded_size(body: bytes, serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    coding = "gzip" if len(body) > 1000 else "gzip, gzip"
    origin = serve(encoded(coding, body, serves_ranges=False))
    with pytest.raises(errors.PolicyRefused, match="max_file_size"):
        fetch(f"{origin.url}/f", tmp_path / "f", max_file_size=1_000_000)
    assert not (tmp_path / "f").exists()
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 1_000_000


def test_a_file_of_exactly_the_limit_is_taken(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    origin = serve(encoded("gzip", gzip.compress(TEXT)))
    fetch(f"{origin.url}/f", tmp_path / "f", max_file_size=len(TEXT))
    check_file(tmp_path / "f", TEXT)
    with pytest.raises(errors.PolicyRefused):
        fetch(f"{origin.url}/f", tmp_path / "g", max_file_size=len(TEXT) - 1)


def test_an_earlier_part_is_not_mixed_with_an_encoded_body(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    def cut(request: Request, connection: Connection) -> None:
        assert request.range is not None
        head = {
            "ETag": '"v1"',
            "Content-Length": str(len(NOISE)),
            "Content-Range": f"bytes 0-{len(NOISE) - 1}/{len(NOISE)}",
        }
        connection.answer(206, head, NOISE[:100_000], length=False)
        connection.hang_up()

    origin = serve(cut)
    with pytest.raises(errors.RetryRange):
        fetch(f"{origin.url}/f", tmp_path / "f", retries=0, connections=1)
    origin.handler = encoded("gzip", gzip.compress(NOISE))
    fetch(f"{origin.url}/f", tmp_path / "f")
    check_file(tmp_path / "f", NOISE)


# --- decoding ---


class Pieces:
    """A reply whose body comes in pieces."""

    status, url = 200, "http://h/f"

    def __init__(self, coding: str, pieces: list[bytes]) -> None:
        self.headers = {"Content-Encoding": coding}
        self.pieces = pieces
        self.is_closed = False

    def read(self, view: memoryview) -> int:
        if not self.pieces:
            return 0
        piece = self.pieces[0][: len(view)]
        self.pieces[0] = self.pieces[0][len(piece) :]
        self.pieces = self.pieces if self.pieces[0] else self.pieces[1:]
        view[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        self.is_closed = True


def read_all(reply: DecodedReply, size: int) -> bytes:
    view, data = memoryview(bytearray(size)), bytearray()
    while length := reply.read(view):
        data += view[:length]
    return bytes(data)


@given(
    coding=st.sampled_from(sorted(PACK)),
    data=st.binary(max_size=2000) | st.integers(0, 50_000).map(bytes),
    seed=st.integers(),
    size=st.integers(1, 5000),
)
def test_any_pieces_decode_to_the_same_bytes_with_any_room(coding: str, data: bytes, seed: int, size: int) -> None:
    body, chance, pieces = PACK[coding](data), random.Random(seed), []
    while body:
        cut = chance.randint(1, 200)
        pieces.append(body[:cut])
        body = body[cut:]
    reply: Any = Pieces(coding, pieces)
    assert read_all(DecodedReply(reply), size) == data


def test_memory_stays_small_whatever_a_block_decodes_to() -> None:
    reply: Any = Pieces("gzip, gzip", [gzip.compress(gzip.compress(bytes(ZEROS)))])
    decoding, view, total = DecodedReply(reply), memoryview(bytearray(BLOCK)), 0
    tracemalloc.start()
    try:
        while length := decoding.read(view):
            total += length
        assert tracemalloc.get_traced_memory()[1] < 20 * BLOCK
    finally:
        tracemalloc.stop()
    assert total == ZEROS


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (None, ()),
        ("gzip", ("gzip",)),
        (" X-Gzip ,deflate", ("gzip", "deflate")),
        ("identity, gzip", ("gzip",)),
        ("aws-chunked,gzip", ("gzip",)),
        (",,", ()),
        ("UTF-8", ()),
    ],
)
def test_codings_are_read(value: str | None, names: tuple[str, ...]) -> None:
    assert codings(value) == names


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("f.gz", None, CodingAction.KEEP),
        ("f.gzx", None, CodingAction.DECODE),
        ("gz", None, CodingAction.DECODE),
        ("f.html", "text/html", CodingAction.DECODE),
        ("f.tar", "application/x-tar", CodingAction.DECODE),
        ("f.tar", "application/x-gzip", CodingAction.KEEP),
        ("f.br", None, CodingAction.DECODE),  # packed by gzip once more
    ],
)
def test_name_and_media_type_say_what_is_meant(name: str, kind: str | None, expected: CodingAction) -> None:
    resource = RemoteResource(content_encoding="gzip", content_type=kind)
    assert coding_action("auto", resource, [f"http://h/{name}?a=x.gz"], "file") is expected
    assert coding_action("auto", resource, ["http://h.gz/"], name) is expected


@pytest.mark.parametrize(
    ("wish", "coding", "name"),
    [("auto", None, "f"), ("keep", "gzip", "f"), ("refuse", None, "f"), ("auto", "gzip", "f.gz")],
)
def test_a_body_that_is_not_to_be_decoded_is_kept(wish: str, coding: str | None, name: str) -> None:
    assert coding_action(wish, RemoteResource(content_encoding=coding), [f"http://h/{name}"], name) is CodingAction.KEEP


class Blocks:
    """A reply whose body comes in these blocks."""

    status, url = 200, "http://h/f"

    def __init__(self, headers: dict[str, str], *blocks: bytes) -> None:
        self.headers = {"Content-Encoding": "gzip", **headers}
        self.is_closed = False
        self._blocks = [*blocks, b""]

    def read(self, view: memoryview) -> int:
        block = self._blocks.pop(0)
        view[: len(block)] = block
        return len(block)

    def close(self) -> None:
        self.is_closed = True


FRAMED = [{"Content-Length": "0"}, {"Transfer-Encoding": "chunked"}]


@pytest.mark.parametrize("headers", FRAMED)
def test_a_body_that_is_known_to_be_empty_is_the_empty_file(headers: dict[str, str]) -> None:
    reply: Any = Blocks(headers)
    decoded = DecodedReply(reply)
    assert (decoded.read(memoryview(bytearray(100))), reply.is_closed) == (0, False)
    decoded.close()
    assert reply.is_closed


def test_a_body_of_unknown_length_must_begin() -> None:
    reply: Any = Blocks({})
    with pytest.raises(errors.ShortBody, match="ended before the encoded body began"):
        DecodedReply(reply).read(memoryview(bytearray(100)))
    reply = Blocks({}, gzip.compress(b"abc"))
    view, decoded = memoryview(bytearray(100)), DecodedReply(reply)
    assert (decoded.read(view), bytes(view[:3]), decoded.read(view)) == (3, b"abc", 0)
