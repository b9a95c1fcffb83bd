"""The file that remembers unfinished tasks: a line for each change, so that a kill at
any moment loses none.

Lines are JSON: ``{"begin": {...}}``, ``{"end": ID}``, ``{"pause": ID}``, ``{"go":
ID}``; a line that a kill has cut is passed over. The file is written anew, by temporary
file and rename, when it is opened.
"""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

from dlpool import disk
from dlpool.disk import translated
from dlpool.engine.arguments import job_of
from dlpool.engine.batch_session import ENGINE_HEAD, HEAD
from dlpool.engine.task import DownloadTask
from dlpool.errors import LocalFault, UsageError
from dlpool.filelock import FileLock, LockForeign, LockHeld, flock


class EngineSession:
    """One engine's file; it holds LOCK_EX on it. Thread-safe: each line is one write,
    the lock guards the descriptor.

    Nothing is synced but the names: a power failure may lose the last changes.
    """

    def __init__(self, path: Path) -> None:
        """Raises LocalFault, also for a file that another engine has, or that is no
        session."""
        self._path = path
        self._lock = threading.Lock()
        with translated(f"use the session {path}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            present, self._held = _locked(path)
        try:
            self._open, self._paused = _read(present, path)
            with translated(f"write the session {path}"):
                self._descriptor = self._rewritten()
        except BaseException:
            self._held.release()
            raise
        finally:
            disk.close_quietly(present)

    def __repr__(self) -> str:
        return f"<Session {self._path}>"

    def unfinished(self) -> list[tuple[DownloadTask, bool]]:
        """The tasks that were unfinished when it was opened, and whether each was
        paused."""
        return [
            (_task(fields), task_id in self._paused)
            for task_id, fields in self._open.items()
        ]

    def add(self, task: DownloadTask) -> None:
        """A task was submitted. Raises LocalFault."""
        self._write({"begin": _fields(task)})

    def remove(self, task_id: str) -> None:
        """It has ended. Raises LocalFault."""
        self._write({"end": task_id})

    def set_paused(self, task_id: str, *, is_paused: bool) -> None:
        """It was paused, or goes on. Raises LocalFault."""
        self._write({"pause" if is_paused else "go": task_id})

    def close(self) -> None:
        """Let another engine have it."""
        with self._lock:
            if self._descriptor >= 0:
                self._descriptor, descriptor = -1, self._descriptor
                disk.close_quietly(descriptor)
                self._held.release()

    def _write(self, change: dict[str, Any]) -> None:
        with self._lock, translated(f"write the session {self._path}"):
            if self._descriptor >= 0:
                disk.write_all(self._descriptor, _line(change))

    def _rewritten(self) -> int:
        temporary = self._path.with_name(self._path.name + ".tmp")
        begun = [_line({"begin": fields}) for fields in self._open.values()]
        paused = [_line({"pause": task_id}) for task_id in self._paused]
        descriptor = disk.create_exclusive(temporary, 0o600, flags=os.O_APPEND)
        try:
            flock(descriptor)  # before the file is renamed
            disk.write_all(descriptor, b"".join([*begun, *paused]))
            os.fsync(descriptor)
            disk.replace(
                temporary, self._path, identity=disk.identity_of(os.fstat(descriptor))
            )
            disk.sync_folder(self._path.parent)
        except OSError:
            disk.close_quietly(descriptor)
            raise
        return descriptor


def _locked(path: Path) -> tuple[int, FileLock]:
    """Open and lock the file of that name. Raises LocalFault, OSError."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            held = FileLock(descriptor, path)
        except (LockHeld, LockForeign) as error:
            disk.close_quietly(descriptor)
            raise LocalFault(f"the session {path} is another engine's") from error
        except BaseException:
            disk.close_quietly(descriptor)
            raise
        if disk.is_name_of(
            os.path.realpath(path), disk.identity_of(os.fstat(descriptor))
        ):
            return descriptor, held
        disk.close_quietly(
            descriptor
        )  # replaced by another engine between open and lock
        held.release()


def _read(descriptor: int, path: Path) -> tuple[dict[str, dict[str, Any]], set[str]]:
    """The unfinished tasks, by id, and which of them are paused."""
    open_tasks: dict[str, dict[str, Any]] = {}
    paused: set[str] = set()
    with os.fdopen(os.dup(descriptor), "rb") as file:
        content = file.read()
    if content.startswith(HEAD):
        raise LocalFault(
            f"{path} is the session of download_many or a list, not of an engine: name "
            f"another"
        )
    if content[: len(ENGINE_HEAD)] != ENGINE_HEAD[: len(content)]:
        raise LocalFault(f"{path} is no session")
    lines = content.decode(errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            ((verb, what),) = json.loads(line).items()
            task_id = str(what["id"] if verb == "begin" else what)
        except (ValueError, AttributeError, TypeError, KeyError, RecursionError):
            if number < len(lines) or content.endswith(
                b"\n"
            ):  # not what a kill has cut
                raise LocalFault(
                    f"{path} is no session: line {number} is not understood"
                ) from None
            continue
        if verb == "begin":
            open_tasks[task_id] = what
        elif verb == "end":
            open_tasks.pop(task_id, None)
        elif verb == "pause":
            paused.add(task_id)
        else:
            paused.discard(task_id)
    return open_tasks, paused & open_tasks.keys()


def _line(change: dict[str, Any]) -> bytes:
    return json.dumps(change).encode() + b"\n"


def _fields(task: DownloadTask) -> dict[str, Any]:
    job = task.job
    folder, filename = (
        (job.target, None) if job.is_folder else (job.target.parent, job.target.name)
    )
    return {
        "id": task.id,
        "url": task.url,
        "output_path": str(folder.absolute()),
        "filename": filename,
        "headers": dict(job.headers),
        "priority": task.priority,
        "checksum": str(job.checksum) if job.checksum else None,
    }


def _task(fields: dict[str, Any]) -> DownloadTask:
    try:
        job = job_of(
            *(
                fields[name]
                for name in ("url", "output_path", "filename", "headers", "checksum")
            )
        )
        return DownloadTask.of(
            job, priority=fields["priority"], task_id=str(fields["id"])
        )
    except (KeyError, TypeError, UsageError) as error:
        raise LocalFault(f"a task of the session cannot be used: {error}") from error
