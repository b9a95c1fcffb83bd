"""The system calls that Python lacks, on real files."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from dlpool.freespace import reserve
from dlpool.syscalls import rename_noreplace, start_writeback
from tests.disks import needs_root, tmpfs

MIB = 1024 * 1024


@pytest.mark.parametrize("keep_size", [False, True])
def test_blocks_are_reserved(tmp_path: Path, keep_size: bool) -> None:
    with open(tmp_path / "file", "wb") as file:
        assert reserve(file.fileno(), MIB, 4 * MIB, keep_size=keep_size)
        status = os.fstat(file.fileno())
    assert status.st_size == (0 if keep_size else 5 * MIB)
    assert 4 * MIB <= status.st_blocks * 512 < 5 * MIB


def test_where_nothing_can_be_reserved_nothing_is() -> None:
    reading, writing = os.pipe()
    try:
        assert not reserve(writing, 0, MIB)
    finally:
        os.close(reading)
        os.close(writing)


def test_a_hint_to_write_changes_nothing_and_cannot_fail(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    with open(tmp_path / "file", "rb") as file:
        start_writeback(file.fileno(), 0, 3)
        start_writeback(file.fileno(), -1, 3)  # EINVAL
        assert file.read() == b"abc"
    reading, writing = os.pipe()
    start_writeback(writing, 0, 1)  # ESPIPE
    os.close(reading)
    os.close(writing)
    start_writeback(writing, 0, 1)  # EBADF


@needs_root
def test_a_full_disk_is_an_error(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk", "2m") as folder, open(folder / "file", "wb") as file:
        with pytest.raises(OSError, match="No space left") as raised:
            reserve(file.fileno(), 0, 4 * MIB, keep_size=True)
        assert raised.value.errno == errno.ENOSPC
        assert os.fstat(file.fileno()).st_blocks == 0


def test_a_rename_replaces_nothing(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("old")
    (tmp_path / "taken").write_text("taken")
    folder = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with pytest.raises(FileExistsError):
            rename_noreplace("old", "taken", folder)
        rename_noreplace("old", "free", folder)
        with pytest.raises(FileNotFoundError):
            rename_noreplace("old", "free too", folder)
    finally:
        os.close(folder)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"taken": "taken", "free": "old"}
