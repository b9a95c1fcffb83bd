"""Rotation, compression and removal of logs. Pure functions decide what is due,
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
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from typing import BinaryIO

from dlpool.config import LoggingSettings
from dlpool.dataclass import dataclass
from dlpool.disk import identity_of, replace, sync_folder
from dlpool.filelock import flock

_STAMP = "%Y%m%dT%H%M%S"
_SUFFIX = re.compile(r"\.([0-9]{8}T[0-9]{6})\.([0-9]{3})Z(\.gz)?(\.tmp)?")
_FIRST_DAY = re.compile(rb'(?:\{"@timestamp":")?([0-9]{4}-[0-9]{2}-[0-9]{2})T')
_BLOCK = 1024 * 1024


@dataclass(frozen=True)
class RotatedLog:
    """A rotated log. ``size`` is in bytes; ``is_unfinished``: the compression is not
    complete."""

    path: Path
    ended_at: datetime
    size: int
    is_compressed: bool
    is_unfinished: bool = False

    @classmethod
    def of(cls, live: str, path: Path, size: int) -> RotatedLog | None:
        """Return the rotated log at ``path``; None if ``path`` does not have the name
        of a rotated log. ``live``: the file name of the live log."""
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
    """Return whether to rotate a live log of ``size`` bytes whose first record is of
    the day ``begun``."""
    return size > settings.rotate_size or (
        size > 0 and settings.rotate_daily and begun < today
    )


def rotated_name(live: Path, now: datetime) -> Path:
    """Return the name for a log that is rotated at ``now``."""
    return live.with_name(
        f"{live.name}.{now.strftime(_STAMP)}.{now.microsecond // 1000:03d}Z"
    )


def first_day(start: bytes, changed_at: float) -> date:
    """Return the day of a log's first record, read from ``start``, the log's first
    bytes. If ``start`` has no valid date, return the day of ``changed_at``."""
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
    """Return the logs to remove: logs older than ``keep_days``, and the oldest logs if
    all logs together exceed ``keep_files`` or ``keep_size``."""
    expired, total = [], live_size
    for number, log in enumerate(
        sorted(logs, key=lambda log: log.ended_at, reverse=True), 1
    ):
        total += log.size
        is_one_too_many = (
            settings.keep_files is not None and number > settings.keep_files
        )
        is_old = now - log.ended_at > timedelta(days=settings.keep_days)
        if is_one_too_many or is_old or total > settings.keep_size:
            expired.append(log)
    return expired


def is_compression_due(
    log: RotatedLog, now: datetime, settings: LoggingSettings
) -> bool:
    """Return whether to compress a log. Readers have ``compress_after`` seconds after
    the rotation to reach the end of the log."""
    age = now - log.ended_at
    return not log.is_compressed and not timedelta(0) <= age < timedelta(
        seconds=settings.compress_after
    )


class Rotation:
    """The rotation of one log. Only one process may use it, and only one thread at a
    time may call the same method. Methods raise OSError."""

    def __init__(self, live: Path) -> None:
        self._live = live

    def rotate_if_due(self, settings: LoggingSettings, now: datetime) -> bool:
        """Rename the live log if that is due, and return whether it was renamed. The
        next writer creates a new live log."""
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
        replace(self._live, old)
        return True

    def is_cleaned_up(self, settings: LoggingSettings, now: datetime) -> bool:
        """Return whether there is no log to compress or remove."""
        logs = self._rotated_logs()
        is_work = any(
            log.is_unfinished or is_compression_due(log, now, settings) for log in logs
        )
        return not is_work and not self._expired(settings, now)

    def compressed_logs(self) -> list[Path]:
        """Return the paths of the compressed logs, oldest first. Compressed logs never
        change."""
        return [
            log.path
            for log in self._rotated_logs()
            if log.is_compressed and not log.is_unfinished
        ]

    def clean_up(
        self,
        settings: LoggingSettings,
        now: datetime,
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        """Compress the logs whose compression is due, then remove expired logs. Leave
        out logs that a writer still has open. Stop compressing when ``is_wanted``
        returns False."""
        try:
            for log in self._rotated_logs():
                if log.is_unfinished:
                    log.path.unlink(missing_ok=True)
                elif is_compression_due(log, now, settings):
                    compress(log.path, is_wanted)
        finally:  # on a full disk compression fails, and removal helps
            for log in self._expired(settings, now):
                _remove(log.path)

    def _expired(self, settings: LoggingSettings, now: datetime) -> list[RotatedLog]:
        live_size = self._live.stat().st_size if self._live.exists() else 0
        return expired_logs(self._rotated_logs(), live_size, now, settings)

    def _rotated_logs(self) -> list[RotatedLog]:
        found = []
        with os.scandir(self._live.parent) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # another thread cleans up
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
def _closed_by_writers(path: Path) -> Iterator[BinaryIO | None]:
    """Open a log, lock it against writers and yield the open file. Yield None if a
    writer still has the log open."""
    with open(path, "r+b") as file:
        try:
            # without flock, its age shows that no process writes to it
            flock(file.fileno())
        except BlockingIOError:
            yield None
            return
        yield file


def _remove(old: Path) -> None:
    with _closed_by_writers(old) as file:
        if file is not None:
            old.unlink()


def compress(old: Path, is_wanted: Callable[[], bool] = lambda: True) -> None:
    """Compress ``old`` to ``old.gz``, unless a process still writes to it.

    ``old.gz`` gets its name when it is complete and on disk, and ``old`` is removed
    last. If the process is killed before the removal, ``old`` is still complete, and
    the next clean-up compresses it again.
    """
    with _closed_by_writers(old) as file:
        if file is None or not _compress_to(file, Path(f"{old}.gz"), is_wanted):
            return
        sync_folder(old.parent)
        old.unlink()


def _compress_to(file: BinaryIO, target: Path, is_wanted: Callable[[], bool]) -> bool:
    """Compress ``file`` to ``target`` and sync ``target``. Stop and return False if
    ``is_wanted`` returns False."""
    unfinished = Path(f"{target}.tmp")
    try:
        with open(unfinished, "wb") as out:
            os.fchmod(out.fileno(), stat.S_IMODE(os.fstat(file.fileno()).st_mode))
            if not _copy_compressed(file, out, is_wanted):
                return False
            out.flush()
            os.fsync(out.fileno())
            identity = identity_of(os.fstat(out.fileno()))
        replace(unfinished, target, identity=identity)
        return True
    finally:
        unfinished.unlink(missing_ok=True)


def _copy_compressed(
    file: BinaryIO, out: BinaryIO, is_wanted: Callable[[], bool]
) -> bool:
    with gzip.GzipFile("", "wb", 6, out) as packed:
        while block := file.read(_BLOCK):
            if not is_wanted():
                return False
            packed.write(block)
    return True
