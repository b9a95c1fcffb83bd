"""Publishes events of uploads in the queue's event stream, on a separate thread: no upload waits for Redis."""

from __future__ import annotations

import atexit
import queue
import threading
from collections.abc import Sequence
from contextvars import ContextVar
from pathlib import Path

from dlpool import jsontext
from dlpool.config import Settings
from dlpool.errors import DlpoolError
from dlpool.jobs.connection import connect
from dlpool.jobs.events import EventWriter
from dlpool.jobs.keys import Keys
from dlpool.observe.log import Logger
from dlpool.web.figures import Figures
from dlpool.web.store import UploadEvent

MOST = 1000  # events that wait for Redis; further ones are lost
BATCH = 100  # events per round trip
PAUSE_S = 1.0  # after a failure
END_S = 1.0  # for the waiting events when the process exits

current_trace: ContextVar[str | None] = ContextVar("current_trace", default=None)  # of the request of this thread


class Announcer:
    """Queues each event for the stream. Thread-safe; calls neither block nor raise.

    Events that Redis does not accept, or that occur while ``MOST`` wait, are lost and counted; the first loss is
    logged. The first event starts the thread.
    """

    def __init__(self, writer: EventWriter, figures: Figures, log: Logger) -> None:
        self._writer = writer
        self._figures = figures
        self._log = log
        self._waiting: queue.Queue[dict[str, str] | None] = queue.Queue(MOST)
        self._starting = threading.Lock()  # guards the start of the thread
        self._thread: threading.Thread | None = None
        self._is_losing = False
        self._ending = threading.Event()

    def __call__(self, event: UploadEvent) -> None:
        """Queue the event."""
        try:
            self._waiting.put_nowait(fields_of(event, current_trace.get()))
            self._start()
        except (queue.Full, RuntimeError) as error:  # RuntimeError: no more threads
            self._lose(1, error)

    def close(self) -> None:
        """Write the waiting events, for at most ``END_S`` seconds."""
        self._ending.set()
        if self._thread is not None:
            try:
                self._waiting.put_nowait(None)
            except queue.Full:
                return
            self._thread.join(END_S)

    def _start(self) -> None:
        if self._thread is not None:
            return
        with self._starting:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="upload-events", daemon=True)
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
                self._ending.wait(PAUSE_S)

    def _next_batch(self) -> list[dict[str, str] | None]:
        """Wait for an event, and return it with the queued ones; the last is None when the process exits."""
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
            self._figures.add("events told", len(batch))

    def _lose(self, count: int, error: Exception) -> None:
        self._figures.add("events lost", count)
        if not self._is_losing:
            self._is_losing = True
            self._log.warning("upload_events_lost", error=error)


def open_announcer(settings: Settings, figures: Figures, log: Logger) -> Announcer:
    """Return the announcer of this process, for the queue of ``[redis]``. Raises ConfigurationError."""
    client = connect(settings.redis, Path(settings.paths.state_dir), name="dlpool-web")
    return Announcer(EventWriter(client, Keys(settings.redis.group)), figures, log)


def fields_of(event: UploadEvent, trace_id: str | None) -> dict[str, str]:
    """Return the fields of an entry of the stream, as texts, without those that are unknown."""
    fields = {
        "event": event.name,
        "upload_id": event.upload_id,
        "protocol": event.protocol,
        "owner": event.owner or "",
        "filename": event.filename,
        "size": str(event.size) if event.size >= 0 else "",
        "trace_id": trace_id or "",
        "note": jsontext.dumps(dict(event.note)).decode() if event.note else "",
    }
    return {name: _clean(text) for name, text in fields.items() if text}


def _clean(text: str) -> str:
    """Escape lone surrogates, which UTF-8 cannot encode."""
    return text.encode("utf-8", "backslashreplace").decode()
