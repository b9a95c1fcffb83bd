"""Header parsing: what servers send becomes a value or nothing, never an exception."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from urllib.parse import quote

import pytest
from hypothesis import event, example, given, settings
from hypothesis import strategies as st

from dlpool.transfer.http.headers import (
    ContentRange,
    content_disposition_name,
    content_length,
    content_range,
    exact_date,
    http_date,
    repr_digest,
    retry_after_s,
    strong_etag,
)

NOW = datetime(2024, 5, 6, 7, 8, 9, tzinfo=timezone.utc)
SHA_256 = "sha-256=:LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=:"
SHA_512 = "sha-512=:" + "A" * 86 + "==:"


def _retry_after_now(value: str | None) -> float | None:
    return retry_after_s(value, NOW)


PARSERS: list[Callable[[str], object]] = [
    content_range,
    http_date,
    _retry_after_now,
    strong_etag,
    repr_digest,
    content_disposition_name,
]

_FRAGMENTS = [
    "bytes",
    "bytes ",
    "*",
    "/",
    "-",
    "0",
    "9" * 30,
    ",",
    ";",
    "=",
    '"',
    "\\",
    "'",
    "''",
    "%",
    "%ff",
    "W/",
    ":",
    " ",
    "UTF-8",
    "iso-8859-1",
    "filename",
    "filename*",
    "attachment",
    "sha-256",
    "Mon, ",
    "01 Jan ",
    "2024 ",
    "00:00:00",
    " GMT",
    " +9999",
    "-0000",
    "\0",
    "\n",
    "\x80",
    "\ud800",
    "é",
]
ANY_TEXT = st.text(st.characters(), max_size=60) | st.lists(st.sampled_from(_FRAGMENTS), max_size=14).map("".join)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bytes 0-0/1", ContentRange(0, 1, 1)),
        ("bytes 5-9/10", ContentRange(5, 10, 10)),
        ("bytes 5-9/*", ContentRange(5, 10, None)),
        ("BYTES 5-9/10", ContentRange(5, 10, 10)),
        ("bytes  5-9/10", ContentRange(5, 10, 10)),
        (" bytes 5-9/10 ", ContentRange(5, 10, 10)),
        ("bytes */1234", ContentRange(None, None, 1234)),
        ("bytes */0", ContentRange(None, None, 0)),
        ("bytes */*", None),
        ("bytes 9-5/10", None),
        ("bytes 5-10/10", None),
        ("bytes 0-0/0", None),
        ("items 0-4/5", None),
        ("bytes=0-4/5", None),
        ("bytes 0-4", None),
        ("bytes -4/5", None),
        ("bytes 0-/5", None),
        ("bytes +0-4/5", None),
        ("bytes 0 - 4/5", None),
        ("bytes 0-4/5, bytes 5-9/10", None),
        ("bytes 0-4/5\nX: y", None),
        (f"bytes 0-{'9' * 19}/*", None),
        ("bytes \u0660-\u0664/\u0665", None),
        ("", None),
    ],
)
def test_a_content_range_is_exact_or_nothing(text: str, expected: ContentRange | None) -> None:
    assert content_range(text) == expected


@given(st.integers(0, 10**15), st.integers(1, 10**15), st.integers(0, 10**15))
def test_every_right_content_range_is_read(start: int, length: int, behind: int) -> None:
    end = start + length
    total = end + behind
    assert content_range(f"bytes {start}-{end - 1}/{total}") == ContentRange(start, end, total)


@given(st.integers(0, 40), st.integers(0, 40), st.none() | st.integers(0, 40))
def test_a_content_range_is_read_if_it_lies_within_its_total(first: int, last: int, total: int | None) -> None:
    is_sound = first <= last and (total is None or last < total)
    event("sound" if is_sound else "not sound")
    expected = ContentRange(first, last + 1, total) if is_sound else None
    assert content_range(f"bytes {first}-{last}/{'*' if total is None else total}") == expected


BROKEN = st.sampled_from([" ", "-", "+", "*", "/", ",", "0x", "e", ".", "_", "\u0661", "\n", "\0", "bytes "])


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 30), BROKEN)
def test_a_content_range_with_one_character_more_is_read_alike_or_not_at_all(
    first: int, length: int, behind: int, at: int, more: str
) -> None:
    text = f"{first}-{first + length}/{first + length + 1 + behind}"
    found = content_range(f"bytes {text[:at]}{more}{text[at:]}")
    is_harmless = (at >= len(text) and not more.strip()) or (at == 0 and more == " ")
    assert found == (ContentRange(first, first + length + 1, first + length + 1 + behind) if is_harmless else None)


@pytest.mark.parametrize(
    ("value", "expected"), [(None, None), ("0", 0), ("17", 17), (" 17 ", 17), ("17, 17", 17), ("17,17 , 17", 17)]
)
def test_a_content_length_repeated_alike_counts_once(value: str | None, expected: int | None) -> None:
    assert content_length(value) == expected


@pytest.mark.parametrize(
    "value", ["", "17, 18", "17,", "-1", "+1", "1.5", "0x10", "1_000", "17 18", "9" * 19, "\u0661", "\xb2", "seven"]
)
def test_a_content_length_that_is_no_one_number_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="Content-Length is"):
        content_length(value)


@given(st.lists(st.integers(0, 10**17), min_size=1, max_size=4), st.sampled_from([",", ", ", " ,\t", " , "]))
def test_a_content_length_is_the_one_number_of_its_list(numbers: list[int], comma: str) -> None:
    for listed in (numbers, [numbers[0]] * len(numbers)):
        text = comma.join(str(number) for number in listed)
        if len(set(listed)) == 1:
            assert content_length(text) == listed[0]
        else:
            with pytest.raises(ValueError, match="Content-Length is"):
                content_length(text)


@given(ANY_TEXT.filter(lambda text: not re.fullmatch(r"\s*[0-9]{1,18}\s*(,\s*[0-9]{1,18}\s*)*", text)))
def test_any_other_text_is_no_content_length(text: str) -> None:
    with pytest.raises(ValueError, match="Content-Length is"):
        content_length(text)


@pytest.mark.parametrize(
    "text", ["Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"]
)
def test_all_three_forms_of_an_http_date_are_read(text: str) -> None:
    assert http_date(text) == datetime(1994, 11, 6, 8, 49, 37, tzinfo=timezone.utc)


@pytest.mark.parametrize("text", ["Sun, 06 Nov 1994 08:49:37 GMT", "Sun, 06 Nov 1994 10:49:37 +0200"])
def test_an_http_date_is_always_in_utc(text: str) -> None:
    moment = http_date(text)
    assert moment is not None
    assert moment == datetime(1994, 11, 6, 8, 49, 37, tzinfo=timezone.utc)
    assert moment.utcoffset() == timedelta(0)


@pytest.mark.parametrize(
    "text", [None, "", "0", "-1", "yesterday", "Sun, 99 Nov 1994 08:49:37 GMT", "Sun, 06 Nov 1994 25:49:37 GMT"]
)
def test_what_is_no_date_is_nothing(text: str | None) -> None:
    assert http_date(text) is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ("", None),
        ("0", 0.0),
        ("120", 120.0),
        (" 120 ", 120.0),
        ("Mon, 06 May 2024 07:09:09 GMT", 60.0),
        ("Mon, 06 May 2024 07:08:09 GMT", 0.0),
        ("Mon, 06 May 2019 07:08:09 GMT", 0.0),
        ("-5", None),
        ("1.5", None),
        ("soon", None),
        ("9" * 12, None),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str | None, expected: float | None) -> None:
    assert retry_after_s(value, NOW) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ('"abc"', '"abc"'),
        (' "abc" ', '"abc"'),
        ('""', '""'),
        ('"a-b:\xe9"', '"a-b:\xe9"'),
        ('W/"abc"', None),
        ('w/"abc"', None),
        ("abc", None),
        ('"abc', None),
        ('"a"b"', None),
        ('"a b"', None),
        ('"a\nb"', None),
        ('"a", "b"', None),
        ("*", None),
        ("", None),
        (None, None),
    ],
)
def test_only_a_quoted_etag_without_w_is_strong(value: str | None, expected: str | None) -> None:
    assert strong_etag(value) == expected


@given(ANY_TEXT)
def test_a_weak_etag_is_never_strong(text: str) -> None:
    assert strong_etag(f'W/"{text}"') is None


@pytest.mark.parametrize(
    ("value", "algorithm"),
    [
        (SHA_256, "sha256"),
        (SHA_512, "sha512"),
        (f"{SHA_256}, {SHA_512}", "sha512"),
        (f"md5=:AAAA:, {SHA_256}", "sha256"),
        (f"{SHA_256}, sha-512=:AAAA:", "sha256"),
        (f"{SHA_256}, sha-512=:A:", "sha256"),
    ],
)
def test_the_strongest_digest_that_is_well_formed_wins(value: str, algorithm: str) -> None:
    found = repr_digest(value)
    assert found is not None
    assert found[0] == algorithm


def test_a_digest_is_given_as_hex() -> None:
    expected = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e730433629" + "38b9824"
    assert repr_digest(SHA_256) == ("sha256", expected)


@pytest.mark.parametrize(
    "value", [None, "", "md5=:AAAA:", "sha-256=AAAA", "sha-256=::", "unixsum=:AAAA:", "x" + SHA_256]
)
def test_a_digest_that_cannot_be_used_is_nothing(value: str | None) -> None:
    assert repr_digest(value) is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ("", None),
        ("attachment", None),
        ("attachment; filename=", None),
        ('attachment; filename=""', ""),
        ("attachment; filename=a.txt", "a.txt"),
        ('attachment; filename="a b.txt"', "a b.txt"),
        ('attachment; FileName = "a.txt"', "a.txt"),
        ('attachment;filename="a;b.txt"', "a;b.txt"),
        (r'attachment; filename="a\"b\\c"', r'a"b\c'),
        ('attachment; filename="a.txt"; filename="b.txt"', "a.txt"),
        ('attachment; x="; filename=evil"; filename=good', "good"),
        ("attachment; filename*=UTF-8''%e2%82%ac.txt", "€.txt"),
        ("attachment; filename*=utf-8'en'a%20b", "a b"),
        ("attachment; filename*=iso-8859-1''%e9", "é"),
        ("attachment; filename=plain; filename*=UTF-8''better", "better"),
        ("attachment; filename*=UTF-8''better; filename=plain", "better"),
        ("attachment; filename*=UTF-8''%ff; filename=plain", "plain"),
        ("attachment; filename*=koi8-r''%e9; filename=plain", "plain"),
        ("attachment; filename*=nothing; filename=plain", "plain"),
        ('attachment; filename="\xc3\xa9.txt"', "é.txt"),
        ('attachment; filename="\xe9.txt"', "é.txt"),
        ('attachment; filename="../../etc/passwd"', "../../etc/passwd"),
    ],
)
def test_the_name_of_a_content_disposition(value: str | None, expected: str | None) -> None:
    assert content_disposition_name(value) == expected


@given(st.text(min_size=1))
def test_any_name_survives_as_a_quoted_string(name: str) -> None:
    escaped = name.encode().decode("latin-1").replace("\\", r"\\").replace('"', r"\"")
    assert content_disposition_name(f'attachment; filename="{escaped}"') == name


@given(st.text(min_size=1))
def test_any_name_survives_as_an_extended_value(name: str) -> None:
    assert content_disposition_name(f"attachment; filename*=UTF-8''{quote(name, safe='')}") == name


@pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser.__name__)
@given(text=ANY_TEXT)
@example(text="attachment; filename*=utf-8''\ud800")
@settings(max_examples=150, deadline=None)
def test_no_text_makes_a_parser_raise(parser: Callable[[str], object], text: str) -> None:
    parser(text)
    parser(f"attachment; filename*=utf-8''{text}; filename={text}")


@given(st.integers(0, 10**9 - 1), st.sampled_from(["", " ", "\t"]))
def test_a_wait_in_seconds_is_read(seconds: int, space: str) -> None:
    assert retry_after_s(f"{space}{seconds}{space}", NOW) == seconds


@given(st.integers(-(10**9), 10**9))
def test_a_wait_until_a_date_is_never_negative(seconds: int) -> None:
    text = format_datetime(NOW + timedelta(seconds=seconds), usegmt=True)
    assert retry_after_s(text, NOW) == max(0, seconds)


@given(ANY_TEXT)
def test_any_other_text_is_no_wait(text: str) -> None:
    is_one = re.fullmatch(r"\s*[0-9]{1,9}\s*", text) or http_date(text.strip())
    event("a wait" if is_one else "none")
    assert (retry_after_s(text, NOW) is not None) is bool(is_one)


# --- dates that validators are made of ---


@given(st.datetimes(datetime(1990, 1, 1), datetime(2068, 12, 31)), st.integers(0, 2))
def test_each_form_of_an_http_date_is_exact(moment: datetime, form: int) -> None:
    whole = moment.replace(microsecond=0, tzinfo=timezone.utc)
    forms = ["%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %e %H:%M:%S %Y"]
    assert exact_date(whole.strftime(forms[form])) == whole


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "0",
        "-1",
        "GMT",
        "yesterday",
        "2024-05-06T07:08:09Z",
        "Mon, 06 May 2024 07:08:09",
        "Mon, 06 May 2024 07:08:09 +0200",
        "Mon, 06 May 2024 07:08:09 PST",
        "Mon, 06 May 2024 07:08 GMT",
        "Mon, 32 May 2024 07:08:09 GMT",
        "Mon, 06 Foo 2024 07:08:09 GMT",
        "Mon, 06 May 2024 25:08:09 GMT",
        "Mon, 06 May 2024 07:08:09 GMT, Mon, 06 May 2024 07:08:09 GMT",
        "06 May 2024 07:08:09 GMT",
        "1714979289",
    ],
)
def test_what_is_no_http_date_is_not_exact(text: str | None) -> None:
    assert exact_date(text) is None
