"""Test that a real rsyslog ships a log during writes and rotations: each line arrives once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
import requests

from dlpool.config import LoggingSettings
from dlpool.observe.rotation import Rotation
from tests.bulk import Bulk
from tests.conftest import wait_until
from tests.processes import ROOT
from tests.test_log_files import Writer, make_log
from tests.web import WebServer

BINARY = shutil.which("rsyslogd", path=f"{os.environ['PATH']}:/usr/sbin")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write the shipped configuration with other paths, another port and shorter retries."""
    text = (ROOT / "etc" / "rsyslog" / "dlpool.conf").read_text()
    text = text.replace("/var/log/dlpool-refused", f"{tmp_path}/refused").replace("/var/log/dlpool", f"{tmp_path}/log")
    text = text.replace('resumeInterval="5"', 'resumeInterval="1"')
    (tmp_path / "dlpool.conf").write_text(text)
    for name in ("log", "work"):
        (tmp_path / name).mkdir()
    return tmp_path


@contextmanager
def rsyslog(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run rsyslogd, and stop it as a service manager does."""
    assert BINARY is not None, "rsyslog is not installed: scripts/test installs it"
    shipped = (folder / "dlpool.conf").read_text().replace('"9200"', f'"{port}"')
    (folder / "main.conf").write_text(f'global(workDirectory="{folder}/work")\n{shipped}')
    command = [BINARY, "-n", "-f", str(folder / "main.conf"), "-i", str(folder / "pid")]
    with (folder / "said").open("ab") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said)
    try:
        yield process
        process.terminate()
        process.wait(20)
    finally:
        process.kill()
        process.wait(10)


def numbers(bulk: Bulk) -> list[tuple[str, int]]:
    """Return how often each line has arrived."""
    return sorted((one["dlpool.writer"], one["dlpool.number"]) for one in list(bulk.documents.values()))


@pytest.fixture
def writers(folder: Path) -> Iterator[list[Writer]]:
    made = [Writer(folder / "log", name) for name in ("w0", "w1")]
    yield made
    for writer in made:
        writer.end()


def write_and_rotate(writers: list[Writer], rotation: Rotation, turns: int) -> None:
    """Rotate while each writer writes 500 lines, and write 100 more to the renamed file."""
    for _ in range(turns):
        for writer in writers:
            writer.say("write 500")
        wait_until(lambda: rotation.rotate_if_due(LoggingSettings(rotate_size=1), datetime.now(timezone.utc)))
        for writer in writers:
            writer.is_ready()
            writer.do("write 100")
        for writer in writers:
            writer.do("tend")


def test_each_line_of_a_rotating_log_arrives_once(folder: Path, writers: list[Writer]) -> None:
    """Elasticsearch is unavailable or busy at times, and rsyslog is stopped during two rotations."""
    rotation = Rotation(folder / "log" / "dlpool.log")
    with Bulk() as bulk:
        bulk.away, bulk.busy = 1, 30
        for writer in writers:
            writer.do("write 1")
        with rsyslog(folder, bulk.port):
            write_and_rotate(writers, rotation, 3)
            wait_until(lambda: len(bulk.documents) >= 2 * 1801, 40)
        write_and_rotate(writers, rotation, 2)
        with rsyslog(folder, bulk.port):
            write_and_rotate(writers, rotation, 1)
            wait_until(lambda: len(bulk.documents) >= 2 * 3601, 40)
        assert numbers(bulk) == [(name, number) for name in ("w0", "w1") for number in range(3601)]
        assert (bulk.away, bulk.busy) == (0, 0)
        assert bulk.indices == {"logs-dlpool-default"}
    assert not (folder / "refused").exists()


def test_the_log_of_dlpool_web_is_shipped_beside_that_of_the_service(folder: Path) -> None:
    """Its folder is created while rsyslog runs; it is rotated, and each line arrives once."""
    service = make_log(folder / "log")
    server = WebServer(folder)
    rotation = Rotation(server.log_file)
    with Bulk() as bulk, rsyslog(folder, bulk.port), server:
        count = 0
        for _ in range(3):
            is_rotated = False
            while not is_rotated:  # there is a new log as soon as a process has seen that the old one was renamed
                requests.get(f"{server.url}/tasks/t{count}", timeout=10)
                service.logger("a").info("of_the_service", number=count)
                count += 1
                is_rotated = rotation.rotate_if_due(LoggingSettings(rotate_size=1), datetime.now(timezone.utc))
        wait_until(lambda: len(told(bulk, "request_served")) >= count, 40)
        wait_until(lambda: len(told(bulk, "of_the_service")) >= count, 40)
        expected = sorted(f"/go-uploader/tasks/t{number}" for number in range(count))
        assert sorted(one["url.path"] for one in told(bulk, "request_served")) == expected
        assert {one["service.name"] for one in told(bulk, "request_served")} == {"dlpool-web"}
        assert len(told(bulk, "of_the_service")) == count
        assert told(bulk, "web_started")
    assert not (folder / "refused").exists()


def told(bulk: Bulk, event: str) -> list[dict[str, Any]]:
    """Return the documents of an event."""
    return [one for one in list(bulk.documents.values()) if one["event.action"] == event]


def test_a_line_that_elasticsearch_never_takes_is_set_aside(folder: Path) -> None:
    log = make_log(folder / "log")
    with Bulk() as bulk, rsyslog(folder, bulk.port):
        bulk.invalid = "odd_one"
        for event in ("before", "odd_one", "x" * 5000 + "\N{SNOWMAN}", "after"):
            log.logger("a").info(event, numbers=["y" * 7000] * 6)
        wait_until(lambda: len(bulk.documents) == 3 and (folder / "refused").exists())
        refused = folder / "refused"
        wait_until(lambda: refused.read_text().endswith("\n"))
    status, _, document = refused.read_text().partition(": ")
    assert status == "400 document_parsing_exception"
    assert json.loads(document)["message"] == "odd_one"
    kept = [json.loads(line) for line in log.path.read_bytes().splitlines()]
    assert sorted(map(json.dumps, bulk.documents.values())) == sorted(json.dumps(kept[at]) for at in (0, 2, 3))
