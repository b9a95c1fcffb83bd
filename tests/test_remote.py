"""What is known of the remote: validators, and whether two answers are of one version."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone

import pytest

from dlpool.transfer.http.remote_resource import RemoteResource, ValidatorMatch

MODIFIED = "Mon, 06 May 2024 07:08:09 GMT"
LATER = "Mon, 06 May 2024 07:08:10 GMT"
SETTLED = "Mon, 06 May 2024 07:09:09 GMT"  # MODIFIED and 60 s
UNSETTLED = "Mon, 06 May 2024 07:09:08 GMT"
NOW = datetime(2024, 5, 6, 7, 9, 8, tzinfo=timezone.utc)
SAME, CHANGED, UNKNOWN = ValidatorMatch.SAME, ValidatorMatch.CHANGED, ValidatorMatch.UNKNOWN


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
    expected = RemoteResource(
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
    assert RemoteResource.from_headers(headers, 17) == expected


def test_what_is_not_said_is_not_known() -> None:
    assert RemoteResource.from_headers({}, None) == RemoteResource()


@pytest.mark.parametrize("value", ["bytes", "", "items", "none, bytes"])
def test_only_none_refuses_ranges(value: str) -> None:
    assert not RemoteResource.from_headers({"Accept-Ranges": value}, 1).refuses_ranges


@pytest.mark.parametrize("value", ["", "identity", " Identity "])
def test_identity_is_no_encoding(value: str) -> None:
    assert RemoteResource.from_headers({"Content-Encoding": value}, 1).content_encoding is None


# --- validators ---


@pytest.mark.parametrize(
    ("resource", "expected"),
    [
        (RemoteResource(etag='"abc"'), '"abc"'),
        (RemoteResource(etag='"abc"', last_modified=MODIFIED, date=LATER), '"abc"'),
        (RemoteResource(etag='W/"abc"'), None),
        (RemoteResource(etag='W/"abc"', last_modified=MODIFIED, date=LATER), None),
        (RemoteResource(etag="abc", last_modified=MODIFIED, date=LATER), None),
        (RemoteResource(last_modified=MODIFIED, date=LATER), MODIFIED),
        (RemoteResource(last_modified=MODIFIED, date=MODIFIED), None),
        (RemoteResource(last_modified=LATER, date=MODIFIED), None),
        (RemoteResource(last_modified=MODIFIED), None),
        (RemoteResource(last_modified="yesterday", date=LATER), None),
        (RemoteResource(last_modified=MODIFIED, date="today"), None),
        (RemoteResource(size=17), None),
    ],
)
def test_if_range_holds_a_strong_validator_or_is_not_sent(resource: RemoteResource, expected: str | None) -> None:
    assert resource.if_range == expected


@pytest.mark.parametrize(
    ("resource", "expected"),
    [
        (RemoteResource(etag='"abc"'), True),
        (RemoteResource(last_modified=MODIFIED, date=SETTLED), True),
        (RemoteResource(etag='W/"abc"', last_modified=MODIFIED, date=SETTLED), True),
        (RemoteResource(last_modified="Monday, 06-May-24 07:08:09 GMT", date=SETTLED), True),
        (RemoteResource(last_modified="Mon May  6 07:08:09 2024", date=SETTLED), True),
        (RemoteResource(last_modified=MODIFIED), False),
        (RemoteResource(last_modified=MODIFIED, date="today"), False),
        (RemoteResource(last_modified=MODIFIED, date=""), False),
        (RemoteResource(last_modified=MODIFIED, date=UNSETTLED), False),
        (RemoteResource(last_modified=MODIFIED, date=MODIFIED), False),
        (RemoteResource(last_modified=LATER, date=MODIFIED), False),
        (RemoteResource(last_modified=MODIFIED, date=SETTLED, seen_at=NOW), False),
        (RemoteResource(last_modified="Thu, 01 Jan 1970 00:00:00 GMT", date=SETTLED), False),
        (RemoteResource(last_modified="Tue, 01 Jan 1980 00:00:00 GMT", date=SETTLED), False),
        (RemoteResource(last_modified=f"{MODIFIED}, {MODIFIED}", date=SETTLED), False),
        (RemoteResource(last_modified="Mon, 06 May 2024 07:08:09", date=SETTLED), False),
        (RemoteResource(last_modified="2024-05-06T07:08:09Z", date=SETTLED), False),
        *[
            (RemoteResource(last_modified=text, date=SETTLED), False)
            for text in ("", "0", "-1", "GMT", "yesterday", "None")
        ],
        (RemoteResource(etag='W/"abc"'), False),
        (RemoteResource(etag="abc"), False),
        (RemoteResource(size=17), False),
    ],
)
def test_a_strong_etag_or_a_settled_date_tells_versions_apart(resource: RemoteResource, expected: bool) -> None:
    assert resource.has_validator is expected


# --- comparing ---


@pytest.mark.parametrize(
    ("known", "other", "verdict"),
    [
        # a strong entity tag decides alone
        (RemoteResource(5, '"a"'), RemoteResource(5, '"a"'), SAME),
        (RemoteResource(5, '"a"', MODIFIED), RemoteResource(5, '"a"', LATER), SAME),
        (RemoteResource(5, '"a"'), RemoteResource(None, '"a"'), SAME),
        (RemoteResource(None, '"a"'), RemoteResource(5, '"a"'), SAME),
        (RemoteResource(5, '"a"', MODIFIED), RemoteResource(5, '"b"', MODIFIED), CHANGED),
        (RemoteResource(5, '"a"'), RemoteResource(6, '"a"'), CHANGED),
        # one that vanished proves nothing, whatever else is said
        (RemoteResource(5, '"a"'), RemoteResource(5), UNKNOWN),
        (RemoteResource(5, '"a"', MODIFIED), RemoteResource(5, None, MODIFIED), UNKNOWN),
        (RemoteResource(5, '"a"', MODIFIED), RemoteResource(6, None, LATER), UNKNOWN),
        (RemoteResource(5, '"a"'), RemoteResource(5, 'W/"a"'), UNKNOWN),
        # else the modification date with the size
        (RemoteResource(5, None, MODIFIED), RemoteResource(5, None, MODIFIED), SAME),
        (RemoteResource(5, None, MODIFIED), RemoteResource(None, None, MODIFIED), SAME),
        (RemoteResource(5, None, MODIFIED), RemoteResource(5, None, LATER), CHANGED),
        (RemoteResource(5, None, MODIFIED), RemoteResource(6, None, MODIFIED), CHANGED),
        (RemoteResource(5, None, MODIFIED), RemoteResource(5), UNKNOWN),
        (RemoteResource(5, None, MODIFIED), RemoteResource(6), UNKNOWN),
        # another weak tag is another version, whatever the date says
        (RemoteResource(5, 'W/"a"', MODIFIED), RemoteResource(5, 'W/"b"', MODIFIED), CHANGED),
        (RemoteResource(5, 'W/"a"', MODIFIED, SETTLED), RemoteResource(5, 'W/"b"', MODIFIED, SETTLED), CHANGED),
        (RemoteResource(5, 'W/"a"', MODIFIED), RemoteResource(5, '"b"', MODIFIED), CHANGED),
        (RemoteResource(5, '"a"', MODIFIED), RemoteResource(5, 'W/"b"', MODIFIED), CHANGED),
        (RemoteResource(5, 'W/"a"', MODIFIED), RemoteResource(5, 'W/"a"', LATER), CHANGED),
        (RemoteResource(5, 'W/"a"', MODIFIED), RemoteResource(5, 'W/"a"', MODIFIED), SAME),
        (RemoteResource(5, 'W/"a"', MODIFIED), RemoteResource(5, None, MODIFIED), SAME),
        (RemoteResource(5, 'W/"a"', MODIFIED), RemoteResource(5, 'W/"a"'), UNKNOWN),
        # a weak tag that vanished, and nothing else to compare
        (RemoteResource(5, 'W/"a"'), RemoteResource(5), UNKNOWN),
        # a date that is none contradicts, but its absence says nothing
        (RemoteResource(5, None, "0"), RemoteResource(5, None, "1"), CHANGED),
        (RemoteResource(5, None, "0"), RemoteResource(5, None, MODIFIED), CHANGED),
        (RemoteResource(5, None, "0"), RemoteResource(5), SAME),
        (RemoteResource(5, None, MODIFIED, MODIFIED), RemoteResource(5), UNKNOWN),
        # a digest of the same algorithm
        (RemoteResource(5, digest=("md5", "1")), RemoteResource(5, digest=("md5", "1")), SAME),
        (RemoteResource(5, digest=("md5", "1")), RemoteResource(5, digest=("md5", "2")), CHANGED),
        (RemoteResource(5, digest=("md5", "1")), RemoteResource(6, digest=("md5", "1")), CHANGED),
        (RemoteResource(5, digest=("md5", "1")), RemoteResource(5, digest=("sha256", "2")), SAME),
        (RemoteResource(5, '"a"', digest=("md5", "1")), RemoteResource(5, digest=("md5", "1")), SAME),
        (RemoteResource(5, '"a"', digest=("md5", "1")), RemoteResource(5, '"b"', digest=("md5", "1")), CHANGED),
        (
            RemoteResource(5, None, MODIFIED, digest=("md5", "1")),
            RemoteResource(5, None, LATER, digest=("md5", "1")),
            CHANGED,
        ),
        # else a weak tag with the size
        (RemoteResource(5, 'W/"a"'), RemoteResource(5, 'W/"a"'), SAME),
        (RemoteResource(5, 'W/"a"'), RemoteResource(5, 'W/"b"'), CHANGED),
        (RemoteResource(5, 'W/"a"'), RemoteResource(6, 'W/"a"'), CHANGED),
        (RemoteResource(5, 'W/"a"'), RemoteResource(5, '"a"'), SAME),
        # else the size
        (RemoteResource(5), RemoteResource(5), SAME),
        (RemoteResource(5), RemoteResource(None), SAME),
        (RemoteResource(5), RemoteResource(6), CHANGED),
        # without a validator, another kind of content is not the file
        (RemoteResource(5, content_type="a/b"), RemoteResource(5, content_type="text/html"), UNKNOWN),
        (RemoteResource(5, content_type="a/b"), RemoteResource(6, content_type="text/html"), UNKNOWN),
        (RemoteResource(5, content_type="a/b"), RemoteResource(5), SAME),
        (RemoteResource(5, '"a"', content_type="a/b"), RemoteResource(5, '"a"', content_type="text/html"), SAME),
    ],
)
def test_only_a_new_validator_of_the_same_kind_proves_a_change(
    known: RemoteResource, other: RemoteResource, verdict: ValidatorMatch
) -> None:
    assert known.compare(other) is verdict


# --- what a server has compared itself ---


@pytest.mark.parametrize(
    ("known", "other", "verdict"),
    [
        # a 206 to If-Range need not repeat what it was asked by (RFC 9110 section 15.3.7)
        (RemoteResource(5, '"a"', MODIFIED), RemoteResource(5), SAME),
        (RemoteResource(5, '"a"', MODIFIED), RemoteResource(5, None, MODIFIED), SAME),
        (RemoteResource(5, '"a"'), RemoteResource(None), SAME),
        (RemoteResource(5, '"a"'), RemoteResource(5, 'W/"a"'), SAME),
        (RemoteResource(5, None, MODIFIED, LATER), RemoteResource(5), SAME),
        (RemoteResource(5, None, MODIFIED, LATER, content_type="a/b"), RemoteResource(5, content_type="c/d"), SAME),
        # but what it says must not be another
        (RemoteResource(5, '"a"', MODIFIED), RemoteResource(5, '"b"'), CHANGED),
        (RemoteResource(5, '"a"', MODIFIED), RemoteResource(5, 'W/"b"'), CHANGED),
        (RemoteResource(5, '"a"', MODIFIED), RemoteResource(5, None, LATER), CHANGED),
        (RemoteResource(5, '"a"', MODIFIED), RemoteResource(6), CHANGED),
        (RemoteResource(5, None, MODIFIED, LATER), RemoteResource(5, None, LATER), CHANGED),
        (RemoteResource(5, None, MODIFIED, LATER), RemoteResource(6), CHANGED),
    ],
)
def test_a_confirmed_answer_is_the_same_unless_it_says_otherwise(
    known: RemoteResource, other: RemoteResource, verdict: ValidatorMatch
) -> None:
    assert known.compare(other, is_confirmed=True) is verdict


# --- what is proven ---

ETAGS = {"strong": '"a"', "weak": 'W/"a"', "none": None}
DATES: dict[str, tuple[str | None, str | None]] = {
    "settled": (MODIFIED, SETTLED),
    "fresh": (MODIFIED, UNSETTLED),
    "future": (LATER, MODIFIED),
    "without Date": (MODIFIED, None),
    "invalid": ("0", SETTLED),
    "none": (None, SETTLED),
}


@pytest.mark.parametrize("size", [5, None])
@pytest.mark.parametrize("dates", DATES)
@pytest.mark.parametrize("etag", ETAGS)
def test_only_a_strong_etag_or_a_settled_date_with_the_size_proves(etag: str, dates: str, size: int | None) -> None:
    modified, date = DATES[dates]
    known = RemoteResource(5, ETAGS[etag], modified, date)
    other = RemoteResource(size, ETAGS[etag], modified, SETTLED)
    is_proven = etag == "strong" or (dates == "settled" and size is not None)
    assert known.compare(other) is SAME
    assert known.proves_same(other) is is_proven


@pytest.mark.parametrize("changed", ["etag", "date", "size"])
@pytest.mark.parametrize("dates", DATES)
@pytest.mark.parametrize("etag", ETAGS)
def test_nothing_proves_that_another_version_is_the_same(etag: str, dates: str, changed: str) -> None:
    modified, date = DATES[dates]
    known = RemoteResource(5, ETAGS[etag], modified, date)
    other = {
        "etag": replace(known, etag=(known.etag or '""').replace("a", "b")),
        "date": replace(known, last_modified="Tue, 07 May 2024 07:08:09 GMT"),
        "size": replace(known, size=6),
    }[changed]
    is_told = not (changed == "etag" and etag == "none") and not (
        changed == "date" and (etag == "strong" or modified is None)
    )
    assert known.compare(other) is (CHANGED if is_told else SAME)
    assert known.proves_same(other) is (not is_told and (etag == "strong" or dates == "settled"))


def test_a_digest_of_the_file_proves() -> None:
    known = RemoteResource(5, digest=("sha256", "1"))
    assert known.proves_same(RemoteResource(5, digest=("sha256", "1")))
    assert not known.proves_same(RemoteResource(5, digest=("sha256", "2")))
    assert not known.proves_same(RemoteResource(5, digest=("md5", "1")))
    assert not known.proves_same(RemoteResource(5))


@pytest.mark.parametrize(
    ("answer", "known", "expected"),
    [
        (RemoteResource(), RemoteResource(5, '"a"', MODIFIED, SETTLED), RemoteResource(5, '"a"', MODIFIED, SETTLED)),
        (RemoteResource(5, 'W/"a"'), RemoteResource(5, '"a"'), RemoteResource(5, '"a"')),
        (RemoteResource(5, '"a"'), RemoteResource(5, 'W/"a"'), RemoteResource(5, '"a"')),
        (RemoteResource(5, 'W/"a"'), RemoteResource(5), RemoteResource(5, 'W/"a"')),
        (
            RemoteResource(5, None, None, LATER),
            RemoteResource(5, None, MODIFIED, SETTLED),
            RemoteResource(5, None, MODIFIED, SETTLED),
        ),
        (
            RemoteResource(5, None, MODIFIED, LATER),
            RemoteResource(5, None, MODIFIED, None),
            RemoteResource(5, None, MODIFIED, LATER),
        ),
        (
            RemoteResource(5, date=LATER, host="b"),
            RemoteResource(5, content_type="a/b", digest=("md5", "1"), host="a"),
            RemoteResource(5, content_type="a/b", digest=("md5", "1"), host="b"),
        ),
    ],
)
def test_an_answer_of_the_same_version_is_completed_by_what_is_known(
    answer: RemoteResource, known: RemoteResource, expected: RemoteResource
) -> None:
    assert answer.completed_by(known) == expected
