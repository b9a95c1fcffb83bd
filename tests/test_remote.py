"""What is known of the remote: validators, and whether two answers are of one version."""

from __future__ import annotations

import pytest

from dlpool.transfer.remote import Resource, Sameness

MODIFIED = "Mon, 06 May 2024 07:08:09 GMT"
LATER = "Mon, 06 May 2024 07:08:10 GMT"
SAME, CHANGED, UNKNOWN = Sameness.SAME, Sameness.CHANGED, Sameness.UNKNOWN


# --- reading an answer ---


def test_all_that_a_download_needs_is_read_from_the_headers() -> None:
    headers = {
        "ETag": '"abc"',
        "Last-Modified": MODIFIED,
        "Date": LATER,
        "Content-Type": "Text/HTML; charset=utf-8",
        "Content-Encoding": "GZip",
        "Content-Disposition": "attachment; filename=a.txt",
        "Repr-Digest": "sha-256=:LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=:",
        "Accept-Ranges": " None ",
    }
    expected = Resource(
        size=17,
        etag='"abc"',
        last_modified=MODIFIED,
        date=LATER,
        content_type="text/html",
        content_encoding="gzip",
        server_name="a.txt",
        digest=("sha256", "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"),
        refuses_ranges=True,
    )
    assert Resource.from_headers(headers, 17) == expected


def test_what_is_not_said_is_not_known() -> None:
    assert Resource.from_headers({}, None) == Resource()


@pytest.mark.parametrize("value", ["bytes", "", "items", "none, bytes"])
def test_only_none_refuses_ranges(value: str) -> None:
    assert not Resource.from_headers({"Accept-Ranges": value}, 1).refuses_ranges


@pytest.mark.parametrize("value", ["", "identity", " Identity "])
def test_identity_is_no_encoding(value: str) -> None:
    assert Resource.from_headers({"Content-Encoding": value}, 1).content_encoding is None


# --- validators ---


@pytest.mark.parametrize(
    ("resource", "expected"),
    [
        (Resource(etag='"abc"'), '"abc"'),
        (Resource(etag='"abc"', last_modified=MODIFIED, date=LATER), '"abc"'),
        (Resource(etag='W/"abc"'), None),
        (Resource(etag='W/"abc"', last_modified=MODIFIED, date=LATER), None),
        (Resource(etag="abc", last_modified=MODIFIED, date=LATER), None),
        (Resource(last_modified=MODIFIED, date=LATER), MODIFIED),
        (Resource(last_modified=MODIFIED, date=MODIFIED), None),
        (Resource(last_modified=LATER, date=MODIFIED), None),
        (Resource(last_modified=MODIFIED), None),
        (Resource(last_modified="yesterday", date=LATER), None),
        (Resource(last_modified=MODIFIED, date="today"), None),
        (Resource(size=17), None),
    ],
)
def test_if_range_holds_a_strong_validator_or_is_not_sent(resource: Resource, expected: str | None) -> None:
    assert resource.if_range == expected


@pytest.mark.parametrize(
    ("resource", "expected"),
    [
        (Resource(etag='"abc"'), True),
        (Resource(last_modified=MODIFIED), True),
        (Resource(etag='W/"abc"'), False),
        (Resource(size=17), False),
    ],
)
def test_a_strong_etag_or_a_date_tells_versions_apart(resource: Resource, expected: bool) -> None:
    assert resource.has_validator is expected


# --- comparing ---


@pytest.mark.parametrize(
    ("known", "other", "verdict"),
    [
        # a strong entity tag decides alone
        (Resource(5, '"a"'), Resource(5, '"a"'), SAME),
        (Resource(5, '"a"', MODIFIED), Resource(5, '"a"', LATER), SAME),
        (Resource(5, '"a"'), Resource(None, '"a"'), SAME),
        (Resource(None, '"a"'), Resource(5, '"a"'), SAME),
        (Resource(5, '"a"', MODIFIED), Resource(5, '"b"', MODIFIED), CHANGED),
        (Resource(5, '"a"'), Resource(6, '"a"'), CHANGED),
        # one that vanished proves nothing, whatever else is said
        (Resource(5, '"a"'), Resource(5), UNKNOWN),
        (Resource(5, '"a"', MODIFIED), Resource(5, None, MODIFIED), UNKNOWN),
        (Resource(5, '"a"', MODIFIED), Resource(6, None, LATER), UNKNOWN),
        (Resource(5, '"a"'), Resource(5, 'W/"a"'), UNKNOWN),
        # else the modification date with the size
        (Resource(5, None, MODIFIED), Resource(5, None, MODIFIED), SAME),
        (Resource(5, None, MODIFIED), Resource(None, None, MODIFIED), SAME),
        (Resource(5, None, MODIFIED), Resource(5, None, LATER), CHANGED),
        (Resource(5, None, MODIFIED), Resource(6, None, MODIFIED), CHANGED),
        (Resource(5, None, MODIFIED), Resource(5), UNKNOWN),
        (Resource(5, None, MODIFIED), Resource(6), UNKNOWN),
        # a weak tag counts for nothing beside a date
        (Resource(5, 'W/"a"', MODIFIED), Resource(5, 'W/"b"', MODIFIED), SAME),
        (Resource(5, 'W/"a"', MODIFIED), Resource(5, 'W/"a"', LATER), CHANGED),
        # else a weak tag with the size
        (Resource(5, 'W/"a"'), Resource(5, 'W/"a"'), SAME),
        (Resource(5, 'W/"a"'), Resource(5, 'W/"b"'), CHANGED),
        (Resource(5, 'W/"a"'), Resource(6, 'W/"a"'), CHANGED),
        (Resource(5, 'W/"a"'), Resource(5, '"a"'), SAME),
        # else the size
        (Resource(5), Resource(5), SAME),
        (Resource(5), Resource(None), SAME),
        (Resource(5), Resource(6), CHANGED),
        # without a validator, another kind of content is not the file
        (Resource(5, content_type="a/b"), Resource(5, content_type="text/html"), UNKNOWN),
        (Resource(5, content_type="a/b"), Resource(6, content_type="text/html"), UNKNOWN),
        (Resource(5, content_type="a/b"), Resource(5), SAME),
        (Resource(5, '"a"', content_type="a/b"), Resource(5, '"a"', content_type="text/html"), SAME),
    ],
)
def test_only_a_new_validator_of_the_same_kind_proves_a_change(
    known: Resource, other: Resource, verdict: Sameness
) -> None:
    assert known.compare(other) is verdict
