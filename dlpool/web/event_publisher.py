"""Publishes upload events to a Redis stream of the queue in a thread, so that no upload
waits for Redis."""

from __future__ import annotations

import atexit
import queue
import threading
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import ClassVar, Protocol

from dlpool import jsontext
from dlpool.config import Settings
from dlpool.errors import DlpoolError
from dlpool.jobs.connection import connect
from dlpool.jobs.event_stream import EventWriter
from dlpool.jobs.keys import QueueKeys
from dlpool.observe.log import Logger
from dlpool.storage.values import UploadEvent
from dlpool.web.counters import SharedCounters

MOST = 1000  # queued entries; further ones are lost
BATCH = 100  # entries per round trip
RETRY_S = 1.0  # after a failure
EXIT_S = 1.0  # to write queued entries when the process exits

# The trace id of the request that this thread handles.
current_trace: ContextVar[str | None] = ContextVar("current_trace", default=None)


class StreamWriter(Protocol):
    """Adds entries to a Redis stream."""

    def add(self, entries: Sequence[Mapping[str, str]]) -> None:
        """Add the entries in this order. Raises QueueError."""


class StreamPublisher:
    """Queues entries for one Redis stream. Thread-safe; ``put`` does not block or
    raise.

    An entry is lost, and counted as lost, if it cannot be written to Redis or if
    ``capacity`` entries are already queued. Of several losses in a row, the first is
    logged. The first entry starts the thread that writes to Redis.
    """

    label: ClassVar[str]  # the counters are ``LABEL published`` and ``LABEL lost``
    capacity: ClassVar[int] = MOST  # maximum number of queued entries

    def __init__(
        self, writer: StreamWriter, counters: SharedCounters, log: Logger
    ) -> None:
        self._writer = writer
        self._counters = counters
        self._log = log
        self._waiting: queue.Queue[dict[str, str] | None] = queue.Queue(self.capacity)
        self._starting = threading.Lock()  # guards the start of the thread
        self._thread: threading.Thread | None = None
        self._is_losing = False
        self._ending = threading.Event()

    def put(self, fields: dict[str, str]) -> None:
        """Queue an entry."""
        try:
            self._waiting.put_nowait(fields)
            self._start()
        except (queue.Full, RuntimeError) as error:  # RuntimeError: no more threads
            self._lose(1, error)

    def close(self) -> None:
        """Wait at most ``EXIT_S`` seconds until the thread has written the queued
        entries."""
        self._ending.set()
        if self._thread is not None:
            try:
                self._waiting.put_nowait(None)
            except queue.Full:
                return
            self._thread.join(EXIT_S)

    def _start(self) -> None:
        if self._thread is not None:
            return
        with self._starting:
            if self._thread is None:
                thread = threading.Thread(
                    target=self._run, name=f"{self.label}-publisher", daemon=True
                )
                thread.start()
                self._thread = thread
                atexit.register(self.close)

    def _run(self) -> None:
        is_open = True
        while is_open:
            batch = self._next_batch()
            is_open = batch[-1] is not None
            self._tell([one for one in batch if one is not None])
            if self._is_losing and is_open:
                self._ending.wait(RETRY_S)

    def _next_batch(self) -> list[dict[str, str] | None]:
        """Wait for an entry. Return it with further queued entries; the last element is
        None when the process exits."""
        batch = [self._waiting.get()]
        while batch[-1] is not None and len(batch) < BATCH:
            try:
                batch.append(self._waiting.get_nowait())
            except queue.Empty:
                break
        return batch

    def _tell(self, batch: Sequence[dict[str, str]]) -> None:
        if not batch:
            return
        try:
            self._writer.add(batch)
        except DlpoolError as error:
            self._lose(len(batch), error)
        except Exception as error:  # noqa: BLE001 - the top of a thread
            self._lose(len(batch), error)
        else:
            self._is_losing = False
            self._counters.add(f"{self.label} published", len(batch))

    def _lose(self, count: int, error: Exception) -> None:
        self._counters.add(f"{self.label} lost", count)
        if not self._is_losing:
            self._is_losing = True
            self.log_loss(error)

    def log_loss(self, error: Exception) -> None:
        """Log that entries are lost. Called for the first of several losses in a
        row."""
        raise NotImplementedError


class UploadEventPublisher(StreamPublisher):
    """Publishes upload events."""

    label = "events"

    def __call__(self, event: UploadEvent) -> None:
        """Queue an event."""
        self.put(event_fields(event, current_trace.get()))

    def log_loss(self, error: Exception) -> None:
        """Log that upload events are lost. Called for the first of several losses in a
        row."""
        self._log.warning("upload_events_lost", error=error)


def open_event_publisher(
    settings: Settings, counters: SharedCounters, log: Logger
) -> UploadEventPublisher:
    """Return the publisher of the queue in ``[redis]``. Raises ConfigurationError."""
    client = connect(settings.redis, Path(settings.paths.state_dir), name="dlpool-web")
    return UploadEventPublisher(
        EventWriter(client, QueueKeys(settings.redis.group)), counters, log
    )


def event_fields(event: UploadEvent, trace_id: str | None) -> dict[str, str]:
    """Return the fields of a stream entry as texts; empty fields are left out."""
    fields = {
        "event": event.name,
        "upload_id": event.upload_id,
        "protocol": event.protocol,
        "owner": event.owner or "",
        "filename": event.filename,
        "size": str(event.size) if event.size >= 0 else "",
        "trace_id": trace_id or "",
        "note": jsontext.dumps(dict(event.details)).decode() if event.details else "",
    }
    return {name: _clean(text) for name, text in fields.items() if text}


def _clean(text: str) -> str:
    """Return ``text`` with lone surrogates escaped: UTF-8 cannot encode them."""
    return text.encode("utf-8", "backslashreplace").decode()
