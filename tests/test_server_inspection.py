"""Trying out a server, request by request: what is asked, how long it is waited for, and what is found."""

from __future__ import annotations

import queue
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any

import pytest

from dlpool import errors, threads
from dlpool.transfer import server_inspection
from dlpool.transfer.http.answer import Answer, ByteRange
from dlpool.transfer.http.exchange import Exchange
from dlpool.transfer.http.remote_resource import RemoteResource
from dlpool.transfer.server_inspection import MIB, SAMPLE, SAMPLE_S, IfRange, ServerInspection, clock_offset_s
from tests.conftest import PATIENT
from tests.fakes import Clock

SIZE = 100 * MIB
NOW = datetime(2024, 10, 2, 10, 0, tzinfo=timezone.utc)
DATE = "Wed, 02 Oct 2024 10:00:00 GMT"
SAME, OTHER = '"v1"', '"not-the-version-of-this-file"'
LAST_MODIFIED = "Tue, 01 Oct 2024 10:00:00 GMT"
LONG_AGO = "Thu, 01 Jan 1970 00:00:00 GMT"


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(server_inspection, "time", made)
    return made


class Reply:
    """An answer whose body comes in blocks of ``block`` bytes, ``each_s`` seconds each."""

    def __init__(self, source: Source, status: int, headers: Mapping[str, str]) -> None:
        self.status, self.headers, self.url = status, {"Date": DATE, **headers}, "http://h.test/f"
        self.left = int(headers.get("Content-Length", "0"))
        self._source = source
        self.is_closed = False

    def read(self, view: memoryview) -> int:
        size = min(len(view), self._source.block, self.left)
        self.left -= size
        self._source.clock.now += self._source.each_s
        return size

    def close(self) -> None:
        self._source.closes(self)
        self.is_closed = True


@dataclass
class Source:
    """A server of one file; what it does is set by the attributes. ``asked``: what it was asked for."""

    clock: Clock
    size: int = SIZE
    validators: Mapping[str, str] = field(default_factory=lambda: {"ETag": SAME})
    sends_ranges: bool = True
    ignores_other: bool = False  # it sends a part whatever If-Range says
    refuses_same: bool = False  # it sends the whole file as soon as there is an If-Range
    refuses: int = 0  # the status of an answer to the first range
    refused_ranges: frozenset[int] = frozenset()  # of those that are asked for at once, by number
    refuses_head: bool = False
    block: int = 128 * 1024
    each_s: float = 0.0
    answer_s: float = 0.25
    host: str = "h.test"
    asked: list[tuple[ByteRange | None, str | None]] = field(default_factory=list)
    replies: list[Reply] = field(default_factory=list)
    at_close: list[int] = field(default_factory=list)
    heads: int = 0

    def head(self, exchange: Exchange) -> Reply:
        self.heads += 1
        exchange.check()
        if self.refuses_head:
            raise errors.TimedOut("HEAD takes too long")
        return Reply(self, 200, {})

    def get(self, exchange: Exchange, asked: ByteRange | None, if_range: str | None = None) -> Reply:
        self.asked.append((asked, if_range))
        exchange.sent_at, exchange.answered_at = 1.0, 1.0 + self.answer_s
        made = self._answer(asked, if_range)
        self.replies.append(made)
        return made

    def closes(self, reply: Reply) -> None:
        self.at_close.append(len(self.replies))

    def _answer(self, asked: ByteRange | None, if_range: str | None) -> Reply:
        if asked is not None and self.refuses:
            return Reply(self, self.refuses, {"Content-Range": f"bytes */{self.size}"})
        is_same = self.ignores_other or (if_range in self.validators.values() and not self.refuses_same)
        if asked is None or not self.sends_ranges or (if_range is not None and not is_same):
            return Reply(self, 200, {"Content-Length": str(self.size), **self.validators})
        end = min(asked.end, self.size)
        span = f"bytes {asked.start}-{end - 1}/{self.size}"
        return Reply(self, 206, {"Content-Length": str(end - asked.start), "Content-Range": span, **self.validators})


@pytest.fixture
def source(clock: Clock) -> Source:
    return Source(clock)


@pytest.fixture
def inspect(source: Source) -> Any:
    made: Any = ServerInspection("http://h.test/f", PATIENT)
    made._source = source
    made.closes = []
    made._client = SimpleNamespace(close=lambda: made.closes.append(len(source.asked)))
    return made


def set_of(source: Source, **values: Any) -> None:
    for name, value in values.items():
        setattr(source, name, value)


# --- all together ---


def test_a_server_that_does_all_well(inspect: Any, source: Source, clock: Clock) -> None:
    source.each_s = 0.125
    found = inspect.run(4)
    assert (found.head, found.host, found.is_partial, found.if_range) == (200, "h.test", True, IfRange.HONOURED)
    assert (found.resource.size, found.resource.strong_etag) == (SIZE, SAME)
    assert (found.received, found.seconds, found.answer_s) == (SAMPLE, 4.0, 0.25)
    assert (found.connections, found.connections_tried, found.refusals) == (4, 4, ())
    assert source.asked[:3] == [(ByteRange(0, SAMPLE), None), (ByteRange(0, 1), SAME), (ByteRange(0, 1), OTHER)]
    quarter = SIZE // 4
    assert sorted(source.asked[3:]) == [(ByteRange(quarter * n, quarter * (n + 1)), None) for n in range(4)]
    assert clock.slept == [server_inspection.SETTLE_S]
    assert all(reply.is_closed for reply in source.replies)
    assert (source.heads, inspect.closes) == (1, [7])


@pytest.mark.parametrize(
    ("asked", "size", "tried"),
    [
        (0, SIZE, 1),
        (1, SIZE, 1),
        (2, SIZE, 2),
        (8, SIZE, 8),
        (9, SIZE, 8),
        (4, 4 * MIB, 4),
        (4, 4 * MIB - 1, 3),
        (4, MIB - 1, 1),
        (2, 2 * MIB, 2),
    ],
)
def test_no_more_connections_are_tried_than_a_download_would_have(
    asked: int, size: int, tried: int, inspect: Any, source: Source, clock: Clock
) -> None:
    source.size = size
    found = inspect.run(asked)
    assert (found.connections_tried, found.connections) == (tried, tried)
    assert len(source.asked) == 3 + (tried if tried > 1 else 0)
    assert clock.slept == ([server_inspection.SETTLE_S] if tried > 1 else [])


def test_without_ranges_one_connection_is_tried(inspect: Any, source: Source) -> None:
    source.sends_ranges = False
    found = inspect.run(4)
    assert (found.is_partial, found.if_range, found.connections_tried) == (False, IfRange.UNTESTED, 1)
    assert source.asked == [(ByteRange(0, SAMPLE), None)]


def test_a_head_that_fails_is_told_and_the_rest_is_tried(inspect: Any, source: Source) -> None:
    source.refuses_head = True
    found = inspect.run(1)
    assert (found.head, found.received) == ("HEAD takes too long", SAMPLE)


def test_the_connections_are_closed_after_a_failure(inspect: Any, source: Source) -> None:
    source.refuses = 404
    with pytest.raises(errors.NotFound):
        inspect.run(1)
    assert inspect.closes == [1]
    assert [reply.is_closed for reply in source.replies] == [True]


# --- the first answer ---


@pytest.mark.parametrize("status", [400, 405, 416, 501])
def test_a_refused_range_is_followed_by_a_plain_request(status: int, inspect: Any, source: Source) -> None:
    source.refuses = status
    answer, answer_s, received, _seconds, offset = inspect._sample()
    assert source.asked == [(ByteRange(0, SAMPLE), None), (None, None)]
    assert (answer.is_partial, answer_s, received, offset is None) == (False, 0.25, SAMPLE, False)
    assert [reply.is_closed for reply in source.replies] == [True, True]


def test_a_416_of_an_empty_file_is_its_answer(inspect: Any, source: Source) -> None:
    set_of(source, refuses=416, size=0)
    found = inspect.run(4)
    assert source.asked == [(ByteRange(0, SAMPLE), None)]
    assert (found.is_partial, found.resource.size, found.received) == (True, 0, 0)
    assert (found.if_range, found.connections_tried) == (IfRange.UNTESTED, 1)


def test_what_an_empty_file_is_judged_to_be(source: Source) -> None:
    reply: Any = Reply(source, 416, {"Content-Range": "bytes */0", "ETag": SAME})
    assert server_inspection._read_answer(reply, ByteRange(0, 1)) == Answer(
        RemoteResource.from_headers(reply.headers, 0), 0, 0, is_partial=True
    )


@pytest.mark.parametrize(
    ("length", "block", "each_s", "received", "seconds"),
    [
        (SAMPLE + MIB, 128 * 1024, 0.0, SAMPLE, 0.0),
        (SAMPLE + MIB, 100 * 1024, 0.0, 41 * 100 * 1024, 0.0),
        (1000, 600, 1.0, 1000, 3.0),
        (SAMPLE, 1000, SAMPLE_S, 1000, SAMPLE_S),
        (SAMPLE, 1000, SAMPLE_S - 1.0, 2000, 2 * SAMPLE_S - 2.0),
        (0, 1000, 0.5, 0, 0.5),
    ],
)
def test_the_speed_is_that_of_the_beginning(
    length: int, block: int, each_s: float, received: int, seconds: float, source: Source
) -> None:
    set_of(source, block=block, each_s=each_s)
    reply: Any = Reply(source, 200, {"Content-Length": str(length)})
    assert server_inspection._read(reply) == (received, seconds)


# --- If-Range ---


@pytest.mark.parametrize(
    ("changes", "expected", "asked"),
    [
        ({}, IfRange.HONOURED, [SAME, OTHER]),
        ({"ignores_other": True}, IfRange.IGNORED, [SAME, OTHER]),
        ({"refuses_same": True}, IfRange.REFUSED, [SAME]),
        ({"validators": {"Last-Modified": LAST_MODIFIED}}, IfRange.HONOURED, [LAST_MODIFIED, LONG_AGO]),
        ({"validators": {}}, IfRange.UNTESTED, []),
        ({"validators": {"ETag": 'W/"v1"'}}, IfRange.UNTESTED, []),
        ({"sends_ranges": False}, IfRange.UNTESTED, []),
    ],
)
def test_if_range_is_tried_with_the_version_and_with_another(
    changes: dict[str, Any], expected: IfRange, asked: list[str], inspect: Any, source: Source
) -> None:
    set_of(source, **changes)
    assert inspect._if_range(inspect._sample()[0]) is expected
    assert source.asked[1:] == [(ByteRange(0, 1), validator) for validator in asked]


# --- several connections at once ---


def test_all_connections_are_open_at_once_and_closed_together(
    inspect: Any, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    first_closed, never = threading.Event(), threading.Event()
    answer = source._answer

    def late(asked: ByteRange | None, if_range: str | None) -> Reply:
        if asked is not None and asked.start > 0:
            first_closed.wait(0.05)
        return answer(asked, if_range)

    def closes(_reply: Reply) -> None:
        source.at_close.append(len(source.replies))
        first_closed.set()
        never.wait(0.02)

    waits: list[bool] = []

    class Event(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            assert timeout == server_inspection.LIMIT_S
            waits.append(super().wait(5.0))
            return waits[-1]

    monkeypatch.setattr(source, "_answer", late)
    monkeypatch.setattr(source, "closes", closes)
    monkeypatch.setattr(server_inspection, "threading", SimpleNamespace(Event=Event, Timer=threading.Timer))
    assert inspect._refusals(3, 10) == ()
    assert (source.at_close, waits) == ([3, 3, 3], [True, True, True])
    assert [reply.is_closed for reply in source.replies] == [True] * 3
    assert sorted(source.asked) == [(ByteRange(10 * n, 10 * (n + 1)), None) for n in range(3)]


def test_what_is_no_part_is_told_for_each_connection(
    inspect: Any, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answers(asked: ByteRange | None, _if_range: str | None) -> Reply:
        assert asked is not None
        if asked.start == 0:
            return Reply(source, 206 if asked.end == SAMPLE else 429, {"Content-Range": "bytes 0-39/40"})
        if asked.start == 10:
            return Reply(source, 200, {"Content-Length": "40"})
        return Reply(source, 206, {"Content-Range": f"bytes {asked.start}-{asked.end - 1}/40"})

    monkeypatch.setattr(source, "_answer", answers)
    found = inspect._refusals(4, 10)
    assert sorted(found) == ["the server answered 200 to a range", "the server answered 429"]
    assert replace(inspect.run(1), connections_tried=4, refusals=found).connections == 2


def test_with_fewer_threads_fewer_connections_are_tried(
    inspect: Any, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threads.start_thread
    names: list[str] = []

    def starts(work: Any, name: str) -> Any:
        if len(names) == 2:
            raise errors.NoThread("no thread can be started")
        names.append(name)
        return start(work, name)

    monkeypatch.setattr(threads, "start_thread", starts)
    assert inspect._refusals(4, 10) == ()
    assert (len(source.asked), names) == (2, ["dlpool-probe"] * 2)


@pytest.mark.parametrize("result", ["", "refused", None])
def test_no_answer_is_waited_for_without_end(result: str | None) -> None:
    waited: list[float] = []

    class Results:
        def get(self, timeout: float) -> str:
            waited.append(timeout)
            if result is None:
                raise queue.Empty
            return result

    results: Any = Results()
    assert server_inspection._next_result(results) == ("the server did not respond" if result is None else result)
    assert waited == [20.0]


# --- the limit of a request ---


@dataclass
class Timer:
    """Notes what a timer is made for and what happens to it."""

    seconds: float
    work: Any
    given: list[Any]
    daemon: bool = False
    events: list[str] = field(default_factory=list)

    def start(self) -> None:
        self.events.append(f"started, daemon={self.daemon}")

    def cancel(self) -> None:
        self.events.append("cancelled")


@pytest.fixture
def timers(monkeypatch: pytest.MonkeyPatch) -> list[Timer]:
    made: list[Timer] = []

    def timer(*given: Any) -> Timer:
        made.append(Timer(*given))
        return made[-1]

    monkeypatch.setattr(server_inspection, "threading", SimpleNamespace(Timer=timer, Event=threading.Event))
    return made


@pytest.mark.parametrize("fails", [False, True])
def test_a_request_has_a_limit_that_ends_with_it(fails: bool, timers: list[Timer]) -> None:
    with suppress(ZeroDivisionError), server_inspection._bounded_exchange() as exchange:
        (timer,) = timers
        assert (timer.seconds, timer.events) == (server_inspection.LIMIT_S, ["started, daemon=True"])
        exchange.check()
        timer.work(*timer.given)
        with pytest.raises(errors.TimedOut, match=r"^the server did not answer within 10 s$"):
            exchange.check()
        if fails:
            raise ZeroDivisionError
    assert timer.events == ["started, daemon=True", "cancelled"]


# --- the clock ---


@pytest.mark.parametrize(
    ("headers", "offset_s"),
    [
        ({"Date": DATE}, 0.0),
        ({"Date": DATE, "Age": " 60 "}, 60.0),
        ({"Date": DATE, "Age": "999999999"}, 999999999.0),
        ({"Date": DATE, "Age": "1000000000"}, 0.0),
        ({"Date": DATE, "Age": "-5"}, 0.0),
        ({"Date": DATE, "Age": "soon"}, 0.0),
        ({"Date": "yesterday", "Age": "60"}, None),
        ({"Age": "60"}, None),
    ],
)
def test_the_clock_of_a_server_is_that_of_its_answer(headers: dict[str, str], offset_s: float | None) -> None:
    assert clock_offset_s(headers, NOW) == offset_s
    behind = clock_offset_s(headers, NOW + timedelta(seconds=10))
    assert behind == (None if offset_s is None else offset_s - 10.0)
