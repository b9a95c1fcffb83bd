"""The store: what the HTTP side asks of uploads."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

from dlpool.config import UploadSettings
from dlpool.disk import OnUnsynced
from dlpool.storage import names, states
from dlpool.storage.disk import chunk_receiver
from dlpool.storage.disk.catalog import MAX_PAGE, TaskCounts, make_cursor, read_cursor
from dlpool.storage.disk.concatenation import DiskConcatenator
from dlpool.storage.disk.durability import Durability
from dlpool.storage.disk.file_locks import released_on_error
from dlpool.storage.disk.layout import StoreLayout
from dlpool.storage.disk.merger import Merger
from dlpool.storage.disk.os_errors import translate_os_errors
from dlpool.storage.disk.ownership import OwnershipStore
from dlpool.storage.disk.quota import OwnerQuota
from dlpool.storage.disk.recovery import recover
from dlpool.storage.disk.removal import DAY_S, SWEEP_TIMEOUT_S, SweepResult, TaskRemover
from dlpool.storage.disk.scanning import NO_SCANNER, UploadScanner
from dlpool.storage.disk.staged_chunk import StagedChunk
from dlpool.storage.disk.task_folder import SharedTaskLock
from dlpool.storage.disk.task_index import TaskIndex
from dlpool.storage.disk.tus_uploads import DiskTusUploads
from dlpool.storage.errors import UploadError
from dlpool.storage.events import PAUSED, RESUMED, UploadEventListener, ignore_event
from dlpool.storage.results import ChunkResult, MergeResult
from dlpool.storage.upload_requests import ChunkRequest, MergeRequest
from dlpool.storage.views import NOT_FOUND, detail_view, status_view, summary_view


class DiskBackend:
    """Uploads in ``upload_dir`` and ``merged_dir``. All methods raise Refusal, and
    nothing else for what may happen.

    The folders are the truth, and what is kept in memory is compared with them: threads
    and processes may each have their own, or share one. ``owner``: who asks; None where
    nobody is asked who he is, who then sees all tasks.
    """

    def __init__(
        self,
        settings: UploadSettings,
        announce: UploadEventListener = ignore_event,
        on_unsynced: OnUnsynced | None = None,
        screening: UploadScanner = NO_SCANNER,
    ) -> None:
        """``announce`` is called with each change of an upload; it must neither block
        nor raise.

        ``on_unsynced`` is called once in a process for each file system that cannot
        sync a folder. ``screening`` checks each merged file before it gets its name.
        """
        self.settings = settings
        syncing = Durability(settings.enable_atomic_operations, on_unsynced)
        self.layout = StoreLayout(settings.upload_dir, sync=syncing, announce=announce)
        self._owners = OwnershipStore(self.layout.root, syncing)
        self._merger = Merger(self.layout, settings, screening)
        self.listing = TaskIndex(self.layout)
        self._quota = OwnerQuota(self.layout, settings, self.listing)
        self.tus = DiskTusUploads(self.layout, settings, self._merger, self._quota)
        self._cleaner = TaskRemover(self.layout, settings, self.listing)
        self.concatenator = DiskConcatenator(
            self.layout, settings, self.tus, self._cleaner
        )

    def __repr__(self) -> str:
        return f"<DiskBackend {self.layout.root} -> {self.settings.merged_dir}>"

    def stage_chunk(self) -> StagedChunk:
        """Somewhere to write a chunk to; it holds no lock that another request
        wants."""
        return self.layout.stage_chunk(self.settings.max_chunk_size)

    def check_chunk(
        self,
        *,
        file_id: str,
        index: int,
        owner: str | None,
        md5: str | None = None,
        total_chunks: int | None = None,
        file_size: int | None = None,
        relative_path: str | None = None,
        filename: str | None = None,
    ) -> SharedTaskLock | None:
        """Refuse what ``commit_chunk`` would refuse anyway, where the fields are known
        before the body.

        A visit to the task that is there, for ``StagedChunk.visit``; else to be ended.
        """
        wish = ChunkRequest(
            file_id, index, owner, md5, total_chunks, file_size, relative_path, filename
        )
        return chunk_receiver.check_chunk(self.layout, self.settings, self._quota, wish)

    def commit_chunk(
        self,
        reception: StagedChunk,
        *,
        file_id: str,
        index: int,
        owner: str | None,
        md5: str | None = None,
        total_chunks: int | None = None,
        file_size: int | None = None,
        relative_path: str | None = None,
        filename: str | None = None,
    ) -> ChunkResult:
        """Store what was received as a chunk; the first one makes the task. When
        refused, an earlier one stays."""
        wish = ChunkRequest(
            file_id, index, owner, md5, total_chunks, file_size, relative_path, filename
        )
        return chunk_receiver.commit_chunk(
            self.layout, self.settings, self._quota, reception, wish
        )

    def merge(
        self,
        *,
        file_id: str,
        filename: str,
        total_chunks: int,
        owner: str | None,
        relative_path: str | None = None,
        expected_md5: str | None = None,
        is_shared: bool = False,
    ) -> MergeResult:
        """Publish the file; again: the same answer. ``relative_path``: folders below
        merged_dir.

        ``is_shared``: everybody may read it, not only its owner.
        """
        wish = MergeRequest(
            file_id,
            filename,
            total_chunks,
            owner,
            relative_path,
            expected_md5,
            is_shared=is_shared,
        )
        return self._merger.merge(wish)

    def status(self, file_id: str, owner: str | None) -> dict[str, Any]:
        """What ``/upload_status`` says, also of an unknown id."""
        with self.layout.read_owned(file_id, owner) as task:
            identity = task.identity()
            if identity is None or not identity.is_of(owner):
                return {**NOT_FOUND, "uploaded_chunks": []}
            return status_view(identity, task.record(), task.chunks())

    def task(self, file_id: str, owner: str | None) -> dict[str, Any]:
        """What ``/tasks/ID`` says."""
        with self.layout.read_owned(file_id, owner) as task:
            return detail_view(task.owned_identity(owner), task.record(), task.chunks())

    def tasks(
        self,
        owner: str | None,
        *,
        limit: int = MAX_PAGE,
        cursor: str = "",
        status: Iterable[str] = (),
    ) -> dict[str, Any]:
        """What ``/tasks`` says: at most ``limit`` tasks by id, from ``cursor`` on.
        ``status``: in these states only.

        ``total`` counts the tasks of all pages; ``next`` is the cursor of the next
        page, absent in the last one. A task that exists during all requests is in
        exactly one page.
        """
        wanted = frozenset(status) or frozenset(states.STATES)
        if not wanted <= set(states.STATES):
            raise UploadError(
                400, "bad_field", f"status is to be of {', '.join(states.STATES)}"
            )
        if not 1 <= limit <= MAX_PAGE:
            raise UploadError(400, "bad_field", f"limit is to be 1 to {MAX_PAGE}")
        after = read_cursor(cursor)
        page = self.listing.current().page(owner, wanted, after, limit)
        more = {"next": make_cursor(page.last_key)} if page.last_key else {}
        return {
            "tasks": [summary_view(one) for one in page.tasks],
            "total": page.total,
            **more,
        }

    def counts(self, owner: str | None, *, max_age_s: float = 0.0) -> TaskCounts:
        """Return what the tasks of the owner take, as it was at most ``max_age_s`` ago;
        None: those of all owners."""
        catalog = self.listing.current(max_age_s=max_age_s)
        return (
            TaskCounts.sum_of(catalog.counts().values())
            if owner is None
            else catalog.counts_of(owner)
        )

    def counts_by_state(self) -> dict[str, TaskCounts]:
        """Return what the tasks of all owners take, by state."""
        return self.listing.current().counts()

    def pause(self, file_id: str, owner: str | None) -> dict[str, Any]:
        """Take no chunks until ``resume``; what ``/tasks/ID`` says then."""
        return self._move(file_id, owner, states.PAUSED)

    def resume(self, file_id: str, owner: str | None) -> dict[str, Any]:
        """Take chunks again."""
        return self._move(file_id, owner, states.UPLOADING)

    def _move(self, file_id: str, owner: str | None, wanted: str) -> dict[str, Any]:
        with self.layout.lock_owned(file_id, owner) as task:
            identity = task.owned_identity(owner)
            record = recover(self.settings, task)
            was_paused = record.status == states.PAUSED
            record = task.save(
                record, status=states.check_transition(record.status, wanted)
            )
            if was_paused != (record.status == states.PAUSED):
                task.emit_event(RESUMED if was_paused else PAUSED, record, identity)
            return detail_view(identity, record, task.chunks())

    def delete(self, file_id: str, owner: str | None) -> None:
        """Remove a task and its chunks, not the merged file."""
        self._cleaner.delete(file_id, owner)

    def batch(
        self, action: str, file_ids: Sequence[str], owner: str | None
    ) -> list[dict[str, Any]]:
        """``pause``, ``resume`` or ``delete`` each; one result an id, by id."""
        verbs = {"pause": self.pause, "resume": self.resume, "delete": self.delete}
        if action not in verbs:
            raise UploadError(
                400,
                "bad_action",
                f"the action is {action[:40]!r}: it is to be pause, resume or delete",
            )
        return [
            self._one(verbs[action], file_id, owner)
            for file_id in sorted(set(file_ids))
        ]

    def _one(self, verb: Any, file_id: str, owner: str | None) -> dict[str, Any]:
        try:
            verb(file_id, owner)
        except UploadError as refusal:
            return {"id": file_id, "status": "error", **refusal.as_json()}
        return {"id": file_id, "status": "ok"}

    def cleanup(
        self,
        owner: str | None,
        status: Sequence[str] = (states.FAILED, states.PAUSED),
        older_than_days: float = 7,
    ) -> int:
        """Remove tasks in these states that nothing happened to for so many days; how
        many."""
        unknown = set(status) - set(states.STATES)
        if unknown or not (math.isfinite(older_than_days) and older_than_days >= 0):
            raise UploadError(
                400,
                "bad_cleanup",
                f"status is of {', '.join(states.STATES)}, older_than a number of days",
            )
        return self._cleaner.remove_old(
            owner, frozenset(status), older_than_days * DAY_S
        )

    def sweep(self) -> SweepResult:
        """Remove what the dead left and what has expired, end what they began."""
        self.layout.create_folders()
        swept = self._cleaner.sweep()
        self._owners.sweep(self.settings.merged_dir, time.time() - DAY_S)
        removed = swept.removed
        for summary in self.listing.rescan(
            patience_s=SWEEP_TIMEOUT_S
        ).summaries.values():
            if summary is not None and summary.is_unfinished:
                with suppress(UploadError):  # it may be of the other protocol, too
                    removed += self.concatenator.recover(summary.file_id)
                    self.tus.recover_idle(summary.file_id)
        return swept._replace(removed=removed)

    def open_merged(self, path: str, reader: str | None) -> int:
        """A descriptor, for reading, of the file at ``path`` below merged_dir; the
        caller closes it.

        A file that ``reader`` may not read is refused as one that is not there; None
        may read all.
        """
        with translate_os_errors("read the file"):
            descriptor = self._open_merged(path, reader)
            with released_on_error(descriptor):
                if reader is None or self._owners.read(descriptor, path).is_readable(
                    reader, self.settings.shared_files
                ):
                    return descriptor
                raise names.file_not_found(path)

    def _open_merged(self, path: str, reader: str | None) -> int:
        try:
            return names.open_file_below(self.settings.merged_dir, path)
        except UploadError:
            names.split_folders(
                path.rpartition("/")[0]
            )  # a path that could lead out is told to everybody
            if reader is None:
                raise
            raise names.file_not_found(
                path
            ) from None  # that a file is no folder tells that it is there
