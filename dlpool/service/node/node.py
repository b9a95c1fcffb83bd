"""The node's own folder: one supervisor at a time, the node's name, and what earlier
starts left in Redis.

Every start works under a new supervisor id (``sid``). It is on disk before Redis hears
of it, so that the next start knows whose jobs to take back, whatever killed this one.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
from collections.abc import Iterable
from pathlib import Path

from dlpool.disk import atomic_write, translated
from dlpool.errors import AlreadyRunning, LocalFault
from dlpool.filelock import FileLock, LockForeign, LockHeld
from dlpool.service.node.locks import (
    lock_within,
    make_private_folder,
    open_lock,
    read_holder,
    share_lock,
    write_holder,
)

MAX_NODE_ID = 40
# of a node that starts and dies without end while Redis is away; the oldest leases end
# by themselves
MAX_SIDS = 1000
WORKER_LOCK = "workers.lock"
_NODE_ID = re.compile(rf"[A-Za-z0-9_.-]{{1,{MAX_NODE_ID}}}")
_SID = re.compile(r"[A-Za-z0-9_.-]{1,64}-[0-9a-f]{8}")


def hold_worker_lock(state_dir: Path) -> int:
    """Called in a worker: the descriptor that says "a worker lives" until the process
    ends. Raises LocalFault."""
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
        """Use ``Node.open``."""
        self.state_dir = state_dir
        self._held = held
        self.warnings: list[
            str
        ] = []  # what was found damaged and is replaced: sentences for the log
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
        """Make the folder, lock it and learn the node's name. Raises AlreadyRunning,
        LocalFault.

        The lock ends with this process, however it ends: no child inherits it.
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
        """A new supervisor id, on disk before it is returned."""
        sid = f"{self.node_id}-{secrets.token_hex(4)}"
        self._record(self._earlier, [*self._own, sid])
        return sid

    def earlier_sids(self) -> list[str]:
        """The ids of earlier starts whose jobs are not taken back yet, oldest first."""
        return list(self._earlier)

    def forget_sids(self, sids: Iterable[str]) -> None:
        """These hold no jobs any more: those of earlier starts, or our own at a clean
        end."""
        gone = set(sids)
        if gone & {*self._earlier, *self._own}:
            self._record(
                [sid for sid in self._earlier if sid not in gone],
                [sid for sid in self._own if sid not in gone],
            )

    def wait_for_old_workers(self, timeout_s: float) -> bool:
        """Whether no worker lives any more, after at most ``timeout_s``.

        Call it before the first worker is started: those of a killed supervisor may
        still write to part files.
        """
        with translated(f"lock {self.state_dir / WORKER_LOCK}"):
            descriptor = open_lock(self.state_dir / WORKER_LOCK)
            try:
                return lock_within(descriptor, timeout_s)
            finally:
                os.close(descriptor)

    def close(self) -> None:
        """Let another supervisor have the folder. Safe to call twice."""
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
            self.warnings.append(
                f"{path} was damaged: this node is called {made} from now on"
            )
        return made

    def _recorded_sids(self) -> list[str]:
        path = self.state_dir / "sids.json"
        data = _read(path)
        sids = [] if data is None else parse_sids(data)
        if sids is None:
            self.warnings.append(
                f"{path} was damaged: jobs of earlier starts come back when their "
                f"leases end"
            )
        return sids or []

    def _record(self, earlier: list[str], own: list[str]) -> None:
        earlier = earlier[-MAX_SIDS:]
        _commit(self.state_dir / "sids.json", json.dumps([*earlier, *own]) + "\n")
        self._earlier, self._own = earlier, own


def _held(lock: int, state_dir: Path) -> FileLock:
    """Lock the state folder. Raises AlreadyRunning, LocalFault, OSError."""
    try:
        return FileLock(lock, state_dir / "lock")
    except LockHeld as error:
        raise AlreadyRunning(
            f"another supervisor ({read_holder(lock)}) works with {state_dir}; "
            "stop it, or give this one a state_dir of its own"
        ) from error
    except LockForeign as error:
        raise LocalFault(f"{error} was not made by dlpool: move it away") from error


def make_node_id(hostname: str) -> str:
    """A name for this node: its host's, and something that tells two nodes on one host
    apart."""
    ending = f"-{secrets.token_hex(3)}"
    host = re.sub(r"[^A-Za-z0-9_.-]", "-", hostname)[: MAX_NODE_ID - len(ending)]
    return (host or "node") + ending


def parse_sids(data: bytes) -> list[str] | None:
    """The supervisor ids in the content of ``sids.json``; None when it is damaged."""
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
    """The content of the file, None when there is none."""
    with translated(f"read {path}"):
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None


def _commit(path: Path, text: str) -> None:
    """Replace the file, durably: a reader and a crash see the old content or the
    new."""
    with translated(f"write {path}"):
        atomic_write(path, text.encode("ascii"), sync=True, mode=0o600)
