"""Judging an answer before a byte of its body is written."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest

from dlpool.errors import (
    AccessDenied,
    BadAnswer,
    DlpoolError,
    FailJob,
    HttpRefused,
    NotFound,
    ProtocolBroken,
    RemoteChanged,
    RetryRange,
    ServerBusy,
    ServerTrouble,
)
from dlpool.transfer.http.answer import (
    Answer,
    ByteRange,
    check_same_version,
    check_unsatisfied,
    error_for_status,
    is_empty_file,
    read_answer,
    refuses_ranges,
    requested_wait_s,
)
from dlpool.transfer.http.remote_resource import RemoteResource

NOW = datetime(2024, 5, 6, 7, 8, 9, tzinfo=timezone.utc)
MODIFIED = "Sun, 05 May 2024 07:08:09 GMT"


def part(content_range: str, **headers: str) -> dict[str, str]:
    """The headers of a 206."""
    return {"Content-Range": content_range, **{name.replace("_", "-"): value for name, value in headers.items()}}


# --- statuses ---


@pytest.mark.parametrize(
    ("statuses", "error"),
    [
        ([408, 425, 500, 502, 504, 511, 520, 521, 522, 523, 524], ServerTrouble),
        ([429, 503], ServerBusy),
        ([401, 403, 407], AccessDenied),
        ([404, 410], NotFound),
        ([400, 402, 405, 406, 409, 411, 412, 413, 414, 416, 418, 451, 501, 505, 525, 599], HttpRefused),
        ([100, 201, 202, 204, 205, 226, 300, 304], ProtocolBroken),
    ],
)
def test_each_status_has_its_error(statuses: list[int], error: type[DlpoolError]) -> None:
    assert [type(error_for_status(status, {}, NOW)) for status in statuses] == [error] * len(statuses)


def test_every_status_is_either_retried_or_final() -> None:
    for status in [*range(100, 200), 201, 202, 204, 205, *range(207, 600)]:
        error = error_for_status(status, {}, NOW)
        assert isinstance(error, RetryRange) != isinstance(error, FailJob)
        assert str(status) in str(error)


@pytest.mark.parametrize("status", [408, 429, 500, 503])
@pytest.mark.parametrize(
    ("value", "expected"),
    [("7", 7.0), ("Mon, 06 May 2024 07:08:39 GMT", 30.0), (MODIFIED, 0.0), ("soon", None)],
)
def test_an_error_carries_the_wait_that_the_server_asked_for(status: int, value: str, expected: float | None) -> None:
    error = error_for_status(status, {"Retry-After": value}, NOW)
    assert isinstance(error, RetryRange)
    assert error.retry_after_s == expected


@pytest.mark.parametrize(
    ("status", "retry_after", "kind", "is_away"),
    [
        (429, None, ServerBusy, True),
        (503, "1", ServerBusy, True),
        (400, "1", ServerBusy, True),
        (403, "1", ServerBusy, True),
        (500, "1", ServerTrouble, False),
        (408, "1", ServerTrouble, False),
        (511, None, ServerTrouble, False),
        (502, None, ServerTrouble, True),
        (504, "1", ServerTrouble, True),
    ],
)
def test_an_error_says_whether_the_server_is_away(
    status: int, retry_after: str | None, kind: type[RetryRange], is_away: bool
) -> None:
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    error = error_for_status(status, headers, NOW)
    assert isinstance(error, RetryRange)
    assert (type(error), error.is_away) == (kind, is_away)


@pytest.mark.parametrize(
    ("status", "retry_after", "expected"),
    [
        (400, None, True),
        (400, "soon", True),
        (400, "1", False),
        (403, None, False),
        (405, "1", True),
        (416, None, True),
        (501, "1", True),
        (500, None, False),
    ],
)
def test_which_refusals_may_be_of_the_range(status: int, retry_after: str | None, expected: bool) -> None:
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    assert refuses_ranges(status, headers, NOW) is expected


@pytest.mark.parametrize(
    ("date", "expected"),
    [
        ("Mon, 06 May 2024 07:08:09 GMT", 30.0),
        ("Sun, 05 May 2024 07:08:09 GMT", 86430.0),  # a day off: that may still be a clock
        ("Sun, 05 May 2024 07:08:08 GMT", 30.0),
        ("Tue, 07 May 2024 07:08:10 GMT", 0.0),
    ],
)
def test_a_date_to_wait_for_is_read_by_the_clock_of_the_server(date: str, expected: float) -> None:
    assert requested_wait_s({"Retry-After": "Mon, 06 May 2024 07:08:39 GMT", "Date": date}, NOW) == expected


@pytest.mark.parametrize("status", [204, 304, 404, 416, 500])
def test_an_answer_without_a_file_is_an_error(status: int) -> None:
    with pytest.raises(type(error_for_status(status, {}, NOW))):
        read_answer(status, {"Content-Length": "5"}, ByteRange(0, 5), NOW)


# --- whole files ---


@pytest.mark.parametrize("asked", [None, ByteRange(0, 5), ByteRange(3, 5)])
def test_a_200_holds_the_file_from_its_first_byte(asked: ByteRange | None) -> None:
    answer = read_answer(200, {"Content-Length": "17", "ETag": '"a"'}, asked, NOW)
    assert answer == Answer(RemoteResource(17, '"a"'), 0, 17, is_partial=False)


@pytest.mark.parametrize("headers", [{}, {"Transfer-Encoding": "chunked"}, {"Transfer-Encoding": "gzip, Chunked"}])
def test_a_200_without_length_is_read_to_its_end(headers: dict[str, str]) -> None:
    assert read_answer(200, headers, None, NOW) == Answer(RemoteResource(), 0, None, is_partial=False)


def test_chunked_coding_overrules_a_content_length() -> None:
    headers = {"Transfer-Encoding": "chunked", "Content-Length": "17"}
    assert read_answer(200, headers, None, NOW).length is None


def test_a_content_range_in_a_200_means_nothing() -> None:
    answer = read_answer(200, part("bytes 5-9/10", Content_Length="10"), ByteRange(5, 10), NOW)
    assert (answer.start, answer.length, answer.is_partial) == (0, 10, False)


@pytest.mark.parametrize("value", ["17, 18", "-1", "many", ""])
@pytest.mark.parametrize("status", [200, 206])
def test_a_content_length_in_doubt_is_refused(status: int, value: str) -> None:
    with pytest.raises(BadAnswer, match="Content-Length"):
        read_answer(status, part("bytes 0-16/17", Content_Length=value), ByteRange(0, 17), NOW)


def test_a_203_is_not_the_origin_s_version() -> None:
    headers = {"Content-Length": "17", "ETag": '"a"', "Last-Modified": MODIFIED, "Content-Encoding": "gzip"}
    answer = read_answer(203, headers, None, NOW)
    assert answer == Answer(RemoteResource(17, content_encoding="gzip", refuses_ranges=True), 0, 17, is_partial=False)


# --- parts ---


@pytest.mark.parametrize(
    ("content_range", "start", "length", "size"),
    [
        ("bytes 100-199/1000", 100, 100, 1000),
        ("bytes 100-199/*", 100, 100, None),
        ("bytes 100-149/1000", 100, 50, 1000),
        ("bytes 100-999/1000", 100, 900, 1000),
        ("bytes 50-199/1000", 50, 150, 1000),
        ("bytes 0-100/1000", 0, 101, 1000),
        ("bytes 100-100/101", 100, 1, 101),
    ],
)
def test_a_part_says_where_its_bytes_belong(content_range: str, start: int, length: int, size: int | None) -> None:
    answer = read_answer(206, part(content_range), ByteRange(100, 200), NOW)
    assert answer == Answer(RemoteResource(size), start, length, is_partial=True)


@pytest.mark.parametrize(
    "content_range",
    [
        "",
        "bytes",
        "bytes */1000",
        "items 100-199/1000",
        "bytes 199-100/1000",
        "bytes 100-199/150",
        "bytes 101-199/1000",
        "bytes 0-99/1000",
        "bytes 200-299/1000",
        "bytes 100-199/1000, bytes 300-399/1000",
    ],
)
def test_a_part_that_does_not_begin_with_what_was_asked_is_refused(content_range: str) -> None:
    with pytest.raises(BadAnswer):
        read_answer(206, part(content_range), ByteRange(100, 200), NOW)


def test_a_part_without_content_range_is_refused() -> None:
    with pytest.raises(BadAnswer, match="Content-Range None"):
        read_answer(206, {"Content-Length": "100"}, ByteRange(0, 100), NOW)


def test_a_part_is_refused_where_the_whole_was_asked_for() -> None:
    with pytest.raises(BadAnswer):
        read_answer(206, part("bytes 0-99/100"), None, NOW)


@pytest.mark.parametrize("content_type", ["multipart/byteranges; boundary=x", "Multipart/ByteRanges;boundary=x"])
def test_multipart_is_refused(content_type: str) -> None:
    with pytest.raises(BadAnswer, match="multipart"):
        read_answer(206, part("bytes 0-99/100", Content_Type=content_type), ByteRange(0, 100), NOW)


@pytest.mark.parametrize(("announced", "length"), [("40", 40), ("100", 100), ("999", 100)])
def test_the_shorter_of_range_and_length_counts(announced: str, length: int) -> None:
    answer = read_answer(206, part("bytes 0-99/1000", Content_Length=announced), ByteRange(0, 100), NOW)
    assert answer.length == length


def test_the_length_of_a_chunked_part_is_that_of_its_range() -> None:
    headers = part("bytes 0-99/1000", Content_Length="7", Transfer_Encoding="chunked")
    assert read_answer(206, headers, ByteRange(0, 100), NOW).length == 100


# --- empty files, and versions ---


@pytest.mark.parametrize(
    ("status", "content_range", "expected"),
    [
        (416, "bytes */0", True),
        (416, "bytes */1", False),
        (416, "bytes */*", False),
        (416, "bytes 0-0/1", False),
        (416, "", False),
        (404, "bytes */0", False),
        (206, "bytes */0", False),
    ],
)
def test_only_a_416_of_nothing_is_an_empty_file(status: int, content_range: str, expected: bool) -> None:
    assert is_empty_file(status, part(content_range)) is expected


def test_a_416_without_content_range_is_not_an_empty_file() -> None:
    assert not is_empty_file(416, {})


@pytest.mark.parametrize("content_range", ["bytes */4", "bytes */0", "bytes */6"])
def test_a_416_that_tells_another_size_is_a_change(content_range: str) -> None:
    with pytest.raises(RemoteChanged):
        check_unsatisfied(416, part(content_range), RemoteResource(5))


@pytest.mark.parametrize(
    ("status", "content_range"), [(416, "bytes */5"), (416, ""), (416, "bytes 0-3/4"), (416, "*/4"), (404, "bytes */4")]
)
def test_any_other_refusal_proves_no_change(status: int, content_range: str) -> None:
    check_unsatisfied(status, part(content_range), RemoteResource(5))


def answered(resource: RemoteResource) -> Answer:
    return Answer(resource, 0, None, is_partial=True)


@pytest.mark.parametrize(
    ("known", "now", "error"),
    [
        (RemoteResource(5, '"a"'), RemoteResource(5, '"b"'), RemoteChanged),
        (RemoteResource(5), RemoteResource(6), RemoteChanged),
        (RemoteResource(5, '"a"'), RemoteResource(5), BadAnswer),
        (RemoteResource(5, '"a"'), RemoteResource(5, '"a"', content_encoding="gzip"), BadAnswer),
        (RemoteResource(5, '"a"', content_encoding="gzip"), RemoteResource(5, '"a"'), BadAnswer),
    ],
)
def test_bytes_of_two_versions_never_meet(known: RemoteResource, now: RemoteResource, error: type[DlpoolError]) -> None:
    with pytest.raises(error):
        check_same_version(known, answered(now))


@pytest.mark.parametrize("encoding", [None, "gzip"])
def test_the_same_version_passes(encoding: str | None) -> None:
    known = RemoteResource(5, '"a"', content_encoding=encoding)
    check_same_version(known, answered(RemoteResource(5, '"a"', content_encoding=encoding)))
