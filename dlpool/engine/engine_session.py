"""The session file of an engine: it records the unfinished tasks.

Each change is one line in JSON, such as ``{"begin": {...}}``, ``{"end": ID}``,
``{"pause": ID}`` or ``{"resume": ID}``. A last line that a kill of the process has
truncated is ignored. An engine that opens the file replaces it by a new file that has
only the unfinished tasks.
"""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

from dlpool import disk
from dlpool.disk_errors import translated
from dlpool.engine.arguments import job_of
from dlpool.engine.batch_session import ENGINE_HEAD, HEAD
from dlpool.engine.task import DownloadTask, execution_of, task_of_job
from dlpool.errors import LocalFault, UsageError
from dlpool.filelock import FileLock, flock
from dlpool.lock_files import LockForeign, LockHeld


class EngineSession:
    """The locked session file of one engine. Thread-safe; the lock guards the
    descriptor.

    Only the constructor syncs the file to disk: a power failure can lose later changes.
    """

    def __init__(self, path: Path) -> None:
        """Open or create the file, lock it and rewrite it.

        Raises LocalFault if the file cannot be used, if another engine has locked the
        file, or if the file is not an engine session.
        """
        self._path = path
        self._lock = threading.Lock()
        with translated(f"use the session {path}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            present, self._file_lock = _locked(path)
        try:
            self._open, self._paused = _read(present, path)
            with translated(f"write the session {path}"):
                self._descriptor = self._rewrite()
        except BaseException:
            self._file_lock.release()
            raise
        finally:
            disk.close_quietly(present)

    def __repr__(self) -> str:
        return f"<EngineSession {self._path}>"

    def unfinished(self) -> list[tuple[DownloadTask, bool]]:
        """Return each task that was unfinished when the file was opened, and whether it
        was paused. Raises LocalFault for a task that cannot be used."""
        return [
            (_task(fields), task_id in self._paused)
            for task_id, fields in self._open.items()
        ]

    def add(self, task: DownloadTask) -> None:
        """Record a submitted task. Raises LocalFault."""
        self._write({"begin": _fields(task)})

    def remove(self, task_id: str) -> None:
        """Record the end of a task. Raises LocalFault."""
        self._write({"end": task_id})

    def set_paused(self, task_id: str, *, is_paused: bool) -> None:
        """Record that a task was paused or resumed. Raises LocalFault."""
        self._write({"pause" if is_paused else "resume": task_id})

    def close(self) -> None:
        """Release the lock and close the file."""
        with self._lock:
            if self._descriptor >= 0:
                self._descriptor, descriptor = -1, self._descriptor
                disk.close_quietly(descriptor)
                self._file_lock.release()

    def _write(self, change: dict[str, Any]) -> None:
        with self._lock, translated(f"write the session {self._path}"):
            if self._descriptor >= 0:
                disk.write_all(self._descriptor, _line(change))

    def _rewrite(self) -> int:
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
    """Open or create the file at ``path`` and lock it; return its descriptor and the
    lock.

    Opens the file again if another engine replaced it before the lock was acquired.
    Raises LocalFault if the lock is not available, and OSError for other errors.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            lock = FileLock(descriptor, path)
        except (LockHeld, LockForeign) as error:
            disk.close_quietly(descriptor)
            raise LocalFault(f"the session {path} is used by another engine") from error
        except BaseException:
            disk.close_quietly(descriptor)
            raise
        if disk.is_name_of(
            os.path.realpath(path), disk.identity_of(os.fstat(descriptor))
        ):
            return descriptor, lock
        # Another engine has replaced the file between open and lock.
        disk.close_quietly(descriptor)
        lock.release()


def _read(descriptor: int, path: Path) -> tuple[dict[str, dict[str, Any]], set[str]]:
    """Return the unfinished tasks by id, and the ids of the paused tasks among them.
    Raises LocalFault if the file is not a valid session of an engine."""
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
        raise LocalFault(f"{path} is not a session of an engine")
    lines = content.decode(errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            ((verb, what),) = json.loads(line).items()
            task_id = str(what["id"] if verb == "begin" else what)
        except (ValueError, AttributeError, TypeError, KeyError, RecursionError):
            # Only a last line without a newline can be the result of a kill.
            if number < len(lines) or content.endswith(b"\n"):
                raise LocalFault(
                    f"{path} is not a session: line {number} is not understood"
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
    job = execution_of(task).job
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
        return task_of_job(job, priority=fields["priority"], task_id=str(fields["id"]))
    except (KeyError, TypeError, UsageError) as error:
        raise LocalFault(f"a task of the session cannot be used: {error}") from error
