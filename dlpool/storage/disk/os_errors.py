"""Translate errors of the file system into a ``UploadError``, by the table in
``dlpool/disk.py``."""

from __future__ import annotations

from dlpool.disk import fault_of
from dlpool.storage.errors import UploadError

_ANSWERS = {
    "no_space": (507, "no_space", None),
    "read_only": (507, "read_only", None),
    "permission": (507, "permission", "the service may not write there"),
    "symbolic_link": (
        507,
        "symbolic_link",
        "there is a symbolic link among the service's own files: remove it",
    ),
    "too_large": (413, "too_large", None),
    "bad_name": (400, "bad_filename", None),
    "too_many_files": (503, "too_many_files", None),
}
_OTHER = (507, "storage", None)
"""Status, code and reason by ``Fault.kind``; None: the reason of the fault. Other kinds
are errors of the disk (507), not of the client."""


class translate_os_errors:
    """Translate an OSError of the block to a Refusal: "cannot DOING: why"."""

    def __init__(self, doing: str) -> None:
        self._doing = doing

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, _kind: object, error: BaseException | None, _trace: object
    ) -> None:
        if isinstance(error, OSError):
            raise upload_error_of(self._doing, error) from error


def upload_error_of(doing: str, error: OSError) -> UploadError:
    """Return the Refusal for ``error``."""
    fault = fault_of(error)
    status, code, reason = _ANSWERS.get(fault.kind, _OTHER)
    headers = {"Retry-After": "10"} if status == 503 else None
    return UploadError(
        status, code, f"cannot {doing}: {reason or fault.reason}", headers=headers
    )
