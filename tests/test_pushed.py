"""Jobs as clients push them, and the records that they read: to the letter of the contract."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timezone
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dlpool.errors import UsageError
from dlpool.jobs.client_records import failure_record, rfc3339, success_record
from dlpool.jobs.keys import PRIORITIES, QueueKeys
from dlpool.jobs.pushed_job import MAX_JOB_BYTES, BadJob, Malformed, PushedJob, compose_job, parse_priority, parse_time
from dlpool.transfer.job import Checksum

URL = "http://host/file"
AT = 1_700_000_000.9
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=50)


def pushed(**fields: Any) -> PushedJob:
    """A job with these fields beside url and path."""
    return PushedJob.parse(json.dumps({"url": URL, "save_path": "/data/file", **fields}).encode())


def own(**fields: Any) -> PushedJob:
    """A job with these of dlpool's own fields."""
    return pushed(dlpool=fields)


# --- what is a job ------------------------------------------------------------------------------------------------


def test_url_and_path_are_enough() -> None:
    raw = b'{"url": "http://host/file", "save_path": "/data/file"}'
    assert PushedJob.parse(raw) == PushedJob(raw, URL, "/data/file")


def test_unknown_fields_are_kept_in_the_text_and_ignored() -> None:
    job = pushed(mirror=[1, {"a": None}], dlpool={"colour": "red"})
    assert json.loads(job.raw)["mirror"] == [1, {"a": None}]
    assert job == PushedJob(job.raw, URL, "/data/file")


@pytest.mark.parametrize(("number", "text"), [(1, "1"), (-2, "-2"), (1.5, "1.5"), (10**30, str(10**30))])
def test_numbers_are_taken_as_texts(number: float, text: str) -> None:
    assert pushed(url=number).url == text
    assert pushed(save_path=number).save_path == text


def test_of_a_field_that_is_given_twice_the_last_counts() -> None:
    assert PushedJob.parse(b'{"url": "http://a", "url": "http://b", "save_path": "x"}').url == "http://b"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b" ",
        b"null",
        b"[]",
        b"1",
        b'"http://host"',
        b"http://host",
        b"{",
        b"{}",
        b'{"url": "http://h"',
        b'{"save_path": "x"}',
        b'{"url": "", "save_path": "x"}',
        b'{"url": null, "save_path": "x"}',
        b'{"url": true, "save_path": "x"}',
        b'{"url": ["http://h"], "save_path": "x"}',
        b'{"url": {}, "save_path": "x"}',
        b'{"url": NaN, "save_path": "x"}',
        b'{"url": "http://h", "save_path": "x", "n": -Infinity}',
        b"{'url': 'http://h', 'save_path': 'x'}",
        b'{"url": "http://h", "save_path": "x"} trailing',
        b'{"url": "http://h\n", "save_path": "x"}',
        b'{"url": "http://h/\xff", "save_path": "x"}',
        b'{"url": "http://h/\xed\xa0\x80", "save_path": "x"}',
        b'{"url": "http://h/\\ud800", "save_path": "x"}',
        b'\xef\xbb\xbf{"url": "http://h", "save_path": "x"}',
        '{"url": "http://h", "save_path": "x"}'.encode("utf-16"),
        b'{"url": "%b", "save_path": "x"}' % (b"u" * 16385),
        b'{"url": %b, "save_path": "x"}' % (b"1" * 5000),
        b'{"url": "http://h", "save_path": "x", "deep": %b%b}' % (b"[" * 100_000, b"]" * 100_000),
        b'{"deep":' * 100_000,
        b'{"url": "http://h", "save_path": "x", "n": "%b"}' % (b"x" * 10_000_000),
    ],
    ids=lambda raw: repr(raw[:40]),
)
def test_a_text_without_a_url_is_malformed(raw: bytes) -> None:
    with pytest.raises(Malformed, match=r"^(the job|url) is "):
        PushedJob.parse(raw)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"save_path": None}, "save_path is missing"),
        ({"save_path": ""}, "save_path is not a text"),
        ({"save_path": False}, "save_path is not a text"),
        ({"save_path": "x" * 8193}, "save_path is longer than 8192 characters"),
        ({"save_path": "\udc80"}, "save_path is not Unicode text"),
        ({"dlpool": []}, "dlpool is not an object"),
        ({"dlpool": "high"}, "dlpool is not an object"),
        ({"dlpool": {"id": "a b"}}, "dlpool.id is not"),
        ({"dlpool": {"id": ""}}, "dlpool.id is not"),
        ({"dlpool": {"id": "x" * 65}}, "dlpool.id is not"),
        ({"dlpool": {"id": "x\n"}}, "dlpool.id is not"),
        ({"dlpool": {"id": 7}}, "dlpool.id is not"),
        ({"dlpool": {"priority": "urgent"}}, "dlpool.priority is neither"),
        ({"dlpool": {"priority": True}}, "dlpool.priority is neither"),
        ({"dlpool": {"priority": ["high"]}}, "dlpool.priority is neither"),
        ({"dlpool": {"not_before": "tomorrow"}}, "dlpool.not_before is neither"),
        ({"dlpool": {"max_attempts": 0}}, "dlpool.max_attempts is not"),
        ({"dlpool": {"max_attempts": 1.5}}, "dlpool.max_attempts is not"),
        ({"dlpool": {"max_attempts": True}}, "dlpool.max_attempts is not"),
        ({"dlpool": {"checksum": 7}}, "dlpool.checksum is not a text"),
        ({"dlpool": {"checksum": "md4:00"}}, "checksum 'md4:00' does not begin"),
        ({"dlpool": {"headers": ["A: b"]}}, "dlpool.headers is not"),
        ({"dlpool": {"headers": {"A": 1}}}, "dlpool.headers is not"),
        ({"dlpool": {"headers": {"A": "b\r\nC: d"}}}, "header 'A' has characters"),
        ({"dlpool": {"headers": {"A": "\ud800"}}}, "header 'A' has characters"),
        ({"dlpool": {"headers": {"Range": "bytes=0-"}}}, "header Range is set by dlpool"),
        ({"dlpool": {"headers": {"A": "b" * 16384}}}, "dlpool.headers is longer than"),
        ({"dlpool": {"if_exists": "ask"}}, "dlpool.if_exists is none of"),
        ({"dlpool": {"if_exists": {}}}, "dlpool.if_exists is none of"),
        ({"dlpool": {"user_id": "a\x00"}}, "dlpool.user_id or dlpool.trace_id is not"),
        ({"dlpool": {"trace_id": "x" * 201}}, "dlpool.user_id or dlpool.trace_id is not"),
        ({"dlpool": {"trace_id": "\ud800"}}, "dlpool.user_id or dlpool.trace_id is not"),
        ({"dlpool": {"dedupe": 1}}, "dlpool.dedupe is neither"),
        ({"dlpool": {"limit_rate": 1023}}, "dlpool.limit_rate is not"),
        ({"dlpool": {"limit_rate": 2048.0}}, "dlpool.limit_rate is not"),
        ({"dlpool": {"limit_rate": True}}, "dlpool.limit_rate is not"),
        ({"dlpool": {"limit_rate": 2**63}}, "dlpool.limit_rate is not"),
        ({"dlpool": {"limit_rate": "fast"}}, "dlpool.limit_rate is not"),
        ({"dlpool": {"limit_rate": "-1M"}}, "dlpool.limit_rate is not"),
    ],
    ids=lambda value: str(value)[:60].encode("ascii", "backslashreplace").decode(),
)
def test_a_bad_field_fails_the_job_under_its_url(fields: Mapping[str, Any], message: str) -> None:
    with pytest.raises(BadJob) as raised:
        pushed(**fields)
    assert raised.value.url == URL
    assert str(raised.value).startswith(f"the job cannot be run: {message}")


def test_own_fields_are_all_read() -> None:
    job = own(
        id="a.b-c_1",
        priority="high",
        not_before="2024-01-01T00:00:00Z",
        max_attempts=3,
        checksum="MD5:" + "A" * 32,
        headers={"Cookie": "a=b"},
        if_exists="skip",
        user_id="Zoë",
        trace_id="t/1",
        dedupe=True,
        limit_rate="1.5K",
    )
    assert job == PushedJob(
        job.raw,
        URL,
        "/data/file",
        "a.b-c_1",
        "high",
        1704067200.0,
        3,
        Checksum("md5", "a" * 32),
        {"Cookie": "a=b"},
        "skip",
        "Zoë",
        "t/1",
        True,
        1536,
    )


def test_an_own_field_of_null_is_not_given() -> None:
    names = (
        "id",
        "priority",
        "not_before",
        "max_attempts",
        "checksum",
        "headers",
        "if_exists",
        "user_id",
        "dedupe",
        "limit_rate",
    )
    job = own(**dict.fromkeys(names))
    assert job == PushedJob(job.raw, URL, "/data/file")
    assert pushed(dlpool=None).priority == "normal"


def test_a_job_of_the_greatest_length_is_read() -> None:
    head = b'{"url": "http://h", "save_path": "x", "n": "'
    raw = head + b"x" * (MAX_JOB_BYTES - len(head) - 2) + b'"}'
    assert PushedJob.parse(raw).raw == raw
    with pytest.raises(Malformed):
        PushedJob.parse(raw + b" ")


@given(st.binary(max_size=200))
@example(b'{"url": "x", "save_path": "y", "dlpool": {"not_before": ' + b"9" * 400 + b"}}")
def test_whatever_bytes_come_nothing_else_is_raised(raw: bytes) -> None:
    try:
        assert PushedJob.parse(raw).raw == raw
    except (Malformed, BadJob) as error:
        assert str(error)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
OWN_NAMES = st.sampled_from(
    [
        "id",
        "priority",
        "not_before",
        "max_attempts",
        "checksum",
        "headers",
        "if_exists",
        "user_id",
        "trace_id",
        "dedupe",
        "limit_rate",
    ]
)


def test_whatever_json_comes_nothing_else_is_raised() -> None:
    taken: list[PushedJob] = []
    urls, paths = st.sampled_from(["http://h/f", "https://h:1/ü"]), st.sampled_from(["f", "/a/b", "a/"])

    @given(url=JSON | urls, save_path=JSON | paths, fields=st.none() | JSON | st.dictionaries(OWN_NAMES, JSON))
    @example(url="http://h/f", save_path="f", fields={})
    def check(url: Any, save_path: Any, fields: Any) -> None:
        raw = json.dumps({"url": url, "save_path": save_path, "dlpool": fields}).encode()
        with suppress(Malformed, BadJob):
            taken.append(PushedJob.parse(raw))

    check()
    assert len(taken) >= 5
    for job in taken:
        assert job.url and job.save_path
        assert job.digest
        assert PushedJob.parse(job.raw) == job


# --- one field each -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "name"),
    [("high", "high"), ("normal", "normal"), ("low", "low"), (-1, "high"), (0, "normal"), (1, "low"), (10**40, "low")],
)
def test_a_priority_is_a_name_or_a_number(value: object, name: str) -> None:
    assert parse_priority(value) == name


@pytest.mark.parametrize("value", ["HIGH", "", "0", 0.0, None, True, False, [], {}])
def test_no_other_priority_is_known(value: object) -> None:
    with pytest.raises(UsageError):
        parse_priority(value)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (0, 0.0),
        (1.5, 1.5),
        ("1700000000", 1.7e9),
        ("1700000000.25", 1.7e9 + 0.25),
        (2**40 - 1, float(2**40 - 1)),
        ("1970-01-01T00:00:00Z", 0.0),
        ("1970-01-01t01:00:00+01:00", 0.0),
        ("1969-12-31 19:00:00-05:00", 0.0),
        ("1970-01-01T00:00:00.125z", 0.125),
        ("9999-12-31T23:59:59Z", 253402300799.0),
    ],
)
def test_a_moment_is_rfc_3339_or_epoch_seconds(value: object, seconds: float) -> None:
    assert parse_time(value) == seconds


@pytest.mark.parametrize(
    "value",
    [
        "",
        "now",
        "-1",
        -1,
        "1e3",
        2**40,
        10**400,
        -(10**400),
        float("nan"),
        float("inf"),
        True,
        None,
        [],
        {},
        "1970-01-01",
        "1970-01-01T00:00:00",
        "1970-13-01T00:00:00Z",
        "1970-01-01T25:00:00Z",
        "1970-01-01T00:00:00+99:00",
        "1970-01-01T00:00:00Z ",
        "\u0660",
        "1970-01-01T00:00:00.\u0660Z",
        "1970-01-01T00:00:00.Z",
    ],
    ids=lambda value: repr(value)[:40],
)
def test_nothing_else_is_a_moment(value: object) -> None:
    with pytest.raises(UsageError, match="not_before is neither"):
        parse_time(value)


@given(st.datetimes(datetime(1970, 1, 1), datetime(9999, 12, 30), timezones=st.timezones()))
def test_every_moment_survives_its_text(at: datetime) -> None:
    whole = at.astimezone(timezone.utc).replace(microsecond=0)
    assert parse_time(whole.isoformat()) == whole.timestamp()
    assert parse_time(rfc3339(whole.timestamp())) == whole.timestamp()


@given(TEXTS, TEXTS, TEXTS, TEXTS)
@example("a\nb", "c", "a", "b\nc")
def test_only_the_same_url_and_path_share_a_digest(url: str, path: str, other_url: str, other_path: str) -> None:
    one, other = PushedJob(b"", url, path), PushedJob(b"", other_url, other_path)
    assert (one.digest == other.digest) == ((url, path) == (other_url, other_path))


# --- composing ----------------------------------------------------------------------------------------------------


@given(TEXTS, TEXTS, st.sampled_from(PRIORITIES), st.booleans())
def test_a_composed_job_is_read_as_it_was_meant(url: str, path: str, priority: str, dedupe: bool) -> None:
    job = PushedJob.parse(compose_job(url, path, priority=priority, dedupe=dedupe, user_id=None))
    assert (job.url, job.save_path, job.priority, job.dedupe, job.user_id) == (url, path, priority, dedupe, None)


def test_a_composed_job_without_own_fields_is_as_old_clients_push_it() -> None:
    assert compose_job("http://h/ü", "/x", id=None) == '{"url": "http://h/ü", "save_path": "/x"}'.encode()


def test_a_path_that_is_not_text_does_not_become_another_one() -> None:
    with pytest.raises(Malformed, match="not UTF-8"):
        PushedJob.parse(compose_job(URL, "/data/\udcff"))


def test_a_lone_surrogate_cannot_be_composed() -> None:
    with pytest.raises(UsageError, match="not Unicode"):
        compose_job(URL, "/data/\ud800")


# --- records ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("group", "key"),
    [(None, "success:http://h/ü?a=b:c"), ("eu", "success:eu:http://h/ü?a=b:c")],
    ids=["no group", "a group"],
)
def test_the_record_of_a_success_is_what_clients_know(group: str | None, key: str) -> None:
    job = PushedJob(b"", "http://h/ü?a=b:c", '/data/"ü"')
    record = success_record(QueueKeys(group), job, 2**40, 3, AT)
    assert (record.key, record.field) == (key, None)
    assert (
        record.value
        == (
            '{"url": "http://h/ü?a=b:c", "save_path": "/data/\\"ü\\"", "file_size": 1099511627776, "duration": 3.0, '
            '"finished_at": "2023-11-14T22:13:20Z"}'
        ).encode()
    )


@pytest.mark.parametrize(
    ("group", "key"),
    [(None, "go_download_failed_tasks"), ("eu", "eu:go_download_failed_tasks")],
    ids=["no group", "a group"],
)
def test_the_record_of_a_failure_is_what_clients_know(group: str | None, key: str) -> None:
    raw = b'{"url":"http://h",  "save_path":"x","n":1.00,"n":2}'
    record = failure_record(QueueKeys(group), "http://h", raw, 'no "such" file: \ud800\n', AT)
    assert (record.key, record.field) == (key, "http://h")
    assert record.value == (
        b'{"task_data":{"url":"http://h",  "save_path":"x","n":1.00,"n":2},'
        b'"error_message":"no \\"such\\" file: \\ud800\\n","failed_at":"2023-11-14T22:13:20Z"}'
    )


@pytest.mark.parametrize(
    ("group", "intake"), [(None, "go_download_urls"), ("eu", "eu:go_download_urls")], ids=["no group", "a group"]
)
def test_the_intake_is_the_list_that_clients_know(group: str | None, intake: str) -> None:
    assert QueueKeys(group).intake == intake


@given(TEXTS, TEXTS, st.text(), JSON.filter(lambda value: "NaN" not in json.dumps(value)), st.booleans())
def test_a_failure_holds_the_pushed_text_byte_by_byte(
    url: str, path: str, message: str, extra: Any, is_ascii: bool
) -> None:
    text = json.dumps({"url": url, "save_path": path, "extra": extra}, ensure_ascii=is_ascii, indent=1)
    raw = f" {text}\n".encode("utf-8", "replace")
    try:
        job = PushedJob.parse(raw)
    except Malformed:
        return
    record = failure_record(QueueKeys(), job.url, raw, message, AT)
    assert record.value.startswith(b'{"task_data":' + raw + b',"error_message":')
    assert json.loads(record.value)["error_message"] == message
    assert json.loads(record.value)["task_data"] == json.loads(raw)


@given(TEXTS, TEXTS, st.integers(0, 2**62), st.floats(0, 1e9))
def test_a_success_is_json_of_the_same_values(url: str, path: str, size: int, seconds: float) -> None:
    value = json.loads(success_record(QueueKeys(), PushedJob(b"", url, path), size, seconds, AT).value)
    assert value == {
        "url": url,
        "save_path": path,
        "file_size": size,
        "duration": seconds,
        "finished_at": "2023-11-14T22:13:20Z",
    }
    assert isinstance(value["duration"], float)
