"""How full the disks are, and whether another task may begin."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dlpool.config import UploadSettings
from dlpool.disk import space_or_none
from dlpool.storage.errors import UploadError

FILES_PER_TASK = (
    8  # its folder, what is noted of it, locks, temporary files, the merged file
)
# chunks: an upload that does not say how many it has counts as the next multiple
CHUNK_COUNT_STEP = 1000
HEALTHY, WARNING, UNHEALTHY = "healthy", "warning", "unhealthy"


@dataclass(frozen=True)
class VolumeCapacity:
    """The file system of a folder; bytes. ``used`` is its share from 0 to 1, as df(1)
    counts it.

    ``files``: how many files can be made there; None: unlimited.
    """

    folder: str
    total: int
    free: int
    used_share: float
    free_files: int | None = None


def assumed_chunks(chunks: int) -> int:
    """Return how many chunks an upload counts for that has so many, and does not say
    how many it will have."""
    return max(1, -(-chunks // CHUNK_COUNT_STEP)) * CHUNK_COUNT_STEP


def capacity_of(folder: str) -> VolumeCapacity | None:
    """Return the room of the folder or its nearest existing parent; None if it is
    unknown, which is no limit.

    Raises OSError if no folder can be looked at.
    """
    space = space_or_none(_existing(folder))
    if space is None:
        return None
    used = (space.usable - space.free) / space.usable if space.usable else 0.0
    return VolumeCapacity(folder, space.size, space.free, used, space.files)


def device_of(folder: str) -> int:
    """Return the device of the folder or of its nearest existing parent. Raises
    OSError."""
    return _existing(folder).stat().st_dev


def _existing(folder: str) -> Path:
    """Return the folder or its nearest existing parent. Raises OSError."""
    path = Path(folder).absolute()
    while not path.exists():
        path = path.parent
    return path


def health_of(room: VolumeCapacity | None, settings: UploadSettings) -> str:
    """What the thresholds say of it."""
    if room is None:
        return HEALTHY
    if room.used_share >= settings.disk_refuse:
        return UNHEALTHY
    return WARNING if room.used_share >= settings.disk_warn else HEALTHY


def check_capacity_for_task(
    settings: UploadSettings, file_size: int, chunks: int = 1
) -> None:
    """Raise Refusal (507) where no further task may begin; ``file_size``: in bytes, -1
    if unknown. Raises OSError.

    A merge writes the file beside its chunks, each of which is a file, too.
    """
    folders = (settings.upload_dir, settings.merged_dir)
    is_shared = device_of(folders[0]) == device_of(folders[1])
    wanted = 2 * file_size if is_shared else file_size
    files = {
        folders[0]: chunks + FILES_PER_TASK,
        folders[1]: chunks + FILES_PER_TASK if is_shared else 1,
    }
    for folder, room in [(folder, capacity_of(folder)) for folder in folders]:
        if room is None:
            continue
        if health_of(room, settings) == UNHEALTHY:
            text = (
                f"the disk is {room.used_share:.0%} full: no new uploads until there "
                f"is "
                f"room"
            )
            raise UploadError(507, "disk_full", text, headers={"Retry-After": "60"})
        if wanted > room.free:
            text = (
                f"the file and its chunks need {wanted} bytes, and the disk has room "
                f"for "
                f"{room.free}"
            )
            raise UploadError(507, "no_space", text)
        _check_files(room, files[folder])


def _check_files(room: VolumeCapacity, wanted: int) -> None:
    if room.free_files is not None and wanted > room.free_files:
        text = (
            f"the upload needs {wanted} files, and the disk has inodes for "
            f"{room.free_files}: send larger chunks"
        )
        raise UploadError(507, "no_space", text)


def check_capacity_for_copies(
    settings: UploadSettings, file_size: int, chunks: int
) -> None:
    """Raise Refusal (507) where copies of chunks, and the file that is merged from
    them, find no room.

    Raises OSError.
    """
    room, is_shared = (
        capacity_of(settings.upload_dir),
        device_of(settings.upload_dir) == device_of(settings.merged_dir),
    )
    wanted = 2 * file_size if is_shared else file_size
    if room is not None and wanted > room.free:
        text = (
            f"cannot join the parts: that needs {wanted} bytes, and the disk has room "
            f"for "
            f"{room.free}"
        )
        raise UploadError(507, "no_space", text)
    if room is not None:
        _check_files(room, chunks)


def check_capacity_for_merge(settings: UploadSettings, file_size: int) -> None:
    """Raise Refusal (507) where a merge would only fill the disk. Raises OSError."""
    room = capacity_of(settings.merged_dir)
    if room is not None and file_size > room.free:
        text = (
            f"cannot merge the file: it has {file_size} bytes, and the disk has room "
            f"for "
            f"{room.free}"
        )
        raise UploadError(507, "no_space", text)
