"""Check names that clients choose. Pure.

Task ids are turned into names of folders. A path must not lead out of its folder.
"""

from __future__ import annotations

import hashlib
import re

from dlpool.filenames import name_fault
from dlpool.storage.errors import UploadError

MAX_ID_BYTES = 1024
MAX_NAME_BYTES = 240  # of NAME_MAX (255), which leaves space for a suffix
MAX_PATH_BYTES = 1024
RESERVED = ".dlpool-"  # prefix of dlpool's own files in merged_dir
_UNSAFE = re.compile(r"[\x00-\x1f\x7f\\\ud800-\udfff]")
_FOLDER_NAME = re.compile("[0-9a-f]{64}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_NO_NAMES = ("", ".", "..")


def folder_name(file_id: str) -> str:
    """Return the name of the folder of a task without owner.

    It has 64 characters of ``0-9a-f`` and is unique for each id. Raises UploadError for
    an id that is empty, too long or has control characters.
    """
    if not file_id or _CONTROL.search(file_id) or len(file_id.encode()) > MAX_ID_BYTES:
        raise UploadError(
            "bad_file_id",
            f"file_id is not a text of 1 to {MAX_ID_BYTES} bytes: choose another one",
        )
    return hashlib.sha256(file_id.encode()).hexdigest()


def owner_folder_name(file_id: str, owner: str | None) -> str:
    """Return the name of the folder of an owner's task.

    Several owners may have tasks of the same id; the names of their folders differ only
    in digits 3 to 32. The other digits depend on the id alone; digits 1 and 2 select
    the lock. If the owner is None, the name is ``folder_name(file_id)``. Raises
    UploadError for an invalid id.
    """
    name = folder_name(file_id)
    if owner is None:
        return name
    own = hashlib.sha256(
        f"{file_id}\0{owner}".encode("utf-8", "surrogatepass")
    ).hexdigest()
    return name[:2] + own[2:32] + name[32:]


def is_same_id(name: str, other: str) -> bool:
    """Return whether two folder names belong to tasks of the same id."""
    return name[:2] == other[:2] and name[32:] == other[32:]


def is_folder_name(name: str) -> bool:
    """Return whether the name has the form that ``folder_name`` returns."""
    return _FOLDER_NAME.fullmatch(name) is not None


def check_file_name(name: str, max_bytes: int = MAX_NAME_BYTES) -> str:
    """Return ``name`` if it is safe as the name of one file. Raises UploadError."""
    if (
        name in _NO_NAMES
        or "/" in name
        or _UNSAFE.search(name)
        or name.startswith(RESERVED)
    ):
        raise UploadError(
            "bad_filename", f"{name[:100]!r} cannot be a file name: choose another one"
        )
    if len(name.encode()) > max_bytes:
        raise UploadError(
            "bad_filename",
            f"the file name is longer than {max_bytes} bytes: shorten it",
        )
    return name


def check_new_names(filename: str | None, relative_path: str) -> None:
    """Raise UploadError for bad names of new files and folders.

    The rules are in ``dlpool.filenames``. Existing files with such names remain
    readable.
    """
    if filename is not None:
        if filename not in _NO_NAMES and (fault := name_fault(filename)):
            raise UploadError(
                "bad_filename",
                f"the file name {filename[:100]!r} {fault}: choose another one",
            )
        check_file_name(filename)
    for part in relative_path.split("/"):
        if part not in _NO_NAMES and (fault := name_fault(part)):
            raise UploadError(
                "bad_path",
                f"relative_path has a folder {part[:100]!r} that {fault}: choose "
                f"another one",
            )
    split_folders(relative_path)


def split_folders(relative_path: str) -> tuple[str, ...]:
    """Return the folders of ``relative_path``, empty for an empty path.

    Raises UploadError for an unsafe path.
    """
    text = relative_path.removesuffix("/") if relative_path != "/" else relative_path
    if not text:
        return ()
    parts = tuple(text.split("/"))
    if len(text.encode(errors="replace")) > MAX_PATH_BYTES:
        raise UploadError(
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
                "bad_path",
                f"relative_path {text[:100]!r} is not a path of folders below "
                f"merged_dir",
            )
    return parts


def file_not_found(path: str) -> UploadError:
    """Return the error for a path without a file.

    A client gets the same error for a file that it is not allowed to read.
    """
    return UploadError("not_found", f"there is no file {path[:100]!r}")
