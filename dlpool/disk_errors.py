"""The meaning of the errnos of file operations.

``FAULTS`` maps errnos to the errors that dlpool raises. Each set ``CANNOT_...`` holds
the errnos of one operation on a file system that does not support the operation. All
functions are thread-safe.
"""

from __future__ import annotations

import errno
from typing import NamedTuple

from dlpool.errors import (
    DiskFailed,
    LocalFault,
    NoSpace,
    NotPermitted,
    OutOfFiles,
    ReadOnly,
)


class Fault(NamedTuple):
    """The meaning of an errno of a file operation.

    ``kind`` is a stable name, which the upload API maps to a status. ``raised`` is the
    class of the error that dlpool raises. ``reason`` completes the sentence "cannot do
    X: ...".
    """

    kind: str
    raised: type[LocalFault]
    reason: str


_LOST_SERVER = "the file server does not answer, or no longer knows the file"
_DAMAGED = "the file system is damaged: check it"
FAULTS: dict[int, Fault] = {
    errno.ENOSPC: Fault("no_space", NoSpace, "the disk is full"),
    errno.EDQUOT: Fault("no_space", NoSpace, "the quota is used up"),
    errno.EROFS: Fault("read_only", ReadOnly, "the file system is read-only"),
    errno.EACCES: Fault("permission", NotPermitted, "Permission denied"),
    errno.EPERM: Fault("permission", NotPermitted, "Operation not permitted"),
    errno.EIO: Fault("disk_failed", DiskFailed, "the disk gave an input/output error"),
    errno.ENXIO: Fault("disk_failed", DiskFailed, "the device is gone"),
    errno.ENODEV: Fault("disk_failed", DiskFailed, "the device is gone"),
    errno.EUCLEAN: Fault("disk_failed", DiskFailed, _DAMAGED),
    errno.EBADMSG: Fault("disk_failed", DiskFailed, _DAMAGED),
    errno.ESTALE: Fault("disk_failed", DiskFailed, _LOST_SERVER),
    errno.ETIMEDOUT: Fault("disk_failed", DiskFailed, _LOST_SERVER),
    errno.EREMOTEIO: Fault("disk_failed", DiskFailed, _LOST_SERVER),
    errno.ECONNABORTED: Fault("disk_failed", DiskFailed, _LOST_SERVER),
    errno.ENOTCONN: Fault(
        "disk_failed", DiskFailed, "the program that serves the file system has ended"
    ),
    errno.ESHUTDOWN: Fault(
        "disk_failed", DiskFailed, "the file system was shut down after an error"
    ),
    errno.EHOSTDOWN: Fault("disk_failed", DiskFailed, _LOST_SERVER),
    errno.ENOENT: Fault("gone", LocalFault, "No such file or directory"),
    errno.ENOTDIR: Fault(
        "not_a_folder", LocalFault, "a part of the path is a file, not a folder"
    ),
    errno.EISDIR: Fault("not_a_file", LocalFault, "it is a folder"),
    errno.ELOOP: Fault("symbolic_link", LocalFault, "it is a symbolic link"),
    errno.ENAMETOOLONG: Fault("bad_name", LocalFault, "the path is too long"),
    errno.EILSEQ: Fault(
        "bad_name", LocalFault, "the file system does not allow this name"
    ),
    errno.EFBIG: Fault(
        "too_large",
        LocalFault,
        "the file is larger than the file system or a limit allows",
    ),
    errno.EMFILE: Fault(
        "too_many_files", OutOfFiles, "this process has too many files open"
    ),
    errno.ENFILE: Fault(
        "too_many_files", OutOfFiles, "this machine has too many files open"
    ),
    errno.EINVAL: Fault(
        "unsupported", LocalFault, "the file system refuses it (invalid argument)"
    ),
    errno.ENOSYS: Fault(
        "unsupported",
        LocalFault,
        "the file system cannot do that (function not implemented)",
    ),
    errno.EOPNOTSUPP: Fault(
        "unsupported",
        LocalFault,
        "the file system cannot do that (operation not supported)",
    ),
}

_ENOTSUPP = 524  # internal to the Linux kernel; NFS clients return it to programs
# of a file system that lacks an operation
_LACKS = frozenset({errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, _ENOTSUPP})
CANNOT_SYNC_FOLDER = _LACKS | {errno.EBADF, errno.EACCES, errno.EPERM}
# EPERM here and in CANNOT_SPLICE: a seccomp filter that forbids the call
CANNOT_RENAME_NOREPLACE = _LACKS | {errno.EPERM}
CANNOT_LINK = _LACKS | {errno.EPERM, errno.EMLINK, errno.EXDEV}
CANNOT_STATVFS = _LACKS  # some file systems in user space do not implement it
# EBADF: NFS requires a writable descriptor
CANNOT_LOCK = _LACKS | {
    errno.ENOLCK,
    errno.EBADF,
}
CANNOT_CREATE_UNNAMED = _LACKS | {errno.EISDIR, errno.ENOENT, errno.EPERM, errno.EACCES}
CANNOT_COPY_RANGE = _LACKS | {errno.EXDEV, errno.EBADF, errno.ETXTBSY, errno.EPERM}
CANNOT_SPLICE = _LACKS | {errno.EPERM}
HAS_NO_XATTR = _LACKS | {
    errno.ENODATA,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EACCES,
    errno.ERANGE,
}


def fault_of(error: OSError) -> Fault:
    """Return the meaning of ``error``.

    An error whose errno is not in ``FAULTS`` is of kind ``storage`` and keeps its own
    text.
    """
    known = FAULTS.get(error.errno or 0)
    return known or Fault(
        "storage", LocalFault, error.strerror or str(error) or type(error).__name__
    )


class translated:
    """A context manager that converts errors of its block to a LocalFault.

    It converts OSError and ValueError. ``doing``: what the block does; the message is
    "cannot DOING: REASON".
    """

    def __init__(self, doing: str) -> None:
        self._doing = doing

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, _kind: object, error: BaseException | None, _trace: object
    ) -> None:
        if isinstance(error, OSError | ValueError):  # ValueError: a NUL in a path
            raise local_fault(self._doing, error) from error


def local_fault(doing: str, error: Exception) -> LocalFault:
    """Return a LocalFault for ``error``; its message is "cannot DOING: REASON"."""
    if not isinstance(error, OSError):
        return LocalFault(f"cannot {doing}: {error}")
    fault = fault_of(error)
    return fault.raised(f"cannot {doing}: {fault.reason}")


def is_out_of_descriptors(error: BaseException | None) -> bool:
    """Return whether an error says that no further file can be opened."""
    return isinstance(error, OSError) and fault_of(error).raised is OutOfFiles
