"""The free space of upload_dir and merged_dir.

A task or merge that does not fit is refused before it starts.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from dlpool.config import UploadSettings
from dlpool.disk_errors import CANNOT_STATVFS
from dlpool.freespace import space_or_none
from dlpool.storage.errors import UploadError
from dlpool.storage.values import (
    HEALTHY,
    UNHEALTHY,
    WARNING,
    Volume,
    VolumeCapacity,
    health_of,
)

FILES_PER_TASK = 8  # folder, metadata, locks, temporary files and the merged file
# The chunks of a task without total_chunks are rounded up to a multiple of this.
CHUNK_COUNT_STEP = 1000


def assumed_chunks(chunks: int) -> int:
    """Return how many chunks to assume for a task without total_chunks.

    This is the number of stored chunks, ``chunks``, rounded up to a positive multiple
    of ``CHUNK_COUNT_STEP``.
    """
    return max(1, -(-chunks // CHUNK_COUNT_STEP)) * CHUNK_COUNT_STEP


def capacity_of(folder: str) -> VolumeCapacity | None:
    """Return the capacity of the folder, or of its nearest existing parent.

    None if the file system does not report it; callers then apply no limit. Raises
    OSError.
    """
    space = space_or_none(_existing(folder))
    if space is None:
        return None
    used_share = (space.usable - space.free) / space.usable if space.usable else 0.0
    return VolumeCapacity(folder, space.size, space.free, used_share, space.files)


def device_of(folder: str) -> int:
    """Return the device number of the folder, or of its nearest existing parent.

    Raises OSError.
    """
    return _existing(folder).stat().st_dev


def list_volumes(settings: UploadSettings) -> Sequence[Volume]:
    """Return the state of upload_dir and merged_dir. Raises nothing."""
    return [
        _volume(name, folder)
        for name, folder in (
            ("upload_dir", settings.upload_dir),
            ("merged_dir", settings.merged_dir),
        )
    ]


def _volume(name: str, folder: str) -> Volume:
    device: int | None = None
    capacity: VolumeCapacity | None = None
    capacity_error = ""
    try:
        capacity, device = capacity_of(folder), device_of(folder)
    except OSError as error:
        capacity_error = f"cannot read the size of the disk: {error.strerror}"
    status, message = check_folder(folder)
    return Volume(name, folder, device, capacity, capacity_error, status, message)


def check_folder(folder: str) -> tuple[str, str]:
    """Check whether files can be created in a folder.

    Returns HEALTHY, WARNING or UNHEALTHY, and the reason, which is empty for HEALTHY. A
    missing folder is a WARNING, because it is created when it is needed.
    """
    try:
        is_readonly = bool(os.statvfs(folder).f_flag & os.ST_RDONLY)
    except FileNotFoundError:
        return WARNING, "the folder is missing: it is created when it is needed"
    except OSError as error:
        if error.errno not in CANNOT_STATVFS:
            return UNHEALTHY, f"cannot read the folder: {error.strerror}"
        is_readonly = False
    if is_readonly or not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
        return UNHEALTHY, "the folder is not writable"
    return HEALTHY, ""


def check_capacity_for_task(
    settings: UploadSettings, file_size: int, chunks: int = 1
) -> None:
    """Raise UploadError if a new task does not fit on the disk.

    ``file_size`` in bytes, -1 if unknown. The task needs space for its chunks and for
    the merged file, and an inode for each chunk. Raises OSError.
    """
    folders = (settings.upload_dir, settings.merged_dir)
    is_shared = device_of(folders[0]) == device_of(folders[1])
    wanted = 2 * file_size if is_shared else file_size
    files = {
        folders[0]: chunks + FILES_PER_TASK,
        folders[1]: chunks + FILES_PER_TASK if is_shared else 1,
    }
    for folder, capacity in [(folder, capacity_of(folder)) for folder in folders]:
        if capacity is None:
            continue
        if health_of(capacity, settings) == UNHEALTHY:
            text = (
                f"the disk is {capacity.used_share:.0%} full: no new uploads until "
                "space is freed"
            )
            raise UploadError("disk_full", text, retry_after_s=60)
        if wanted > capacity.free:
            text = (
                f"the file and its chunks need {wanted} bytes, and the disk has "
                f"{capacity.free} free"
            )
            raise UploadError("no_space", text)
        _check_files(capacity, files[folder])


def _check_files(capacity: VolumeCapacity, wanted: int) -> None:
    if capacity.free_files is not None and wanted > capacity.free_files:
        text = (
            f"the upload needs {wanted} files, and the disk has {capacity.free_files} "
            "free inodes: send larger chunks"
        )
        raise UploadError("no_space", text)


def check_capacity_for_copies(
    settings: UploadSettings, file_size: int, chunks: int
) -> None:
    """Raise UploadError if copies of the chunks do not fit on the disk.

    If the merged file will be on the same disk, it has to fit beside the copies. Raises
    OSError.
    """
    capacity = capacity_of(settings.upload_dir)
    is_shared = device_of(settings.upload_dir) == device_of(settings.merged_dir)
    wanted = 2 * file_size if is_shared else file_size
    if capacity is not None and wanted > capacity.free:
        text = (
            f"cannot join the parts: they need {wanted} bytes, and the disk has "
            f"{capacity.free} free"
        )
        raise UploadError("no_space", text)
    if capacity is not None:
        _check_files(capacity, chunks)


def check_capacity_for_merge(settings: UploadSettings, file_size: int) -> None:
    """Raise UploadError if the merged file does not fit on the disk. Raises OSError."""
    capacity = capacity_of(settings.merged_dir)
    if capacity is not None and file_size > capacity.free:
        text = (
            f"cannot merge the file: it has {file_size} bytes, and the disk has "
            f"{capacity.free} free"
        )
        raise UploadError("no_space", text)


def _existing(folder: str) -> Path:
    """Return the folder or its nearest existing parent. Raises OSError."""
    path = Path(folder).absolute()
    while not path.exists():
        path = path.parent
    return path
