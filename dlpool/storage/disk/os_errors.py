"""Translates errors of the file system into ``UploadError``.

The table of errnos is in ``dlpool/disk_errors.py``.
"""

from __future__ import annotations

from dlpool.disk_errors import fault_of
from dlpool.storage.errors import ErrorCode, UploadError

_CODES: dict[str, tuple[ErrorCode, str | None]] = {
    "no_space": ("no_space", None),
    "read_only": ("read_only", None),
    "permission": ("permission", "the service may not write there"),
    "symbolic_link": (
        "symbolic_link",
        "the service's own folders contain a symbolic link: remove it",
    ),
    "too_large": ("too_large", None),
    "bad_name": ("bad_filename", None),
    "too_many_files": ("too_many_files", None),
}
"""Code and reason by ``Fault.kind``. The reason None means ``Fault.reason``. Kinds that
are missing here are faults of the disk."""


class translate_os_errors:
    """Translates an OSError of its block into UploadError("cannot ACTION: reason")."""

    def __init__(self, action: str) -> None:
        self._action = action

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, _kind: object, error: BaseException | None, _trace: object
    ) -> None:
        if isinstance(error, OSError):
            raise upload_error_of(self._action, error) from error


def upload_error_of(action: str, error: OSError) -> UploadError:
    """Return the UploadError "cannot ACTION: reason" for ``error``."""
    fault = fault_of(error)
    code, reason = _CODES.get(fault.kind, ("storage", None))
    retry_after_s = 10 if code == "too_many_files" else None
    return UploadError(
        code, f"cannot {action}: {reason or fault.reason}", retry_after_s=retry_after_s
    )
