"""The folders below upload_dir.

They are ``tasks/NAME/``, ``tmp/`` for incomplete or removed files and folders, and
``locks/``. The folder of a task is created and removed by one rename. The number of
lock files is fixed, and each serves many tasks. Lock files are never removed, so that
no process waits for a lock file that is about to disappear.
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path

from dlpool import disk
from dlpool.storage.disk.change_log import append_change, create_change_log
from dlpool.storage.disk.durability import Durability
from dlpool.storage.disk.file_locks import (
    LOCK_TIMEOUT_S,
    hold_lock,
    release,
    release_on_error,
    try_lock_descriptor,
)
from dlpool.storage.disk.os_errors import translate_os_errors
from dlpool.storage.disk.safe_open import READ_FLAGS, refuse_symlink
from dlpool.storage.disk.staged_chunk import StagedChunkFile, create_staged_chunk
from dlpool.storage.disk.task_folder import TaskFolder
from dlpool.storage.disk.task_record import (
    TaskIdentity,
    TaskRecord,
    save_identity,
    save_record,
)
from dlpool.storage.names import (
    folder_name,
    is_folder_name,
    is_same_id,
    owner_folder_name,
)
from dlpool.storage.values import STARTED_EVENT, UploadEventListener, ignore_event

_TASKS, _TMP, _LOCKS = "tasks", "tmp", "locks"
_CHANGE_LOG = "changed"


class StoreLayout:
    """Finds and locks the tasks of one backend.

    May be used by several threads and processes, which share only the disk. The context
    managers raise UploadError, and translate an OSError of their block into
    UploadError.
    """

    def __init__(
        self,
        root: str,
        *,
        durability: Durability,
        listener: UploadEventListener = ignore_event,
    ) -> None:
        """``root``: upload_dir.

        ``listener`` is called with the events of tasks, on the thread that changes the
        task.
        """
        self.root = Path(root).absolute()
        self.durability = durability
        self._listener = listener

    def __repr__(self) -> str:
        return f"<StoreLayout of {self.root}>"

    def create_folders(self) -> None:
        """Create upload_dir and its folders if they are missing. Raises UploadError."""
        with translate_os_errors("make the upload folder"):
            for name in (_TASKS, _TMP, _LOCKS):
                (self.root / name).mkdir(parents=True, exist_ok=True)
            with suppress(OSError):  # a symbolic link is refused when it is used
                create_change_log(self.change_log_path())

    def stage_chunk(self, max_size: int) -> StagedChunkFile:
        """Create a temporary file for a chunk of at most ``max_size`` bytes.

        Raises UploadError.
        """
        with translate_os_errors("begin a chunk"):
            try:
                return create_staged_chunk(
                    self._subfolder(_TMP), max_size=max_size, durability=self.durability
                )
            except FileNotFoundError:  # the folder was never created, or was removed
                self.create_folders()
                return create_staged_chunk(
                    self._subfolder(_TMP), max_size=max_size, durability=self.durability
                )

    @contextmanager
    def lock_id(self, file_id: str) -> Iterator[TaskFolder]:
        """Hold the lock of a task whose id dlpool has generated.

        The task need not exist.
        """
        with self.lock_folder(folder_name(file_id)) as task:
            yield task

    @contextmanager
    def lock_folder(self, name: str) -> Iterator[TaskFolder]:
        """Hold the lock of the task in the folder ``name``."""
        with translate_os_errors("write to the upload folder"):
            if not self._subfolder(_LOCKS).is_dir():
                self.create_folders()
            with hold_lock(self.root / _LOCKS / name[:2]):
                try:
                    yield self.task_at(name)
                finally:
                    append_change(self.root / _LOCKS / _CHANGE_LOG, name)

    @contextmanager
    def lock_name(self, name: str) -> Iterator[None]:
        """Hold the lock for ``name``, a text that does not name a task.

        Several texts may share one lock.
        """
        with translate_os_errors("write to the upload folder"):
            if not self._subfolder(_LOCKS).is_dir():
                self.create_folders()
            with hold_lock(self.root / _LOCKS / f"turn-{folder_name(name)[:2]}"):
                yield

    @contextmanager
    def lock_owned(self, file_id: str, owner: str | None) -> Iterator[TaskFolder]:
        """Hold the lock of the task that ``resolve`` returns.

        The task need not exist.
        """
        while True:
            with translate_os_errors("read the upload folder"):
                name = self.resolve(file_id, owner).folder.name
            # All tasks of an id have the same lock.
            with self.lock_folder(name) as task:
                if self.resolve(file_id, owner).folder.name == name:
                    yield task
                    return

    @contextmanager
    def read_owned(self, file_id: str, owner: str | None) -> Iterator[TaskFolder]:
        """Hold the lock of the task that ``resolve`` returns, for reading.

        Creates no lock file: if there is none, the block runs without a lock.
        """
        with self.read_folder(folder_name(file_id)):
            yield self.resolve(file_id, owner)

    @contextmanager
    def read_folder(
        self, name: str, *, timeout_s: float = LOCK_TIMEOUT_S
    ) -> Iterator[TaskFolder]:
        """Hold the exclusive lock of the task in the folder ``name``.

        For a block that only reads. Creates no lock file: if there is none, the block
        runs without a lock. Raises UploadError (busy) if the lock is not released
        within ``timeout_s`` seconds.
        """
        with translate_os_errors("read the upload folder"):
            lock = self._subfolder(_LOCKS) / name[:2]
            with (
                hold_lock(lock, timeout_s=timeout_s) if lock.exists() else nullcontext()
            ):
                yield self.task_at(name)

    def resolve(self, file_id: str, owner: str | None) -> TaskFolder:
        """Return the task that ``file_id`` names for ``owner``, without locking it.

        The task need not exist. An owner gets only tasks of that owner. For ``owner``
        None, the result is the task without an owner. If that task does not exist and
        exactly one owner has a task with the id, the result is the task of that owner.
        Raises UploadError, OSError.
        """
        own, plain = (
            self.task_at(owner_folder_name(file_id, owner)),
            self.task_at(folder_name(file_id)),
        )
        if disk.exists(own.folder):
            return own
        if owner is None:
            others = self._folders_of_id(plain.folder.name)
            return self.task_at(others[0]) if len(others) == 1 else plain
        identity = plain.identity()  # tus uploads have folders named by the id alone
        return plain if identity is not None and identity.owner == owner else own

    def _folders_of_id(self, name: str) -> list[str]:
        try:
            return [
                one
                for one in os.listdir(self.tasks_path())
                if is_same_id(one, name) and is_folder_name(one)
            ]
        except FileNotFoundError:
            return []

    def task_by_id(self, file_id: str) -> TaskFolder:
        """Return the task with an id that dlpool has generated, without locking it.

        The task need not exist. Raises OSError.
        """
        return self.task_at(folder_name(file_id))

    def task_at(self, name: str) -> TaskFolder:
        """Return the task in the folder ``name``, without locking it.

        The folder need not exist. Raises OSError.
        """
        return TaskFolder(
            refuse_symlink(self._subfolder(_TASKS) / name),
            self.durability,
            self._listener,
        )

    def tasks_path(self) -> Path:
        """Return the parent folder of all tasks.

        The folder need not exist. Raises OSError.
        """
        return self._subfolder(_TASKS)

    def lock_path(self, name: str) -> Path:
        """Return the path of a file in the folder ``locks``. Raises OSError."""
        return self._subfolder(_LOCKS) / name

    def change_log_path(self) -> Path:
        """Return the path of the change log. Raises OSError."""
        return self.lock_path(_CHANGE_LOG)

    def create_task(
        self, task: TaskFolder, identity: TaskIdentity, record: TaskRecord
    ) -> TaskRecord:
        """Create the folder of a task with its metadata, by one rename.

        The caller holds the lock of the task. Raises OSError. Returns the record as it
        was written.
        """
        record = replace(record, updated_at=identity.created_at)
        temporary, lock = self._create_temporary_folder()
        try:
            save_identity(temporary, identity, durability=self.durability)
            save_record(temporary, record, durability=self.durability)
            with suppress(FileNotFoundError):
                self.trash(task)  # a folder without identity is a leftover
            # Before the rename, because this process may be killed.
            append_change(self.change_log_path(), task.folder.name)
            disk.replace(
                temporary, task.folder, identity=disk.identity_of(os.fstat(lock))
            )
        finally:
            release(lock)
        self.durability.sync_folder(self.root / _TASKS)
        task.emit_event(STARTED_EVENT, record, identity)
        return record

    def _create_temporary_folder(self) -> tuple[Path, int]:
        """Create a folder in ``tmp`` and lock it against sweeps.

        Returns its path and the descriptor that holds the lock. Raises OSError.
        """
        while True:
            path = self._subfolder(_TMP) / f"{secrets.token_hex(16)}.new"
            os.mkdir(path)
            with suppress(FileNotFoundError):  # a sweep removed it before it was locked
                descriptor = _lock_folder(path)
                if descriptor is not None:
                    return path, descriptor

    def trash(self, task: TaskFolder) -> Path:
        """Remove a task by one rename into ``tmp``.

        Returns the new path, which ``remove_abandoned`` or a sweep deletes. Raises
        OSError.
        """
        target = self._subfolder(_TMP) / f"{secrets.token_hex(16)}.trash"
        disk.replace(task.folder, target)
        return target

    def sweep(self) -> int:
        """Remove the files and folders in ``tmp`` that no running process has locked.

        Returns the number of removed entries. Raises UploadError.
        """
        with translate_os_errors("clean the upload folder"):
            try:
                folder = self._subfolder(_TMP)
                names = os.listdir(folder)
            except FileNotFoundError:
                return 0
            return sum(remove_abandoned(folder / name) for name in names)

    def _subfolder(self, name: str) -> Path:
        return refuse_symlink(self.root / name)


def _lock_folder(path: Path) -> int | None:
    """Return a descriptor that holds the lock of a folder.

    None if a sweep has locked or removed the folder. Raises OSError.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    with release_on_error(descriptor):
        if try_lock_descriptor(descriptor, path) and disk.exists(path):
            return descriptor
    release(descriptor)
    return None


def remove_abandoned(path: Path) -> bool:
    """Remove a file or folder that no running process has locked.

    Returns whether the removal succeeded. Removes any symbolic link: dlpool creates
    none. Ignores errors, because a later sweep tries again.
    """
    if os.path.islink(path):
        with suppress(OSError):
            os.unlink(path)
        return not os.path.lexists(path)
    try:
        descriptor = os.open(path, READ_FLAGS)
    except OSError:  # removed meanwhile, or not a file or folder
        return False
    try:
        if not try_lock_descriptor(descriptor, path):
            return False
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            shutil.rmtree(path, ignore_errors=True)
        else:
            os.unlink(path)
    except OSError:
        return False
    finally:
        release(descriptor)
    return not os.path.lexists(path)
