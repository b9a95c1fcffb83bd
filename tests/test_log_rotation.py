"""Test rotation: what is due, what is kept, and that a crash at any step neither loses nor duplicates lines."""

from __future__ import annotations

import gzip
import json
import os
import signal
from collections.abc import Callable
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from dlpool.config import LoggingSettings
from dlpool.observe.rotation import (
    RotatedLog,
    Rotation,
    compress,
    expired_logs,
    first_day,
    is_compression_due,
    is_due,
    rotated_name,
)
from tests.conftest import wait_until
from tests.test_log_files import in_child, lines_of, make_log, records_of

NOW = datetime(2024, 5, 6, 7, 8, 9, 123456, tzinfo=timezone.utc)
DAY = timedelta(days=1)
LIVE = "dlpool.log"
ROTATE_ALWAYS = LoggingSettings(rotate_size=1)
AT_ONCE = LoggingSettings(compress_after=0)


# --- decisions ---


@pytest.mark.parametrize(
    ("size", "begun", "is_daily", "expected"),
    [
        (1000, NOW.date(), True, False),
        (1001, NOW.date(), True, True),
        (1, NOW.date() - DAY, True, True),
        (1, NOW.date() - DAY, False, False),
        (0, NOW.date() - DAY, True, False),
        (1, NOW.date() + DAY, True, False),
    ],
)
def test_a_log_is_rotated_by_size_and_by_day(size: int, begun: date, is_daily: bool, expected: bool) -> None:
    settings = LoggingSettings(rotate_size=1000, rotate_daily=is_daily)
    assert is_due(size, begun, NOW.date(), settings) is expected


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        (b'{"@timestamp":"2024-05-05T23:59:59.999Z","log', date(2024, 5, 5)),
        (b"2024-05-05T23:59:59.999Z [info     ] job_st", date(2024, 5, 5)),
        (b'{"@timestamp":"2024-99-05T', date(2024, 5, 6)),
        (b"torn", date(2024, 5, 6)),
        (b"", date(2024, 5, 6)),
    ],
)
def test_a_log_is_of_the_day_of_its_first_record(start: bytes, expected: date) -> None:
    assert first_day(start, NOW.timestamp()) == expected


def test_the_name_of_an_old_log_says_when_it_ended() -> None:
    path = rotated_name(Path("/l") / LIVE, NOW)
    assert path == Path("/l/dlpool.log.20240506T070809.123Z")
    ended = NOW.replace(microsecond=123000)
    assert RotatedLog.of(LIVE, path, 7) == RotatedLog(path, ended, 7, False)
    packed = Path(f"{path}.gz")
    assert RotatedLog.of(LIVE, packed, 7) == RotatedLog(packed, ended, 7, True)


@pytest.mark.parametrize(
    "name",
    [
        "dlpool.log",
        "dlpool.log.1",
        "dlpool.log.gz",
        "dlpool.log-20240506",
        "other.log.20240506T070809.123Z",
        "dlpool.log.20240506T070809.123Z~",
        "dlpool.log.20241306T070809.123Z",
    ],
)
def test_files_of_others_are_no_old_logs(name: str) -> None:
    assert RotatedLog.of(LIVE, Path(name), 1) is None


def old(age: timedelta, size: int = 1) -> RotatedLog:
    return RotatedLog(Path(str(age)), NOW - age, size, True)


@pytest.mark.parametrize(
    ("ages_and_sizes", "live_size", "removed"),
    [
        ([], 10**6, []),
        ([(1, 1), (3, 1)], 0, []),
        ([(1, 1), (4, 1), (9, 1)], 0, [4, 9]),
        ([(2, 400), (1, 500), (3, 200)], 0, [3]),
        ([(1, 500), (2, 600), (3, 1)], 0, [2, 3]),
        ([(1, 500)], 600, [1]),
    ],
)
def test_old_logs_are_kept_by_age_and_by_their_sum(
    ages_and_sizes: list[tuple[int, int]], live_size: int, removed: list[int]
) -> None:
    logs = [old(age * DAY, size) for age, size in ages_and_sizes]
    found = expired_logs(logs, live_size, NOW, LoggingSettings(keep_days=3, keep_size=1000))
    assert found == [log for age in removed for log in logs if log.ended_at == NOW - age * DAY]


def test_old_logs_are_kept_by_their_number() -> None:
    logs = [old(age * DAY) for age in (3, 1, 2, 4)]
    assert expired_logs(logs, 1, NOW, LoggingSettings(keep_files=2)) == [old(3 * DAY), old(4 * DAY)]


@pytest.mark.parametrize(("age_s", "is_due"), [(0, False), (599, False), (600, True), (-5, True)])
def test_an_old_log_stays_readable_for_a_while(age_s: int, is_due: bool) -> None:
    """A clock that was set back must not prevent its compression for ever."""
    log = RotatedLog(Path("x"), NOW - timedelta(seconds=age_s), 1, False)
    assert is_compression_due(log, NOW, LoggingSettings(compress_after=600)) is is_due


# --- files ---


def test_a_rotation_takes_no_name_that_is_taken(tmp_path: Path) -> None:
    live = tmp_path / LIVE
    rotation = Rotation(live)
    rotated_name(live, NOW).write_text("raw\n")
    Path(f"{rotated_name(live, NOW + timedelta(milliseconds=1))}.gz").write_text("packed\n")
    live.write_text("new\n")
    assert rotation.rotate_if_due(ROTATE_ALWAYS, NOW)
    assert rotated_name(live, NOW).read_text() == "raw\n"
    assert rotated_name(live, NOW + timedelta(milliseconds=2)).read_text() == "new\n"
    assert not rotation.rotate_if_due(ROTATE_ALWAYS, NOW)


def test_the_log_is_rotated_at_midnight_utc(tmp_path: Path) -> None:
    now = NOW.replace(hour=23, minute=59)
    log = make_log(tmp_path, clock=lambda: now)
    log.logger("a").info("yesterday")
    log.maintain()
    assert len(list(tmp_path.iterdir())) == 1
    now += timedelta(minutes=1)
    log.maintain()
    log.logger("a").info("today")
    wait_until(lambda: [path.suffix for path in tmp_path.glob("dlpool.log.*")] == [".gz"])
    assert {record["message"] for record in records_of(tmp_path)} == {"yesterday", "today"}
    assert len(lines_of(tmp_path)) == 2
    log.close()


def test_a_compressed_log_has_the_bytes_and_the_mode_of_the_old_one(tmp_path: Path) -> None:
    path = rotated_name(tmp_path / LIVE, NOW)
    data = os.urandom(3 * 1024 * 1024)
    path.write_bytes(data)
    path.chmod(0o600)
    compress(path)
    packed = Path(f"{path}.gz")
    assert list(tmp_path.iterdir()) == [packed]
    assert gzip.decompress(packed.read_bytes()) == data
    assert packed.stat().st_mode & 0o777 == 0o600


def test_a_compression_that_is_no_longer_wanted_leaves_the_old_log(tmp_path: Path) -> None:
    path = rotated_name(tmp_path / LIVE, NOW)
    path.write_bytes(b"a\n")
    compress(path, lambda: False)
    assert [(entry, entry.read_bytes()) for entry in tmp_path.iterdir()] == [(path, b"a\n")]


def test_old_logs_are_removed_and_files_of_others_stay(tmp_path: Path) -> None:
    live, settings = tmp_path / LIVE, LoggingSettings(keep_days=3)
    kept, past, packed = (rotated_name(live, NOW - days * DAY) for days in (2, 4, 5))
    foreign = [tmp_path / "dlpool.log.1", tmp_path / "dlpool.log.2.gz", live]
    for path in [kept, past, Path(f"{packed}.gz"), *foreign]:
        path.write_bytes(b"line\n")
    rotation = Rotation(live)
    assert not rotation.is_cleaned_up(settings, NOW)
    rotation.clean_up(settings, NOW)
    assert set(tmp_path.iterdir()) == {Path(f"{kept}.gz"), *foreign}
    assert rotation.is_cleaned_up(settings, NOW)


def test_an_old_log_that_is_still_written_is_not_removed(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    log.logger("a").info("held")
    rotation = Rotation(log.path)
    assert rotation.rotate_if_due(ROTATE_ALWAYS, NOW - 9 * DAY)
    settings = LoggingSettings(keep_days=3)
    rotation.clean_up(settings, NOW)
    assert [record["message"] for record in records_of(tmp_path)] == ["held"]
    log.reopen()
    rotation.clean_up(settings, NOW)
    assert list(tmp_path.iterdir()) == [log.path]


def test_what_cannot_be_tidied_is_said_once_and_the_rest_is_done(tmp_path: Path) -> None:
    log = make_log(tmp_path, LoggingSettings(keep_days=3), clock=lambda: NOW)
    stuck, past = rotated_name(log.path, NOW - DAY), rotated_name(log.path, NOW - 9 * DAY)
    Path(f"{stuck}.gz.tmp").mkdir()
    past.write_bytes(b"line\n")
    log.maintain()
    wait_until(lambda: log.path.stat().st_size > 0)
    log.maintain()
    log.close()
    record = json.loads(log.path.read_bytes())
    assert record["message"] == "log_maintenance_failed"
    assert record["error.type"] == "IsADirectoryError"
    assert not past.exists()


KILL_POINTS = [(name, when) for name in ("open", "fsync", "replace", "unlink") for when in ("before", "after")]


def die_at(name: str, when: str, number: int) -> None:
    """Kill this process before or after the call ``number`` of ``os.NAME``."""
    real: Callable[..., Any] = getattr(os, name)
    left = number

    def deadly(*args: Any, **kwargs: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0 and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            return real(*args, **kwargs)
        finally:
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    setattr(os, name, deadly)


@pytest.mark.parametrize(("name", "when"), KILL_POINTS)
def test_a_crash_at_any_step_of_a_compression_loses_and_doubles_no_line(tmp_path: Path, name: str, when: str) -> None:
    data = b"".join(b'{"line": %d}\n' % number for number in range(5000))
    deaths = 0
    for number in range(1, 10):
        folder = tmp_path / str(number)
        folder.mkdir()
        rotation, path = Rotation(folder / LIVE), rotated_name(folder / LIVE, NOW)
        path.write_bytes(data)

        def work(rotation: Rotation = rotation, number: int = number) -> None:
            die_at(name, when, number)
            rotation.clean_up(AT_ONCE, NOW)

        status = in_child(work)
        rotation.clean_up(AT_ONCE, NOW)
        assert list(folder.iterdir()) == [Path(f"{path}.gz")]
        assert b"\n".join(lines_of(folder)) + b"\n" == data
        if status == 0:
            break
        assert status == -signal.SIGKILL
        deaths += 1
    assert deaths >= 1
    assert status == 0
