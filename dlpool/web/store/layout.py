"""Where things are below upload_dir: ``tasks/NAME/``, ``tmp/`` for what is not whole yet or no more, ``locks/``.

A task's folder comes and goes by one rename. Locks are a fixed number of files that are never removed, each for many
tasks, so that nobody can wait for a lock that is about to vanish.
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
from dlpool.web.store import reception
from dlpool.web.store.events import STARTED, Announce, silent
from dlpool.web.store.faults import stored
from dlpool.web.store.journal import begin_journal, note
from dlpool.web.store.locks import PATIENCE_S, has_locked, locked, release, released_on_error
from dlpool.web.store.names import flat_name, is_alike, is_flat, own_name
from dlpool.web.store.planted import READ, real
from dlpool.web.store.record import Identity, Record, save_identity, save_record
from dlpool.web.store.syncing import Syncing
from dlpool.web.store.task import Task

_TASKS, _TMP, _LOCKS = "tasks", "tmp", "locks"
_JOURNAL = "changed"


class Layout:
    """The folders of one store. Immutable; processes and threads share what is on the disk."""

    def __init__(self, root: str, *, sync: Syncing, announce: Announce = silent) -> None:
        """``announce`` is called with each change of a task, on the thread that makes it."""
        self.root = Path(root).absolute()
        self.sync = sync
        self._announce = announce

    def __repr__(self) -> str:
        return f"<Layout of {self.root}>"

    def make(self) -> None:
        """Make the folders that are missing. Raises Refusal."""
        with stored("make the upload folder"):
            for name in (_TASKS, _TMP, _LOCKS):
                (self.root / name).mkdir(parents=True, exist_ok=True)
            with suppress(OSError):  # a link, which is refused when it is used
                begin_journal(self.journal_path())

    def begin(self, max_size: int) -> reception.Reception:
        """Somewhere to receive a chunk. Raises Refusal."""
        with stored("begin a chunk"):
            try:
                return reception.begin(self._own(_TMP), max_size=max_size, sync=self.sync)
            except FileNotFoundError:  # somebody removed the folder
                self.make()
                return reception.begin(self._own(_TMP), max_size=max_size, sync=self.sync)

    @contextmanager
    def task(self, file_id: str) -> Iterator[Task]:
        """The task of an id that dlpool made, which may not be there, with its lock held.

        Raises Refusal, OSError becomes one.
        """
        with self.named(flat_name(file_id)) as task:
            yield task

    @contextmanager
    def named(self, name: str) -> Iterator[Task]:
        """The same, by the name of its folder."""
        with stored("write to the upload folder"):
            if not self._own(_LOCKS).is_dir():
                self.make()
            with locked(self.root / _LOCKS / name[:2]):
                try:
                    yield self.at(name)
                finally:
                    note(self.root / _LOCKS / _JOURNAL, name)

    @contextmanager
    def turn(self, name: str) -> Iterator[None]:
        """Hold the lock of that name, which is no task's: one of a fixed number, too. Raises Refusal."""
        with stored("write to the upload folder"):
            if not self._own(_LOCKS).is_dir():
                self.make()
            with locked(self.root / _LOCKS / f"turn-{flat_name(name)[:2]}"):
                yield

    @contextmanager
    def task_of(self, file_id: str, owner: str | None) -> Iterator[Task]:
        """The task that an id means to ``owner``, which may not be there, with its lock held: never another owner's.

        To None, who may have all tasks, an id means his own task, else the only one of that id. Raises Refusal.
        """
        while True:
            with stored("read the upload folder"):
                name = self.meant(file_id, owner).folder.name
            with self.named(name) as task:  # all tasks of an id have one lock
                if self.meant(file_id, owner).folder.name == name:
                    yield task
                    return

    @contextmanager
    def seen(self, file_id: str, owner: str | None) -> Iterator[Task]:
        """The same for a look only: without the lock where nobody ever took it, so that it can be read-only."""
        with self.seen_at(flat_name(file_id)):
            yield self.meant(file_id, owner)

    def meant(self, file_id: str, owner: str | None) -> Task:
        """The task that an id means to ``owner``, without its lock. Raises Refusal, OSError."""
        own, plain = self.at(own_name(file_id, owner)), self.at(flat_name(file_id))
        if disk.exists(own.folder):
            return own
        if owner is None:
            others = self._named_like(plain.folder.name)
            return self.at(others[0]) if len(others) == 1 else plain
        identity = plain.identity()  # of tus, or from before tasks were named by their owner
        return plain if identity is not None and identity.owner == owner else own

    def _named_like(self, plain: str) -> list[str]:
        try:
            return [name for name in os.listdir(self.tasks()) if is_alike(name, plain) and is_flat(name)]
        except FileNotFoundError:
            return []

    @contextmanager
    def seen_at(self, name: str, *, patience_s: float = PATIENCE_S) -> Iterator[Task]:
        """The same, by the name of its folder. Raises Refusal: 503 if its lock is not released for ``patience_s``."""
        with stored("read the upload folder"):
            lock = self._own(_LOCKS) / name[:2]
            with locked(lock, patience_s=patience_s) if lock.exists() else nullcontext():
                yield self.at(name)

    def unlocked(self, file_id: str) -> Task:
        """The same without its lock: for what changes by one rename, and while another task's lock is held."""
        return self.at(flat_name(file_id))

    def at(self, name: str) -> Task:
        """Return the task in that folder, which may not exist, without its lock. Raises OSError."""
        return Task(self._folder(name), self.sync, self._announce)

    def tasks(self) -> Path:
        """Return the folder that has the folders of all tasks; it may not exist. Raises OSError."""
        return self._own(_TASKS)

    def lock_path(self, name: str) -> Path:
        """Return the lock file of that name, which is not a task's. Raises OSError."""
        return self._own(_LOCKS) / name

    def journal_path(self) -> Path:
        """Return where the tasks that have changed are noted. Raises OSError."""
        return self.lock_path(_JOURNAL)

    def create(self, task: Task, identity: Identity, record: Record) -> Record:
        """Make the folder of a task whose lock is held, with identity and record in it, by one rename. Raises OSError.

        Returns the record as it is noted.
        """
        record = replace(record, updated_at=identity.created_at)
        fresh, lock = self._fresh_folder()
        try:
            save_identity(fresh, identity, sync=self.sync)
            save_record(fresh, record, sync=self.sync)
            with suppress(FileNotFoundError):
                self.trash(task)  # what has no identity is of no use
            note(self.journal_path(), task.folder.name)  # also for one who is killed before the lock is released
            disk.replace(fresh, task.folder, identity=disk.identity_of(os.fstat(lock)))
        finally:
            release(lock)
        self.sync.folder(self.root / _TASKS)
        task.tell(STARTED, record, identity)
        return record

    def _fresh_folder(self) -> tuple[Path, int]:
        """A new folder, and a descriptor that has it locked, so that no sweep takes it. Raises OSError."""
        while True:
            path = self._own(_TMP) / f"{secrets.token_hex(16)}.new"
            os.mkdir(path)
            with suppress(FileNotFoundError):  # a sweep came before the lock
                descriptor = _locked_folder(path)
                if descriptor is not None:
                    return path, descriptor

    def trash(self, task: Task) -> Path:
        """Take the folder out of the tasks by one rename; ``empty`` removes it, later or never. Raises OSError."""
        place = self._own(_TMP) / f"{secrets.token_hex(16)}.trash"
        os.replace(task.folder, place)
        return place

    def sweep(self) -> int:
        """Remove what the dead left in ``tmp``, and return how many. Raises Refusal."""
        with stored("clean the upload folder"):
            try:
                folder = self._own(_TMP)
                names = os.listdir(folder)
            except FileNotFoundError:
                return 0
            return sum(remove_dead(folder / name) for name in names)

    def _folder(self, name: str) -> Path:
        return real(self._own(_TASKS) / name)

    def _own(self, name: str) -> Path:
        return real(self.root / name)


def _locked_folder(path: Path) -> int | None:
    """Open and lock the folder; None if a sweep removed it first. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    with released_on_error(descriptor):
        if has_locked(descriptor, path) and disk.exists(path):
            return descriptor
    release(descriptor)
    return None


def remove_dead(path: Path) -> bool:
    """Remove a file or folder that no living process has locked, or a link, which is none of ours; whether it did."""
    if os.path.islink(path):
        with suppress(OSError):
            os.unlink(path)
        return not os.path.lexists(path)
    try:
        descriptor = os.open(path, READ)
    except OSError:  # gone, or no file of ours
        return False
    try:
        if not has_locked(descriptor, path):
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
