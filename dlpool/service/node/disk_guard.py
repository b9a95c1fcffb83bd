"""The disk guard: free space on the file systems of targets, minus the bytes that
running jobs will still write."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from dlpool.config import Settings
from dlpool.dataclass import dataclass
from dlpool.errors import LocalFault
from dlpool.jobs.confinement import Confinement
from dlpool.observe.log import Logger
from dlpool.service.inflight import InFlightTable
from dlpool.service.node.disk_rules import can_write, least_free
from dlpool.service.wire.frames import SpaceFrame

SAMPLE_S = 1.0
# when space was low, jobs start again at this multiple of min_free, so that the state
# does not alternate
HYSTERESIS = 1.05
# file systems outside the configured folders that are watched because jobs write there
MAX_FOUND = 64


@dataclass(frozen=True)
class FileSystemSpace:
    """The space of a file system of targets, in bytes.

    ``folder``: a folder on the file system. ``reserved``: what running jobs will still
    write.
    """

    folder: str
    size: int
    free: int
    reserved: int

    @property
    def free_after_jobs(self) -> int:
        """Return the bytes that are left when all running jobs are done."""
        return self.free - self.reserved

    def required_free(self, min_free: int | None) -> int:
        """Return how many bytes must stay free; ``min_free`` is the setting."""
        return least_free(self.size, min_free)

    def is_low(self, min_free: int | None, *, was_low: bool) -> bool:
        """Return whether there is too little space for another job.

        If the space was low before (``was_low``), more than the required space must be
        free.
        """
        required = self.required_free(min_free)
        return required > 0 and self.free_after_jobs < (
            required * HYSTERESIS if was_low else required
        )


class DiskGuard:
    """The sampler of the disks. It measures once a second, in a thread of its own: a
    file system that does not answer may block this thread.

    The thread runs ``serve``; any thread may read the attributes. After a disk fault of
    the node, the guard tries small writes until they succeed. The lock guards the time
    of the next try.
    """

    def __init__(
        self,
        settings: Settings,
        in_flight: InFlightTable,
        log: Logger,
        on_change: Callable[[], None],
    ) -> None:
        """Create a guard, which ``serve`` starts.

        The guard calls ``on_change`` when ``is_low`` has changed, or when a fault of
        the node is over.
        """
        self.file_systems: tuple[FileSystemSpace, ...] = ()
        self.frame = SpaceFrame(settings.supervisor.min_free, {})  # for the workers
        self._in_flight = in_flight
        self._log = log
        self._on_change = on_change
        self._lock = threading.Lock()
        self._faulty_until: float | None = None  # by the monotonic clock
        self._has_sample = False
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
        """Record a fault of the node. No job starts until a small write succeeds; the
        guard tries the first write after ``fault_delay`` seconds."""
        with self._lock:
            self._faulty_until = time.monotonic() + self._fault_delay

    @property
    def fault_s(self) -> float | None:
        """Return the seconds until the guard tries a small write; None if the node has
        no fault."""
        until = self._faulty_until
        return None if until is None else max(0.0, until - time.monotonic())

    @property
    def is_low(self) -> bool:
        """Return whether there is too little space for another job; True before the
        first sample."""
        return bool(self._low) or not self._has_sample

    @property
    def low_folders(self) -> list[str]:
        """Return one folder for each file system with too little space."""
        return [space.folder for space in self._low.values()]

    @property
    def free_after_jobs(self) -> int | None:
        """Return the bytes that running jobs will leave free on the file system where
        this number is smallest; None if unknown."""
        return min((space.free_after_jobs for space in self.file_systems), default=None)

    def serve(self, stopping: threading.Event) -> None:
        """Sample the disks until the supervisor stops."""
        while not stopping.is_set():
            self.sample()
            stopping.wait(SAMPLE_S)

    def sample(self) -> None:
        """Measure all file systems, and report changes."""
        try:
            allowed = Confinement(self._paths, owned=())
        except LocalFault:  # the workers report it
            self._has_sample = True
            return
        folders = {
            device: folder
            for root in allowed.roots
            if (device := _device(folder := nearest_folder(root)))
        }
        self._check_fault(allowed.roots)
        reserved = self._reserved(allowed)
        self.frame = SpaceFrame(
            self._min_free,
            {str(device): size for device, size in reserved.items() if size},
        )
        spaces = {}
        for device, folder in {**self._found, **folders}.items():
            space = (
                _measure(folder, reserved[device])
                if _device(folder) == device
                else None
            )
            if space is not None:
                spaces[device] = space
            else:
                self._found.pop(device, None)
        low = {
            device: space
            for device, space in spaces.items()
            if space.is_low(self._min_free, was_low=device in self._low)
        }
        was_low, before = self.is_low, self._low
        self.file_systems, self._low, self._has_sample = (
            tuple(spaces.values()),
            low,
            True,
        )
        if self.is_low != was_low:
            self._on_change()
        self._log_changes(spaces, before)

    def _check_fault(self, roots: list[str]) -> None:
        """End a fault of the node if a small write succeeds in each folder of
        downloads."""
        until = self._faulty_until
        if until is None or time.monotonic() < until:
            return
        for root in roots:
            with suppress(OSError):
                os.makedirs(root, exist_ok=True)  # as the next job would
        is_repaired = all(can_write(root) for root in roots)
        with self._lock:
            if self._faulty_until == until:
                self._faulty_until = (
                    None if is_repaired else time.monotonic() + self._fault_delay
                )
        if is_repaired:
            self._on_change()

    def _reserved(self, allowed: Confinement) -> Counter[int]:
        """Return the bytes that running jobs will still write, by device."""
        reserved: Counter[int] = Counter()
        for one in self._in_flight.all():
            if one.worker_pid is None or one.job is None or one.is_recording:
                continue
            folder = nearest_folder(
                os.path.join(self._paths.download_dir, one.job.save_path)
            )
            device = _device(folder) if allowed.contains(folder) else None
            if device is not None:
                reserved[device] += one.missing_bytes
                if len(self._found) < MAX_FOUND:
                    self._found.setdefault(device, folder)
        return reserved

    def _log_changes(
        self, spaces: dict[int, FileSystemSpace], before: dict[int, FileSystemSpace]
    ) -> None:
        """Log each file system that has become low, or is no longer low."""
        for device in self._low.keys() - before.keys():
            space = self._low[device]
            self._log.warning(
                "disk_space_low",
                folder=space.folder,
                free=space.free,
                reserved=space.reserved,
                min_free=space.required_free(self._min_free),
            )
        for device in before.keys() - self._low.keys():
            # an unmounted file system is not low either
            space = spaces.get(device, before[device])
            self._log.info("disk_space_available", folder=space.folder, free=space.free)


def nearest_folder(path: str) -> str:
    """Return ``path`` if it is a folder, otherwise its nearest parent that exists."""
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


def _measure(folder: str, reserved: int) -> FileSystemSpace | None:
    """Return the space of the file system of ``folder``.

    Return None if the file system reports no size, or if the folder cannot be read. In
    this case the jobs that write to the folder report the error.
    """
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
