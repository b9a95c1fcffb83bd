"""Where things are below upload_dir: ``tasks/NAME/``, ``tmp/`` for what is not whole
yet or no more, ``locks/``.

A task's folder comes and goes by one rename. Locks are a fixed number of files that are
never removed, each for many tasks, so that nobody can wait for a lock that is about to
vanish.
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
from dlpool.storage.disk import staged_chunk
from dlpool.storage.disk.change_log import append_change, create_change_log
from dlpool.storage.disk.durability import Durability
from dlpool.storage.disk.file_locks import (
    LOCK_TIMEOUT_S,
    hold_lock,
    release,
    released_on_error,
    try_lock_descriptor,
)
from dlpool.storage.disk.os_errors import translate_os_errors
from dlpool.storage.disk.safe_open import READ_FLAGS, refuse_symlink
from dlpool.storage.disk.task_folder import TaskFolder
from dlpool.storage.disk.task_record import (
    TaskIdentity,
    TaskRecord,
    save_identity,
    save_record,
)
from dlpool.storage.events import STARTED, UploadEventListener, ignore_event
from dlpool.storage.names import (
    folder_name,
    is_folder_name,
    is_same_id,
    owner_folder_name,
)

_TASKS, _TMP, _LOCKS = "tasks", "tmp", "locks"
_JOURNAL = "changed"


class StoreLayout:
    """The folders of one store. Immutable; processes and threads share what is on the
    disk."""

    def __init__(
        self,
        root: str,
        *,
        sync: Durability,
        announce: UploadEventListener = ignore_event,
    ) -> None:
        """``announce`` is called with each change of a task, on the thread that makes
        it."""
        self.root = Path(root).absolute()
        self.sync = sync
        self._announce = announce

    def __repr__(self) -> str:
        return f"<Layout of {self.root}>"

    def create_folders(self) -> None:
        """Make the folders that are missing. Raises Refusal."""
        with translate_os_errors("make the upload folder"):
            for name in (_TASKS, _TMP, _LOCKS):
                (self.root / name).mkdir(parents=True, exist_ok=True)
            with suppress(OSError):  # a link, which is refused when it is used
                create_change_log(self.change_log_path())

    def stage_chunk(self, max_size: int) -> staged_chunk.StagedChunk:
        """Somewhere to receive a chunk. Raises Refusal."""
        with translate_os_errors("begin a chunk"):
            try:
                return staged_chunk.create_staged_chunk(
                    self._own(_TMP), max_size=max_size, sync=self.sync
                )
            except FileNotFoundError:  # somebody removed the folder
                self.create_folders()
                return staged_chunk.create_staged_chunk(
                    self._own(_TMP), max_size=max_size, sync=self.sync
                )

    @contextmanager
    def lock_id(self, file_id: str) -> Iterator[TaskFolder]:
        """The task of an id that dlpool made, which may not be there, with its lock
        held.

        Raises Refusal, OSError becomes one.
        """
        with self.lock_folder(folder_name(file_id)) as task:
            yield task

    @contextmanager
    def lock_folder(self, name: str) -> Iterator[TaskFolder]:
        """The same, by the name of its folder."""
        with translate_os_errors("write to the upload folder"):
            if not self._own(_LOCKS).is_dir():
                self.create_folders()
            with hold_lock(self.root / _LOCKS / name[:2]):
                try:
                    yield self.task_at(name)
                finally:
                    append_change(self.root / _LOCKS / _JOURNAL, name)

    @contextmanager
    def lock_name(self, name: str) -> Iterator[None]:
        """Hold the lock of that name, which is no task's: one of a fixed number, too.
        Raises Refusal."""
        with translate_os_errors("write to the upload folder"):
            if not self._own(_LOCKS).is_dir():
                self.create_folders()
            with hold_lock(self.root / _LOCKS / f"turn-{folder_name(name)[:2]}"):
                yield

    @contextmanager
    def lock_owned(self, file_id: str, owner: str | None) -> Iterator[TaskFolder]:
        """The task that an id means to ``owner``, which may not be there, with its lock
        held: never another owner's.

        To None, who may have all tasks, an id means his own task, else the only one of
        that id. Raises Refusal.
        """
        while True:
            with translate_os_errors("read the upload folder"):
                name = self.resolve(file_id, owner).folder.name
            with self.lock_folder(name) as task:  # all tasks of an id have one lock
                if self.resolve(file_id, owner).folder.name == name:
                    yield task
                    return

    @contextmanager
    def read_owned(self, file_id: str, owner: str | None) -> Iterator[TaskFolder]:
        """The same for a look only: without the lock where nobody ever took it, so that
        it can be read-only."""
        with self.read_folder(folder_name(file_id)):
            yield self.resolve(file_id, owner)

    def resolve(self, file_id: str, owner: str | None) -> TaskFolder:
        """The task that an id means to ``owner``, without its lock. Raises Refusal,
        OSError."""
        own, plain = (
            self.task_at(owner_folder_name(file_id, owner)),
            self.task_at(folder_name(file_id)),
        )
        if disk.exists(own.folder):
            return own
        if owner is None:
            others = self._named_like(plain.folder.name)
            return self.task_at(others[0]) if len(others) == 1 else plain
        identity = (
            plain.identity()
        )  # of tus, or from before tasks were named by their owner
        return plain if identity is not None and identity.owner == owner else own

    def _named_like(self, plain: str) -> list[str]:
        try:
            return [
                name
                for name in os.listdir(self.tasks_path())
                if is_same_id(name, plain) and is_folder_name(name)
            ]
        except FileNotFoundError:
            return []

    @contextmanager
    def read_folder(
        self, name: str, *, patience_s: float = LOCK_TIMEOUT_S
    ) -> Iterator[TaskFolder]:
        """The same, by the name of its folder. Raises Refusal: 503 if its lock is not
        released for ``patience_s``."""
        with translate_os_errors("read the upload folder"):
            lock = self._own(_LOCKS) / name[:2]
            with (
                hold_lock(lock, patience_s=patience_s)
                if lock.exists()
                else nullcontext()
            ):
                yield self.task_at(name)

    def task_by_id(self, file_id: str) -> TaskFolder:
        """The same without its lock: for what changes by one rename, and while another
        task's lock is held."""
        return self.task_at(folder_name(file_id))

    def task_at(self, name: str) -> TaskFolder:
        """Return the task in that folder, which may not exist, without its lock. Raises
        OSError."""
        return TaskFolder(self._folder(name), self.sync, self._announce)

    def tasks_path(self) -> Path:
        """Return the folder that has the folders of all tasks; it may not exist. Raises
        OSError."""
        return self._own(_TASKS)

    def lock_path(self, name: str) -> Path:
        """Return the lock file of that name, which is not a task's. Raises OSError."""
        return self._own(_LOCKS) / name

    def change_log_path(self) -> Path:
        """Return where the tasks that have changed are noted. Raises OSError."""
        return self.lock_path(_JOURNAL)

    def create_task(
        self, task: TaskFolder, identity: TaskIdentity, record: TaskRecord
    ) -> TaskRecord:
        """Make the folder of a task whose lock is held, with identity and record in it,
        by one rename. Raises OSError.

        Returns the record as it is noted.
        """
        record = replace(record, updated_at=identity.created_at)
        fresh, lock = self._fresh_folder()
        try:
            save_identity(fresh, identity, sync=self.sync)
            save_record(fresh, record, sync=self.sync)
            with suppress(FileNotFoundError):
                self.trash(task)  # what has no identity is of no use
            append_change(
                self.change_log_path(), task.folder.name
            )  # also for one who is killed before the lock is released
            disk.replace(fresh, task.folder, identity=disk.identity_of(os.fstat(lock)))
        finally:
            release(lock)
        self.sync.sync_folder(self.root / _TASKS)
        task.emit_event(STARTED, record, identity)
        return record

    def _fresh_folder(self) -> tuple[Path, int]:
        """A new folder, and a descriptor that has it locked, so that no sweep takes it.
        Raises OSError."""
        while True:
            path = self._own(_TMP) / f"{secrets.token_hex(16)}.new"
            os.mkdir(path)
            with suppress(FileNotFoundError):  # a sweep came before the lock
                descriptor = _locked_folder(path)
                if descriptor is not None:
                    return path, descriptor

    def trash(self, task: TaskFolder) -> Path:
        """Take the folder out of the tasks by one rename; ``empty`` removes it, later
        or never. Raises OSError."""
        place = self._own(_TMP) / f"{secrets.token_hex(16)}.trash"
        os.replace(task.folder, place)
        return place

    def sweep(self) -> int:
        """Remove what the dead left in ``tmp``, and return how many. Raises Refusal."""
        with translate_os_errors("clean the upload folder"):
            try:
                folder = self._own(_TMP)
                names = os.listdir(folder)
            except FileNotFoundError:
                return 0
            return sum(remove_abandoned(folder / name) for name in names)

    def _folder(self, name: str) -> Path:
        return refuse_symlink(self._own(_TASKS) / name)

    def _own(self, name: str) -> Path:
        return refuse_symlink(self.root / name)


def _locked_folder(path: Path) -> int | None:
    """Open and lock the folder; None if a sweep removed it first. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    with released_on_error(descriptor):
        if try_lock_descriptor(descriptor, path) and disk.exists(path):
            return descriptor
    release(descriptor)
    return None


def remove_abandoned(path: Path) -> bool:
    """Remove a file or folder that no living process has locked, or a link, which is
    none of ours; whether it did."""
    if os.path.islink(path):
        with suppress(OSError):
            os.unlink(path)
        return not os.path.lexists(path)
    try:
        descriptor = os.open(path, READ_FLAGS)
    except OSError:  # gone, or no file of ours
        return False
    try:
        if not try_lock_descriptor(descriptor, path):
            return False
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            shutil.rmtree(path, ignore_errors=True)
        else:
            os.unlink(path)
    except OSError:  # a later sweep removes it
        return False
    finally:
        release(descriptor)
    return not os.path.lexists(path)
