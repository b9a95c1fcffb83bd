"""The state folder of a node: the lock of its one supervisor, the node id, and the
supervisor ids of earlier starts.

Every start has a new supervisor id (``sid``). The id is written to disk before it is
used in Redis. Even after a crash, the next start knows whose jobs to return to the
queue.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
from collections.abc import Iterable
from pathlib import Path

from dlpool.disk import atomic_write
from dlpool.disk_errors import translated
from dlpool.errors import AlreadyRunning, LocalFault
from dlpool.filelock import FileLock
from dlpool.lock_files import LockForeign, LockHeld
from dlpool.service.node.locks import (
    lock_within,
    make_private_folder,
    open_lock,
    read_holder,
    share_lock,
    write_holder,
)

MAX_NODE_ID = 40
# a node may restart in a loop while Redis is unavailable; the leases of the oldest
# starts expire anyway
MAX_SIDS = 1000
WORKER_LOCK = "workers.lock"
_NODE_ID = re.compile(rf"[A-Za-z0-9_.-]{{1,{MAX_NODE_ID}}}")
_SID = re.compile(r"[A-Za-z0-9_.-]{1,64}-[0-9a-f]{8}")


def hold_worker_lock(state_dir: Path) -> int:
    """Take the shared lock that this worker holds until it exits, and return the
    descriptor of the lock file. Raises LocalFault."""
    with translated(f"lock {state_dir / WORKER_LOCK}"):
        descriptor = open_lock(state_dir / WORKER_LOCK)
        share_lock(descriptor)
        return descriptor


class Node:
    """The locked state folder of a running supervisor. Used by one thread. Its methods
    raise LocalFault."""

    def __init__(
        self, state_dir: Path, lock: int, held: FileLock, node_id: str | None
    ) -> None:
        """Use ``Node.open`` instead."""
        self.state_dir = state_dir
        self._held = held
        # sentences for the log about damaged files that were replaced
        self.warnings: list[str] = []
        self._lock: int | None = lock
        self.node_id = node_id or self._kept_node_id()
        self._earlier = self._recorded_sids()
        self._own: list[str] = []

    def __repr__(self) -> str:
        return (
            f"<Node {self.node_id}: {self.state_dir}, {len(self._earlier)} earlier "
            f"sids>"
        )

    @classmethod
    def open(cls, state_dir: Path, node_id: str | None = None) -> Node:
        """Create and lock the state folder, and read or create the node id. Raises
        AlreadyRunning, LocalFault.

        The kernel releases the lock when this process exits: no child inherits it.
        """
        with translated(f"use the state folder {state_dir}"):
            make_private_folder(state_dir)
            lock = open_lock(state_dir / "lock")
            try:
                held = _held(lock, state_dir)
            except BaseException:
                os.close(lock)
                raise
            try:
                write_holder(lock, os.getpid())
                return cls(state_dir, lock, held, node_id)
            except BaseException:
                os.close(lock)
                held.release()
                raise

    def new_sid(self) -> str:
        """Write a new supervisor id to disk, and return it."""
        sid = f"{self.node_id}-{secrets.token_hex(4)}"
        self._record(self._earlier, [*self._own, sid])
        return sid

    def earlier_sids(self) -> list[str]:
        """Return the supervisor ids of earlier starts that may still hold jobs in
        Redis, oldest first."""
        return list(self._earlier)

    def forget_sids(self, sids: Iterable[str]) -> None:
        """Remove from the disk supervisor ids that hold no jobs in Redis.

        ``sids``: ids of earlier starts or, after a clean stop, ids of this start.
        """
        gone = set(sids)
        if gone & {*self._earlier, *self._own}:
            self._record(
                [sid for sid in self._earlier if sid not in gone],
                [sid for sid in self._own if sid not in gone],
            )

    def wait_for_old_workers(self, timeout_s: float) -> bool:
        """Wait up to ``timeout_s`` seconds for the workers of a killed supervisor to
        exit, and return whether all have exited.

        Call it before the first worker is started, because the old workers may still
        write to part files.
        """
        with translated(f"lock {self.state_dir / WORKER_LOCK}"):
            descriptor = open_lock(self.state_dir / WORKER_LOCK)
            try:
                return lock_within(descriptor, timeout_s)
            finally:
                os.close(descriptor)

    def close(self) -> None:
        """Release the folder for another supervisor. May be called twice."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
            self._held.release()

    def _kept_node_id(self) -> str:
        path = self.state_dir / "node_id"
        data = _read(path)
        kept = None if data is None else data.decode("ascii", errors="replace").strip()
        if kept and _NODE_ID.fullmatch(kept):
            return kept
        made = make_node_id(socket.gethostname())
        _commit(path, f"{made}\n")
        if data is not None:
            self.warnings.append(f"{path} was damaged: this node is called {made} now")
        return made

    def _recorded_sids(self) -> list[str]:
        path = self.state_dir / "sids.json"
        data = _read(path)
        sids = [] if data is None else parse_sids(data)
        if sids is None:
            self.warnings.append(
                f"{path} was damaged: jobs of earlier starts return to the queue when "
                f"their leases expire"
            )
        return sids or []

    def _record(self, earlier: list[str], own: list[str]) -> None:
        earlier = earlier[-MAX_SIDS:]
        _commit(self.state_dir / "sids.json", json.dumps([*earlier, *own]) + "\n")
        self._earlier, self._own = earlier, own


def _held(lock: int, state_dir: Path) -> FileLock:
    """Lock the state folder, or raise AlreadyRunning, LocalFault, OSError."""
    try:
        return FileLock(lock, state_dir / "lock")
    except LockHeld as error:
        raise AlreadyRunning(
            f"another supervisor ({read_holder(lock)}) uses {state_dir}; "
            "stop it, or set another state_dir for this one"
        ) from error
    except LockForeign as error:
        raise LocalFault(f"{error} was not made by dlpool: move it away") from error


def make_node_id(hostname: str) -> str:
    """Return a new node id: the host name, and random digits that distinguish two nodes
    on one host."""
    suffix = f"-{secrets.token_hex(3)}"
    host = re.sub(r"[^A-Za-z0-9_.-]", "-", hostname)[: MAX_NODE_ID - len(suffix)]
    return (host or "node") + suffix


def parse_sids(data: bytes) -> list[str] | None:
    """Return the supervisor ids in the content of ``sids.json``; None if it is
    damaged."""
    try:
        sids = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(sids, list) or not all(
        isinstance(sid, str) and _SID.fullmatch(sid) for sid in sids
    ):
        return None
    return sids


def _read(path: Path) -> bytes | None:
    """Return the content of the file, None if it does not exist."""
    with translated(f"read {path}"):
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None


def _commit(path: Path, text: str) -> None:
    """Replace the file atomically and durably."""
    with translated(f"write {path}"):
        atomic_write(path, text.encode("ascii"), sync=True, mode=0o600)
