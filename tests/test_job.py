"""Jobs: checksums as people write them."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlpool.errors import UsageError
from dlpool.transfer.job import ALGORITHMS, Checksum


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_has_the_digest_that_hashlib_makes(algorithm: str) -> None:
    digest = hashlib.new(algorithm, b"data").hexdigest()
    assert Checksum.parse(f"{algorithm}:{digest}") == Checksum(algorithm, digest)


@pytest.mark.parametrize("text", ["MD5:" + "AB" * 16, " md5:" + "ab" * 16 + "\n", "Md5:" + "aB" * 16])
def test_case_and_space_around_it_do_not_matter(text: str) -> None:
    assert Checksum.parse(text) == Checksum("md5", "ab" * 16)


def test_a_checksum_is_written_as_it_is_read() -> None:
    text = "sha1:" + "0f" * 20
    assert str(Checksum.parse(text)) == text


@pytest.mark.parametrize("text", ["", ":", "ab" * 16, "crc32:abcdef01", "sha-256:" + "ab" * 32, ":" + "ab" * 16])
def test_an_unknown_algorithm_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="does not begin with one of md5, sha1"):
        Checksum.parse(text)


@pytest.mark.parametrize(
    "digest", ["", "ab" * 15, "ab" * 17, "xy" * 16, "ab " * 16, "\uff10" * 32, "ab" * 8 + ":" + "ab" * 8]
)
def test_a_digest_of_another_length_or_alphabet_is_refused(digest: str) -> None:
    with pytest.raises(UsageError, match="has not the 32 hexadecimal digits of md5"):
        Checksum.parse(f"md5:{digest}")


@given(st.text(st.characters()))
def test_any_text_is_a_checksum_or_a_usage_error(text: str) -> None:
    for candidate in (text, f"md5:{text}"):
        with pytest.raises(UsageError):
            Checksum.parse(candidate)
