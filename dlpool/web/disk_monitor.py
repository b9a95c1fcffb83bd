"""Logs when a disk of uploads fills up or a folder becomes unusable, and when it
recovers.

Each change is logged once by all processes together.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from dlpool import jsontext
from dlpool.config import UploadSettings
from dlpool.disk import atomic_write
from dlpool.observe.log import Logger
from dlpool.storage.disk.capacity import (
    HEALTHY,
    UNHEALTHY,
    WARNING,
    VolumeCapacity,
    capacity_of,
    device_of,
)
from dlpool.web.monitoring import folder_check

LOOK_S = 5.0  # between two checks of the disks
MARGIN = 0.02  # a disk recovers only this share below the threshold that it had reached
_ORDER = (HEALTHY, WARNING, UNHEALTHY)


def next_health(before: str, used: float, settings: UploadSettings) -> str:
    """Return the health of a disk whose share ``used`` is in use, and whose health was
    ``before``. Pure.

    It gets worse at ``disk_warn`` and ``disk_refuse``, and better only ``MARGIN`` below
    them, so that a disk whose use varies around a threshold is logged once.
    """
    reached = _level(used, settings)
    held = min(before, _level(used + MARGIN, settings), key=_ORDER.index)
    return max(reached, held, key=_ORDER.index)


def _level(used: float, settings: UploadSettings) -> str:
    if used >= settings.disk_refuse:
        return UNHEALTHY
    return WARNING if used >= settings.disk_warn else HEALTHY


class DiskMonitor:
    """Checks ``upload_dir``, ``merged_dir`` and their disks; only one thread of one
    process at a time calls ``look``.

    The logged state is kept in a file in ``folder``, so that other processes and later
    starts do not log it again; in memory if the file cannot be written.
    """

    def __init__(
        self,
        settings: UploadSettings,
        folder: Path,
        log: Logger,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._folders = (
            ("upload_dir", settings.upload_dir),
            ("merged_dir", settings.merged_dir),
        )
        self._path = folder / "disks.json"
        self._log = log
        self._clock = clock
        self._next_look = float("-inf")
        self._told: dict[str, str] = {}

    def check(self) -> None:
        """Log each disk and folder whose health has changed, if the last check is
        ``LOOK_S`` ago. Raises nothing."""
        if self._clock() < self._next_look:
            return
        self._next_look = self._clock() + LOOK_S
        told, seen = self._read(), set()
        for name, folder in self._folders:
            try:
                room, device = capacity_of(folder), device_of(folder)
            except OSError:  # the folder is reported below
                continue
            if device not in seen:
                seen.add(device)
                told[name] = self._judge(folder, room, told.get(name, HEALTHY))
        for name, folder in self._folders:
            key = f"{name} use"
            told[key] = self._judge_use(folder, told.get(key, HEALTHY))
        self._write(told)

    def _judge_use(self, folder: str, before: str) -> str:
        """Return the health of one folder: whether it can be written to. Log a
        change."""
        check = folder_check(folder)
        health = (
            UNHEALTHY if check["status"] == UNHEALTHY else HEALTHY
        )  # a missing folder is created when needed
        if health == UNHEALTHY != before:
            self._log.warning(
                "upload_folder_unusable", folder=folder, reason=check["message"]
            )
        elif health != before:
            self._log.info("upload_folder_back", folder=folder)
        return health

    def _judge(self, folder: str, room: VolumeCapacity | None, before: str) -> str:
        """Return the health of one disk. Log a change."""
        if room is None:  # a file system that does not report its size
            return HEALTHY
        health = next_health(before, room.used_share, self._settings)
        fields = {
            "folder": folder,
            "free": room.free,
            "used_percent": round(100 * room.used_share, 1),
            "health": health,
        }
        if _ORDER.index(health) > _ORDER.index(before):
            self._log.warning("upload_disk_low", **fields)
        elif health != before:
            self._log.info("upload_disk_back", **fields)
        return health

    def _read(self) -> dict[str, str]:
        try:
            found = json.loads(self._path.read_bytes())
        except (OSError, ValueError):
            return dict(self._told)
        if not isinstance(found, dict):
            return {}
        return {name: health for name, health in found.items() if health in _ORDER}

    def _write(self, told: dict[str, str]) -> None:
        is_news, self._told = told != self._told, told
        if is_news or not self._path.exists():
            with suppress(OSError):
                atomic_write(self._path, jsontext.dumps(told), sync=False)
