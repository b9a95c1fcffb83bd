"""The checks of ``dlpool doctor`` on the file system that receives downloads.

Most checks run the code of a real download in a temporary folder. The folder is removed
afterwards.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from dlpool import disk, disk_errors, freespace
from dlpool.cli.doctor_findings import FAILED, OK, WARNING, DoctorFinding
from dlpool.cli.doctor_machine import nearest
from dlpool.cli.units import size_text
from dlpool.config import Settings
from dlpool.errors import LocalFault, Locked
from dlpool.service.node.disk_guard import FileSystemSpace
from dlpool.syscalls import MIN_FALLOC_BYTES, rename_noreplace
from dlpool.transfer.target.file.partfile import PartFile


def check_file_system(
    settings: Settings, folder: Path | None = None
) -> Iterator[DoctorFinding]:
    """Test the file system of ``folder``, by default that of ``download_dir``."""
    advice = (
        "free space there, or set another download_dir in [paths]"
        if folder is None
        else "check the given path"
    )
    folder = nearest((folder or Path(settings.paths.download_dir)).absolute())
    try:
        with disk_errors.translated(f"use {folder}"):
            yield _space(folder, settings.supervisor.min_free)
        with disk_errors.translated(f"create a temporary folder in {folder}"):
            scratch = tempfile.TemporaryDirectory(
                prefix=".dlpool-doctor-", dir=folder, ignore_cleanup_errors=True
            )
        with scratch, disk_errors.translated(f"test {folder}"):
            yield from _download_like(
                Path(scratch.name) / "file", settings.transfer.preallocate
            )
            yield _folder_sync(Path(scratch.name))
            yield _exclusive_names(Path(scratch.name))
            yield _letter_case(Path(scratch.name))
    except LocalFault as error:
        yield DoctorFinding("file system", FAILED, str(error), advice)


def _space(folder: Path, min_free: int | None) -> DoctorFinding:
    space = freespace.space_of(folder)
    if space is None:
        return DoctorFinding(
            "free space",
            OK,
            f"the file system of {folder} does not report it: no limit is applied",
        )
    usage = FileSystemSpace(str(folder), space.size, space.free, 0)
    found = (
        f"{size_text(usage.free)} of {size_text(usage.size)} free on that of "
        f"{usage.folder}"
    )
    if not usage.is_low(min_free, was_low=False):
        return DoctorFinding("free space", OK, found)
    advice = "no job begins: free space, or lower min_free in [supervisor]"
    return DoctorFinding(
        "free space",
        FAILED,
        f"{found}; {size_text(usage.required_free(min_free))} must stay free",
        advice,
    )


def _download_like(target: Path, preallocate: str) -> Iterator[DoctorFinding]:
    """Perform the steps of a download with a test file; yield a finding for each.

    Raises LocalFault.
    """
    part = PartFile(target, sync=True)
    try:
        yield _lock(part, target)
        yield _mark(part)
        part.preallocate(MIN_FALLOC_BYTES, preallocate)
        has_blocks = part.is_preallocated or (
            preallocate == "auto" and part.locked_writer().reserve(0, MIN_FALLOC_BYTES)
        )
        yield _preallocation(preallocate, has_blocks=has_blocks)
        began = time.monotonic()
        part.locked_writer().write(0, memoryview(bytes(MIN_FALLOC_BYTES)))
        part.sync_data()
        yield DoctorFinding(
            "sync",
            OK,
            f"{size_text(MIN_FALLOC_BYTES)} on disk in "
            f"{(time.monotonic() - began) * 1000:.0f} ms",
        )
        part.publish(overwrite=True)
        yield DoctorFinding("rename", OK, "atomic")
    finally:
        part.close()


def _lock(part: PartFile, target: Path) -> DoctorFinding:
    """Check that a locked part file cannot be locked a second time."""
    try:
        PartFile(target, sync=False).close()
    except Locked:
        if part.has_lock_file:
            advice = (
                "nothing to do; with several hosts, the target of a host that has "
                "crashed is free after a minute"
            )
            return DoctorFinding(
                "lock",
                WARNING,
                "flock(2) does not lock here: lock files are used instead",
                advice,
            )
        return DoctorFinding("lock", OK, "flock(2) excludes a second writer")
    return DoctorFinding(
        "lock",
        FAILED,
        "a second writer gets the lock",
        "move the folder to a file system with working locks",
    )


def _mark(part: PartFile) -> DoctorFinding:
    if part.is_marked:
        return DoctorFinding(
            "marks", OK, "part files of dlpool are recognised by an extended attribute"
        )
    return DoctorFinding(
        "marks",
        OK,
        "no extended attributes: part files of dlpool are recognised by their state "
        "file",
    )


def _preallocation(how: str, *, has_blocks: bool) -> DoctorFinding:
    if has_blocks:
        return DoctorFinding("preallocation", OK, "blocks are reserved")
    if how in ("truncate", "none"):
        return DoctorFinding("preallocation", OK, f"disabled: preallocate = {how}")
    advice = "nothing is lost, but a full disk is detected only during the download"
    return DoctorFinding(
        "preallocation", WARNING, "the file system cannot reserve blocks", advice
    )


def _folder_sync(folder: Path) -> DoctorFinding:
    if disk.sync_folder(folder):
        return DoctorFinding("folder sync", OK, "names are durable")
    advice = (
        "after a power failure a complete file may have the name of its part file: "
        "fetch it again"
    )
    return DoctorFinding(
        "folder sync", WARNING, "the file system cannot sync folders", advice
    )


def _exclusive_names(folder: Path) -> DoctorFinding:
    """Check how a file can be renamed without replacing an existing file.

    Uploads and the setting ``if_exists`` need such a rename.
    """
    first, second = folder / "first", folder / "second"
    first.write_bytes(b"")
    for attempt, how in ((rename_noreplace, "renameat2(2)"), (os.link, "hard links")):
        try:
            attempt(first, second)
        except OSError as error:
            if (
                error.errno
                not in disk_errors.CANNOT_RENAME_NOREPLACE | disk_errors.CANNOT_LINK
            ):
                raise
            continue
        return DoctorFinding(
            "exclusive names", OK, f"by {how}: no existing file can be replaced"
        )
    advice = "do not let other programs write the same names"
    found = (
        "neither renameat2(2) with RENAME_NOREPLACE nor hard links: only dlpool's "
        "processes exclude each other"
    )
    return DoctorFinding("exclusive names", WARNING, found, advice)


def _letter_case(folder: Path) -> DoctorFinding:
    (folder / "letter-case").write_bytes(b"")
    if not disk.exists(folder / "LETTER-CASE"):
        return DoctorFinding(
            "letter case", OK, "names that differ in case are different files"
        )
    advice = "two targets of a list that differ only in case collide and are refused"
    return DoctorFinding(
        "letter case", WARNING, "names that differ in case are one file", advice
    )
