"""Remove part files and states that no later run needs, after a job has ended."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from dlpool.errors import ForeignFile
from dlpool.transfer.target.file.partfile import PartFile
from dlpool.transfer.target.file.statefile import StateFile
from dlpool.transfer.target.names import PART_SUFFIX
from dlpool.transfer.target.state import StateUnusable, url_digest


def remove_published_state(target: Path, job_id: str) -> None:
    """Remove the state that records that a job has published ``target``.

    The state of another job is not removed. Raises LocalFault.
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
    """Remove the part file and the state of a download that will not be resumed.

    ``url``: the URL of the download. See ``remove_part_files_by_digest``.
    """
    remove_part_files_by_digest(target, url_digest(url))


def remove_part_files_by_digest(target: Path, url_sha256: str) -> None:
    """Remove the part file and the state of a download that will not be resumed.

    ``url_sha256``: the ``url_digest`` of the download's URL. Files of a download of
    another URL, and files of other programs, are not removed. A part file of dlpool
    without a state is removed, because no later run could use it. Raises Locked while a
    download uses the part file, LocalFault.
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
