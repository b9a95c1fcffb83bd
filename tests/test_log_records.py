"""Test that any log call becomes one line of JSON with ECS names and without secrets."""

from __future__ import annotations

import ipaddress
import json
import os
import re
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
import urllib3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dlpool.config import LoggingSettings, RedisSettings
from dlpool.errors import ChecksumMismatch, UsageError
from dlpool.observe.log import Log
from dlpool.observe.processors import MAX_LINE, LogOrigin
from dlpool.observe.values import MAX_TEXT, to_json
from dlpool.redaction import is_secret, without_secrets

NOON = datetime(2024, 5, 6, 12, 0, 0, 7999, tzinfo=timezone.utc)
Write = Callable[..., dict[str, Any]]


def no_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


def strictly_read(line: bytes) -> dict[str, Any]:
    """Parse the record on a line as a strict reader does."""
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert len(line) <= MAX_LINE
    record: dict[str, Any] = json.loads(line.decode("ascii"), parse_constant=no_constant)
    json.dumps(record, ensure_ascii=False).encode()  # raises for a lone surrogate
    return record


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Log]:
    made = Log(
        tmp_path_factory.mktemp("log"),
        LoggingSettings(level="debug"),
        LogOrigin("dlpool-worker", "node-7", version="1.2"),
        clock=lambda: NOON,
    )
    yield made
    made.close()


@pytest.fixture(scope="module")
def write(log: Log) -> Write:
    """Return a function that logs one event and returns its record."""

    def written(event: Any = "job_started", level: str = "info", /, **fields: Any) -> dict[str, Any]:
        before, lost = log.path.stat().st_size, log.dropped
        getattr(log.logger("test"), level)(event, **fields)
        assert log.dropped == lost
        with open(log.path, "rb") as file:
            file.seek(before)
            return strictly_read(file.read())

    return written


# --- names ---


def test_a_record_says_what_when_who_and_where(write: Write) -> None:
    record = write("job_started")
    assert record.pop("host.name")
    assert record == {
        "@timestamp": "2024-05-06T12:00:00.007Z",
        "log.level": "info",
        "message": "job_started",
        "event.action": "job_started",
        "event.dataset": "dlpool",
        "ecs.version": "8.11.0",
        "service.name": "dlpool-worker",
        "service.version": "1.2",
        "service.node.name": "node-7",
        "process.pid": os.getpid(),
        "process.thread.name": threading.current_thread().name,
        "log.logger": "test",
    }


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"job_id": "j1"}, {"dlpool.job.id": "j1"}),
        ({"trace_id": "t1"}, {"trace.id": "t1"}),
        ({"user_id": "u1"}, {"user.id": "u1"}),
        ({"path": Path("/srv/a.bin")}, {"file.path": "/srv/a.bin"}),
        ({"size": 2**40}, {"file.size": 2**40}),
        ({"status": 503}, {"http.response.status_code": 503}),
        ({"label": "timeout"}, {"error.code": "timeout"}),
        ({"attempt": 2}, {"dlpool.attempt": 2}),
        ({"level": 2, "name": 3}, {"dlpool.level": 2, "dlpool.name": 3}),
        ({"seconds": 1.5}, {"event.duration": 1_500_000_000}),
        ({"seconds": 10**400}, {"dlpool.seconds": to_json(10**400)}),
        ({"seconds": float("nan")}, {"dlpool.seconds": "nan"}),
        ({"seconds": "soon"}, {"dlpool.seconds": "soon"}),
        ({"outcome": "succeeded"}, {"event.outcome": "success"}),
        ({"outcome": "failure"}, {"event.outcome": "failure"}),
        ({"outcome": "locked"}, {"event.outcome": "unknown", "dlpool.outcome": "locked"}),
        ({"url": "https://h.example:8443/a"}, {"url.full": "https://h.example:8443/a", "url.domain": "h.example"}),
        ({"url": "http://[half"}, {"url.full": "http://[half"}),
        ({"url": None}, {"url.full": "None"}),
        ({"error": None}, {}),
        ({"error": "it broke"}, {"error.message": "it broke"}),
    ],
)
def test_fields_get_their_ecs_names(write: Write, fields: dict[str, Any], expected: dict[str, Any]) -> None:
    bare = write()
    assert {
        name: value for name, value in write("job_started", "info", **fields).items() if name not in bare
    } == expected


def test_bound_fields_are_in_every_record_and_calls_override_them(log: Log) -> None:
    before = log.path.stat().st_size
    logger = log.logger("a", job_id="j1", attempt=1).bind(level="s", attempt=2)
    logger.info("one")
    logger.bind(attempt=3).info("two", attempt=4)
    first, second = map(json.loads, log.path.read_bytes()[before:].splitlines())
    assert (first["dlpool.job.id"], first["dlpool.attempt"], first["dlpool.level"]) == ("j1", 2, "s")
    assert (second["dlpool.job.id"], second["dlpool.attempt"]) == ("j1", 4)


def raised(error: Exception) -> Exception:
    try:
        raise error
    except type(error) as caught:
        return caught


def test_an_error_has_its_type_label_and_message(write: Write) -> None:
    record = write(error=raised(ChecksumMismatch("the checksum is wrong")))
    assert record["error.type"] == "ChecksumMismatch"
    assert record["error.code"] == "checksum"
    assert record["error.message"] == "the checksum is wrong"
    assert "error.stack_trace" not in record


@pytest.mark.parametrize("level", ["error", "critical"])
def test_from_level_error_up_the_stack_is_shown(write: Write, level: str) -> None:
    stack = write("job_failed", level, error=raised(RuntimeError("odd")))["error.stack_trace"]
    assert stack.startswith("Traceback")
    assert stack.endswith("RuntimeError: odd\n")


def test_an_error_that_was_never_raised_has_no_stack(write: Write) -> None:
    assert "error.stack_trace" not in write("job_failed", "error", error=ValueError("odd"))


def test_the_stack_of_a_long_chain_keeps_its_end(write: Write) -> None:
    error: Exception = RuntimeError("first")
    for number in range(300):
        following = RuntimeError(f"number {number} https://h/x?sig=s3cret")
        following.__cause__ = error
        error = raised(following)
    stack = write("job_failed", "error", error=error)["error.stack_trace"]
    assert len(stack) <= MAX_TEXT
    assert "number 299" in stack
    assert "s3cret" not in stack


@pytest.mark.parametrize(
    "parse",
    [
        lambda: requests.Request("GET", "http://u:s3cret/x@h/").prepare(),
        lambda: urllib3.util.parse_url("http://u:s3cret/x"),
        lambda: urlsplit("http://[u:s3cret@h"),
        lambda: urlsplit("http://h:s3cret").port,
        lambda: int("s3cret"),
        lambda: json.loads("s3cret"),
        lambda: b"s3cret\xff".decode(),
        lambda: ipaddress.ip_address("s3cret"),
    ],
)
def test_a_parse_error_is_told_by_its_class(write: Write, parse: Callable[[], object]) -> None:
    try:
        try:
            parse()
        except ValueError as error:
            kind = type(error).__qualname__
            raise UsageError("it is not a URL") from error
    except UsageError as error:
        record = write("job_failed", "error", error=error)
        alone = write("odd", "error", error=error.__cause__)
        other = write("odd", "error", reason=error.__cause__, causes=[error.__cause__])
    assert "s3cret" not in json.dumps([record["error.message"], alone["error.message"], other])
    for one in (record, alone):
        told = [line for line in one["error.stack_trace"].splitlines() if not line.startswith(" ")]
        assert any(line.endswith(kind) for line in told) and "s3cret" not in "".join(told)
    assert record["error.stack_trace"].count("Traceback") >= 2
    assert record["error.stack_trace"].endswith("UsageError: it is not a URL\n")


def chained(outer: Exception, *, is_told: bool = True) -> Exception:
    """Return an error that was raised while another one was handled."""
    try:
        try:
            raise KeyError("inner")
        except KeyError:
            outer.__suppress_context__ = not is_told
            raise outer  # noqa: B904 - the context is what matters
    except RuntimeError as error:
        return error
    raise AssertionError


def test_a_chain_of_errors_is_told_as_python_tells_it(write: Write) -> None:
    caused, circle = chained(RuntimeError("outer")), chained(RuntimeError("outer"))
    caused.__cause__ = caused.__context__
    assert circle.__context__ is not None
    circle.__context__.__cause__ = circle
    for error in (chained(RuntimeError("outer")), chained(RuntimeError("outer"), is_told=False), caused, circle):
        stack = write("odd", "error", error=error)["error.stack_trace"]
        assert stack == "".join(traceback.format_exception(error))


# --- secrets ---


@pytest.mark.parametrize(
    "name",
    [
        "password",
        "redis_password",
        "Authorization",
        "Proxy-Authorization",
        "Cookie",
        "Set-Cookie",
        "token",
        "X-Auth-Token",
        "client_secret",
        "api_key",
        "X-Api-Key",
        "aws_credentials",
        "auth",
        "passphrase",
    ],
)
def test_what_is_named_like_a_secret_is_redacted(write: Write, name: str) -> None:
    assert is_secret(name)
    nested = {"headers": {name: "s3cret", "Accept": "*/*"}, name: "s3cret", "pairs": [(name, "s3cret")]}
    record = write(**nested, raw={name.encode(): "s3cret"}, error=ValueError({name: 1}))
    assert record[f"dlpool.{name}"] == "[redacted]"
    assert record["dlpool.headers"] == {name: "[redacted]", "Accept": "*/*"}
    assert "s3cret" not in json.dumps(record)


@pytest.mark.parametrize("name", ["path", "author", "attempt", "connections", "etag", "keep"])
def test_what_only_resembles_a_secret_is_shown(name: str) -> None:
    assert not is_secret(name)


def test_settings_can_be_logged(write: Write) -> None:
    record = write(redis=RedisSettings(url="redis://user:s3cret@h/0", password="s3cret"))
    assert record["dlpool.redis"]["password"] == "[redacted]"
    assert record["dlpool.redis"]["url"] == "redis://h/0"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://u:p@h/a?b=c#d", "https://h/a"),
        ("got https://u:p@h/a?b=c: 503", "got https://h/a 503"),
        ("from http://h/a#frag to ftp://u@h2/b", "from http://h/a to ftp://h2/b"),
        ("redis://:pa'ss\"w@h:6379/0 is away", "redis://h:6379/0 is away"),
        ("https://h/a@2x.png", "https://h/a@2x.png"),
        ("Max retries exceeded with url: /a?sig=abc&x=1 (Caused by", "Max retries exceeded with url: /a (Caused by"),
        ("Authorization: Basic YTpi", "Authorization: [redacted]"),
        ("{'Cookie': 'a=b'}", "{'Cookie': [redacted]"),
        ("what? nothing", "what? nothing"),
        ("is it so?", "is it so?"),
        ("x" * 70_000 + "https://u:" + "p" * 70_000 + "@h/", "x" * 65_536),
        ("x" * 60_000 + " https://u:" + "p" * 70_000 + "@h/", "x" * 60_000 + " https"),
    ],
)
def test_texts_lose_the_secret_parts_of_their_urls(text: str, shown: str) -> None:
    assert without_secrets(text) == shown


@pytest.mark.parametrize(
    "text", ["/" * 60_000, "?" * 60_000, "a?" * 30_000, "://" * 20_000, "@" * 60_000, "a:" * 30_000]
)
def test_no_text_makes_the_redaction_slow(text: str) -> None:
    without_secrets(text)  # quadratic time would be minutes here


def test_a_url_shows_neither_user_nor_query_nor_fragment(write: Write) -> None:
    record = write(url="https://user:s3cret@h.example/a/b?sig=s3cret#s3cret")
    assert record["url.full"] == "https://h.example/a/b"
    assert record["url.domain"] == "h.example"


# --- hostile values ---


class Hostile:
    """An object all of whose methods fail."""

    def __repr__(self) -> str:
        raise RuntimeError("no")

    __str__ = __repr__


class HostileText(str):
    """Text whose methods fail."""

    def __str__(self) -> str:
        raise RuntimeError("no")

    def __len__(self) -> int:
        raise RuntimeError("no")


class HostileError(Exception):
    """An error that cannot be shown."""

    def __str__(self) -> str:
        raise RuntimeError("no")


class HostileMapping(dict[str, object]):
    """A mapping that cannot be iterated."""

    def items(self) -> Any:
        raise RuntimeError("no")


class Colour(Enum):
    """A value with a name."""

    RED = "red"


@dataclass
class Holder:
    """Holds anything."""

    inside: object = None
    more: list[object] = field(default_factory=list)


def endless() -> list[object]:
    loop: list[object] = []
    loop.extend([loop] * 50)
    return loop


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (Hostile(), "<unprintable Hostile>"),
        (HostileMapping(), "<unprintable HostileMapping>"),
        (HostileError(), "<unprintable HostileError>"),
        ([Hostile(), 1], ["<unprintable Hostile>", 1]),
        (Colour.RED, "red"),
        (Holder(1, ["a"]), {"inside": 1, "more": ["a"]}),
        (float("inf"), "inf"),
        (2**63, "0x8000000000000000"),
        (True, True),
        (None, None),
        (b"a\xff", "a\\xff"),
        ("a\udc80b", "a\\udc80b"),
        ("two\nlines\u2028three", "two\nlines\u2028three"),
        ({1: {2}, None: ()}, {"1": [2], "None": []}),
        (Path("/a"), "/a"),
        (ValueError("odd"), "ValueError"),
        (RuntimeError("odd"), "RuntimeError: odd"),
        (NOON.date(), "2024-05-06"),
        ("x" * 9000, "x" * (MAX_TEXT - 3) + "..."),
        (list(range(1000)), list(range(100))),
    ],
)
def test_values_become_json(write: Write, value: object, shown: object) -> None:
    assert write(value=value)["dlpool.value"] == shown


def test_text_with_methods_of_its_own_is_shown(write: Write) -> None:
    assert write(value=HostileText("abc"))["dlpool.value"] == "abc"


def test_an_endless_value_ends(write: Write) -> None:
    assert "..." in json.dumps(write(value=endless())["dlpool.value"])


def test_a_line_is_bounded(write: Write) -> None:
    record = write(**{f"n{number}": "\N{SNOWMAN}" * 9000 for number in range(50)})
    assert record["dlpool.is_cut"] is True
    assert record["message"] == "job_started"
    assert record["service.name"] == "dlpool-worker"
    assert record["dlpool.n0"].startswith("\N{SNOWMAN}")


def test_a_line_of_too_many_fields_keeps_the_first_ones(write: Write) -> None:
    record = write(**{f"n{number}": "x" * 100 for number in range(5000)})
    assert record["dlpool.n0"] == "x" * 100
    assert "dlpool.n4999" not in record


def test_an_error_that_cannot_be_shown_is_logged(write: Write) -> None:
    assert write("job_failed", "error", error=raised(HostileError()))["error.message"] == "<unprintable>"


def test_a_value_that_lies_about_its_class_is_dropped_at_worst(log: Log) -> None:
    class Liar:
        def __getattribute__(self, name: str) -> Any:
            raise RuntimeError(name)

    lost = log.dropped
    log.logger("test").error("odd", error=Liar(), seconds=Liar())
    assert log.dropped == lost + 1


ANY_TEXT = st.text(st.characters(exclude_categories=()))
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    ANY_TEXT,
    st.binary(),
    st.datetimes(),
    st.timedeltas(),
    st.builds(pow, st.just(10), st.just(5000)),
    st.builds(Path, st.just("/x")),
    st.builds(Hostile),
    st.builds(HostileText, ANY_TEXT),
    st.builds(HostileError),
    st.builds(ValueError, ANY_TEXT),
    st.builds(endless),
    st.sampled_from([Colour.RED, Hostile, print]),
    ANY_TEXT.map(lambda text: "https://" + text),
    ANY_TEXT.map(lambda text: text * 500),
    st.complex_numbers(),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner),
        st.dictionaries(st.one_of(ANY_TEXT, st.binary(), st.integers()), inner),
        st.tuples(ANY_TEXT, inner),
        st.builds(Holder, inner, st.lists(inner)),
    ),
    max_leaves=20,
)
NO_FIELDS = ("event", "self", "method_name")  # parameters of structlog's methods
NAMES = st.one_of(ANY_TEXT, st.sampled_from(["url", "seconds", "outcome", "error", "path", "size", "logger", "token"]))


@settings(max_examples=150, deadline=None)
@given(
    event=VALUES,
    fields=st.dictionaries(NAMES.filter(lambda name: name not in NO_FIELDS), VALUES, max_size=8),
    level=st.sampled_from(["debug", "info", "warning", "error", "critical"]),
)
def test_no_log_call_raises_and_each_is_one_json_object(
    write: Write, event: object, fields: dict[str, object], level: str
) -> None:
    assert write(event, level, **fields)["log.level"] == level


# --- for the eyes ---


@pytest.fixture
def tell(tmp_path: Path) -> Callable[..., str]:
    """Return a function that logs one event in the console format and returns the text."""
    log = Log(
        tmp_path,
        LoggingSettings(level="debug", log_format="console"),
        LogOrigin("s", "n", version="1"),
        clock=lambda: NOON,
    )

    def told(event: Any, level: str = "info", /, **fields: Any) -> str:
        before = log.path.stat().st_size
        getattr(log.logger("worker"), level)(event, **fields)
        assert log.dropped == 0
        return log.path.read_bytes()[before:].decode()

    return told


def test_the_console_format_is_a_line_for_the_eyes(tell: Callable[..., str]) -> None:
    shown = tell("job_started", job_id="j1", size=7, url="https://user:s3cret@h/a")
    time, level, event, logger, *fields = re.sub(r" +\]", "]", shown).split()
    assert (time, level, event, logger) == ("2024-05-06T12:00:00.007Z", "[info]", "job_started", "[worker]")
    assert fields == [
        f"process.pid={os.getpid()}",
        "dlpool.job.id=j1",
        "file.size=7",
        "url.full=https://h/a",
        "url.domain=h",
    ]


def test_a_stack_stands_below_its_line(tell: Callable[..., str]) -> None:
    first, *stack = tell("job_failed", "error", error=raised(RuntimeError("odd"))).splitlines()
    assert "error.message=odd" in first
    assert (stack[0], stack[-1]) == ("Traceback (most recent call last):", "RuntimeError: odd")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(event=VALUES, fields=st.dictionaries(NAMES.filter(lambda name: name not in NO_FIELDS), VALUES, max_size=4))
def test_nothing_ends_a_console_line_or_reaches_the_terminal(
    tell: Callable[..., str], event: object, fields: dict[str, object]
) -> None:
    shown = tell(event, **fields)
    assert len(shown.encode()) <= MAX_LINE
    assert shown.endswith("\n")
    assert shown[:-1].isprintable()
