"""The disk guard: free space on the file systems of targets, less what running jobs
will yet take of it."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dlpool.config import Settings
from dlpool.errors import LocalFault
from dlpool.jobs.confinement import Confinement
from dlpool.observe.log import Logger
from dlpool.service.inflight import InFlightTable
from dlpool.service.node.disk_rules import can_write, least_free
from dlpool.service.wire.frames import SpaceFrame

LOOK_S = 1.0
# times min_free must be left before jobs begin again: else it would go to and fro
RELIEF = 1.05
MAX_FOUND = 64  # file systems that only jobs have led to


@dataclass(frozen=True)
class FileSystemSpace:
    """A file system of targets, by a folder on it. In bytes: ``left`` when all running
    jobs will be done."""

    folder: str
    size: int
    free: int
    reserved: int

    @property
    def free_after_jobs(self) -> int:
        return self.free - self.reserved

    def required_free(self, min_free: int | None) -> int:
        """How much is to stay free."""
        return least_free(self.size, min_free)

    def is_low(self, min_free: int | None, *, was_low: bool) -> bool:
        """Whether no job should begin."""
        least = self.required_free(min_free)
        return least > 0 and self.free_after_jobs < (
            least * RELIEF if was_low else least
        )


class DiskGuard:
    """``serve`` is the thread: a file system may keep those waiting who ask it. Others
    read what it saw.

    After a fault of the node it says whether a small write succeeds again. The lock
    guards when that is tried.
    """

    def __init__(
        self,
        settings: Settings,
        ledger: InFlightTable,
        log: Logger,
        tell: Callable[[], None],
    ) -> None:
        """``tell`` is called when ``is_low`` has changed."""
        self.file_systems: tuple[FileSystemSpace, ...] = ()
        self.frame = SpaceFrame(
            settings.supervisor.min_free, {}
        )  # what workers are told
        self._ledger = ledger
        self._log = log
        self._tell = tell
        self._lock = threading.Lock()
        self._doubted_until: float | None = None  # by the monotonic clock
        self._has_looked = False
        self._low: dict[int, FileSystemSpace] = {}  # by device
        self._found: dict[int, str] = {}  # folders of jobs, by device
        self.apply(settings)

    def __repr__(self) -> str:
        return (
            f"<DiskGuard {len(self.file_systems)} file systems, low: "
            f"{self.low_folders}>"
        )

    def apply(self, settings: Settings) -> None:
        """Use these settings from now on."""
        self._min_free, self._paths = settings.supervisor.min_free, settings.paths
        self._fault_delay = settings.supervisor.fault_delay

    def report_fault(self) -> None:
        """A job has met a fault of this node: no job begins for ``fault_delay``, nor
        before a small write succeeds."""
        with self._lock:
            self._doubted_until = time.monotonic() + self._fault_delay

    @property
    def fault_s(self) -> float | None:
        """Seconds until a small write is tried, None if the node has no fault."""
        until = self._doubted_until
        return None if until is None else max(0.0, until - time.monotonic())

    @property
    def is_low(self) -> bool:
        """Whether no job should begin now; also before the first look."""
        return bool(self._low) or not self._has_looked

    @property
    def low_folders(self) -> list[str]:
        """Folders on the file systems that have too little left."""
        return [room.folder for room in self._low.values()]

    @property
    def free_after_jobs(self) -> int | None:
        """Bytes that are left where there is least; None if that is not known."""
        return min((room.free_after_jobs for room in self.file_systems), default=None)

    def serve(self, stopping: threading.Event) -> None:
        """Look again and again."""
        while not stopping.is_set():
            self.sample()
            stopping.wait(LOOK_S)

    def sample(self) -> None:
        """Take stock, and say what has changed."""
        try:
            allowed = Confinement(self._paths, owned=())
        except LocalFault:  # its workers will say so
            self._has_looked = True
            return
        folders = {
            device: folder
            for root in allowed.roots
            if (device := _device(folder := nearest_folder(root)))
        }
        self._try_again(allowed.roots)
        reserved = self._reserved(allowed)
        self.frame = SpaceFrame(
            self._min_free,
            {str(device): size for device, size in reserved.items() if size},
        )
        rooms = {}
        for device, folder in {**self._found, **folders}.items():
            room = (
                _room(folder, reserved[device]) if _device(folder) == device else None
            )
            if room is not None:
                rooms[device] = room
            else:
                self._found.pop(device, None)
        low = {
            device: room
            for device, room in rooms.items()
            if room.is_low(self._min_free, was_low=device in self._low)
        }
        was_low, before = self.is_low, self._low
        self.file_systems, self._low, self._has_looked = (
            tuple(rooms.values()),
            low,
            True,
        )
        if self.is_low != was_low:
            self._tell()
        self._say(rooms, before)

    def _try_again(self, roots: list[str]) -> None:
        """End the fault of the node if a small write succeeds in each folder of
        downloads."""
        until = self._doubted_until
        if until is None or time.monotonic() < until:
            return
        for root in roots:
            with suppress(OSError):
                os.makedirs(root, exist_ok=True)  # as the next job would
        is_well = all(can_write(root) for root in roots)
        with self._lock:
            if self._doubted_until == until:
                self._doubted_until = (
                    None if is_well else time.monotonic() + self._fault_delay
                )
        if is_well:
            self._tell()

    def _reserved(self, allowed: Confinement) -> Counter[int]:
        """What running jobs will yet take, by device."""
        reserved: Counter[int] = Counter()
        for held in self._ledger.all():
            if held.worker_pid is None or held.job is None or held.is_ending:
                continue
            folder = nearest_folder(
                os.path.join(self._paths.download_dir, held.job.save_path)
            )
            device = _device(folder) if allowed.contains(folder) else None
            if device is not None:
                reserved[device] += held.missing_bytes
                if len(self._found) < MAX_FOUND:
                    self._found.setdefault(device, folder)
        return reserved

    def _say(
        self, rooms: dict[int, FileSystemSpace], before: dict[int, FileSystemSpace]
    ) -> None:
        """A line for each file system that is low, or is not any more, for the first
        time."""
        for device in self._low.keys() - before.keys():
            room = self._low[device]
            self._log.warning(
                "disk_space_low",
                folder=room.folder,
                free=room.free,
                reserved=room.reserved,
                min_free=room.required_free(self._min_free),
            )
        for device in before.keys() - self._low.keys():
            room = rooms.get(
                device, before[device]
            )  # it may be gone, and then keeps nobody waiting
            self._log.info("disk_space_back", folder=room.folder, free=room.free)


def nearest_folder(path: str) -> str:
    """The folder, or the nearest one above it that is there."""
    return next(
        (
            str(folder)
            for folder in (Path(path), *Path(path).parents)
            if os.path.isdir(folder)
        ),
        "/",
    )


def _device(folder: str) -> int | None:
    try:
        return os.stat(folder).st_dev
    except OSError:
        return None


def _room(folder: str, reserved: int) -> FileSystemSpace | None:
    """None where the file system has no such figures, or is not there: then its jobs
    will say so."""
    try:
        found = os.statvfs(folder)
    except OSError:
        return None
    if found.f_blocks == 0:
        return None
    return FileSystemSpace(
        folder,
        found.f_blocks * found.f_frsize,
        found.f_bavail * found.f_frsize,
        reserved,
    )
