"""The catalog of all tasks, kept up to date by looking at the folders that have changed.

Each process keeps one. A scan reads the names below ``tasks`` and the stamp of each folder (inode, mtime, ctime), and
reads only the folders whose stamp differs from the one that was seen before: each change of a task renames or creates
an entry of its folder. A change in the same tick of the file system's clock does not change the stamp, so a folder is
read again until it was read at least one tick after its stamp was first seen; both times are by the monotonic clock, so
that the clock of a file server does not matter.

A call never gets a catalog from before it began, so that a client sees its own changes in each process. Threads that
wait at the same time share one scan, and ``SCANS`` scans run at once in all processes.
"""

from __future__ import annotations

import os
import stat
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dlpool.web.refusal import Refusal
from dlpool.web.store.catalog import Catalog
from dlpool.web.store.faults import stored
from dlpool.web.store.layout import Layout
from dlpool.web.store.locks import held, release
from dlpool.web.store.names import is_flat
from dlpool.web.store.summary import Look, look_at
from dlpool.web.store.task import Task

SCANS = 2
PATIENCE_S = 15.0  # for a catalog, of a request
WAITING = 4  # threads of a process that wait for so long
SHORT_PATIENCE_S = 1.0  # of the others
REST_S = 0.5  # at most, between two scans of a process
_REST = 2.0  # times the duration of the last scan
_POLL_S = 0.01
_LOCK_S = 1.0
_FINE_TICK_S, _COARSE_TICK_S = 0.1, 2.1  # FAT stores even seconds
_SECOND_NS = 1_000_000_000
_STAMP = struct.Struct("Qqq")


class Listing:
    """The tasks of one store, as this process knows them. Thread-safe.

    ``_turn`` guards the catalog, its time, who scans and how many wait; everything else is the scanning thread's alone.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._turn = threading.Condition()
        self._catalog: Catalog | None = None
        self._begun_at = float("-inf")
        self._is_scanning = False
        self._waiting = 0
        self._stamps: dict[str, bytes] = {}
        self._fresh: dict[str, float] = {}  # when a stamp was first seen, until the folder was read a tick later
        self._rests_until = float("-inf")

    def __repr__(self) -> str:
        return f"<Listing of {self._layout.root}>"

    def current(self, *, max_age_s: float = 0.0, patience_s: float = PATIENCE_S) -> Catalog:
        """Return the catalog, at most ``max_age_s`` older than this call.

        If no scan gets its turn within ``patience_s``, an older one is returned. Raises Refusal: 503 if there is none
        yet, and for a disk that cannot be read.
        """
        now = time.monotonic()
        wanted, deadline = now - max_age_s, now + patience_s
        with self._turn:
            while self._catalog is None or self._begun_at < wanted:
                if not self._is_scanning:
                    self._is_scanning = True
                    break
                if not self._has_waited(deadline):
                    return self._earlier()
            else:
                return self._catalog
        try:
            return self._scan(deadline)
        finally:
            with self._turn:
                self._is_scanning = False
                self._turn.notify_all()

    def _has_waited(self, deadline: float) -> bool:
        """Wait until a scan has ended; return False if none has before the deadline, or soon for one who is too many.

        Each one who waits keeps a thread of the server from other requests.
        """
        if self._waiting >= WAITING:
            deadline = min(deadline, time.monotonic() + SHORT_PATIENCE_S)
        self._waiting += 1
        try:
            return self._turn.wait(deadline - time.monotonic())
        finally:
            self._waiting -= 1

    def _earlier(self) -> Catalog:
        if self._catalog is None:
            raise Refusal(503, "busy", "the uploads are being counted: try again later", headers={"Retry-After": "5"})
        return self._catalog

    def _scan(self, deadline: float) -> Catalog:
        """Bring the catalog up to date. Raises Refusal."""
        time.sleep(max(0.0, self._rests_until - time.monotonic()))
        with stored("read the upload folder"), self._place(deadline) as has_place:
            if not has_place:
                return self._earlier()
            begun_at = time.monotonic()
            catalog = self._updated(self._catalog or Catalog())
            ended_at = time.monotonic()
        self._rests_until = ended_at + min(REST_S, _REST * (ended_at - begun_at))
        with self._turn:
            self._catalog, self._begun_at = catalog, begun_at
        return catalog

    @contextmanager
    def _place(self, deadline: float) -> Iterator[bool]:
        """Hold one of the places of those that scan; whether one was free before the deadline. Raises OSError.

        Where no lock file can be made, as the folder is missing or read-only, each process scans by itself.
        """
        locks = [self._layout.lock_path(f"scan-{number}") for number in range(SCANS)]
        place: int | None = None
        is_free = False
        while not is_free:
            try:
                place = next((one for one in map(held, locks) if one is not None), None)
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

    def _updated(self, catalog: Catalog) -> Catalog:
        tasks = self._layout.tasks()
        found = _stamped(tasks)
        looks: dict[str, Look] = {}
        fresh: dict[str, float] = {}
        for name, (stamp, seen_at) in found.items():
            is_known = self._stamps.get(name) == stamp
            if is_known and name not in self._fresh:
                continue
            first_at = self._fresh.get(name, seen_at) if is_known else seen_at
            read_at = time.monotonic()
            looks[name] = self._look(tasks, name)
            if not looks[name].is_lasting or read_at - first_at < _tick_s(stamp):
                fresh[name] = first_at
        gone = self._stamps.keys() - found.keys()
        if looks or gone:
            catalog = catalog.changed({name: look.summary for name, look in looks.items()}, gone)
        self._stamps = {name: stamp for name, (stamp, _) in found.items()}
        self._fresh = fresh
        return catalog

    def _look(self, tasks: Path, name: str) -> Look:
        try:
            look = look_at(Task(tasks / name, self._layout.sync))
            return look if look.is_lasting else self._locked_look(name) or look
        except OSError:  # one that cannot be read hides no other
            return Look(None, is_lasting=False)

    def _locked_look(self, name: str) -> Look | None:
        """Look at a task under its lock; None if the lock is not released soon. Raises OSError."""
        try:
            with self._layout.seen_at(name, patience_s=_LOCK_S) as task:
                return look_at(task, is_locked=True)
        except Refusal:
            return None


def _stamped(tasks: Path) -> dict[str, tuple[bytes, float]]:
    """Return the stamp of each folder of a task, and when it was known. Raises OSError."""
    found = {}
    with suppress(FileNotFoundError), os.scandir(tasks) as entries:
        for entry in entries:
            if not is_flat(entry.name):
                continue
            stamp = _stamp_of(entry)
            if stamp is not None:
                found[entry.name] = (stamp, time.monotonic())
    return found


def _stamp_of(entry: os.DirEntry[str]) -> bytes | None:
    """Return what changes with each change in the folder; empty if it is unknown, None if it is not a folder."""
    try:
        status = entry.stat(follow_symlinks=False)
    except FileNotFoundError:  # removed meanwhile
        return None
    except OSError:
        return b""
    if not stat.S_ISDIR(status.st_mode):
        return None
    return _STAMP.pack(status.st_ino, status.st_mtime_ns, status.st_ctime_ns)


def _tick_s(stamp: bytes) -> float:
    """Return an upper bound of the resolution of the clock that the stamp was made by."""
    is_coarse = not stamp or _STAMP.unpack(stamp)[1] % _SECOND_NS == 0
    return _COARSE_TICK_S if is_coarse else _FINE_TICK_S
