"""Periodic work: removal of expired tasks and leftovers, shared counts, rotation of the
log, disk checks."""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from dlpool.filelock import flock
from dlpool.storage.errors import UploadError
from dlpool.web.disk_monitor import DiskMonitor
from dlpool.web.wiring import WebServices

TURN_S = 1.0


class Janitor:
    """A thread in each worker process; a flock lets one of them at a time tidy up, and
    another one if that dies."""

    def __init__(self, parts: WebServices) -> None:
        self._parts = parts
        self._interval_s = parts.settings.upload.cleanup_interval
        self._turn_s = min(TURN_S, self._interval_s)
        self._disks = DiskMonitor(
            parts.settings.upload, parts.backend.volumes, parts.folder, parts.log
        )
        self._swept_at = float(
            "-inf"
        )  # by the wall clock, where the file with the time cannot be written

    def start(self) -> None:
        """Begin; it ends with the process."""
        atexit.register(self._parts.counters.flush)
        atexit.register(self._parts.log_summaries, now=True)
        try:
            threading.Thread(target=self._run, name="keeper", daemon=True).start()
        # no thread can be started: another process or the next start cleans up
        except RuntimeError as error:
            self._parts.log.warning("cleanup_failed", error=error)

    def _run(self) -> None:
        is_first, log = True, self._parts.log
        while True:
            try:
                is_first = not self._turn(is_first) and is_first
            except Exception as error:  # noqa: BLE001 - the top of a thread
                log.error("cleanup_failed", error=error)  # noqa: TRY400 - not the standard library's
            time.sleep(self._turn_s)

    def _turn(self, is_first: bool) -> bool:
        """Whether it was this process's turn to tidy up; else another one is just at
        it."""
        self._parts.counters.flush()
        self._parts.log_summaries()
        self._parts.log_file.reopen()
        with self._alone() as is_alone:
            if is_alone:
                self._parts.log_file.maintain()
                self._disks.check()
                self._sweep(is_first)
        return is_alone

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        """Whether no other process tidies up; none does as long as this lasts."""
        try:
            descriptor = os.open(
                self._parts.folder / "keeper",
                os.O_RDWR | os.O_CREAT | os.O_CLOEXEC,
                0o600,
            )
        except OSError:  # what is done twice harms nothing
            yield True
            return
        try:
            flock(
                descriptor
            )  # without flock several processes may clean up, which is harmless
        except OSError:
            yield False
            return
        else:
            yield True
        finally:
            os.close(descriptor)

    def _sweep(self, is_first: bool) -> None:
        """If it is time, or a process has just begun: what a dead one left goes at
        once."""
        stamp = self._parts.folder / "swept"
        swept_at = self._swept_at
        with suppress(OSError):
            swept_at = stamp.stat().st_mtime
        now = time.time()
        if not is_first and 0 <= now - swept_at < self._interval_s:
            return
        self._swept_at = now
        with suppress(OSError):
            stamp.touch()
        try:
            swept = self._parts.backend.sweep()
        except UploadError as error:
            self._parts.log.warning("cleanup_failed", error=error)
            return
        for failure in swept.failures:
            self._parts.log.warning("cleanup_failed", reason=failure)
        if swept.removed:
            self._parts.log.info("cleanup_done", count=swept.removed)
