"""Every parser of foreign text takes a number of steps that is linear in its length, whatever the text is."""

from __future__ import annotations

import base64
import http.client
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime, timezone
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dlpool.cli import items
from dlpool.engine import names as engine_names
from dlpool.errors import DlpoolError
from dlpool.jobs import job_listing, redis_values
from dlpool.jobs.pushed_job import PushedJob
from dlpool.kinds import parse_duration, parse_size
from dlpool.observe import tracing, values
from dlpool.redaction import is_secret, without_password, without_secrets
from dlpool.transfer.http import credentials, digests, headers, media_types, policy, urls
from dlpool.transfer.http.header_fields import HeaderFields, read_fields
from dlpool.transfer.http.http_client_adapter import StrictResponse
from dlpool.transfer.http.remote_resource import RemoteResource
from dlpool.transfer.http.requests_adapter import CookieJar
from dlpool.transfer.target import names
from dlpool.web import files, forms, same_origin, tus_headers
from dlpool.web.errors import HttpError
from tests.backtracking import Counted, TooManySteps
from tests.metering import Metering
from tests.test_response import Wire

SIZE = 64 * 1024
STEPS_A_CHARACTER = 40
NOW = datetime(2024, 5, 6, 7, 8, 9, tzinfo=timezone.utc)
ACCENTS = "\u0301\u0323"  # of two classes: composing puts them in order


def filled(begin: str, unit: str, end: str = "") -> str:
    """``begin``, as much of ``unit`` as makes 64 KiB of it, and ``end``."""
    return begin + unit * ((SIZE - len(begin) - len(end)) // len(unit)) + end


def _header(text: str) -> None:
    """A header of an answer, as it comes at once and line by line."""
    read_fields(io.BytesIO(text.encode("latin-1") + b"\r\n"), is_lenient=True)
    wire = Wire(b"HTTP/1.1 200 OK\r\n" + text.encode("latin-1") + b"\r\n", 1 << 20)
    StrictResponse(cast(Any, wire), method="GET").begin()


def _chunk(text: str) -> None:
    data = f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{text}".encode("latin-1")
    response = StrictResponse(cast(Any, Wire(data, 1 << 20)), method="GET")
    response.begin()
    response.read()


def _field(name: str) -> Callable[[str], object]:
    """All that is read of an answer with this field."""

    def read(text: str) -> None:
        fields = {"Content-Length": "1", "Date": "Mon, 06 May 2024 07:08:09 GMT", name: text}
        found = RemoteResource.from_headers(fields, 1, seen_at=NOW)
        assert isinstance(found.has_validator, bool)
        assert found.if_range is None or found.proves_same(found)
        names.file_name(found.server_name, "https://example.org/a")

    return read


def _cookie(name: str) -> Callable[[str], object]:
    def read(text: str) -> None:
        fields = HeaderFields([("Set-Cookie", "a=b"), (name, text)])
        CookieJar().store("https://a.example.org/", fields.get_all("Set-Cookie"))

    return read


def _redirect(text: str) -> None:
    url, _ = urls.split_credentials(urls.resolve_location("https://example.org/a/b?c", text))
    assert names.name_from_url(url)
    assert media_types.names_binary(url) is not None
    assert urls.display_url(url)
    assert policy.origin(url)


def _pushed(text: str) -> None:
    PushedJob.parse(text.encode("utf-8", "surrogatepass"))


def _job(member: str) -> Callable[[str], object]:
    def read(text: str) -> None:
        _pushed(json.dumps({"url": "https://a/", "save_path": "b", "dlpool": {member: text}}))

    return read


def _multipart(kind: str) -> Callable[[str], object]:
    def read(text: str) -> None:
        boundary = "b" * 70
        kinds = f"multipart/form-data; boundary={boundary}"
        body = {"type": "", "body": text}.get(kind, f"--{boundary}\r\n{text}\r\n\r\na\r\n--{boundary}--\r\n")
        form = forms.MultipartForm(text if kind == "type" else kinds, 1 << 20, None, lambda _: io.BytesIO())
        form.read(cast(Any, SimpleNamespace(blocks=lambda: [body.encode("latin-1", "replace")])))

    return read


def _get(text: str) -> Any:
    return lambda name: text if name != "Upload-Defer-Length" else None


def _conditions(text: str) -> None:
    request = SimpleNamespace(get_header=lambda name: text if name == "If-Unmodified-Since" else None)
    files.fails_precondition(cast(Any, request), "a", 1.0)


Parser = Callable[[str], object]
SPACES = [filled("a", " ", "b"), filled("", "\t ", "a")]
DIGITS = [filled("", "1", "x"), filled("1.", "1")]
LISTS = [filled("", ","), filled("", "a=b,", "x"), filled("", ";")]
QUOTES = [
    filled('a;filename="', "x"),
    filled('a;filename="', '\\"'),
    filled("a;filename=", ';b="'),
    filled('a;filename="', "\\"),
    filled('a;b="', '\\";b="'),
    filled("a;", " "),
    filled("a;b", " ", "c"),
    filled("a", ";b= "),
    filled("a;filename*=utf-8''", "%cc%81%cc%a3"),
    filled("a;filename*=utf-8''", "%"),
    filled("a;filename*=", "'"),
    filled('a;filename="', "\xcc\x81\xcc\xa3", '"'),
]
DATES = [
    filled("Mon, 06 May 2024 07:08:09", " ", "GMT"),
    filled("Mon, 06 May ", "2", " 07:08:09 GMT"),
    filled("", "Mon,"),
    filled("6 May 2024 ", "1:"),
    filled("", "+"),
    filled("", "-1"),
    filled("6-May-24 ", "("),
]
DIGESTS = [
    filled("sha-256=:", "A"),
    filled("", "a"),
    filled("", "a=:"),
    filled("", ",a"),
    filled("sha-256=", "=:"),
    filled("", "sha-256=:AAAA:,"),
    filled("md5=", "="),
    filled("", "sha-256=A,"),
]
HEADERS = [
    filled("A: a", " ", "b\r\n"),
    filled("A:", " ", "\rb\r\n"),
    filled("A", " ", ": b\r\n"),
    filled("", ":", "\r\n"),
    filled("A: a\r\n", " b\r\n"),
    filled("odd\r\nA: a", " ", "b\r\n"),
    filled("A: a", "\r", "b\r\n"),
    filled("", "A: b\r\n"),
    filled("A:", "\t \x0b", "\r\n"),
    filled("", "\n"),
    filled("From ", " ", "\r\n"),
    filled("A: a\r\n\t", " ", "\x0cb\r\n"),
    filled("Connection:", "a,", "\r\n"),
    filled("Content-Length: 1", " ", "1\r\n"),
    filled("Transfer-Encoding: chunked", ",", "\r\n"),
]
LOCATIONS = [
    filled("https://a", ACCENTS.encode().decode("latin-1")),
    filled("//", "\xc3\xa9."),
    filled("https://", "a."),
    filled("https://", "@"),
    filled("https://u", "\xcc\x81\xcc\xa3", "@a/"),
    filled("https://[", ":", "]/"),
    filled("", "../"),
    filled("", "/"),
    filled("/", "%cc%81%cc%a3"),
    filled("/", "%"),
    filled("", "a:"),
    filled("https://a", ":"),
    filled("https://a:", "1"),
    filled("?", "?"),
    filled("/", "\x80"),
    filled("", "x"),
]
COOKIES = [
    filled("a=b", ";"),
    filled("a=b", ";x=y"),
    filled("a=b;", " "),
    filled("a=b; expires=", " ", "x"),
    filled("a=b; expires=Mon, 01-Jan-2024", " ", "x"),
    filled("a=b; expires=1 Jan 2024 00:00 ", "a", " ("),
    filled("a=b; domain=", "a."),
    filled("a=b; domain=", ".1"),
    filled("a=b; path=", "/"),
    filled("", "a=b,"),
    filled("a=", '"'),
    filled("a=b; path=/", "%zz"),
    filled("a=b; expires=", "1-"),
]
MESSAGES = [
    filled("", "://"),
    filled("", "a?"),
    filled("a?b", "c"),
    filled("cookie", " "),
    filled("", "cookie "),
    filled("authorization", " ", "x"),
    filled("", "?a="),
    filled("https://", "a@"),
    filled("", "\ud800"),
]
JSON = [
    filled("", "["),
    filled("", '{"a":'),
    filled("[", "[],"),
    filled('{"url":"', "\\u0301\\u0323"),
    filled("", "1"),
    filled("-1.", "1"),
    filled("1e", "1"),
    filled('"', "\\"),
    filled("", " "),
    filled('{"url":"https://a', "\u0301\u0323"),
]
BODIES = [
    filled("", "\r\n--"),
    filled("", "\r\n--" + "b" * 69),
    filled("--" + "b" * 70 + "\r\n", "A: b\r\n"),
    filled("--" + "b" * 70, " "),
    filled("--", "b"),
]
PARTS = [
    filled("Content-Disposition: form-data; name=a;", ' b="'),
    filled("Content-Disposition:", " "),
    filled('Content-Disposition: form-data; name="', "\\"),
    filled("", "A: b\r\n"),
    filled("A", " ", ": b"),
]
NAMES = [
    filled("a", ACCENTS),
    filled("", "c:"),
    filled("", " ."),
    filled("", "/"),
    filled("", "\\"),
    filled("a.", "b"),
    filled("", "\u202e"),
    filled("a", "\u0323\u0301", ".part"),
]
FORMS = [
    filled("", "&"),
    filled("", "a&"),
    filled("a=", "%"),
    filled("a=", "+"),
    filled("", "a=b&"),
    filled("a=", "%e9"),
]
LINES = [filled('{"url":', "["), filled("https://a/", " ", "b"), filled("a", ":"), filled("https://a/\t", ACCENTS)]

TABLE: Mapping[str, tuple[Parser, list[str]]] = {
    "header": (_header, HEADERS),
    "chunk size": (
        _chunk,
        [filled("1;", "a"), filled("1", " ", ";"), filled("1;", "\r"), filled("", "1"), filled("0\r\n", "A: b\r\n")],
    ),
    "Content-Range": (
        headers.content_range,
        [
            *SPACES,
            *DIGITS,
            filled("bytes", " ", "x"),
            filled("bytes ", "1"),
            filled("bytes 0-", "0", "/1"),
            filled("bytes */", "9"),
        ],
    ),
    "Content-Length": (headers.content_length, [*DIGITS, *LISTS, *SPACES, filled("", "1,")]),
    "HTTP date": (headers.http_date, DATES),
    "exact date": (headers.exact_date, DATES[:3]),
    "Retry-After": (lambda text: headers.retry_after_s(text, NOW), [*DATES[:3], *DIGITS]),
    "ETag": (headers.strong_etag, [filled('"', "a"), filled('"', '"'), filled("W/", "W/"), *SPACES]),
    "Repr-Digest": (headers.repr_digest, DIGESTS),
    "Digest": (lambda text: digests.file_digest({"Digest": text, "x-goog-hash": text}, is_complete=True), DIGESTS[-3:]),
    "Content-Disposition": (headers.content_disposition_name, [*QUOTES, *LISTS]),
    "named by Content-Disposition": (_field("Content-Disposition"), QUOTES[-3:]),
    "Last-Modified": (_field("Last-Modified"), DATES[:2]),
    "Content-Type": (_field("Content-Type"), [*LISTS, *SPACES]),
    "Location": (_redirect, LOCATIONS),
    "URL": (urls.split_credentials, [text.encode("latin-1").decode("utf-8", "replace") for text in LOCATIONS[:6]]),
    "shown URL": (urls.display_url, [*LOCATIONS[3:8], MESSAGES[7]]),
    "Set-Cookie": (_cookie("Set-Cookie"), COOKIES),
    "Set-Cookie2": (_cookie("Set-Cookie2"), [*COOKIES[:2], *LISTS, filled("", "a,")]),
    "Cookie": (lambda text: urls.merge_cookies(text, text), LISTS),
    "file name": (names.safe_name, NAMES),
    "path of a list": (engine_names._folded, NAMES),
    "message": (without_secrets, MESSAGES),
    "logged value": (values.safe_text, MESSAGES[-1:]),
    "name of a field": (is_secret, [filled("", "passw"), filled("", "api "), filled("", "-auth")]),
    "URL of Redis": (without_password, [filled("redis://", "a@"), filled("?", "password=&")]),
    "job": (_pushed, JSON),
    "not_before": (_job("not_before"), [*DIGITS, filled("2024-01-01T00:00:00.", "1", "Z")]),
    "limit_rate": (_job("limit_rate"), [*DIGITS, filled("1", " ", "K")]),
    "checksum": (_job("checksum"), [filled("md5:", "0"), filled("", ":")]),
    "user_id": (_job("user_id"), [filled("", "a"), filled("", "\u0301")]),
    "size": (parse_size, [*DIGITS, filled("1", " ", "!"), filled("1", "K")]),
    "duration": (parse_duration, [*DIGITS, filled("1", " ", "!")]),
    "line of a list": (lambda text: items._parsed(text, cast(Any, SimpleNamespace(headers={}))), LINES),
    "header of a list": (items.parse_header, [*SPACES, filled("A:", "b")]),
    "number of a record": (redis_values.to_number, DIGITS),
    "cursor": (
        lambda text: job_listing._read(text, job_listing.STATES),
        [filled("failed.1-", "a"), filled("delayed.d", "1")],
    ),
    "netrc": (credentials._QUOTED.match, [filled('"', "\\"), filled('"', 'a" "'), filled('"', "a")]),
    "traceparent": (
        tracing.parse_traceparent,
        [filled("00-", "0"), filled("01-" + "a" * 32 + "-" + "b" * 16 + "-00-", "-")],
    ),
    "Upload-Metadata": (tus_headers.parse_metadata, [LISTS[0], filled("a ", "A")]),
    "Upload-Checksum": (tus_headers.parse_checksum, [filled("sha1 ", "A"), filled("", "a")]),
    "Upload-Length": (lambda text: tus_headers.parse_length(_get(text)), DIGITS),
    "Upload-Concat": (
        tus_headers.parse_parts,
        [filled("final;", "/files/ "), filled("final;", "/"), filled("final;", "http://é")],
    ),
    "Range": (
        lambda text: files.range_of(text, 100),
        [filled("bytes=", "1"), filled("bytes=", "1-"), filled("bytes=", " ")],
    ),
    "If-None-Match": (lambda text: files.is_unchanged(text, "a"), LISTS),
    "If-Unmodified-Since": (_conditions, DATES),
    "Host": (
        lambda text: same_origin.is_rebinding(text, ()),
        [filled("", ":"), filled(":", "1", "x"), filled("[", ":"), filled("", ".")],
    ),
    "Origin": (
        lambda text: same_origin.is_cross_site("POST", "a", text, None),
        [filled("http://", "é"), filled("http://[", ":")],
    ),
    "type of a form": (_multipart("type"), QUOTES[:6]),
    "form": (_multipart("body"), BODIES),
    "part of a form": (_multipart("part"), PARTS),
    "urlencoded": (forms.urlencoded_fields, FORMS),
    "JSON of a form": (lambda text: forms.json_fields(text.encode("utf-8", "surrogatepass")), JSON),
    "Base64": (lambda text: base64.b64decode(text, validate=True), [filled("", "=")]),
}
CASES = [(name, number) for name, (_, texts) in TABLE.items() for number in range(len(texts))]


@pytest.fixture(scope="module")
def metering() -> Iterator[Metering]:
    with pytest.MonkeyPatch.context() as patch:
        yield Metering(patch)


@pytest.mark.parametrize(("name", "number"), CASES)
def test_a_parser_takes_linear_time(name: str, number: int, metering: Metering) -> None:
    parse, texts = TABLE[name]
    refusals = (DlpoolError, HttpError, ValueError, OSError, http.client.HTTPException)
    with metering.at_most(STEPS_A_CHARACTER * SIZE), suppress(*refusals):
        parse(texts[number])


def test_the_meter_counts_what_took_quadratic_time(metering: Metering) -> None:
    slow = Counted(re.compile(r"^([a-z]+):[ \t]*([^\r\n]*?)[ \t]*\r?\n", re.MULTILINE), metering.meter)
    with pytest.raises(TooManySteps), metering.at_most(STEPS_A_CHARACTER * SIZE):
        slow.findall(filled("a: a", " ", "b\n"))
