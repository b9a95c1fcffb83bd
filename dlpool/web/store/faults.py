"""What the file system refuses becomes a Refusal here."""

from __future__ import annotations

import errno

from dlpool.web.refusal import Refusal

_KNOWN = {
    errno.ENOSPC: (507, "no_space", "the disk is full"),
    errno.EDQUOT: (507, "no_space", "the quota is used up"),
    errno.EROFS: (507, "read_only", "the file system is read-only"),
    errno.EACCES: (507, "permission", "the service may not write there"),
    errno.EPERM: (507, "permission", "the service may not write there"),
    errno.ELOOP: (507, "symbolic_link", "there is a symbolic link among the service's own files: remove it"),
    errno.EFBIG: (413, "too_large", "the file is larger than the file system allows"),
    errno.ENAMETOOLONG: (400, "bad_filename", "the path is too long"),
    errno.EMFILE: (503, "too_many_files", "too many files are open"),
    errno.ENFILE: (503, "too_many_files", "too many files are open"),
}


class stored:
    """Turns an OSError of the block into the Refusal that it is: "cannot DOING: why"."""

    def __init__(self, doing: str) -> None:
        self._doing = doing

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, OSError):
            raise refused(self._doing, error) from error


def refused(doing: str, error: OSError) -> Refusal:
    """The Refusal for ``error``; what is not known is the disk's fault (507), never the client's."""
    default = (507, "storage", error.strerror or "the disk failed")
    status, code, why = _KNOWN.get(error.errno or 0, default)
    headers = {"Retry-After": "10"} if status == 503 else None
    return Refusal(status, code, f"cannot {doing}: {why}", headers=headers)
