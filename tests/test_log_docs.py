"""Test that ``docs/logging.md`` lists each event and field of the log, with its type."""

from __future__ import annotations

import ast
import itertools
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dlpool.config import LoggingSettings
from dlpool.kinds import LOGGERS
from dlpool.observe.processors import to_ecs
from tests.conftest import make_data, wait_until
from tests.desk import NOT_FOUND, Gate, InTurn, answer, desk_of, running
from tests.log_docs import BASE, ERROR, EVENTS, FIELDS, JOB
from tests.log_events import PACKAGE, logged
from tests.origin import File

# ECS 8.11, field reference: what we use of it
ECS = {
    "@timestamp": "date",
    "message": "match_only_text",
    "log.level": "keyword",
    "log.logger": "keyword",
    "trace.id": "keyword",
    "event.action": "keyword",
    "event.dataset": "keyword",
    "event.duration": "long",
    "event.outcome": "keyword",
    "ecs.version": "keyword",
    "service.name": "keyword",
    "service.version": "keyword",
    "service.node.name": "keyword",
    "host.name": "keyword",
    "process.pid": "long",
    "process.thread.name": "keyword",
    "user.id": "keyword",
    "url.full": "wildcard",
    "url.domain": "keyword",
    "file.path": "keyword",
    "file.size": "long",
    "error.type": "keyword",
    "error.code": "keyword",
    "error.message": "match_only_text",
    "error.stack_trace": "wildcard",
    "http.request.method": "keyword",
    "http.response.status_code": "long",
    "url.path": "wildcard",
    "client.address": "keyword",
    "file.hash.sha256": "keyword",
    "user.name": "keyword",
}
TYPES: dict[str, type | tuple[type, ...]] = {
    "date": str,
    "keyword": (str, list),
    "text": str,
    "long": int,
    "float": (int, float),
    "boolean": bool,
    "flattened": (dict, list),
    "match_only_text": str,
    "wildcard": str,
}


def test_each_event_of_the_code_has_its_row() -> None:
    levels, _, unknown = logged()
    assert unknown == []
    assert levels == {name: event.levels for name, event in EVENTS.items()}


def test_each_named_field_of_a_call_is_in_the_row_of_its_event() -> None:
    _, fields, _ = logged()
    for name, given in fields.items():
        sample: dict[str, Any] = {"seconds": 1, "outcome": "success", "url": "http://h/f"}
        record = to_ecs(None, "error", {"event": name, **{key: sample.get(key, "x") for key in given}})
        assert set(record) - set(BASE) <= EVENTS[name].fields, name


def test_each_field_is_known_to_ecs_or_our_own_and_some_event_has_it() -> None:
    for name, kind in FIELDS.items():
        assert kind in TYPES
        assert ECS.get(name) == kind or name.startswith("dlpool."), name
    used = set().union(*(event.fields for event in EVENTS.values()))
    assert used | {"dlpool.is_cut"} == set(FIELDS) - set(BASE)
    assert set(FIELDS) >= JOB | ERROR


def test_the_loggers_are_those_that_a_setting_may_name() -> None:
    found = set()
    for module in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(module.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "logger":
                found.add(ast.literal_eval(node.args[0]))
    assert found == set(LOGGERS)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[dict[str, Any]]]:
    """Return the log of a service that was given all kinds of jobs, signals and kills."""
    folder = tmp_path_factory.mktemp("run")
    settings: Any = {
        "logging": {"level": "debug", "progress_interval": "100ms", "archive_command": "true", "compress_after": 0},
        "hooks": {"on_success": "true", "on_failure": "false"},
        "supervisor": {"max_attempts": 2},
    }
    with running(folder, **settings) as both, desk_of(*both) as desk:
        service, client = both
        gate = Gate()
        ordinals = itertools.count()
        desk.serve(InTurn(answer(503), File(make_data(300_000))))
        client.wait_for(desk.push(user_id="u1", trace_id="t1"))
        client.wait_for(desk.push(next(ordinals), desk.path("f"), if_exists="skip"))
        desk.serve(answer(NOT_FOUND))
        client.wait_for_failure(desk.push("absent"))
        desk.push_raw("no job")
        desk.serve(gate)
        held = desk.push("held")
        wait_until(lambda: gate.waiting > 0)
        wait_until(lambda: bool(service.events("download_progress")))
        service.log_file.with_name("dlpool.log.20991122T210526.743Z").write_text("old\n")
        for number, event in ((signal.SIGUSR2, "state_dumped"), (signal.SIGHUP, "configuration_reloaded")):
            service.signal(number)
            wait_until(lambda event=event: bool(service.events(event)))  # type: ignore[misc]
        for worker in service.workers():
            worker.kill()
        gate.open()
        client.wait_for(held)
        wait_until(lambda: bool(service.events("log_archived") and service.events("hook_failed")))
        assert service.stop() == 0
        yield service.records()


def test_what_a_service_says_is_as_the_tables_say(records: list[dict[str, Any]]) -> None:
    for record in records:
        event = EVENTS[record["event.action"]]
        assert set(BASE) <= set(record)
        assert set(record) - set(BASE) <= event.fields, record
        assert record["log.level"] in event.levels
        assert record["log.logger"] in LOGGERS
        for name, value in record.items():
            assert value is None or isinstance(value, TYPES[FIELDS[name]]), (name, value)


def test_that_run_says_most_of_what_there_is_to_say(records: list[dict[str, Any]]) -> None:
    seen = {record["event.action"] for record in records}
    wanted = """job_started job_succeeded job_failed job_malformed job_retried target_skipped download_progress
        hook_succeeded hook_failed log_archived state_dumped configuration_reloaded worker_died worker_started
        worker_exited service_started service_ready signal_received drain_started service_stopped range_retry"""
    assert set(wanted.split()) <= seen


def test_each_line_about_a_job_has_its_trace(records: list[dict[str, Any]]) -> None:
    about = [record for record in records if "dlpool.job.id" in record]
    assert about
    assert all(record["trace.id"] for record in about)


def test_the_settings_that_the_document_names_exist() -> None:
    names = set(vars(LoggingSettings()))
    for name in (
        "level",
        "levels",
        "log_format",
        "rotate_daily",
        "rotate_size",
        "compress_after",
        "keep_days",
        "keep_files",
        "keep_size",
        "archive_command",
        "archive_timeout",
        "archive_retry_delay",
        "traceparent",
    ):
        assert name in names
        assert f"`{name}" in Path(PACKAGE.parent / "docs" / "logging.md").read_text()
