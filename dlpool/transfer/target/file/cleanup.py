"""What a queue's job leaves beside its target, removed when the queue knows how it
ended."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from dlpool.errors import ForeignFile
from dlpool.transfer.target.file.partfile import PartFile
from dlpool.transfer.target.names import PART_SUFFIX
from dlpool.transfer.target.state import StateFile, StateUnusable, url_digest


def remove_published_state(target: Path, job_id: str) -> None:
    """Remove the state that says that ``target`` was published for a queue's job: the
    queue knows. Another's stays.

    Raises LocalFault.
    """
    state_file = StateFile.for_target(target, sync=False)
    with suppress(StateUnusable):
        saved = state_file.load()
        if (
            saved is not None
            and saved.publishing is not None
            and saved.publishing.job == job_id
        ):
            state_file.remove()


def remove_part_files(target: Path, url: str) -> None:
    """Remove the part file and state of a download of ``url`` that will not go on, as
    ``discard_digest`` does."""
    remove_part_files_by_digest(target, url_digest(url))


def remove_part_files_by_digest(target: Path, url_sha256: str) -> None:
    """Remove the part file and state of a download that will not go on, by
    ``url_digest``. What is another's stays.

    A part file without state holds nothing that a later run could use. Raises Locked
    while a download works on it, and LocalFault.
    """
    state_file = StateFile.for_target(target, sync=False)
    with suppress(StateUnusable):
        saved = state_file.load()
        if saved is not None and saved.url_sha256 != url_sha256:
            return
        if saved is None and not os.path.lexists(
            target.with_name(target.name + PART_SUFFIX)
        ):
            return
        with suppress(ForeignFile):
            _discard(PartFile(target, sync=False), state_file)


def _discard(part: PartFile, state_file: StateFile) -> None:
    try:
        if not state_file.exists or state_file.is_recognized():
            state_file.remove()
            part.discard()
        elif part.is_new:
            part.discard()
    finally:
        part.close()
