"""The log of a process: loggers of structlog, whose lines are appended to a file that
several processes share.

Each process appends its own lines, on the thread that logs; no other thread or process
writes them. The supervisor, its workers and the commands that log (audit, quarantine)
share ``log_dir/dlpool.log``. The processes of dlpool-web share
``log_dir/web/dlpool.log``. The supervisor rotates the first file, and the janitor of
one dlpool-web process rotates the second file; both call ``Log.maintain``.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeAlias

from structlog import DropEvent, make_filtering_bound_logger, wrap_logger
from structlog.typing import EventDict, FilteringBoundLogger, Processor

from dlpool.config import LoggingSettings
from dlpool.disk_errors import translated
from dlpool.kinds import LEVELS, logger_levels
from dlpool.observe.console import to_text
from dlpool.observe.logfile import LogFile
from dlpool.observe.processors import LogOrigin, add_process_fields, to_ecs, to_line
from dlpool.observe.rotation import Rotation

LOG_NAME = "dlpool.log"
_LEVELS = {level: 10 * number for number, level in enumerate(LEVELS, 1)}
_RETRY_S = 60.0  # until maintenance is tried again after an error
Logger: TypeAlias = FilteringBoundLogger
OnEvent: TypeAlias = Callable[[str, Mapping[str, object]], object]
# levels change at run time: see ``filter_by_level``
_BoundLogger = make_filtering_bound_logger(logging.DEBUG)


def _utc_now() -> datetime:
    return datetime.now(timezone.utc)


def _threshold(logger: str, settings: LoggingSettings) -> int:
    own = logger_levels(settings.levels) if settings.levels else {}
    return _LEVELS[own.get(logger, settings.level)]


class LogSink:
    """The sink of one logger, which appends lines to the log file. Thread-safe; no
    method raises.

    ``threshold`` is the lowest level that is written. The lock guards the number of
    dropped records.
    """

    def __init__(self, file: LogFile, threshold: int) -> None:
        self.threshold = threshold
        self.dropped = 0
        self._file = file
        # a signal handler may log while its own thread counts
        self._lock = threading.RLock()

    def write(self, line: bytes) -> None:
        """Append one line, newline included. If the write fails, count the record as
        dropped."""
        try:
            self._file.append(line)
        except Exception:  # noqa: BLE001 - a failing log must not stop the work
            self.count_dropped()

    debug = info = warning = error = critical = write

    def count_dropped(self) -> None:
        """Count one more record that could not be written."""
        with self._lock:
            self.dropped += 1


def filter_by_level(sink: LogSink, level: str, fields: EventDict) -> EventDict:
    """Drop an event below the threshold of its logger. A reload may change the
    threshold."""
    if _LEVELS[level] < sink.threshold:
        raise DropEvent
    return fields


def processor_chain(
    origin: LogOrigin,
    clock: Callable[[], datetime],
    log_format: str = "json",
    on_event: OnEvent | None = None,
) -> list[Processor]:
    """Return the processors that turn an event into the bytes for the log file.
    ``clock`` returns the time in UTC."""
    observers = [] if on_event is None else [_observed_by(on_event)]
    render = to_text if log_format == "console" else to_line
    return [
        *observers,
        filter_by_level,
        to_ecs,
        add_process_fields(origin, clock),
        render,
    ]


def _observed_by(on_event: OnEvent) -> Processor:
    def observe(_sink: LogSink, _level: str, fields: EventDict) -> EventDict:
        on_event(fields["event"], fields)
        return fields

    return observe


def _never_raising(processors: Sequence[Processor]) -> Processor:
    """Return a processor that runs ``processors`` in turn. If one of them fails, the
    processor drops the event and counts it."""

    def process(sink: LogSink, level: str, fields: EventDict) -> Any:
        try:
            for processor in processors:
                fields = processor(sink, level, fields)  # type: ignore[assignment]  # the last one returns bytes
        except Exception:  # noqa: BLE001 - the code of a logged value may fail in any way
            sink.count_dropped()
            raise DropEvent from None
        return fields

    return process


class Log:
    """The log ``FOLDER/dlpool.log`` of a process; other processes may write to the same
    file. Thread-safe.

    Every long-running process calls ``reopen`` about once a second. Exactly one process
    calls ``maintain`` as well. Only the constructor raises; ``dropped`` counts the
    records that were lost.
    """

    def __init__(
        self,
        folder: Path,
        settings: LoggingSettings,
        origin: LogOrigin,
        *,
        clock: Callable[[], datetime] = _utc_now,
        is_required: bool = True,
        on_event: OnEvent | None = None,
    ) -> None:
        """Open the file. With ``is_required``, raise LocalFault if the file cannot be
        opened. Without ``is_required``, drop records until the file can be opened.

        ``on_event`` is called with each event and its fields, whatever its level, by
        the thread that logs; it must not raise.
        """
        self.path = folder / LOG_NAME
        self._settings = settings
        self._clock = clock
        with translated(f"open the log {self.path}"):
            self._file = LogFile(self.path, is_required=is_required)
        self._sinks: dict[str, LogSink] = {}
        self._processors = [
            _never_raising(
                processor_chain(origin, clock, settings.log_format, on_event)
            )
        ]
        self._own = self.logger("log")
        self._rotation = Rotation(self.path)
        self._cleanup: threading.Thread | None = None
        self._is_open = True
        self._maintain_after = 0.0

    @property
    def dropped(self) -> int:
        """Return the number of records that could not be written."""
        return sum(sink.dropped for sink in list(self._sinks.values()))

    def logger(self, name: str, /, **bound: object) -> Logger:
        """Return a logger. All its records have the ``bound`` fields, and ``name`` in
        the field ``log.logger``.

        ``event``, ``self`` and ``method_name`` cannot be names of fields.
        """
        sink = self._sinks.setdefault(
            name, LogSink(self._file, _threshold(name, self._settings))
        )
        wrapped = wrap_logger(
            sink, self._processors, wrapper_class=_BoundLogger, context_class=dict
        )
        logger: Logger = wrapped.bind(logger=name, **bound)
        return logger

    def apply(self, settings: LoggingSettings) -> None:
        """Use these settings from now on, even for loggers that exist already."""
        self._settings = settings
        for name, sink in list(self._sinks.items()):
            sink.threshold = _threshold(name, settings)

    def reopen(self) -> None:
        """If the open file has been renamed or removed, open the file that now has the
        log's name."""
        with suppress(OSError):
            # the next record tries again, and is written to the old file until then
            self._file.follow()

    def maintain(self) -> None:
        """Rotate the log if that is due; compress and remove old logs in a thread."""
        if time.monotonic() < self._maintain_after or not self._is_open:
            return
        try:
            now = self._clock()
            if self._rotation.rotate_if_due(self._settings, now):
                self.reopen()
            is_busy = self._cleanup is not None and self._cleanup.is_alive()
            if not is_busy and not self._rotation.is_cleaned_up(self._settings, now):
                self._cleanup = threading.Thread(
                    target=self._clean_up, name="log-cleanup", daemon=True
                )
                self._cleanup.start()
        except (OSError, RuntimeError) as error:  # RuntimeError: no more threads
            self._retry_later(error)

    def close(self) -> None:
        """Close the file. Later records are counted as dropped."""
        self._is_open = False
        if self._cleanup is not None:
            self._cleanup.join()
        with suppress(OSError):
            self._file.close()

    def _clean_up(self) -> None:
        try:
            self._rotation.clean_up(
                self._settings, self._clock(), lambda: self._is_open
            )
        except Exception as error:  # noqa: BLE001 - the top of a thread
            self._retry_later(error)

    def _retry_later(self, error: Exception) -> None:
        self._own.warning("log_maintenance_failed", error=error)
        self._maintain_after = time.monotonic() + _RETRY_S
