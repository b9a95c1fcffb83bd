"""Where a file goes: its target, part file and state, opened together and ended
together.

The order of writes, and what a run that begins after a kill sees:

===========================================  =======================================================================
killed after                                 the next run finds
===========================================  =======================================================================
data written, not synced                     the last committed state; fetches again what came after it
data synced, state not committed             the same
state committed                              goes on from there
state committed with ``publishing``          the part file complete: publishes it
part renamed to target                       the target with the inode that ``publishing`` names: nothing to do
state removed                                a finished download
===========================================  =======================================================================
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime, timezone
from itertools import chain
from pathlib import Path

from dlpool import disk
from dlpool.disk import translated
from dlpool.errors import DlpoolError, ForeignFile, LocalFault, Locked, TargetExists
from dlpool.transfer.http.headers import http_date
from dlpool.transfer.http.remote_resource import RemoteResource
from dlpool.transfer.job import Job, Notify
from dlpool.transfer.scheduler import ChunkSnapshot
from dlpool.transfer.target.file.partfile import PartFile
from dlpool.transfer.target.file.publishmark import has_mark
from dlpool.transfer.target.file.targetpath import resolve_target
from dlpool.transfer.target.names import MAX_NUMBERED_NAMES, PART_SUFFIX, numbered_paths
from dlpool.transfer.target.state import (
    PublishRecord,
    SavedState,
    StateFile,
    StateUnusable,
    url_digest,
    url_without_secrets,
)


class TargetPresent(Exception):
    """Nothing is to be fetched: the target is there. ``is_published``: by an earlier
    run of this download."""

    def __init__(self, path: Path, *, is_published: bool) -> None:
        super().__init__(str(path))
        self.path = path
        self.is_published = is_published


class FileOutput:
    """The local side of one download. Used by one thread at a time."""

    def __init__(
        self,
        job: Job,
        target: Path,
        *,
        if_exists: str,
        resume: bool,
        sync: bool,
        notify: Notify,
        admit: Callable[[Path], None] = lambda _: None,
    ) -> None:
        """Choose and lock the output. ``admit`` is called for each name that is tried,
        and may refuse it.

        Raises TargetPresent, TargetExists, ForeignFile, Locked, PolicyRefused,
        LocalFault, or what ``admit`` raises.
        """
        self._job = job
        self._if_exists = if_exists
        self._resume = resume
        self._sync = sync
        self._notify = notify
        self._admit = admit
        given, exists = resolve_target(target)
        self.target, self.part = (
            self._first_free(given)
            if if_exists == "rename"
            else self._opened(given, exists)
        )
        self._is_published = False
        self.has_failed = False  # a sync or commit failed
        # the saved bytes are from another query or user of the same URL
        self.has_other_query = False
        # of the saved bytes, where no validator can prove the version
        self.unverifiable: RemoteResource | None = None
        self._resource: RemoteResource | None = None
        self._state: SavedState | None = None
        try:
            self._state_file = StateFile.for_target(
                self.target, sync=sync, notify=notify
            )
            self._check_state_ours()
            if (
                self._state_file.exists or not self.part.was_empty
            ) and self._state_file.has_stale_temporary:
                self._state_file.remove_stale_temporary()
            self.saved = self._load() if resume and not self.part.was_expired else None
            if self.saved is None and self.unverifiable is None:
                self._empty()
            if exists and self._keeps_permissions:
                self.part.copy_permissions()
        except BaseException:
            self._abandon(self.part)
            raise

    def __repr__(self) -> str:
        return f"<Place {self.target}{' resumable' if self.saved else ''}>"

    def restart(self, reason: str) -> None:
        """Forget all bytes; the state goes first, so that it never speaks of a part
        file that is not its own."""
        self._notify("download_restarted", reason=reason, path=str(self.target))
        self.part.check_ownership()
        self._forget_state()
        self.part.restart()
        if self._keeps_permissions:
            self.part.copy_permissions()
        self.saved = self._state = self.unverifiable = None

    def drop_unverifiable(self) -> None:
        """Forget what the part file holds where it could not be used, now that there is
        an answer to replace it."""
        if self.unverifiable is not None:
            self._empty()
            self.unverifiable = None

    def enable_checkpoints(self, resource: RemoteResource) -> None:
        """Let checkpoints be committed, for a remote that can be fetched in ranges."""
        self._resource = resource

    def checkpoint(
        self, snapshot: ChunkSnapshot, last_error: DlpoolError | None = None
    ) -> None:
        """Make the snapshot's bytes durable, then say so in the state; in this
        order.

        After one failure there is no other try: the kernel may have dropped the pages
        that it could not write.
        """
        with self._noting_breakage():
            self.part.sync_data()
            self._commit(snapshot, last_error, None)

    def prepare(self, resource: RemoteResource, *, remote_time: bool) -> None:
        """Make the complete part file durable, before it is published. No thread may
        write to it afterwards."""
        modified = http_date(resource.last_modified) if remote_time else None
        with self._noting_breakage():
            self.part.close_writers()
            if self._keeps_permissions:
                self.part.copy_permissions()
            if modified is not None:
                self.part.set_modified(modified.timestamp())
            self.part.sync_data()
            self.part.report_delayed_errors()

    def publish(self, resource: RemoteResource, snapshot: ChunkSnapshot) -> None:
        """Rename what was prepared to the target, and forget the state.

        ``publishing`` is recorded first where a state is on disk, so that a kill behind
        the rename costs no byte. For a queue's job it is always: as a mark of the file,
        or in a state that stays until ``forget_published``.
        """
        job = self._job
        with self._noting_breakage():
            if self._state_file.holds_progress:
                self._commit(snapshot, None, self._publishing())
            elif job.id is not None and not self.part.mark_published(job):
                self.part.check_ownership()
                state = SavedState.for_published(
                    job, resource, self._publishing(), _now()
                )
                self._state_file.commit(state, is_durable=False)
        self._rename()
        self._is_published = True
        if job.id is None or self._state_file.is_placeholder:
            self._state_file.remove_published()

    @property
    def has_state(self) -> bool:
        """Whether a state is on disk."""
        return self._state_file.exists

    def close(self) -> None:
        """Release the lock. Remove a part file without usable bytes first, while the
        lock is held.

        Raises nothing, so that the error that ended the download stays the one that is
        reported.
        """
        try:
            if not self._is_published and not self._state_file.holds_progress:
                with suppress(LocalFault):
                    self.part.discard()
                    self._state_file.remove_placeholder()
        finally:
            self.part.close()

    def discard(self) -> None:
        """Remove state and part file: what they hold is wrong."""
        if self.part.is_named():
            self._forget_state()

    @property
    def _keeps_permissions(self) -> bool:
        return self._if_exists == "overwrite"

    def _abandon(self, part: PartFile) -> None:
        """Release the lock after a failed opening, and remove a part file that was
        created for it."""
        try:
            if part.is_new:
                with suppress(LocalFault):
                    part.discard()
        finally:
            part.close()

    def _check_state_ours(self) -> None:
        """Raise ForeignFile if a file of another program has the name of the state
        file."""
        is_ours = self.part.is_marked and not self.part.is_new
        if (
            self._state_file.exists
            and not is_ours
            and not self._state_file.is_recognized()
        ):
            raise ForeignFile(
                f"{self._state_file.path} was not made by dlpool: move it away, or "
                f"choose another name for the download"
            )

    def _forget_state(self) -> None:
        """Remove the state; leave a placeholder if the part file has no mark."""
        if self.part.is_marked:
            self._state_file.remove()
        else:
            self._state_file.reset()

    @contextmanager
    def _noting_breakage(self) -> Iterator[None]:
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
            self._check_part(saved)
            self.has_other_query = saved.url_sha256 != url_digest(self._job.url)
            return saved
        except StateUnusable as error:
            self._notify("state_unusable", reason=str(error), path=str(self.target))
            return None

    def _check_part(self, saved: SavedState) -> None:
        length = self.part.length
        if saved.publishing is not None and not self._is_complete(saved.publishing):
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

    def _chosen(self, target: Path) -> Path:
        """The name to publish under, by ``if_exists``; raises TargetPresent for what an
        earlier run had published."""
        self._check_unpublished(target)
        if self._if_exists == "overwrite" or not _is_there(target):
            return target
        if self._if_exists == "skip":
            raise TargetPresent(target, is_published=False)
        if self._if_exists == "fail":
            raise TargetExists(f"{target} exists already")
        return next(self._unused(target))

    def _unused(self, target: Path) -> Iterator[Path]:
        """Return the unused names of the series of ``target``. Raises TargetPresent
        like ``_chosen``."""
        for other in numbered_paths(target):
            self._check_unpublished(other)
            if other != target:
                self._check_unpublished(other, part_of=target)
            if not _is_there(other):
                yield other
        raise TargetExists(
            f"{target} exists already, and so do {MAX_NUMBERED_NAMES} other names for "
            f"it"
        )

    def _opened(self, target: Path, exists: bool) -> tuple[Path, PartFile]:
        """Lock the requested name."""
        self._admit(target)
        chosen = self._chosen(target) if exists else target
        return chosen, PartFile(chosen, sync=self._sync, notify=self._notify)

    def _first_free(self, target: Path) -> tuple[Path, PartFile]:
        """Lock the first name of the series that no file, download or program uses; the
        lock reserves it.

        The part file that an earlier run left for the same URL is preferred, and that
        of another URL is left alone.
        """
        begun: list[Path] = []
        unused = self._unused(target)
        for free in unused:
            if not _is_there(free.with_name(free.name + PART_SUFFIX)):
                break
            begun.append(free)
        ours = [other for other in begun if self._is_of_url(other)]
        rest = [
            other
            for other in begun
            if other not in ours and not self._is_of_other_url(other)
        ]
        candidates = chain(ours, rest, [free], unused)  # which ends with an error
        other = next(candidates)
        while (part := self._locked(other)) is None:
            other = next(candidates)
        return other, part

    def _locked(self, target: Path) -> PartFile | None:
        """Return the locked part file of an unused name, None if another download has
        taken the name meanwhile."""
        try:
            self._admit(target)
            part = PartFile(target, sync=self._sync, notify=self._notify)
        except (TargetExists, Locked, ForeignFile):
            return None
        is_free = False
        try:
            # it may have been published before we had the lock
            is_free = not _is_there(target)
        finally:
            if not is_free:
                self._abandon(part)
        return part if is_free else None

    def _is_of_url(self, target: Path) -> bool:
        saved = self._state_of(target)
        return saved is not None and saved.url_sha256 == url_digest(self._job.url)

    def _is_of_other_url(self, target: Path) -> bool:
        saved = self._state_of(target)
        return saved is not None and saved.url != url_without_secrets(self._job.url)

    def _state_of(self, target: Path) -> SavedState | None:
        with suppress(StateUnusable):
            return StateFile.for_target(target, sync=False).load()
        return None

    def _check_unpublished(self, target: Path, part_of: Path | None = None) -> None:
        """Finish what a run left that was killed between its rename to ``target`` and
        the end.

        ``part_of``: whose part file it was, where the target was renamed because that
        name was taken meanwhile.
        """
        if not self._resume:
            return
        if has_mark(target, self._job):
            raise TargetPresent(target, is_published=True)
        state_file = StateFile.for_target(part_of or target, sync=self._sync)
        if not state_file.exists:
            return
        with (
            suppress(StateUnusable),
            translated(f"look at {target}"),
            suppress(FileNotFoundError),
        ):
            saved, status = state_file.load(), os.stat(target)
            if saved is None or not self._is_ours(saved, status):
                return
            part = (part_of or target).with_name((part_of or target).name + PART_SUFFIX)
            if disk.is_name_of(part, disk.identity_of(status)):
                disk.remove(part)
            if self._sync:
                disk.sync_folder(target.parent)
            if self._job.id is None:
                state_file.remove_published()
            raise TargetPresent(target, is_published=True)

    def _is_ours(self, saved: SavedState, status: os.stat_result) -> bool:
        """Whether the target of that status is what an earlier run of the same job
        published."""
        record, job = saved.publishing, self._job
        if record is None or saved.url_sha256 != url_digest(job.url):
            return False
        is_of_claim = job.id is None or (
            bool(job.claim)
            and saved.checksum == (str(job.checksum) if job.checksum else None)
        )
        wanted = (status.st_ino, status.st_size, job.id, job.claim)
        return (
            is_of_claim
            and (record.inode, record.size, record.job, record.claim) == wanted
        )

    def _publishing(self) -> PublishRecord:
        return PublishRecord(
            self.part.inode,
            self.part.length,
            self._job.id,
            self._job.fence,
            self._job.claim,
        )

    def _is_complete(self, publishing: PublishRecord) -> bool:
        """Whether the part file is the one that an earlier run was about to rename."""
        return (self.part.inode, self.part.length) == (
            publishing.inode,
            publishing.size,
        )

    def _empty(self) -> None:
        self._forget_state()
        if self.part.was_expired:  # its earlier holder may still write to it
            self.part.restart()
        elif not self.part.was_empty:
            self.part.truncate()

    def _commit(
        self,
        snapshot: ChunkSnapshot,
        error: DlpoolError | None,
        publishing: PublishRecord | None,
    ) -> None:
        self.part.check_ownership()  # the state beside it would be another's
        state = self._state or self._first_state()
        last_error = f"{error.label}: {error}" if error else None
        self._state = replace(
            state.with_chunks(snapshot.chunks, _now(), last_error),
            publishing=publishing,
        )
        self._state_file.commit(self._state)

    def _first_state(self) -> SavedState:
        """The state of the earlier run, or a new one; made late, as most files need
        none."""
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
                self.part.publish(overwrite=self._if_exists == "overwrite")
                return
            except TargetExists:
                if self._if_exists == "skip":
                    self.discard()
                    raise TargetPresent(self.target, is_published=False) from None
                if self._if_exists != "rename":
                    raise
                self.target = self._chosen(self.target)
                self.part.retarget(self.target)


def _is_there(target: Path) -> bool:
    """Return whether the name exists. Raises LocalFault."""
    with translated(f"look at {target}"):
        return disk.exists(target)


def _now() -> str:
    return (
        datetime.now(timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")
    )
