"""The catalog of all tasks, kept up to date by looking at the folders that have
changed.

Each process keeps one. The journal says which tasks have changed (``journal.py``). Now
and then, and where the journal does not say it, a scan compares all folders: it reads
the names below ``tasks`` and the stamp of each folder (inode, mtime, ctime), and reads
only the folders whose stamp differs from the one that was seen before, as each change
of a task renames or creates an entry of its folder. A change in the same tick of the
file system's clock does not change the stamp, so a folder is read again until it was
read at least one tick after its stamp was first seen; both times are by the monotonic
clock, so that the clock of a file server does not matter.

A call never gets a catalog from before it began, so that a client sees its own changes
in each process. Threads that wait at the same time share one look, and ``SCANS`` scans
run at once in all processes. What another program changes is seen after ``SCAN_S``, or
later where a scan takes long.
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
SCAN_S = (
    1.0  # at least, from one scan to the next where the journal says what has changed
)
_SCAN = 30.0  # the same, times the duration of the last scan
PATIENCE_S = 15.0  # for a catalog, of a request
WAITING = 4  # threads of a process that wait for so long
SHORT_PATIENCE_S = 1.0  # of the others
REST_S = 0.5  # at most, between two scans of a process
_REST = 2.0  # times the duration of the last scan
NOTES = 2000  # of as many tasks are read without a scan
_POLL_S = 0.01
_LOCK_S = 1.0
_FINE_TICK_S, _COARSE_TICK_S = 0.1, 2.1  # FAT stores even seconds
_SECOND_NS = 1_000_000_000
_STAMP = struct.Struct("Qqq")


class TaskIndex:
    """The tasks of one store, as this process knows them. Thread-safe.

    ``_turn`` guards the catalog, its time, who looks and how many wait; everything else
    is the looking thread's alone.
    """

    def __init__(self, layout: StoreLayout) -> None:
        self._layout = layout
        self._turn = threading.Condition()
        self._catalog: TaskCatalog | None = None
        self._begun_at = float("-inf")
        self._scanned_at = float("-inf")
        self._is_looking = False
        self._waiting = 0
        self._journal = ChangeLogReader(layout.change_log_path)
        self._noted: set[str] = set()  # folders that are to be read
        self._merging: set[str] = (
            set()
        )  # folders whose summary may change without a note, when a process is killed
        self._is_scan_wanted = True
        self._stamps: dict[str, bytes] = {}
        self._fresh: dict[
            str, float
        ] = {}  # when a stamp was first seen, until the folder was read a tick later
        self._duration_s = 0.0  # of the last scan
        self._ended_at = float("-inf")

    def __repr__(self) -> str:
        return f"<Listing of {self._layout.root}>"

    def current(
        self,
        *,
        max_age_s: float = 0.0,
        patience_s: float = PATIENCE_S,
        is_exact: bool = False,
    ) -> TaskCatalog:
        """Return the catalog, at most ``max_age_s`` older than this call.

        If no scan gets its turn within ``patience_s``, an older one is returned, unless
        ``is_exact``. Raises Refusal: 503 if there is none, and for a disk that cannot
        be read.
        """
        begun_at = time.monotonic()
        catalog = self._known(max_age_s, patience_s, is_scan=False)
        with self._turn:
            if is_exact and self._begun_at < begun_at - max_age_s:
                raise _busy()
        return catalog

    def rescan(self, *, patience_s: float = PATIENCE_S) -> TaskCatalog:
        """Return the catalog of a scan that began after this call, with what other
        programs have changed.

        Raises Refusal like ``current``.
        """
        return self._known(0.0, patience_s, is_scan=True)

    def _known(
        self, max_age_s: float, patience_s: float, *, is_scan: bool
    ) -> TaskCatalog:
        now = time.monotonic()
        wanted, deadline = now - max_age_s, now + patience_s
        known = self._turn_or_known(wanted, deadline, is_scan=is_scan)
        if known is not None:
            return known
        try:
            return self._look_again(deadline, is_scan=is_scan)
        finally:
            with self._turn:
                self._is_looking = False
                self._turn.notify_all()

    def _turn_or_known(
        self, wanted: float, deadline: float, *, is_scan: bool
    ) -> TaskCatalog | None:
        """Return a catalog as new as ``wanted``; None if it is this thread's turn to
        look. Raises Refusal (503)."""
        with self._turn:
            while (
                self._catalog is None
                or (self._scanned_at if is_scan else self._begun_at) < wanted
            ):
                if not self._is_looking:
                    self._is_looking = True
                    return None
                if not self._has_waited(deadline):
                    return self._earlier()
            return self._catalog

    def _has_waited(self, deadline: float) -> bool:
        """Wait until another thread has looked; return False if none has before the
        deadline.

        Each thread that waits is missing to other requests, so of many most do not wait
        for long.
        """
        if self._waiting >= WAITING:
            deadline = min(deadline, time.monotonic() + SHORT_PATIENCE_S)
        self._waiting += 1
        try:
            return self._turn.wait(deadline - time.monotonic())
        finally:
            self._waiting -= 1

    def _earlier(self) -> TaskCatalog:
        if self._catalog is None:
            raise _busy()
        return self._catalog

    def _look_again(self, deadline: float, *, is_scan: bool) -> TaskCatalog:
        """Bring the catalog up to date. Raises Refusal."""
        begun_at = time.monotonic()
        names = self._journal.read_changes()
        self._noted |= (names or set()) | self._merging
        is_due = begun_at - self._ended_at >= max(SCAN_S, _SCAN * self._duration_s)
        self._is_scan_wanted |= is_scan or names is None or len(self._noted) > NOTES
        with translate_os_errors("read the upload folder"):
            if self._is_scan_wanted:
                time.sleep(
                    max(
                        0.0,
                        self._ended_at
                        + min(REST_S, _REST * self._duration_s)
                        - time.monotonic(),
                    )
                )
                return self._compared(deadline) or self._earlier()
            compared = self._compared(begun_at) if is_due else None
            return compared or self._read_noted(begun_at)

    def _compared(self, deadline: float) -> TaskCatalog | None:
        """Compare all folders; None if no place is free until the deadline. Raises
        OSError."""
        with self._place(deadline) as has_place:
            return self._compare() if has_place else None

    def _compare(self) -> TaskCatalog:
        """Compare all folders. Raises OSError."""
        begun_at = time.monotonic()
        names = self._journal.read_changes()
        self._noted |= names or set()
        tasks = self._layout.tasks_path()
        found = _stamped(tasks)
        changed = {
            name
            for name, (stamp, _) in found.items()
            if self._stamps.get(name) != stamp
        }
        looks = self._looks(
            tasks,
            found,
            changed
            | (self._fresh.keys() & found.keys())
            | (self._noted & found.keys()),
        )
        catalog = self._with(looks, self._stamps.keys() - found.keys())
        self._stamps = {name: stamp for name, (stamp, _) in found.items()}
        self._noted, self._is_scan_wanted = set(), False
        self._ended_at = time.monotonic()
        self._duration_s = self._ended_at - begun_at
        with self._turn:
            self._catalog, self._begun_at, self._scanned_at = (
                catalog,
                begun_at,
                begun_at,
            )
        return catalog

    def _read_noted(self, begun_at: float) -> TaskCatalog:
        """Read the tasks that were noted. Raises OSError."""
        if self._noted:
            tasks = self._layout.tasks_path()
            found = _stamped(tasks, self._noted)
            missing = self._noted - found.keys()
            catalog = self._with(
                self._looks(tasks, found, found), missing & self._stamps.keys()
            )
            self._stamps.update((name, stamp) for name, (stamp, _) in found.items())
            for name in missing:
                self._stamps.pop(name, None)
            # one may be about to come: its process may be killed before it notes that
            self._noted = missing
        else:
            catalog = self._earlier()
        with self._turn:
            self._catalog, self._begun_at = catalog, begun_at
        return catalog

    def _looks(
        self,
        tasks: Path,
        found: Mapping[str, tuple[bytes, float]],
        names: Iterable[str],
    ) -> dict[str, TaskReading]:
        """Read these folders, and note which of them are to be read again by the next
        scan."""
        looks: dict[str, TaskReading] = {}
        for name in names:
            stamp, seen_at = found[name]
            first_at = (
                self._fresh.get(name, seen_at)
                if self._stamps.get(name) == stamp
                else seen_at
            )
            read_at = time.monotonic()
            looks[name] = self._look(tasks, name)
            if not looks[name].is_stable or read_at - first_at < _tick_s(stamp):
                self._fresh[name] = first_at
            else:
                self._fresh.pop(name, None)
            self._merging.discard(name)
            if not looks[name].is_stable and looks[name].summary is not None:
                self._merging.add(name)
        return looks

    def _with(
        self, looks: Mapping[str, TaskReading], gone: Collection[str]
    ) -> TaskCatalog:
        """Return the catalog after these looks, and without the folders in ``gone``."""
        for name in gone:
            self._fresh.pop(name, None)
            self._merging.discard(name)
        catalog = self._catalog or TaskCatalog()
        if not looks and not gone:
            return catalog
        return catalog.with_changes(
            {name: look.summary for name, look in looks.items()}, gone
        )

    @contextmanager
    def _place(self, deadline: float) -> Iterator[bool]:
        """Hold one of the places of those that scan; whether one was free before the
        deadline. Raises OSError.

        Where no lock file can be made, as the folder is missing or read-only, each
        process scans by itself.
        """
        locks = [self._layout.lock_path(f"scan-{number}") for number in range(SCANS)]
        place: int | None = None
        is_free = False
        while not is_free:
            try:
                place = next(
                    (one for one in map(try_lock, locks) if one is not None), None
                )
                is_free = place is not None
            except OSError:
                is_free = True
            if not is_free and time.monotonic() > deadline:
                break
            if not is_free:
                time.sleep(_POLL_S)
        try:
            yield is_free
        finally:
            if place is not None:
                release(place)

    def _look(self, tasks: Path, name: str) -> TaskReading:
        try:
            look = read_task(TaskFolder(tasks / name, self._layout.sync))
            return look if look.is_stable else self._locked_look(name) or look
        except OSError:  # one that cannot be read hides no other
            return TaskReading(None, is_stable=False)

    def _locked_look(self, name: str) -> TaskReading | None:
        """Look at a task under its lock; None if the lock is not released soon. Raises
        OSError."""
        try:
            with self._layout.read_folder(name, patience_s=_LOCK_S) as task:
                return read_task(task, is_locked=True)
        except UploadError:
            return None


def _busy() -> UploadError:
    return UploadError(
        503,
        "busy",
        "the uploads are being counted: try again later",
        headers={"Retry-After": "5"},
    )


def _stamped(
    tasks: Path, names: Iterable[str] | None = None
) -> dict[str, tuple[bytes, float]]:
    """Return the stamp of each folder of a task, or of those with these names, and when
    it was known.

    Raises OSError.
    """
    found = {}
    with suppress(FileNotFoundError):
        for name in os.listdir(tasks) if names is None else names:
            stamp = _stamp_of(f"{tasks}/{name}") if is_folder_name(name) else None
            if stamp is not None:
                found[name] = (stamp, time.monotonic())
    return found


def _stamp_of(path: str) -> bytes | None:
    """Return what changes with each change in the folder; empty if it is unknown, None
    if it is not a folder."""
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
    """Return an upper bound of the resolution of the clock that the stamp was made
    by."""
    is_coarse = not stamp or _STAMP.unpack(stamp)[1] % _SECOND_NS == 0
    return _COARSE_TICK_S if is_coarse else _FINE_TICK_S
