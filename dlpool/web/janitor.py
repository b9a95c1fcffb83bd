"""Runs periodic work: removes expired tasks and stale files, writes counters, rotates
the log, checks disks."""

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

PERIOD_S = 1.0


class Janitor:
    """The thread for the periodic work of a worker process. A file lock ensures that
    one process at a time cleans up."""

    def __init__(self, services: WebServices) -> None:
        self._services = services
        self._sweep_interval_s = services.settings.upload.cleanup_interval
        self._period_s = min(PERIOD_S, self._sweep_interval_s)
        self._disks = DiskMonitor(
            services.settings.upload,
            services.backend.volumes,
            services.folder,
            services.log,
        )
        # Wall clock time of the last sweep, if the file ``swept`` cannot be written.
        self._swept_at = float("-inf")

    def start(self) -> None:
        """Start the thread. It runs until the process exits."""
        atexit.register(self._services.counters.flush)
        atexit.register(self._services.log_summaries, now=True)
        try:
            threading.Thread(target=self._run, name="janitor", daemon=True).start()
        except RuntimeError as error:  # no thread: another process cleans up
            self._services.log.warning("cleanup_failed", error=error)

    def _run(self) -> None:
        is_first, log = True, self._services.log
        while True:
            try:
                is_first = not self._run_once(is_first) and is_first
            except Exception as error:  # noqa: BLE001 - the top of a thread
                log.error("cleanup_failed", error=error)  # noqa: TRY400 - not a logger of the standard library
            time.sleep(self._period_s)

    def _run_once(self, is_first: bool) -> bool:
        """Do the periodic work once. Return whether this process was allowed to
        clean up."""
        self._services.counters.flush()
        self._services.log_summaries()
        self._services.log_file.reopen()
        with self._try_lock() as has_lock:
            if has_lock:
                self._services.log_file.maintain()
                self._disks.check()
                self._sweep(is_first)
        return has_lock

    @contextmanager
    def _try_lock(self) -> Iterator[bool]:
        """Try to take the lock for the clean-up, and hold it in the block. Yield
        whether this process may clean up."""
        try:
            descriptor = os.open(
                self._services.folder / "janitor.lock",
                os.O_RDWR | os.O_CREAT | os.O_CLOEXEC,
                0o600,
            )
        except OSError:  # a concurrent clean-up is harmless
            yield True
            return
        try:
            # If flock has no effect, several processes clean up, which is harmless.
            flock(descriptor)
        except OSError:
            yield False
            return
        else:
            yield True
        finally:
            os.close(descriptor)

    def _sweep(self, is_first: bool) -> None:
        """Remove expired tasks and stale files, once per ``cleanup_interval`` seconds.

        If ``is_first``, does not wait for the interval, because a killed process may
        have left files.
        """
        stamp = self._services.folder / "swept"
        swept_at = self._swept_at
        with suppress(OSError):
            swept_at = stamp.stat().st_mtime
        now = time.time()
        if not is_first and 0 <= now - swept_at < self._sweep_interval_s:
            return
        self._swept_at = now
        with suppress(OSError):
            stamp.touch()
        try:
            swept = self._services.backend.sweep()
        except UploadError as error:
            self._services.log.warning("cleanup_failed", error=error)
            return
        for failure in swept.failures:
            self._services.log.warning("cleanup_failed", reason=failure)
        if swept.removed:
            self._services.log.info("cleanup_done", count=swept.removed)
