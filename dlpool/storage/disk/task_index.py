"""Keeps the catalog of all tasks up to date.

Each process has one index, which reads only the folders that have changed. The change
log says which tasks have changed. At intervals, and when the change log cannot be used,
a scan compares all folders. It reads the names below ``tasks`` and the stamp of each
folder (inode, mtime, ctime). Then it reads the folders whose stamp has changed. This
finds each change, because a change of a task renames or creates an entry of its folder.

Two changes in one tick of the file system's clock give the folder the same stamp. So
scans read a folder again until one reading was at least one tick after a scan first saw
the stamp. Both times come from the local monotonic clock, so that the clock of a file
server does not matter.

``current`` returns a catalog with all changes before the call, unless it times out or
its caller allows an older catalog. So a client sees its own changes, whichever process
serves it. Threads that wait at the same time share one update, and all processes
together run at most two scans at once. The next scan finds changes by other programs.
"""

from __future__ import annotations

import os
import stat
import struct
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from dlpool.storage.disk.catalog import TaskCatalog
from dlpool.storage.disk.change_log import ChangeLogReader
from dlpool.storage.disk.file_locks import release, try_lock
from dlpool.storage.disk.layout import StoreLayout
from dlpool.storage.disk.os_errors import translate_os_errors
from dlpool.storage.disk.task_folder import TaskFolder
from dlpool.storage.disk.task_summary import TaskReading, read_task
from dlpool.storage.errors import UploadError
from dlpool.storage.names import is_folder_name

SCANS = 2
SCAN_INTERVAL_S = 1.0  # minimum between two scans while the change log is usable
_SCAN_INTERVAL = 30.0  # the same, in durations of the last scan; the longer one counts
TIMEOUT_S = 15.0  # of a request, for a catalog
MAX_WAITING = 4  # threads of a process that wait for the full timeout
SHORT_TIMEOUT_S = 1.0  # of the other threads
PAUSE_S = 0.5  # longest pause between two necessary scans of a process
_PAUSE = 2.0  # the same, in durations of the last scan; the shorter one counts
MAX_CHANGES = 2000  # tasks that are read one by one; more of them cause a scan
_POLL_S = 0.01
_LOCK_TIMEOUT_S = 1.0
_FINE_TICK_S, _COARSE_TICK_S = 0.1, 2.1  # FAT stores times in steps of two seconds
_SECOND_NS = 1_000_000_000
_STAMP = struct.Struct("Qqq")


class TaskIndex:
    """The tasks of one backend, as this process knows them. Thread-safe.

    ``_turn`` guards the catalog, its times, ``_is_updating`` and ``_waiting``. Only the
    thread that updates the catalog uses the other attributes.
    """

    def __init__(self, layout: StoreLayout) -> None:
        self._layout = layout
        self._turn = threading.Condition()
        self._catalog: TaskCatalog | None = None
        self._updated_at = float("-inf")  # when the update of the catalog started
        self._scanned_at = float("-inf")
        self._is_updating = False
        self._waiting = 0
        self._change_log = ChangeLogReader(layout.change_log_path)
        self._changed: set[str] = set()  # folders to read
        # Folders whose summary changes without an entry when a process is killed.
        self._merging: set[str] = set()
        self._is_scan_needed = True
        self._stamps: dict[str, bytes] = {}
        # When a stamp was first seen, until the folder has been read a tick later.
        self._fresh: dict[str, float] = {}
        self._scan_duration_s = 0.0
        self._scan_ended_at = float("-inf")

    def __repr__(self) -> str:
        return f"<TaskIndex of {self._layout.root}>"

    def current(
        self,
        *,
        max_age_s: float = 0.0,
        timeout_s: float = TIMEOUT_S,
        is_exact: bool = False,
    ) -> TaskCatalog:
        """Return the catalog, at most ``max_age_s`` seconds older than this call.

        ``timeout_s``: the longest wait for other threads and processes; after it,
        returns an older catalog. Raises UploadError (busy) instead if there is no older
        catalog or if ``is_exact`` is True. Raises UploadError if the disk cannot be
        read.
        """
        called_at = time.monotonic()
        catalog = self._updated(max_age_s, timeout_s, is_scan=False)
        with self._turn:
            if is_exact and self._updated_at < called_at - max_age_s:
                raise _busy()
        return catalog

    def rescan(self, *, timeout_s: float = TIMEOUT_S) -> TaskCatalog:
        """Scan all folders and return the catalog.

        The scan finds changes by other programs. ``timeout_s`` and UploadError: as in
        ``current``.
        """
        return self._updated(0.0, timeout_s, is_scan=True)

    def _updated(
        self, max_age_s: float, timeout_s: float, *, is_scan: bool
    ) -> TaskCatalog:
        now = time.monotonic()
        wanted, deadline = now - max_age_s, now + timeout_s
        known = self._turn_or_known(wanted, deadline, is_scan=is_scan)
        if known is not None:
            return known
        try:
            return self._update(deadline, is_scan=is_scan)
        finally:
            with self._turn:
                self._is_updating = False
                self._turn.notify_all()

    def _turn_or_known(
        self, wanted: float, deadline: float, *, is_scan: bool
    ) -> TaskCatalog | None:
        """Return a catalog updated at or after ``wanted``, or an older one on timeout.

        Returns None if this thread has to update the catalog. ``wanted`` and
        ``deadline``: seconds of the monotonic clock. Raises UploadError.
        """
        with self._turn:
            while (
                self._catalog is None
                or (self._scanned_at if is_scan else self._updated_at) < wanted
            ):
                if not self._is_updating:
                    self._is_updating = True
                    return None
                if not self._has_waited(deadline):
                    return self._earlier()
            return self._catalog

    def _has_waited(self, deadline: float) -> bool:
        """Wait for the update by another thread.

        Returns False if the update has not ended at ``deadline``. If several threads
        wait already, waits for at most one second, because a waiting thread serves no
        other request.
        """
        if self._waiting >= MAX_WAITING:
            deadline = min(deadline, time.monotonic() + SHORT_TIMEOUT_S)
        self._waiting += 1
        try:
            return self._turn.wait(deadline - time.monotonic())
        finally:
            self._waiting -= 1

    def _earlier(self) -> TaskCatalog:
        if self._catalog is None:
            raise _busy()
        return self._catalog

    def _update(self, deadline: float, *, is_scan: bool) -> TaskCatalog:
        """Update the catalog and return it. Raises UploadError."""
        started_at = time.monotonic()
        changes = self._change_log.read_changes()
        self._changed |= (changes or set()) | self._merging
        is_due = started_at - self._scan_ended_at >= max(
            SCAN_INTERVAL_S, _SCAN_INTERVAL * self._scan_duration_s
        )
        self._is_scan_needed |= (
            is_scan or changes is None or len(self._changed) > MAX_CHANGES
        )
        with translate_os_errors("read the upload folder"):
            if self._is_scan_needed:
                pause_s = min(PAUSE_S, _PAUSE * self._scan_duration_s)
                time.sleep(max(0.0, self._scan_ended_at + pause_s - time.monotonic()))
                return self._scan_in_slot(deadline) or self._earlier()
            scanned = self._scan_in_slot(started_at) if is_due else None
            return scanned or self._read_changed(started_at)

    def _scan_in_slot(self, deadline: float) -> TaskCatalog | None:
        """Scan all folders and return the catalog.

        None if no slot is free before the deadline. Raises OSError.
        """
        with self._scan_slot(deadline) as has_slot:
            return self._scan() if has_slot else None

    def _scan(self) -> TaskCatalog:
        """Compare all folders, and read those that have changed. Raises OSError."""
        started_at = time.monotonic()
        self._changed |= self._change_log.read_changes() or set()
        tasks = self._layout.tasks_path()
        found = _stamps_of(tasks)
        changed = {
            name
            for name, (stamp, _) in found.items()
            if self._stamps.get(name) != stamp
        }
        again = (self._fresh.keys() & found.keys()) | (self._changed & found.keys())
        readings = self._read_folders(tasks, found, changed | again)
        catalog = self._with_readings(readings, self._stamps.keys() - found.keys())
        self._stamps = {name: stamp for name, (stamp, _) in found.items()}
        self._changed, self._is_scan_needed = set(), False
        self._scan_ended_at = time.monotonic()
        self._scan_duration_s = self._scan_ended_at - started_at
        with self._turn:
            self._catalog, self._updated_at, self._scanned_at = (
                catalog,
                started_at,
                started_at,
            )
        return catalog

    def _read_changed(self, started_at: float) -> TaskCatalog:
        """Read the tasks that the change log named. Raises OSError."""
        if self._changed:
            tasks = self._layout.tasks_path()
            found = _stamps_of(tasks, self._changed)
            missing = self._changed - found.keys()
            readings = self._read_folders(tasks, found, found)
            catalog = self._with_readings(readings, missing & self._stamps.keys())
            self._stamps.update((name, stamp) for name, (stamp, _) in found.items())
            for name in missing:
                self._stamps.pop(name, None)
            # A task may appear after its entry, and its process may be killed before
            # the next entry.
            self._changed = missing
        else:
            catalog = self._earlier()
        with self._turn:
            self._catalog, self._updated_at = catalog, started_at
        return catalog

    def _read_folders(
        self,
        tasks: Path,
        found: Mapping[str, tuple[bytes, float]],
        names: Iterable[str],
    ) -> dict[str, TaskReading]:
        """Read the folders ``names``, and return a reading of each.

        Remembers which of the folders the next scan has to read again.
        """
        readings: dict[str, TaskReading] = {}
        for name in names:
            stamp, seen_at = found[name]
            first_at = (
                self._fresh.get(name, seen_at)
                if self._stamps.get(name) == stamp
                else seen_at
            )
            read_at = time.monotonic()
            reading = readings[name] = self._read_folder(tasks, name)
            if not reading.is_stable or read_at - first_at < _tick_s(stamp):
                self._fresh[name] = first_at
            else:
                self._fresh.pop(name, None)
            self._merging.discard(name)
            if not reading.is_stable and reading.summary is not None:
                self._merging.add(name)
        return readings

    def _with_readings(
        self, readings: Mapping[str, TaskReading], gone: Collection[str]
    ) -> TaskCatalog:
        """Return the catalog with these readings and without the folders ``gone``."""
        for name in gone:
            self._fresh.pop(name, None)
            self._merging.discard(name)
        catalog = self._catalog or TaskCatalog()
        if not readings and not gone:
            return catalog
        return catalog.with_changes(
            {name: reading.summary for name, reading in readings.items()}, gone
        )

    @contextmanager
    def _scan_slot(self, deadline: float) -> Iterator[bool]:
        """Hold one of the slots for scans, which all processes share.

        Yields whether a slot was free before the deadline. Yields True as well if the
        lock file of a slot cannot be created: the scan then runs without a slot. Raises
        OSError.
        """
        locks = [self._layout.lock_path(f"scan-{number}") for number in range(SCANS)]
        slot: int | None = None
        is_free = False
        while not is_free:
            try:
                slot = next(
                    (one for one in map(try_lock, locks) if one is not None), None
                )
                is_free = slot is not None
            except OSError:
                is_free = True
            if not is_free and time.monotonic() > deadline:
                break
            if not is_free:
                time.sleep(_POLL_S)
        try:
            yield is_free
        finally:
            if slot is not None:
                release(slot)

    def _read_folder(self, tasks: Path, name: str) -> TaskReading:
        try:
            reading = read_task(TaskFolder(tasks / name, self._layout.durability))
            return reading if reading.is_stable else self._read_locked(name) or reading
        except OSError:  # a task that cannot be read does not hide the others
            return TaskReading(None, is_stable=False)

    def _read_locked(self, name: str) -> TaskReading | None:
        """Read a task under its lock; None if that fails."""
        try:
            with self._layout.read_folder(name, timeout_s=_LOCK_TIMEOUT_S) as task:
                return read_task(task, is_locked=True)
        except UploadError:
            return None


def _busy() -> UploadError:
    return UploadError(
        "busy", "the uploads are being counted: try again later", retry_after_s=5
    )


def _stamps_of(
    tasks: Path, names: Iterable[str] | None = None
) -> dict[str, tuple[bytes, float]]:
    """Return the stamp of each task folder, and the time when the stamp was read.

    The keys of the result are folder names. The time is in seconds of the monotonic
    clock. ``names``: only these folders; None: all. Raises OSError.
    """
    found = {}
    with suppress(FileNotFoundError):
        for name in os.listdir(tasks) if names is None else names:
            stamp = _stamp_of(f"{tasks}/{name}") if is_folder_name(name) else None
            if stamp is not None:
                found[name] = (stamp, time.monotonic())
    return found


def _stamp_of(path: str) -> bytes | None:
    """Return the inode number, mtime and ctime of a folder as bytes.

    Empty if they cannot be read, None if the path is not a folder.
    """
    try:
        status = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:  # removed meanwhile
        return None
    except OSError:
        return b""
    if not stat.S_ISDIR(status.st_mode):
        return None
    return _STAMP.pack(status.st_ino, status.st_mtime_ns, status.st_ctime_ns)


def _tick_s(stamp: bytes) -> float:
    """Return the longest possible tick of the clock that made ``stamp``, in seconds."""
    is_coarse = not stamp or _STAMP.unpack(stamp)[1] % _SECOND_NS == 0
    return _COARSE_TICK_S if is_coarse else _FINE_TICK_S
