"""Logs changes in the health of the disks and folders of uploads.

Each change is logged once by all processes together.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from dlpool import jsontext
from dlpool.config import UploadSettings
from dlpool.disk import atomic_write
from dlpool.observe.log import Logger
from dlpool.storage.values import HEALTHY, UNHEALTHY, WARNING, Volume

CHECK_INTERVAL_S = 5.0
MARGIN = 0.02  # a disk recovers only this share below the threshold that it had reached
_ORDER = (HEALTHY, WARNING, UNHEALTHY)


def next_health(before: str, used: float, settings: UploadSettings) -> str:
    """Return the health of a disk. Pure.

    ``used``: the share of the disk that is in use, 0 to 1. ``before``: the previous
    health. The health gets worse at the thresholds ``disk_warn`` and ``disk_refuse``.
    It gets better only when the share falls ``MARGIN`` below a threshold, so that small
    variations around a threshold are logged once.
    """
    reached = _level(used, settings)
    held = min(before, _level(used + MARGIN, settings), key=_ORDER.index)
    return max(reached, held, key=_ORDER.index)


def _level(used: float, settings: UploadSettings) -> str:
    if used >= settings.disk_refuse:
        return UNHEALTHY
    return WARNING if used >= settings.disk_warn else HEALTHY


class DiskMonitor:
    """Checks the volumes of the upload backend. Used by one process at a time.

    A file in ``folder`` keeps the health that was logged last, so that other processes
    and later starts do not log it again. If the file cannot be written, the health is
    kept in memory.
    """

    def __init__(
        self,
        settings: UploadSettings,
        volumes: Callable[[], Sequence[Volume]],
        folder: Path,
        log: Logger,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``volumes`` returns the current state of the volumes."""
        self._settings = settings
        self._volumes = volumes
        self._path = folder / "disks.json"
        self._log = log
        self._clock = clock
        self._next_check = float("-inf")
        self._logged: dict[str, str] = {}

    def check(self) -> None:
        """Log each disk and folder whose health has changed.

        Does nothing within ``CHECK_INTERVAL_S`` seconds after the last check.
        """
        if self._clock() < self._next_check:
            return
        self._next_check = self._clock() + CHECK_INTERVAL_S
        logged, seen = self._read(), set()
        volumes = self._volumes()
        for volume in volumes:
            if volume.device is not None and volume.device not in seen:
                seen.add(volume.device)
                before = logged.get(volume.name, HEALTHY)
                logged[volume.name] = self._check_space(volume, before)
        for volume in volumes:
            key = f"{volume.name} use"
            logged[key] = self._check_folder(volume, logged.get(key, HEALTHY))
        self._write(logged)

    def _check_folder(self, volume: Volume, before: str) -> str:
        """Return the health of the folder of a volume: unhealthy if the folder is
        unusable. Log the health if it differs from ``before``."""
        is_bad = volume.status == UNHEALTHY  # a missing folder is created when needed
        health = UNHEALTHY if is_bad else HEALTHY
        if health == UNHEALTHY != before:
            self._log.warning(
                "upload_folder_unusable", folder=volume.folder, reason=volume.message
            )
        elif health != before:
            self._log.info("upload_folder_available", folder=volume.folder)
        return health

    def _check_space(self, volume: Volume, before: str) -> str:
        """Return the health of the disk of a volume. Log the health if it differs from
        ``before``. A disk that does not report its size is healthy, without a log."""
        capacity = volume.capacity
        if capacity is None:  # the file system does not report its size
            return HEALTHY
        health = next_health(before, capacity.used_share, self._settings)
        fields = {
            "folder": volume.folder,
            "free": capacity.free,
            "used_percent": round(100 * capacity.used_share, 1),
            "health": health,
        }
        if _ORDER.index(health) > _ORDER.index(before):
            self._log.warning("upload_disk_low", **fields)
        elif health != before:
            self._log.info("upload_disk_available", **fields)
        return health

    def _read(self) -> dict[str, str]:
        try:
            found = json.loads(self._path.read_bytes())
        except (OSError, ValueError):
            return dict(self._logged)
        if not isinstance(found, dict):
            return {}
        return {name: health for name, health in found.items() if health in _ORDER}

    def _write(self, logged: dict[str, str]) -> None:
        has_changed, self._logged = logged != self._logged, logged
        if has_changed or not self._path.exists():
            with suppress(OSError):
                atomic_write(self._path, jsontext.dumps(logged), sync=False)
