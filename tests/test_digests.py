"""The digests that servers send are verified if they cover the complete file, and only then."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlpool import errors
from dlpool.transfer.http.digests import file_digest
from dlpool.transfer.http.header_fields import HeaderFields
from tests.conftest import Fetcher, sha256
from tests.handlers import DATA, OTHER, SIZE, Serve, check_file
from tests.origin import Connection, File, Request
from tests.processes import run

ALGORITHMS = {"md5": "md5", "sha": "sha1", "sha-256": "sha256", "sha-512": "sha512"}


def b64(algorithm: str, data: bytes) -> str:
    return base64.b64encode(hashlib.new(algorithm, data).digest()).decode()


def fields(data: bytes) -> dict[str, tuple[dict[str, str], str]]:
    """What servers may say of the whole file, and the algorithm that it is verified by."""
    said = {name: b64(algorithm, data) for name, algorithm in ALGORITHMS.items()}
    return {
        "Digest SHA-256": ({"Digest": f"SHA-256={said['sha-256']}"}, "sha256"),
        "Digest sha-512": ({"Digest": f"sha-512={said['sha-512']}"}, "sha512"),
        "Digest MD5": ({"Digest": f"MD5={said['md5']}"}, "md5"),
        "Digest SHA": ({"Digest": f"SHA={said['sha']}"}, "sha1"),
        "Digest, several": ({"Digest": f"md5={said['md5']}, SHA-256={said['sha-256']},crc32c=AAAAAA=="}, "sha256"),
        "Repr-Digest": ({"Repr-Digest": f"sha-256=:{said['sha-256']}:"}, "sha256"),
        "Repr-Digest sha-512": ({"Repr-Digest": f"sha-512=:{said['sha-512']}:;a=1"}, "sha512"),
        "Repr-Digest md5": ({"Repr-Digest": f"md5=:{said['md5']}:"}, "md5"),
        "x-goog-hash": ({"x-goog-hash": f"crc32c=AAAAAA==,md5={said['md5']}"}, "md5"),
        "x-goog-hash, spaced": ({"X-Goog-Hash": f"crc32c=AAAAAA==, md5={said['md5']}"}, "md5"),
        "x-amz-checksum-sha256": ({"x-amz-checksum-sha256": said["sha-256"]}, "sha256"),
        "x-amz-checksum-sha1": ({"x-amz-checksum-sha1": said["sha"], "x-amz-checksum-type": "FULL_OBJECT"}, "sha1"),
        "x-ms-blob-content-md5": ({"x-ms-blob-content-md5": said["md5"]}, "md5"),
    }


def of_content(data: bytes) -> dict[str, tuple[dict[str, str], str]]:
    """The same of the content of one answer."""
    return {
        "Content-MD5": ({"Content-MD5": b64("md5", data)}, "md5"),
        "Content-Digest": ({"Content-Digest": f"sha-256=:{b64('sha256', data)}:"}, "sha256"),
        "Content-Digest sha-512": ({"Content-Digest": f"sha-512=:{b64('sha512', data)}:"}, "sha512"),
    }


RIGHT, WRONG = fields(DATA), fields(OTHER)
RIGHT_CONTENT, WRONG_CONTENT = of_content(DATA), of_content(OTHER)
EVERY = {**WRONG, **WRONG_CONTENT}


# --- what is read ---


@pytest.mark.parametrize("is_whole", [True, False])
@pytest.mark.parametrize("kind", RIGHT)
def test_a_digest_of_the_file_is_read_of_any_answer(kind: str, is_whole: bool) -> None:
    headers, algorithm = RIGHT[kind]
    expected = (algorithm, hashlib.new(algorithm, DATA).hexdigest())
    assert file_digest(HeaderFields(headers.items()), is_complete=is_whole) == expected


@pytest.mark.parametrize("kind", RIGHT_CONTENT)
def test_a_digest_of_content_is_one_of_the_file_if_that_is_all_of_it(kind: str) -> None:
    headers, algorithm = RIGHT_CONTENT[kind]
    expected = (algorithm, hashlib.new(algorithm, DATA).hexdigest())
    assert file_digest(HeaderFields(headers.items()), is_complete=True) == expected
    assert file_digest(HeaderFields(headers.items()), is_complete=False) is None


MD5, SHA_256 = b64("md5", DATA), b64("sha256", DATA)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"ETag": f'"{hashlib.md5(DATA).hexdigest()}"'},
        {"ETag": f'"{hashlib.md5(DATA).hexdigest()}-3"'},
        {"Digest": f"SHA-256={sha256(DATA)}"},
        {"Digest": f"SHA-256={MD5}"},
        {"Digest": f"sha256={SHA_256}"},
        {"Digest": f"crc32c={MD5}"},
        {"Digest": "SHA-256="},
        {"Digest": SHA_256},
        {"Digest": "SHA-256=:" + SHA_256 + ":"},
        {"Repr-Digest": f"sha-256={SHA_256}"},
        {"Content-MD5": hashlib.md5(DATA).hexdigest()},
        {"Content-MD5": SHA_256},
        {"x-goog-hash": "crc32c=AAAAAA=="},
        {"x-goog-hash": f"md5={MD5}", "x-goog-stored-content-encoding": "gzip"},
        {"x-amz-checksum-sha256": f"{SHA_256}-7"},
        {"x-amz-checksum-sha256": SHA_256, "x-amz-checksum-type": "COMPOSITE"},
        {"x-amz-checksum-sha256": SHA_256, "x-amz-mp-parts-count": "7"},
        {"x-amz-checksum-crc32": "AAAAAA=="},
        {"x-amz-checksum-crc64nvme": "AAAAAAAAAAA="},
    ],
)
def test_what_is_no_digest_of_the_file_is_passed_over(headers: dict[str, str]) -> None:
    assert file_digest(HeaderFields(headers.items()), is_complete=True) is None


@pytest.mark.parametrize("encoding", ["gzip", "identity"])
def test_googles_hash_is_one_of_what_is_stored(encoding: str) -> None:
    headers = {"x-goog-hash": f"md5={MD5}", "x-goog-stored-content-encoding": encoding, "Content-Encoding": encoding}
    assert file_digest(headers, is_complete=True) == ("md5", hashlib.md5(DATA).hexdigest())


def test_repeated_fields_are_one_list() -> None:
    headers = HeaderFields(
        [("x-goog-hash", "crc32c=AAAAAA=="), ("x-goog-hash", f"md5={MD5}"), ("Digest", f"SHA={b64('sha1', DATA)}")]
    )
    assert file_digest(headers, is_complete=False) == ("sha1", hashlib.sha1(DATA).hexdigest())


NAMES = [
    "Repr-Digest",
    "Digest",
    "x-goog-hash",
    "x-amz-checksum-sha256",
    "x-amz-checksum-sha1",
    "x-ms-blob-content-md5",
    "Content-Digest",
    "Content-MD5",
]


@given(
    st.dictionaries(
        st.sampled_from(NAMES),
        st.sampled_from([MD5, SHA_256, "md5=", "SHA-256=", ":", ",", "="]) | st.text(max_size=40),
    )
)
def test_no_field_makes_the_reader_raise(headers: dict[str, str]) -> None:
    found = file_digest(headers, is_complete=True)
    assert found is None or len(bytes.fromhex(found[1])) == hashlib.new(found[0]).digest_size


@given(st.permutations(sorted(RIGHT)), st.integers(1, 5))
def test_of_several_the_strongest_is_taken(kinds: list[str], number: int) -> None:
    chosen = [RIGHT[kind] for kind in kinds[:number]]
    order = ["sha512", "sha256", "sha1", "md5"]
    headers: dict[str, str] = {}
    for said, _algorithm in chosen:
        headers |= said
    present = {algorithm for said, algorithm in chosen if said.items() <= headers.items()}
    found = file_digest(HeaderFields(headers.items()), is_complete=True)
    assert found is not None
    assert order.index(found[0]) <= min(order.index(algorithm) for algorithm in present)


# --- what is verified ---


@pytest.mark.parametrize("serves_ranges", [True, False], ids=["ranges", "one body"])
@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_digest_is_found_and_nothing_stays(
    kind: str, serves_ranges: bool, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    origin = serve(File(DATA, extra=WRONG[kind][0], serves_ranges=serves_ranges))
    with pytest.raises(errors.ChecksumMismatch) as raised:
        fetch(f"{origin.url}/f", tmp_path / "f")
    assert raised.value.exit_code == 11
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("serves_ranges", [True, False], ids=["ranges", "one body"])
@pytest.mark.parametrize("kind", RIGHT)
def test_a_right_digest_is_verified_and_said(
    kind: str, serves_ranges: bool, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    headers, algorithm = RIGHT[kind]
    origin = serve(File(DATA, extra=headers, serves_ranges=serves_ranges))
    outcome = fetch(f"{origin.url}/f", tmp_path / "f")
    check_file(tmp_path / "f")
    assert outcome.checksum == f"{algorithm}:{hashlib.new(algorithm, DATA).hexdigest()}"


@pytest.mark.parametrize("serves_ranges", [True, False], ids=["one range", "one body"])
@pytest.mark.parametrize("kind", WRONG_CONTENT)
def test_a_wrong_digest_of_all_content_is_found(
    kind: str, serves_ranges: bool, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    origin = serve(File(DATA[:60_000], extra=WRONG_CONTENT[kind][0], serves_ranges=serves_ranges))
    with pytest.raises(errors.ChecksumMismatch):
        fetch(f"{origin.url}/f", tmp_path / "f")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", RIGHT_CONTENT)
def test_a_right_digest_of_all_content_is_verified(kind: str, serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    headers, algorithm = RIGHT_CONTENT[kind]
    origin = serve(File(DATA, extra=headers, serves_ranges=False))
    assert str(fetch(f"{origin.url}/f", tmp_path / "f").checksum).startswith(f"{algorithm}:")


def with_digests_of_parts(make: Callable[[bytes], dict[str, str]]) -> Callable[[Request, Connection], None]:
    """A server whose digests are of the bytes of each answer."""

    def handle(request: Request, connection: Connection) -> None:
        span = request.range
        start, end = (span.start, min(SIZE, span.end or SIZE)) if span else (0, SIZE)
        File(DATA, extra=make(DATA[start:end]))(request, connection)

    return handle


@pytest.mark.parametrize("kind", [*RIGHT_CONTENT, *RIGHT])
def test_digests_of_parts_are_not_taken_for_that_of_the_file(
    kind: str, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    """Some servers make those of the file of each part, too: one that changes within a version is not of the file."""
    origin = serve(with_digests_of_parts(lambda part: {**fields(part), **of_content(part)}[kind][0]))
    assert fetch(f"{origin.url}/f", tmp_path / "f").checksum is None
    check_file(tmp_path / "f")


@pytest.mark.parametrize("kind", EVERY)
def test_nothing_is_verified_where_the_user_wants_none(kind: str, serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    origin = serve(File(DATA, extra=EVERY[kind][0], serves_ranges=False))
    assert fetch(f"{origin.url}/f", tmp_path / "f", verify=False).checksum is None
    check_file(tmp_path / "f")


def test_the_checksum_of_the_job_is_the_one_that_counts(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    origin = serve(File(DATA, extra=WRONG["Digest SHA-256"][0]))
    outcome = fetch(f"{origin.url}/f", tmp_path / "f", checksum=f"md5:{hashlib.md5(DATA).hexdigest()}")
    assert outcome.checksum == f"md5:{hashlib.md5(DATA).hexdigest()}"


@pytest.mark.parametrize(
    ("strong", "weak", "is_found"), [(WRONG, RIGHT, True), (RIGHT, WRONG, False)], ids=["wrong sha256", "wrong md5"]
)
def test_of_two_digests_the_stronger_is_verified(
    strong: dict[str, Any], weak: dict[str, Any], is_found: bool, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    origin = serve(File(DATA, extra={**weak["x-goog-hash"][0], **strong["Digest SHA-256"][0]}))
    if is_found:
        with pytest.raises(errors.ChecksumMismatch):
            fetch(f"{origin.url}/f", tmp_path / "f")
    else:
        assert fetch(f"{origin.url}/f", tmp_path / "f").checksum == f"sha256:{sha256(DATA)}"


def test_the_command_ends_with_11_for_a_wrong_digest(serve: Serve, tmp_path: Path) -> None:
    origin = serve(File(DATA, extra=WRONG["Digest MD5"][0]))
    ended = run("fetch", f"{origin.url}/f", tmp_path / "f")
    assert ended.code == 11
    assert "md5" in ended.err
    assert list(tmp_path.iterdir()) == []
