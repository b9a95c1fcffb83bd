"""Names that clients chose: ids become flat names, paths stay below their folder. Only
``open_below`` touches the disk.

A path is opened folder by folder, each relative to the one before and never through a
symbolic link (openat(2), O_NOFOLLOW): neither a link that somebody planted nor one that
is planted meanwhile leads out.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re

from dlpool import disk
from dlpool.filenames import name_fault
from dlpool.storage.disk.durability import NO_SYNC, Durability
from dlpool.storage.disk.file_locks import release, released_on_error
from dlpool.storage.errors import UploadError

MAX_ID_BYTES = 1024
MAX_NAME_BYTES = 240  # of NAME_MAX, with room for a suffix
MAX_PATH_BYTES = 1024
RESERVED = ".dlpool-"  # names in merged_dir that begin so are ours
_UNSAFE = re.compile(r"[\x00-\x1f\x7f\\\ud800-\udfff]")
_FLAT = re.compile("[0-9a-f]{64}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_NO_NAMES = ("", ".", "..")
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def folder_name(file_id: str) -> str:
    """The name of a task's folder: whatever the id says, 64 of ``0-9a-f``, and no two
    ids share one.

    Raises Refusal for an id that is empty, too long or has control characters.
    """
    if not file_id or _CONTROL.search(file_id) or len(file_id.encode()) > MAX_ID_BYTES:
        raise UploadError(
            400,
            "bad_file_id",
            f"file_id is not a text of 1 to {MAX_ID_BYTES} bytes: choose another one",
        )
    return hashlib.sha256(file_id.encode()).hexdigest()


def owner_folder_name(file_id: str, owner: str | None) -> str:
    """The name of the folder of an owner's task: several owners may have tasks of the
    same id.

    It is ``flat_name`` without an owner. The first two digits, by which a task is
    locked, and the last half are the same for all tasks of an id; the first half is no
    other task's. Raises Refusal as ``flat_name`` does.
    """
    name = folder_name(file_id)
    if owner is None:
        return name
    own = hashlib.sha256(
        f"{file_id}\0{owner}".encode("utf-8", "surrogatepass")
    ).hexdigest()
    return name[:2] + own[2:32] + name[32:]


def is_same_id(name: str, other: str) -> bool:
    """Whether two folders are of tasks of the same id."""
    return name[:2] == other[:2] and name[32:] == other[32:]


def is_folder_name(name: str) -> bool:
    """Whether ``flat_name`` may have made it."""
    return _FLAT.fullmatch(name) is not None


def check_file_name(name: str, most: int = MAX_NAME_BYTES) -> str:
    """``name`` if it can be one file's, of at most so many bytes, else Refusal."""
    if (
        name in _NO_NAMES
        or "/" in name
        or _UNSAFE.search(name)
        or name.startswith(RESERVED)
    ):
        raise UploadError(
            400,
            "bad_filename",
            f"{name[:100]!r} cannot be a file name: choose another one",
        )
    if len(name.encode()) > most:
        raise UploadError(
            400,
            "bad_filename",
            f"the file name is longer than {most} bytes: shorten it",
        )
    return name


def check_new_names(filename: str | None, relative_path: str) -> None:
    """Raise Refusal for names that no client may give a file or folder: see
    ``filenames``. Those there are may stay."""
    if filename is not None:
        if filename not in _NO_NAMES and (fault := name_fault(filename)):
            raise UploadError(
                400,
                "bad_filename",
                f"the file name {filename[:100]!r} {fault}: choose another one",
            )
        check_file_name(filename)
    for part in relative_path.split("/"):
        if part not in _NO_NAMES and (fault := name_fault(part)):
            raise UploadError(
                400,
                "bad_path",
                f"relative_path has a folder {part[:100]!r} that {fault}: choose "
                f"another one",
            )
    split_folders(relative_path)


def split_folders(relative_path: str) -> tuple[str, ...]:
    """The folders of ``relative_path``, none for an empty one. Raises Refusal for what
    could lead out."""
    text = relative_path.removesuffix("/") if relative_path != "/" else relative_path
    if not text:
        return ()
    parts = tuple(text.split("/"))
    if len(text.encode(errors="replace")) > MAX_PATH_BYTES:
        raise UploadError(
            400,
            "bad_path",
            f"relative_path is longer than {MAX_PATH_BYTES} bytes: shorten it",
        )
    for part in parts:
        if (
            part in _NO_NAMES
            or _UNSAFE.search(part)
            or part.startswith(RESERVED)
            or len(part.encode()) > 255
        ):
            raise UploadError(
                400,
                "bad_path",
                f"relative_path {text[:100]!r} does not name a folder below the others",
            )
    return parts


def open_below(
    root: str, parts: tuple[str, ...], *, make: bool, sync: Durability = NO_SYNC
) -> int:
    """A descriptor of the folder ``parts`` below ``root``; ``make``: with the folders
    that are missing, durably if ``sync``.

    Raises Refusal where one is a link or no folder, FileNotFoundError, OSError.
    """
    if make:
        os.makedirs(root, exist_ok=True)
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for part in parts:
        try:
            inner = _open_one(folder, part, make=make, sync=sync)
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                raise UploadError(
                    400,
                    "bad_path",
                    f"{part[:100]!r} is not a folder: choose another path",
                ) from error
            raise
        finally:
            release(folder)
        folder = inner
    return folder


def _open_one(folder: int, name: str, *, make: bool, sync: Durability) -> int:
    try:
        return os.open(name, _FOLDER, dir_fd=folder)
    except FileNotFoundError:
        if not make:
            raise
    try:
        os.mkdir(name, dir_fd=folder)
    except OSError as error:
        if not disk.exists(
            name, dir_fd=folder
        ):  # else another merge created it, or the call succeeded
            raise error from None
    sync.sync_folder(folder)
    return os.open(name, _FOLDER, dir_fd=folder)


def open_file_below(root: str, path: str) -> int:
    """A descriptor, for reading, of the regular file at ``path`` below ``root``; no
    link is followed.

    Raises Refusal for a path that could lead out or has no file.
    """
    head, _, name = path.rpartition("/")
    try:
        folder = open_below(root, split_folders(head), make=False)
        try:
            descriptor = os.open(
                check_file_name(name, 255),
                os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK,
                dir_fd=folder,
            )
        finally:
            release(folder)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise file_not_found(path) from error
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise file_not_found(path) from error
        raise
    with released_on_error(descriptor):
        if _is_regular(descriptor):
            return descriptor
        raise file_not_found(path)


def file_not_found(path: str) -> UploadError:
    """That there is no such file, or none that may be read."""
    return UploadError(404, "not_found", f"there is no file {path[:100]!r}")


def _is_regular(descriptor: int) -> bool:
    return os.fstat(descriptor).st_mode & 0o170000 == 0o100000
