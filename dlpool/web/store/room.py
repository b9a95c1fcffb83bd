"""How full the disks are, and whether another task may begin."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from dlpool.config import UploadSettings
from dlpool.web.refusal import Refusal

HEALTHY, WARNING, UNHEALTHY = "healthy", "warning", "unhealthy"


@dataclass(frozen=True)
class Room:
    """The file system of a folder; bytes. ``used`` is its share from 0 to 1, as df(1) counts it."""

    folder: str
    device: int
    total: int
    free: int
    used: float


def room_of(folder: str) -> Room:
    """Of the nearest folder above that is there. Raises OSError."""
    path = Path(folder).absolute()
    while not path.exists():
        path = path.parent
    status = os.statvfs(path)
    free, taken = status.f_bavail * status.f_frsize, (status.f_blocks - status.f_bfree) * status.f_frsize
    return Room(
        folder,
        path.stat().st_dev,
        status.f_blocks * status.f_frsize,
        free,
        taken / (taken + free) if taken + free else 0.0,
    )


def level(room: Room, settings: UploadSettings) -> str:
    """What the thresholds say of it."""
    if room.used >= settings.disk_refuse:
        return UNHEALTHY
    return WARNING if room.used >= settings.disk_warn else HEALTHY


def check_room(settings: UploadSettings, file_size: int) -> None:
    """Raise Refusal (507) where no further task may begin; ``file_size``: in bytes, -1 if unknown. Raises OSError.

    A merge writes the file beside its chunks.
    """
    rooms = [room_of(folder) for folder in (settings.upload_dir, settings.merged_dir)]
    wanted = 2 * file_size if rooms[0].device == rooms[1].device else file_size
    for room in rooms:
        if level(room, settings) == UNHEALTHY:
            text = f"the disk is {room.used:.0%} full: no new uploads until there is room"
            raise Refusal(507, "disk_full", text, headers={"Retry-After": "60"})
        if wanted > room.free:
            text = f"the file and its chunks need {wanted} bytes, and the disk has room for {room.free}"
            raise Refusal(507, "no_space", text)


def check_merge(settings: UploadSettings, file_size: int) -> None:
    """Raise Refusal (507) where a merge would only fill the disk. Raises OSError."""
    room = room_of(settings.merged_dir)
    if file_size > room.free:
        text = f"cannot merge the file: it has {file_size} bytes, and the disk has room for {room.free}"
        raise Refusal(507, "no_space", text)
