"""A process's JSON log: what the rest of the program sees of it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from structlog import BoundLoggerBase

from dlpool.config import LoggingSettings
from dlpool.disk import translated
from dlpool.kinds import LEVELS, logger_levels
from dlpool.observe.logfile import LogFile
from dlpool.observe.processors import Origin, processors
from dlpool.observe.rotation import Rotation

LOG_NAME = "dlpool.log"
_LEVELS = {level: 10 * number for number, level in enumerate(LEVELS, 1)}
_PAUSE_S = 60.0
OnEvent = Callable[[str, Mapping[str, object]], object]


def _utc_now() -> datetime:
    return datetime.now(timezone.utc)


def _deaf(_event: str, _fields: Mapping[str, object], /) -> None:
    pass


def _threshold(logger: str, settings: LoggingSettings) -> int:
    own = logger_levels(settings.levels) if settings.levels else {}
    return _LEVELS[own.get(logger, settings.level)]


class RecordSink:
    """Where records go. ``heard`` is told of each, whatever its level. The lock guards
    the count of lost ones."""

    def __init__(self, file: LogFile, heard: OnEvent) -> None:
        self.file = file
        self.heard = heard
        self.dropped = 0
        self._lock = (
            threading.RLock()
        )  # a signal handler may log while its own thread counts

    def count_lost(self) -> None:
        """One more record could not be written."""
        with self._lock:
            self.dropped += 1


@dataclass
class LoggerChannel:
    """What the loggers of one name share: where they write, and from which level on."""

    sink: RecordSink
    threshold: int


class Logger(BoundLoggerBase):
    """Logs events, with the fields that are bound to it. Its methods raise nothing;
    ``event`` is no field's name."""

    _logger: LoggerChannel

    def bind(self, /, **fields: object) -> Logger:
        """A logger with more fields."""
        return Logger(self._logger, self._processors, {**self._context, **fields})

    def debug(self, event: str, /, **fields: object) -> None:
        """What only a developer wants to know."""
        self._record("debug", event, fields)

    def info(self, event: str, /, **fields: object) -> None:
        """The course of things."""
        self._record("info", event, fields)

    def warning(self, event: str, /, **fields: object) -> None:
        """What will be tried again."""
        self._record("warning", event, fields)

    def error(self, event: str, /, **fields: object) -> None:
        """What has failed for good; an ``error`` comes with its stack from here up."""
        self._record("error", event, fields)

    def critical(self, event: str, /, **fields: object) -> None:
        """What ends the service."""
        self._record("critical", event, fields)

    def _record(self, level: str, event: str, fields: dict[str, object]) -> None:
        channel = self._logger
        try:
            channel.sink.heard(event, fields)
            if _LEVELS[level] < channel.threshold:
                return
            (line,), _ = self._process_event(level, event, fields)
            channel.sink.file.append(line)
        except Exception:  # noqa: BLE001 - whatever is wrong with a log, the work goes on
            channel.sink.count_lost()


class Log:
    """A process's log ``FOLDER/dlpool.log``, which any number of processes may share.
    Thread-safe.

    Every process calls ``tend_writer`` about once a second, and one of them all
    ``tend`` as well. Raises LocalFault if the log cannot be opened and is
    ``is_required``; from then on nothing here raises, and ``dropped`` counts the
    records that were lost. ``heard`` is told of each event on the thread where it
    happens, and may not raise.
    """

    def __init__(
        self,
        folder: Path,
        settings: LoggingSettings,
        *,
        service: str,
        version: str,
        node_id: str,
        clock: Callable[[], datetime] = _utc_now,
        is_required: bool = True,
        heard: OnEvent = _deaf,
    ) -> None:
        self.path = folder / LOG_NAME
        self._settings = settings
        self._clock = clock
        with translated(f"open the log {self.path}"):
            self._sink = RecordSink(LogFile(self.path, is_required=is_required), heard)
        self._channels: dict[str, LoggerChannel] = {}
        origin = Origin(service, version, node_id, socket.gethostname())
        self._chain = processors(origin, clock, settings.log_format)
        self._own = self.logger("log")
        self._rotation = Rotation(self.path)
        self._tidier: threading.Thread | None = None
        self._is_open = True
        self._tend_after = 0.0

    @property
    def dropped(self) -> int:
        """How many records could not be written."""
        return self._sink.dropped

    def logger(self, name: str, /, **bound: object) -> Logger:
        """A logger whose records say ``name`` and the ``bound`` fields."""
        channel = self._channels.setdefault(
            name, LoggerChannel(self._sink, _threshold(name, self._settings))
        )
        return Logger(channel, self._chain, {"logger": name, **bound})

    def apply(self, settings: LoggingSettings) -> None:
        """Use other settings from now on; loggers that exist already follow."""
        self._settings = settings
        for name, channel in list(self._channels.items()):
            channel.threshold = _threshold(name, settings)

    def reopen(self) -> None:
        """Go over to the file that has the log's name now, as others have renamed or
        removed ours."""
        with suppress(
            OSError
        ):  # the next record tries again, and is written to the old file until then
            self._sink.file.follow()

    def follow_rename(self) -> None:
        """Let go of a renamed log even if there is nothing to write."""
        self.reopen()

    def maintain(self) -> None:
        """Rotate if that is due; then compress and remove old logs, on a thread of its
        own."""
        if time.monotonic() < self._tend_after or not self._is_open:
            return
        try:
            now = self._clock()
            if self._rotation.rotate_if_due(self._settings, now):
                self.reopen()
            is_busy = self._tidier is not None and self._tidier.is_alive()
            if not is_busy and not self._rotation.is_cleaned_up(self._settings, now):
                self._tidier = threading.Thread(
                    target=self._tidy, name="log-tidier", daemon=True
                )
                self._tidier.start()
        except (OSError, RuntimeError) as error:  # RuntimeError: no more threads
            self._complain(error)

    def close(self) -> None:
        """Leave the file; records that come later are counted as dropped."""
        self._is_open = False
        if self._tidier is not None:
            self._tidier.join()
        with suppress(OSError):
            self._sink.file.close()

    def _tidy(self) -> None:
        try:
            self._rotation.clean_up(
                self._settings, self._clock(), lambda: self._is_open
            )
        except Exception as error:  # noqa: BLE001 - the top of a thread
            self._complain(error)

    def _complain(self, error: Exception) -> None:
        self._own.warning("log_not_tended", error=error)
        self._tend_after = time.monotonic() + _PAUSE_S
