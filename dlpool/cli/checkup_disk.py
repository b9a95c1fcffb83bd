"""The checks of ``dlpool doctor`` on the file system of a folder: which of dlpool's guarantees hold there.

Each check uses the code of a real download, in a temporary folder that is removed.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from dlpool import disk
from dlpool.cli.checkup import nearest
from dlpool.cli.findings import FAILED, OK, WARNING, Finding
from dlpool.cli.tables import size_text
from dlpool.config import Settings
from dlpool.errors import LocalFault, Locked
from dlpool.service.node.space import Room
from dlpool.syscalls import LEAST_FALLOC, rename_noreplace
from dlpool.transfer.partfile import PartFile


def check_file_system(settings: Settings, folder: Path | None = None) -> Iterator[Finding]:
    """Test the operations of a download on the file system of ``folder``, by default of ``download_dir``."""
    advice = "free space there, or set another download_dir in [paths]" if folder is None else "see the path given"
    folder = nearest((folder or Path(settings.paths.download_dir)).absolute())
    try:
        with disk.translated(f"use {folder}"):
            yield _space(folder, settings.supervisor.min_free)
        with disk.translated(f"make a temporary folder in {folder}"):
            scratch = tempfile.TemporaryDirectory(prefix=".dlpool-doctor-", dir=folder, ignore_cleanup_errors=True)
        with scratch, disk.translated(f"try out {folder}"):
            yield from _download_like(Path(scratch.name) / "file", settings.transfer.preallocate)
            yield _folder_sync(Path(scratch.name))
            yield _exclusive_names(Path(scratch.name))
            yield _letter_case(Path(scratch.name))
    except LocalFault as error:
        yield Finding("file system", FAILED, str(error), advice)


def _space(folder: Path, min_free: int | None) -> Finding:
    space = disk.space_of(folder)
    if space is None:
        return Finding("free space", OK, f"the file system of {folder} does not tell it: no limit is applied")
    room = Room(str(folder), space.size, space.free, 0)
    found = f"{size_text(room.free)} of {size_text(room.size)} free on that of {room.folder}"
    if not room.is_low(min_free, was_low=False):
        return Finding("free space", OK, found)
    advice = "no job begins: free space, or lower min_free in [supervisor]"
    return Finding("free space", FAILED, f"{found}; {size_text(room.least(min_free))} must stay free", advice)


def _download_like(target: Path, preallocate: str) -> Iterator[Finding]:
    """Perform the steps of a download with a test file. Raises LocalFault."""
    part = PartFile(target, sync=True)
    try:
        yield _lock(part, target)
        yield _mark(part)
        part.preallocate(LEAST_FALLOC, preallocate)
        has_blocks = part.has_blocks or (preallocate == "auto" and part.own_writer().reserve(0, LEAST_FALLOC))
        yield _preallocation(preallocate, has_blocks=has_blocks)
        began = time.monotonic()
        part.own_writer().write(0, memoryview(bytes(LEAST_FALLOC)))
        part.sync_data()
        yield Finding("sync", OK, f"{size_text(LEAST_FALLOC)} on disk in {(time.monotonic() - began) * 1000:.0f} ms")
        part.publish(overwrite=True)
        yield Finding("rename", OK, "in one step")
    finally:
        part.close()


def _lock(part: PartFile, target: Path) -> Finding:
    """Check that a second lock of a locked file is refused."""
    try:
        PartFile(target, sync=False).close()
    except Locked:
        if part.has_lock_file:
            advice = "nothing here; on several hosts a target whose host has died is free again after a minute"
            return Finding("lock", WARNING, "flock(2) does not lock here: lock files are used instead", advice)
        return Finding("lock", OK, "flock(2) keeps a second writer out")
    return Finding("lock", FAILED, "a second writer is let in", "put the folder on a file system that can be locked")


def _mark(part: PartFile) -> Finding:
    if part.is_marked:
        return Finding("marks", OK, "part files of dlpool are known by an extended attribute")
    return Finding("marks", OK, "no extended attributes: part files of dlpool are known by the state file beside them")


def _preallocation(how: str, *, has_blocks: bool) -> Finding:
    if has_blocks:
        return Finding("preallocation", OK, "blocks are reserved")
    if how in ("truncate", "none"):
        return Finding("preallocation", OK, f"not wanted: preallocate = {how}")
    advice = "nothing is lost by it, but a full disk shows only in mid-download"
    return Finding("preallocation", WARNING, "the file system cannot reserve blocks", advice)


def _folder_sync(folder: Path) -> Finding:
    if disk.sync_folder(folder):
        return Finding("folder sync", OK, "names are made durable")
    advice = "after a power failure a published file may be under the name of its part file: fetch it again"
    return Finding("folder sync", WARNING, "the file system cannot sync folders", advice)


def _exclusive_names(folder: Path) -> Finding:
    """Check how a file is renamed without replacing another, which ``if_exists`` and uploads need."""
    first, second = folder / "first", folder / "second"
    first.write_bytes(b"")
    for attempt, how in ((rename_noreplace, "renameat2(2)"), (os.link, "hard links")):
        try:
            attempt(first, second)
        except OSError as error:
            if error.errno not in disk.CANNOT_RENAME_NOREPLACE | disk.CANNOT_LINK:
                raise
            continue
        return Finding("exclusive names", OK, f"by {how}: no existing file can be replaced")
    advice = "do not let other programs write the same names"
    found = "neither renameat2(2) with RENAME_NOREPLACE nor hard links: only dlpool's processes wait for each other"
    return Finding("exclusive names", WARNING, found, advice)


def _letter_case(folder: Path) -> Finding:
    (folder / "letter-case").write_bytes(b"")
    if not disk.exists(folder / "LETTER-CASE"):
        return Finding("letter case", OK, "names that differ in case are different files")
    advice = "two targets of a list that differ in case only are a collision, which is refused"
    return Finding("letter case", WARNING, "names that differ in case are one file", advice)
