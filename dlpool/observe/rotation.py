"""Rotating, compressing and removing logs: what is due is decided by pure functions,
``Rotation`` does it.

``dlpool.log`` becomes ``dlpool.log.20240506T070809.123Z`` and then
``dlpool.log.20240506T070809.123Z.gz``.
"""

from __future__ import annotations

import gzip
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from typing import BinaryIO

from dlpool.config import LoggingSettings
from dlpool.disk import identity_of, replace, sync_folder
from dlpool.filelock import flock

_STAMP = "%Y%m%dT%H%M%S"
_SUFFIX = re.compile(r"\.([0-9]{8}T[0-9]{6})\.([0-9]{3})Z(\.gz)?(\.tmp)?")
_FIRST_DAY = re.compile(rb'(?:\{"@timestamp":")?([0-9]{4}-[0-9]{2}-[0-9]{2})T')
_BLOCK = 1024 * 1024


@dataclass(frozen=True)
class RotatedLog:
    """A rotated log. ``size`` in bytes."""

    path: Path
    ended_at: datetime
    size: int
    is_compressed: bool
    is_unfinished: bool = False

    @classmethod
    def of(cls, live: str, path: Path, size: int) -> RotatedLog | None:
        """What ``path`` is, if its name is one that a rotation of the log named
        ``live`` gives."""
        match = (
            _SUFFIX.fullmatch(path.name.removeprefix(live))
            if path.name.startswith(live)
            else None
        )
        if match is None:
            return None
        try:
            ended_at = datetime.strptime(match[1], _STAMP).replace(
                microsecond=int(match[2]) * 1000, tzinfo=timezone.utc
            )
        except ValueError:
            return None
        return cls(path, ended_at, size, match[3] is not None, match[4] is not None)


def is_due(size: int, begun: date, today: date, settings: LoggingSettings) -> bool:
    """Whether a live log of ``size`` bytes, whose first record is of the day ``begun``,
    is to be rotated."""
    return size > settings.rotate_size or (
        size > 0 and settings.rotate_daily and begun < today
    )


def rotated_name(live: Path, now: datetime) -> Path:
    """The name for a log that is rotated at ``now``."""
    return live.with_name(
        f"{live.name}.{now.strftime(_STAMP)}.{now.microsecond // 1000:03d}Z"
    )


def first_day(start: bytes, changed_at: float) -> date:
    """The day of a log's first record, from its first bytes; where they say nothing, of
    its last change."""
    match = _FIRST_DAY.match(start)
    try:
        return date.fromisoformat(match[1].decode()) if match else _day(changed_at)
    except ValueError:
        return _day(changed_at)


def _day(seconds: float) -> date:
    return datetime.fromtimestamp(seconds, timezone.utc).date()


def expired_logs(
    logs: Iterable[RotatedLog], live_size: int, now: datetime, settings: LoggingSettings
) -> list[RotatedLog]:
    """The old logs to remove: those past ``keep_days``, and the oldest above
    ``keep_files`` or ``keep_size`` in all."""
    found, total = [], live_size
    for number, log in enumerate(
        sorted(logs, key=lambda log: log.ended_at, reverse=True), 1
    ):
        total += log.size
        is_one_too_many = (
            settings.keep_files is not None and number > settings.keep_files
        )
        is_old = now - log.ended_at > timedelta(days=settings.keep_days)
        if is_one_too_many or is_old or total > settings.keep_size:
            found.append(log)
    return found


def is_compression_due(
    log: RotatedLog, now: datetime, settings: LoggingSettings
) -> bool:
    """Whether an old log is compressed by now: readers who follow it by its inode had
    time to come to its end."""
    age = now - log.ended_at
    return not log.is_compressed and not timedelta(0) <= age < timedelta(
        seconds=settings.compress_after
    )


class Rotation:
    """Rotates one log. For one process only, and in it for one thread at a time a
    method. Methods raise OSError."""

    def __init__(self, live: Path) -> None:
        self._live = live

    def rotate_if_due(self, settings: LoggingSettings, now: datetime) -> bool:
        """Rename the live log if it is due; the next writer makes a new one."""
        try:
            with open(self._live, "rb") as file:
                info, start = os.fstat(file.fileno()), file.read(64)
        except FileNotFoundError:
            return False
        if not is_due(
            info.st_size, first_day(start, info.st_mtime), now.date(), settings
        ):
            return False
        while _is_taken(old := rotated_name(self._live, now)):
            now += timedelta(milliseconds=1)
        os.replace(self._live, old)
        return True

    def is_cleaned_up(self, settings: LoggingSettings, now: datetime) -> bool:
        """Whether nothing is to be compressed or removed."""
        logs = self._old_logs()
        is_work = any(
            log.is_unfinished or is_compression_due(log, now, settings) for log in logs
        )
        return not is_work and not self._surplus(settings, now)

    def compressed_logs(self) -> list[Path]:
        """The compressed logs, oldest first: nobody changes them any more."""
        return [
            log.path
            for log in self._old_logs()
            if log.is_compressed and not log.is_unfinished
        ]

    def clean_up(
        self,
        settings: LoggingSettings,
        now: datetime,
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        """Compress the old logs that all writers have left, and remove the surplus,
        until not ``is_wanted``."""
        try:
            for log in self._old_logs():
                if log.is_unfinished:
                    log.path.unlink(missing_ok=True)
                elif is_compression_due(log, now, settings):
                    compress(log.path, is_wanted)
        finally:  # a full disk hinders the first, and is helped by the second
            for log in self._surplus(settings, now):
                _remove(log.path)

    def _surplus(self, settings: LoggingSettings, now: datetime) -> list[RotatedLog]:
        live_size = self._live.stat().st_size if self._live.exists() else 0
        return expired_logs(self._old_logs(), live_size, now, settings)

    def _old_logs(self) -> list[RotatedLog]:
        found = []
        with os.scandir(self._live.parent) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # another thread tidies up
                    log = RotatedLog.of(
                        self._live.name,
                        Path(entry.path),
                        entry.stat(follow_symlinks=False).st_size,
                    )
                    found += [log] if log else []
        return sorted(found, key=lambda log: log.ended_at)


def _is_taken(old: Path) -> bool:
    return os.path.lexists(old) or os.path.lexists(f"{old}.gz")


@contextmanager
def _left(path: Path) -> Iterator[BinaryIO | None]:
    """The old log, locked against its writers; None if one of them has not left it
    yet."""
    with open(path, "r+b") as file:
        try:
            flock(
                file.fileno()
            )  # without flock, the age of the log shows that no process writes to it
        except BlockingIOError:
            yield None
            return
        yield file


def _remove(old: Path) -> None:
    with _left(old) as file:
        if file is not None:
            old.unlink()


def compress(old: Path, is_wanted: Callable[[], bool] = lambda: True) -> None:
    """Put ``old`` into ``old.gz``, unless it has a writer still.

    ``old.gz`` has its name only when it is whole and on disk, and ``old`` is removed
    last. When it is killed anywhere before, the next run finds ``old`` complete and
    does all again.
    """
    with _left(old) as file:
        if file is None or not _pack(file, Path(f"{old}.gz"), is_wanted):
            return
        sync_folder(old.parent)
        old.unlink()


def _pack(file: BinaryIO, whole: Path, is_wanted: Callable[[], bool]) -> bool:
    """Make ``whole`` from ``file``, compressed and synced; False if that is no longer
    wanted."""
    unfinished = Path(f"{whole}.tmp")
    try:
        with open(unfinished, "wb") as out:
            os.fchmod(out.fileno(), stat.S_IMODE(os.fstat(file.fileno()).st_mode))
            if not _squeeze(file, out, is_wanted):
                return False
            out.flush()
            os.fsync(out.fileno())
            identity = identity_of(os.fstat(out.fileno()))
        replace(unfinished, whole, identity=identity)
        return True
    finally:
        unfinished.unlink(missing_ok=True)


def _squeeze(file: BinaryIO, out: BinaryIO, is_wanted: Callable[[], bool]) -> bool:
    with gzip.GzipFile("", "wb", 6, out) as packed:
        while block := file.read(_BLOCK):
            if not is_wanted():
                return False
            packed.write(block)
    return True
