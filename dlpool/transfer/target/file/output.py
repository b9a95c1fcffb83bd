"""Keep the output of a download on a file system: target, part file and state file.

The steps of a download, and what the next run does if the process is killed after a
step:

1. The data is written: the next run resumes from the last committed state and fetches
   later bytes again.
2. The data is synced: the same as after 1.
3. The state is committed: the next run resumes from this state.
4. The state is committed with ``publishing`` (see ``publish`` for downloads without a
   state): the next run finds the part file complete and publishes it.
5. The part file is renamed to the target: the next run recognizes the target by the
   inode in ``publishing``.
6. The state is removed; for a queue's job, only after the queue has recorded the
   result: the next run finds a finished download.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

from dlpool.errors import DlpoolError, ForeignFile, LocalFault, TargetExists
from dlpool.scan.scannedfile import ScannedFile
from dlpool.transfer.http.headers import http_date
from dlpool.transfer.http.remote_resource import RemoteResource
from dlpool.transfer.job import Job, Notify
from dlpool.transfer.scheduler import ChunkSnapshot
from dlpool.transfer.space_rules import SpaceRules
from dlpool.transfer.target.file.partwriter import PartWriter
from dlpool.transfer.target.file.selection import PathSelection, abandon
from dlpool.transfer.target.file.statefile import StateFile
from dlpool.transfer.target.file.targetpath import resolve_target, target_present
from dlpool.transfer.target.protocol import TargetOptions
from dlpool.transfer.target.state import (
    PublishRecord,
    SavedState,
    StateUnusable,
    url_digest,
    url_without_secrets,
)


class FileOutput:
    """A ``Target`` on a file system.

    Only one thread at a time uses it; other threads use its writers and readers.
    """

    def __init__(
        self,
        job: Job,
        target: Path,
        options: TargetOptions,
        *,
        notify: Notify,
        check_target: Callable[[Path], None] = lambda _: None,
    ) -> None:
        """Choose and lock the output.

        Calls ``check_target`` with each path that it tries; ``check_target`` raises an
        error to refuse the path.

        Raises TargetPresent, TargetExists, ForeignFile, Locked, PolicyRefused,
        LocalFault, and what ``check_target`` raises.
        """
        self._job = job
        self._options = options
        self._notify = notify
        self._selection = PathSelection(job, options, notify, check_target)
        requested, exists = resolve_target(target)
        self.path, self.part = self._selection.open(requested, exists=exists)
        self.has_failed = False
        self.has_other_query = False
        self.unverifiable: RemoteResource | None = None
        self._is_published = False
        self._resource: RemoteResource | None = None
        self._state: SavedState | None = None
        try:
            self._state_file = StateFile.for_target(
                self.path, sync=options.sync, notify=notify
            )
            self._check_state_file()
            if (
                self._state_file.exists or not self.part.was_empty
            ) and self._state_file.has_stale_temporary:
                self._state_file.remove_stale_temporary()
            self.saved: SavedState | None = (
                self._load() if options.resume and not self.part.was_expired else None
            )
            if self.saved is None and self.unverifiable is None:
                self._drop_bytes()
            if exists and self._copies_permissions:
                self.part.copy_permissions()
        except BaseException:
            abandon(self.part)
            raise

    def __repr__(self) -> str:
        return f"<FileOutput {self.path}{' resumable' if self.saved else ''}>"

    @property
    def has_state(self) -> bool:
        return self._state_file.exists

    @property
    def is_preallocated(self) -> bool:
        return self.part.is_preallocated

    @property
    def length(self) -> int:
        return self.part.length

    def restart(self, reason: str) -> None:
        """Drop all bytes: first the state, then the part file.

        This order ensures that a state on disk always describes the present part file.
        """
        self._notify("download_restarted", reason=reason, path=str(self.path))
        self.part.check_ownership()
        self._drop_state()
        self.part.restart()
        if self._copies_permissions:
            self.part.copy_permissions()
        self.saved = self._state = self.unverifiable = None

    def drop_unverifiable(self) -> None:
        """Drop the saved bytes if nothing can prove their version."""
        if self.unverifiable is not None:
            self._drop_bytes()
            self.unverifiable = None

    def enable_checkpoints(self, resource: RemoteResource) -> None:
        """Allow checkpoints, because ``resource`` can be fetched in ranges."""
        self._resource = resource

    def preallocate(self, size: int, mode: str, rules: SpaceRules) -> None:
        """Check that the file fits, and preallocate it; see ``PartFile.preallocate``.

        Raises TooLarge, NoRoom, LocalFault.
        """
        self.part.preallocate(size, mode, rules)

    def writer(self) -> PartWriter:
        """Return a writer with its own descriptor. Raises LocalFault."""
        return self.part.writer()

    def main_writer(self) -> PartWriter:
        """Return a writer with the locked descriptor, for the download's own thread."""
        return self.part.locked_writer()

    def reader(self) -> PartWriter:
        """Return a reader with its own descriptor. Raises LocalFault."""
        return self.part.writer()

    def checkpoint(
        self, snapshot: ChunkSnapshot, last_error: DlpoolError | None = None
    ) -> None:
        """Sync the data, then commit the state, in this order.

        After a failure no other checkpoint may be tried: the kernel may have dropped
        the pages that it could not write.
        """
        with self._recording_failure():
            self.part.sync_data()
            self._commit(snapshot, last_error, None)

    def prepare(self, resource: RemoteResource, *, remote_time: bool) -> None:
        """Make the complete part file durable. No thread may write to it afterwards."""
        modified = http_date(resource.last_modified) if remote_time else None
        with self._recording_failure():
            self.part.close_writers()
            if self._copies_permissions:
                self.part.copy_permissions()
            if modified is not None:
                self.part.set_modified(modified.timestamp())
            self.part.sync_data()
            self.part.report_delayed_errors()

    def scanned_file(self) -> ScannedFile:
        """Return the part file for a malware scan. Raises LocalFault."""
        return self.part.as_scanned_file()

    def publish(self, resource: RemoteResource, snapshot: ChunkSnapshot) -> None:
        """Rename the prepared part file to the target.

        First writes a record, by which the next run recognizes the target after a kill:
        into the state if one is on disk; else, for a queue's job, into an extended
        attribute or a new state. Finally removes the state, except that of a queue's
        job: ``remove_published_state`` removes it when the queue knows the result.
        """
        job = self._job
        with self._recording_failure():
            if self._state_file.holds_progress:
                self._commit(snapshot, None, self._publish_record())
            elif job.id is not None and not self.part.mark_published(job):
                self.part.check_ownership()
                state = SavedState.for_published(
                    job, resource, self._publish_record(), _now()
                )
                self._state_file.commit(state, is_durable=False)
        self._rename()
        self._is_published = True
        if job.id is None or self._state_file.is_placeholder:
            self._state_file.remove_published()

    def discard(self) -> None:
        """Remove the state of wrong bytes; a later ``close`` removes the part file."""
        if self.part.is_named():
            self._drop_state()

    def close(self) -> None:
        """Remove the part file if it has no usable bytes, then release the lock.

        Raises nothing, so that the caller reports the error that ended the download.
        """
        try:
            if not self._is_published and not self._state_file.holds_progress:
                with suppress(LocalFault):
                    self.part.discard()
                    self._state_file.remove_placeholder()
        finally:
            self.part.close()

    @property
    def _copies_permissions(self) -> bool:
        return self._options.if_exists == "overwrite"

    def _check_state_file(self) -> None:
        """Raise ForeignFile if another program has written the state file."""
        is_recognized = self.part.is_marked and not self.part.is_new
        if (
            self._state_file.exists
            and not is_recognized
            and not self._state_file.is_recognized()
        ):
            raise ForeignFile(
                f"{self._state_file.path} was not made by dlpool: move it away, or "
                "choose another name for the download"
            )

    def _drop_state(self) -> None:
        """Remove the state; leave a placeholder if the part file has no mark."""
        if self.part.is_marked:
            self._state_file.remove()
        else:
            self._state_file.reset()

    def _drop_bytes(self) -> None:
        self._drop_state()
        if self.part.was_expired:  # its earlier holder may still write to it
            self.part.restart()
        elif not self.part.was_empty:
            self.part.truncate()

    @contextmanager
    def _recording_failure(self) -> Iterator[None]:
        try:
            yield
        except LocalFault:
            self.has_failed = True
            raise

    def _load(self) -> SavedState | None:
        try:
            saved = self._state_file.load()
            if saved is None:
                return None
            if saved.url != url_without_secrets(self._job.url):
                raise StateUnusable("it is of another URL")
            self._check_saved(saved)
            self.has_other_query = saved.url_sha256 != url_digest(self._job.url)
            return saved
        except StateUnusable as error:
            self._notify("state_unusable", reason=str(error), path=str(self.path))
            return None

    def _check_saved(self, saved: SavedState) -> None:
        """Raise StateUnusable if the saved bytes cannot be used.

        They cannot be used if the state does not match the part file, or if nothing can
        prove their version: no validator, no digest and no checksum of the job.
        """
        length = self.part.length
        if saved.publishing is not None and not self._is_recorded(saved.publishing):
            raise StateUnusable(
                "the part file is not the one that was about to be published"
            )
        if length > saved.size:
            raise StateUnusable("the part file is longer than the file")
        if length < max(
            (chunk.position for chunk in saved.chunks if chunk.position > chunk.start),
            default=0,
        ):
            raise StateUnusable("the part file is shorter than it says")
        if not (saved.resource.has_validator or saved.digest or self._job.checksum):
            self.unverifiable = saved.resource
            raise StateUnusable(
                "the server gave no validator that could show that the file is the same"
            )

    def _publish_record(self) -> PublishRecord:
        return PublishRecord(
            self.part.inode,
            self.part.length,
            self._job.id,
            self._job.fence,
            self._job.claim,
        )

    def _is_recorded(self, record: PublishRecord) -> bool:
        """Return whether ``record`` has the inode and the size of this part file."""
        return (self.part.inode, self.part.length) == (record.inode, record.size)

    def _commit(
        self,
        snapshot: ChunkSnapshot,
        error: DlpoolError | None,
        record: PublishRecord | None,
    ) -> None:
        self.part.check_ownership()  # otherwise the state file is another download's
        state = self._state or self._first_state()
        last_error = f"{error.label}: {error}" if error else None
        self._state = replace(
            state.with_chunks(snapshot.chunks, _now(), last_error), publishing=record
        )
        self._state_file.commit(self._state)

    def _first_state(self) -> SavedState:
        """Return the state of the earlier run, or a new state if there is none.

        Called only at the first commit, because most files need no state.
        """
        assert self._resource is not None
        state = self.saved or SavedState.initial(self._job, self._resource, _now())
        checksum = str(self._job.checksum) if self._job.checksum else None
        return replace(
            state,
            attempts=state.attempts + 1,
            url_sha256=url_digest(self._job.url),
            checksum=checksum,
        )

    def _rename(self) -> None:
        while True:
            try:
                self.part.publish(overwrite=self._options.if_exists == "overwrite")
                return
            except TargetExists:
                if self._options.if_exists == "skip":
                    self.discard()
                    raise target_present(self.path, is_published=False) from None
                if self._options.if_exists != "rename":
                    raise
                self.path = self._selection.choose(self.path)
                self.part.retarget(self.path)


def _now() -> str:
    return (
        datetime.now(timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")
    )
