"""What a request costs is bounded before it is known to be good: counts and sizes are checked before any content."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dlpool import jsontext
from dlpool.config import WebSettings
from dlpool.errors import UsageError
from dlpool.jobs.pushed_job import MAX_VALUES, Malformed, PushedJob
from dlpool.web import forms, schemas
from dlpool.web.client_limits import ClientLimits
from dlpool.web.errors import HttpError
from dlpool.web.operations import MAX_BODY, OPERATIONS, Operation
from dlpool.web.validation import validate
from tests.backtracking import Meter, fault

MOST_CALLS = 60_000  # of functions, in the check of one body


@contextmanager
def counted_calls(most: int) -> Iterator[Meter]:
    meter = Meter(most)
    sys.setprofile(lambda _frame, what, _arg: meter.add() if what in ("call", "c_call") else None)
    try:
        yield meter
    finally:
        sys.setprofile(None)


def operation(name: str) -> Operation:
    return next(one for one in OPERATIONS if one.name == name)


def filled(begin: str, unit: str, end: str, size: int = MAX_BODY) -> bytes:
    return (begin + unit * ((size - len(begin) - len(end)) // len(unit)) + end).encode()


BODIES = {
    "an array of numbers": filled("[", "1,", "1]"),
    "a batch of numbers": filled('{"jobs":[', "1,", "1]}"),
    "a batch of nothing": filled('{"jobs":[', "{},", "{}]}"),
    "a batch of empty lists": filled('{"jobs":[', "[],", "[]]}"),
    "just too many numbers": filled('{"jobs":[', "1,", "1]}", 2 * (jsontext.MAX_VALUES - 10)),
    "just too many jobs": filled('{"jobs":[', "{},", "{}]}", 3 * (jsontext.MAX_VALUES // 2 - 10)),
    "ids that are numbers": filled('{"verb":"cancel","ids":[', "1,", "1]}", 2 * (jsontext.MAX_VALUES - 10)),
    "many ids": filled('{"verb":"cancel","ids":[', '"a",', '"a"]}'),
    "a name in a name": filled("", '{"a":', ""),
    "a list in a list": filled("", "[", ""),
    "closed lists": filled("[" * 100_000, "]", ""),
    "a long name": filled('{"', "a", '":1}'),
    "a long text": filled('{"url":"', "a", '","save_path":"a"}'),
    "escapes": filled('{"url":"', '\\"[', '","save_path":"a"}'),
    "a long number": filled('{"url":', "1", "}"),
    "wrong headers": filled(
        '{"url":"http://a/","save_path":"a","dlpool":{"headers":{', '"a":1,', '"a":1}}}', 6 * jsontext.MAX_VALUES
    ),
    "many headers": (
        b'{"url":"http://a/","save_path":"a","dlpool":{"headers":'
        + json.dumps(dict.fromkeys(map(str, range(40_000)), "a")).encode()
        + b"}}"
    ),
    "unknown fields": json.dumps(dict.fromkeys(map(str, range(49_000)), 1)).encode(),
    "spaces": filled("{", " ", "}"),
    "no UTF-8": b"\xff" * MAX_BODY,
}


@pytest.mark.parametrize("name", ["push", "controlJobs", "drainNode"])
@pytest.mark.parametrize("body", BODIES)
def test_the_check_of_a_body_takes_a_bounded_number_of_steps(body: str, name: str) -> None:
    if name == "drainNode":
        name = next(one.name for one in OPERATIONS if one.body is schemas.EMPTY)
    with counted_calls(MOST_CALLS), suppress(UsageError):
        operation(name).parse({}, {}, BODIES[body])


@pytest.mark.parametrize("body", BODIES)
def test_a_job_of_the_intake_takes_a_bounded_number_of_steps(body: str) -> None:
    with counted_calls(MOST_CALLS), suppress(UsageError):
        PushedJob.parse(BODIES[body][: 1024 * 1024])


@pytest.mark.parametrize("body", BODIES)
def test_the_fields_of_an_upload_take_a_bounded_number_of_steps(body: str) -> None:
    with counted_calls(MOST_CALLS), suppress(HttpError):
        forms.json_fields(BODIES[body])


def test_the_first_errors_tell_and_the_others_are_not_looked_for() -> None:
    jobs = {"jobs": [1] * schemas.MAX_BATCH}
    with counted_calls(3000), pytest.raises(UsageError, match=r"jobs\[0\] is not of type object"):
        validate(schemas.BATCH, jobs)


def test_the_largest_batch_that_is_allowed_is_taken() -> None:
    own = {"id": "a" * 64, "priority": 5, "headers": {f"X-{number}": "a,b[{" for number in range(40)}}
    jobs = [{"url": 'http://a/"[],{}\\', "save_path": "a", "dlpool": own}] * schemas.MAX_BATCH
    body = json.dumps({"jobs": jobs}).encode()
    assert len(body) < MAX_BODY
    assert len(operation("push").parse({}, {}, body).body["jobs"]) == schemas.MAX_BATCH


@pytest.mark.parametrize(
    ("text", "depth", "values", "problem"),
    [
        ("[[1]]", 2, 9, ""),
        ("[[[1]]]", 2, 9, "nested deeper than 2"),
        ('{"a":{"b":{}}}', 2, 9, "nested deeper than 2"),
        ("[[],[],[]]", 2, 9, ""),
        ("[1,2,3]", 9, 4, ""),
        ("[1,2,3,4]", 9, 4, "more than 4 values"),
        ("[[],[],[]]", 9, 5, "more than 5 values"),
        ('["[[[,,,"]', 1, 3, ""),
        ('["\\"[[[,,,"]', 1, 3, ""),
        ('["\\\\",[[1]]]', 2, 9, "nested deeper"),
        ('"\\u005b[[["', 1, 2, ""),
        ("1", 1, 1, ""),
        ("", 1, 1, ""),
        ("]]]][[", 1, 9, ""),
        ('["\n\\n[",1]', 1, 9, ""),
    ],
)
def test_the_bounds_of_json(text: str, depth: int, values: int, problem: str) -> None:
    try:
        jsontext.check_bounds(text.encode(), depth=depth, values=values)
        found = ""
    except ValueError as error:
        found = str(error)
    assert problem in found and bool(problem) == bool(found)


@pytest.mark.parametrize("values", [MAX_VALUES // 2, MAX_VALUES * 2])
def test_a_job_with_too_many_values_is_none(values: int) -> None:
    raw = json.dumps({"url": "http://a/", "save_path": "a", "other": [1] * values}).encode()
    if values < MAX_VALUES:
        assert PushedJob.parse(raw).url == "http://a/"
    else:
        with pytest.raises(Malformed, match="more than 10000 values"):
            PushedJob.parse(raw)


def test_no_pattern_of_a_schema_needs_more_than_linear_time() -> None:
    found = [*_patterns(schemas.NAMED), *_patterns([one.query for one in OPERATIONS])]
    assert len(found) > 8
    assert [(one, fault(one)) for one in found if fault(one)] == []


def _patterns(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("pattern"), str):
            yield value["pattern"]
        for one in value.values():
            yield from _patterns(one)
    elif isinstance(value, list):
        for one in value:
            yield from _patterns(one)


def test_a_client_has_one_large_request_at_once_in_all_processes(tmp_path: Path) -> None:
    here, there = (ClientLimits(tmp_path, replace(WebSettings(), client_uploads=1)) for _ in range(2))
    with here.heavy_slot("one"):
        for admission in (here, there):
            with pytest.raises(HttpError) as refused, admission.heavy_slot("one"):
                pass
            assert (refused.value.status, refused.value.code) == (429, "too_many")
            assert int(refused.value.headers["Retry-After"]) >= 1
        with there.heavy_slot("two"), here.body_slot("one"):  # another client's, and a body of the same one
            pass
    with there.heavy_slot("one"):
        pass


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"])
def test_json_in_another_encoding_is_none(encoding: str) -> None:
    """Its letters may have the bytes of brackets and quotation marks, so that no bound could be told before parsing."""
    nested = '{"\u2200":' + "[" * 40 + "1" + "]" * 40 + "}"
    for text in (nested, '{"a":1}'):
        with pytest.raises(ValueError):
            jsontext.loads(text.encode(encoding))
