"""The state file beside a part file, ``PATH.part.meta``, and its atomic commits.

The state file never lists a byte that is not on disk: the caller syncs the data before
each commit. Until the first commit the state file may be a placeholder, which only
marks the part file beside it as dlpool's.
"""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

from dlpool import disk, disk_errors
from dlpool.disk_errors import translated
from dlpool.errors import LocalFault
from dlpool.transfer.job import Notify, ignore_event
from dlpool.transfer.target.names import STATE_SUFFIX
from dlpool.transfer.target.state import SavedState, StateUnusable

MODE = 0o600  # readable by its owner only: it names hosts and files
MAX_STATE_BYTES = 16 * 1024 * 1024
# of every state file; a power failure may leave a shorter beginning
_BEGINNING = b'{"version":'
_PLACEHOLDER = b'{"version":1,"placeholder":true}'
# kinds of faults after which the content of the file is unknown
_NOT_READ = {
    "disk_failed",
    "permission",
    "too_many_files",
}


class StateFile:
    """The state file of one part file.

    Used by the thread that holds the part file's lock. ``exists``: whether the state
    file exists. ``is_placeholder``: whether it is known to be a placeholder.
    """

    def __init__(
        self, path: disk.Name, *, sync: bool, notify: Notify = ignore_event
    ) -> None:
        """Check whether the state file exists. Raises LocalFault."""
        self._name = os.fspath(path)
        self._temporary: Path | None = None
        self._sync = sync
        self._notify = notify
        self.is_placeholder = False
        with translated(f"access {self._name}"):
            self.exists = disk.exists(self._name)

    @classmethod
    def for_target(
        cls, target: Path, *, sync: bool, notify: Notify = ignore_event
    ) -> StateFile:
        """Return the state file of a target. Raises LocalFault."""
        return cls(f"{target}{STATE_SUFFIX}", sync=sync, notify=notify)

    @property
    def path(self) -> Path:
        return Path(self._name)

    @property
    def holds_progress(self) -> bool:
        """Whether the file exists and contains a state."""
        return self.exists and not self.is_placeholder

    def is_recognized(self) -> bool:
        """Return whether the existing file was written by dlpool. Raises LocalFault."""
        try:
            return self.exists and self._content(len(_BEGINNING)).startswith(_BEGINNING)
        except StateUnusable:
            return False

    def load(self) -> SavedState | None:
        """Return the committed state, None if there is none.

        Raises StateUnusable, LocalFault.
        """
        if not self.exists:
            return None
        text = self._content(MAX_STATE_BYTES + 1)
        if len(text) > MAX_STATE_BYTES:
            raise StateUnusable("it is too large")
        self.is_placeholder = text == _PLACEHOLDER
        return None if self.is_placeholder else SavedState.from_json(text)

    def commit(self, state: SavedState, *, is_durable: bool = True) -> None:
        """Replace the state atomically; readers see the old state or the new one.

        With ``is_durable`` False the new state survives a kill of the process, but the
        file may be empty after a power failure. Raises LocalFault.
        """
        self._write(state.as_json().encode(), sync=self._sync and is_durable)
        self.is_placeholder = False

    def write_placeholder(self) -> None:
        """Write a placeholder if no state file exists. Raises LocalFault.

        The caller need not hold the part file's lock. If another process creates the
        state file first, the content of the file stays.
        """
        if self.exists:
            return
        with translated(f"write {self.path}"):
            temporary = self._free(f"{self.path.name}.new")
            with suppress(FileExistsError):  # another process created it first
                disk.atomic_create(
                    self.path, _PLACEHOLDER, sync=False, mode=MODE, temporary=temporary
                )
                self.is_placeholder = True
        self.exists = True

    def remove_placeholder(self) -> None:
        """Remove the placeholder, if this object has written or read one."""
        if self.is_placeholder:
            disk.remove_quietly(self.path)
            self.exists = self.is_placeholder = False

    def reset(self) -> None:
        """Replace the state by a placeholder, durably. Raises LocalFault.

        With the placeholder, the part file is still recognized as dlpool's.
        """
        if not self.is_placeholder:
            self._write(_PLACEHOLDER, sync=self._sync)
            self.is_placeholder = True

    @property
    def has_stale_temporary(self) -> bool:
        """Whether a run that was killed during a commit has left its temporary file.

        Raises LocalFault.
        """
        temporary = self._default_temporary
        with translated(f"access {temporary}"):
            return disk.exists(temporary) and _is_stale_temporary(temporary)

    def remove_stale_temporary(self) -> None:
        """Remove the temporary file of a killed run. Raises LocalFault."""
        with translated(f"remove {self._default_temporary}"):
            disk.remove(self._default_temporary)

    def remove(self) -> None:
        """Remove the state durably. Raises LocalFault.

        Call it before dropping or replacing bytes that are recorded in the state.
        """
        if not self.exists:
            return
        with translated(f"remove {self.path}"):
            disk.remove(self.path)
            self.exists = self.is_placeholder = False
            if self._sync:
                disk.sync_folder(self.path.parent, on_unsynced=self._on_unsynced)

    def remove_published(self) -> None:
        """Remove the state of a published file.

        Errors are ignored, because the next run detects that the state is obsolete.
        """
        for _ in range(2):
            if self.exists:
                with suppress(LocalFault):
                    self.remove()

    def _content(self, max_bytes: int) -> bytes:
        """Return at most the first ``max_bytes`` bytes.

        Raises StateUnusable, LocalFault.
        """
        try:
            with open(self.path, "rb", opener=_open_no_follow) as file:
                # read(max_bytes) would allocate that many bytes
                size = os.fstat(file.fileno()).st_size
                return file.read(min(size, max_bytes))
        except OSError as error:
            if disk_errors.fault_of(error).kind in _NOT_READ:
                raise disk_errors.local_fault(f"read {self.path}", error) from error
            raise StateUnusable(f"it cannot be read ({error.strerror})") from error

    def _write(self, data: bytes, *, sync: bool) -> None:
        with translated(f"write {self.path}"):
            disk.atomic_write(
                self.path,
                data,
                sync=sync,
                mode=MODE,
                temporary=self._free_temporary(),
                on_unsynced=self._on_unsynced,
            )
        self.exists = True

    @property
    def _default_temporary(self) -> Path:
        return self.path.with_name(f"{self.path.name}.tmp")

    def _free_temporary(self) -> Path:
        """Return the path of the temporary file. Raises OSError.

        The name is random if a foreign file has the default name.
        """
        if self._temporary is None:
            self._temporary = self._free(self._default_temporary.name)
        return self._temporary

    def _free(self, name: str) -> Path:
        """Return the path of ``name``; a random path if a foreign file has this name.

        Raises OSError.
        """
        path = self.path.with_name(name)
        if disk.exists(path) and not _is_stale_temporary(path):
            return self.path.with_name(f".dlpool-{secrets.token_hex(8)}.tmp")
        return path

    def _on_unsynced(self, folder: str, error: OSError) -> None:
        self._notify(
            "folder_not_synced", folder=folder, reason=error.strerror or str(error)
        )


def _is_stale_temporary(temporary: Path) -> bool:
    """Return whether a killed run has left the temporary file. Raises OSError.

    Such a file contains a state or the beginning of one.
    """
    try:
        with open(temporary, "rb", opener=_open_no_follow) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return False  # an empty pipe would look like the beginning of a state
            beginning = file.read(len(_BEGINNING))
    except OSError as error:
        if disk_errors.fault_of(error).kind in _NOT_READ:
            raise
        return False  # a link or a folder
    return _BEGINNING.startswith(beginning)


def _open_no_follow(path: str, flags: int) -> int:
    """Open a file without following a symbolic link or blocking on a pipe."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)
