"""Chunks become one file: copied and hashed, whatever the kernel can and the chunks have become."""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dlpool.storage.disk import assembly
from dlpool.storage.disk.assembly import ChunkAssembly
from dlpool.storage.disk.backend import DiskBackend
from dlpool.storage.errors import UploadError
from dlpool.storage.values import StoredChunk
from tests.test_storage_merge import DATA, WHOLE, fails
from tests.uploads import md5, merge, refused, send_all, store_in, uploaded


@pytest.fixture
def store(tmp_path: Path) -> DiskBackend:
    return store_in(tmp_path)


@pytest.mark.parametrize("number", [0, errno.EXDEV, errno.ENOSYS, errno.EIO])
def test_chunks_are_copied_however_the_kernel_can(
    store: DiskBackend, monkeypatch: pytest.MonkeyPatch, number: int, tmp_path: Path
) -> None:
    data = [b"a" * 300_000, b"b" * 600_000, b""]
    send_all(store, data)
    if number:
        monkeypatch.setattr(os, "copy_file_range", fails(OSError(number, os.strerror(number))))
    if number == errno.EIO:
        with refused(507, "storage"):
            merge(store, 3)
        assert uploaded(store) == [0, 1, 2]
        return
    assert merge(store, 3).md5 == md5(b"".join(data))
    assert (tmp_path / "merged" / "file.bin").read_bytes() == b"".join(data)


@pytest.mark.parametrize("expected", [None, md5(WHOLE)])
def test_without_threads_the_bytes_are_hashed_one_after_the_other(
    store: DiskBackend, monkeypatch: pytest.MonkeyPatch, expected: str | None
) -> None:
    send_all(store, DATA)
    monkeypatch.setattr(ThreadPoolExecutor, "submit", fails(RuntimeError("can't start new thread")))
    assert merge(store, 3, expected_md5=expected).md5 == md5(WHOLE)


@pytest.mark.parametrize("when", ["hash", "copy"])
def test_a_chunk_that_is_cut_while_it_is_read_is_missing(
    store: DiskBackend, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    send_all(store, DATA)
    name = "readv" if when == "hash" else "copy_file_range"
    monkeypatch.setattr(os, name, lambda *_arguments: 0)
    with refused(400, "chunks_missing") as error:
        merge(store, 3)
    assert len(error.details["uploaded_chunks"]) < 3


@pytest.mark.parametrize("is_checked", [True, False])
@pytest.mark.parametrize("expected", [None, md5(WHOLE), "0" * 32])
@pytest.mark.parametrize("trusted_s", [0.0, assembly.TRUSTED_S])
def test_each_chunk_is_compared_with_its_own_md5_only_where_nothing_else_proves_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_checked: bool, expected: str | None, trusted_s: float
) -> None:
    monkeypatch.setattr(assembly, "TRUSTED_S", trusted_s)
    store = store_in(tmp_path, enable_integrity_check=is_checked)
    send_all(store, DATA)
    compared: list[int] = []
    is_right = ChunkAssembly._is_correct

    def note(assembly: ChunkAssembly, chunk: StoredChunk) -> bool:
        compared.append(chunk.index)
        return is_right(assembly, chunk)

    monkeypatch.setattr(ChunkAssembly, "_is_correct", note)
    try:
        merge(store, 3, expected_md5=expected)
    except UploadError:
        assert is_checked and expected == "0" * 32
    is_proven = expected == md5(WHOLE) or (trusted_s and expected is None)
    assert sorted(compared) == ([0, 1, 2] if is_checked and not is_proven else [])
