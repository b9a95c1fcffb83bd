"""The store on file systems without hard links, flags of a rename, figures of their size, or stable inode numbers."""

from __future__ import annotations

import errno
import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests

from dlpool import disk_errors
from dlpool.storage.disk import capacity
from dlpool.storage.disk.merge_output import open_merge_output
from dlpool.storage.disk.os_errors import upload_error_of as translated
from dlpool.storage.disk.task_record import PendingPublish
from dlpool.web import monitoring
from dlpool.web.errors import http_error
from tests.disks import exfat, needs_root, ramfs
from tests.uploads import ID, files_below, leftovers, md5, merge, refused, send, send_all, state, store_in
from tests.web import WebServer

MIB = 1024 * 1024
DATA = [b"one" * 100_000, b"two" * 100_000]


@needs_root
@pytest.mark.parametrize("conflict", ["refuse", "suffix"])
def test_a_merge_on_exfat(tmp_path: Path, conflict: str) -> None:
    """It has neither hard links nor RENAME_NOREPLACE; a file that is there is not replaced all the same."""
    with exfat(tmp_path / "disk", 64 * MIB) as folder:
        store = store_in(folder, merge_conflict=conflict, enable_atomic_operations=True)
        for file_id in (ID, "another"):
            send_all(store, DATA, file_id=file_id, relative_path="a/b")
        assert merge(store, 2, expected_md5=md5(b"".join(DATA))).size == 600_000
        assert (folder / "merged/a/b/file.bin").read_bytes() == b"".join(DATA)
        assert merge(store, 2).md5 == md5(b"".join(DATA))
        if conflict == "refuse":
            with refused(409, "file_exists"):
                merge(store, 2, file_id="another")
        else:
            assert Path(merge(store, 2, file_id="another").path).name == "file-1.bin"
        assert leftovers(store) == []


@needs_root
def test_tus_on_exfat(tmp_path: Path) -> None:
    """Also of parts, whose chunks are copied where there are no hard links."""
    with exfat(tmp_path / "disk", 64 * MIB) as folder, WebServer(folder, {"web": {"processes": 1}}) as server:
        tus = {"Tus-Resumable": "1.0.0"}
        urls = []
        for data in DATA:
            begin = {
                **tus,
                "Upload-Length": str(len(data)),
                "Upload-Concat": "partial",
                "Content-Type": "application/offset+octet-stream",
            }
            said = requests.post(f"{server.root}/files", data=data, headers=begin, timeout=20)
            assert said.status_code == 201, said.text
            urls.append(said.headers["Location"])
        final = {**tus, "Upload-Concat": f"final;{' '.join(urls)}"}
        said = requests.post(f"{server.root}/files", headers=final, timeout=20)
        assert said.status_code == 201, said.text
        name = said.headers["Location"].rpartition("/")[2]
        assert (server.merged_dir / name).read_bytes() == b"".join(DATA)


@needs_root
def test_a_file_system_without_figures_is_not_full(tmp_path: Path) -> None:
    """A ramfs has no blocks, none of them free: uploads begin, merges are made, and the server is healthy."""
    with ramfs(tmp_path / "disk") as folder, WebServer(folder, {"web": {"processes": 1}}) as server:
        fields = {"file_id": "x", "chunk_index": 0, "total_chunks": 1, "file_size": 300_000}
        said = requests.post(f"{server.url}/upload_chunk", data=fields, files={"chunk": DATA[0]}, timeout=20)
        assert said.status_code == 200, said.text
        request: dict[str, Any] = {"file_id": "x", "filename": "file.bin", "total_chunks": 1}
        said = requests.post(f"{server.url}/merge_chunks", json=request, timeout=20)
        assert said.status_code == 200, said.text
        assert (server.merged_dir / "file.bin").read_bytes() == DATA[0]
        health = requests.get(f"{server.url}/health", timeout=20)
        assert (health.status_code, health.json()["status"]) == (200, "healthy"), health.text
        assert requests.get(f"{server.url}/system", timeout=20).json()["disk"] == {}
        assert "dlpool_web_disk_free_bytes{" not in requests.get(f"{server.url}/metrics", timeout=20).text


def test_a_file_system_that_does_not_answer_is_no_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_in(tmp_path)

    def fail(_path: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(os, "statvfs", fail)
    assert capacity.capacity_of(str(tmp_path)) is None
    capacity.check_capacity_for_task(store.settings, 2**60)
    capacity.check_capacity_for_merge(store.settings, 2**60)
    assert monitoring.disk_check(store.volumes(), store.settings)["status"] == "healthy"


def test_a_published_file_is_known_by_its_content_where_numbers_change(tmp_path: Path) -> None:
    """The record of a publication is compared with what has the name, after a kill."""
    output = open_merge_output(str(tmp_path), (), "task", make=False)
    (tmp_path / "file").write_bytes(b"content")
    status = (tmp_path / "file").stat()
    mine = PendingPublish((), "file", status.st_ino, 7, status.st_mtime_ns, md5(b"content"), 0)
    assert output.has_published(mine)
    again = replace(mine, inode=mine.inode + 1, modified_ns=0)
    assert output.has_published(again)
    assert not output.has_published(replace(again, md5=md5(b"CONTENT")))
    assert not output.has_published(replace(again, size=8))
    assert not output.has_published(replace(again, name="none"))
    (tmp_path / output.temporary).write_bytes(b"content")
    assert not output.has_published(again)
    (tmp_path / "file").unlink()
    (tmp_path / "file").mkdir()
    os.unlink(tmp_path / output.temporary)
    assert not output.has_published(again)
    output.close()


def test_a_merge_that_was_published_and_not_recorded_is_completed_by_the_next_request(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    send(store, 0, b"data", total_chunks=1)
    with store.layout.lock_id(ID) as task:
        folder, record = task.folder, task.record()
        (tmp_path / "merged").mkdir()
        (tmp_path / "merged" / "file.bin").write_bytes(b"data")
        found = PendingPublish((), "file.bin", 1, 4, 1, hashlib.md5(b"data").hexdigest(), 5)
        task.save(record, status="merging", filename="file.bin", total_chunks=1, output_folder=(), publishing=found)
    assert merge(store, 1).md5 == md5(b"data")
    assert state(store) == "completed"
    assert files_below(tmp_path / "merged") == ["file.bin"]
    assert not (folder / "0.chunk").exists()


@pytest.mark.parametrize(
    ("number", "status", "code"),
    [
        (errno.ENOSPC, 507, "no_space"),
        (errno.EDQUOT, 507, "no_space"),
        (errno.EROFS, 507, "read_only"),
        (errno.EACCES, 507, "permission"),
        (errno.EPERM, 507, "permission"),
        (errno.ELOOP, 507, "symbolic_link"),
        (errno.EFBIG, 413, "too_large"),
        (errno.ENAMETOOLONG, 400, "bad_filename"),
        (errno.EILSEQ, 400, "bad_filename"),
        (errno.EMFILE, 503, "too_many_files"),
        (errno.ENFILE, 503, "too_many_files"),
        *((number, 507, "storage") for number in (errno.EIO, errno.ESTALE, errno.EINVAL, errno.ENOSYS, errno.EINTR)),
    ],
)
def test_the_answer_to_each_error_of_the_disk(number: int, status: int, code: str) -> None:
    error = translated("store it", OSError(number, os.strerror(number)))
    assert (http_error(error).status, error.code) == (status, code)
    assert error.text.startswith("cannot store it: ")
    assert len(error.text) > len("cannot store it: ")
    assert ("Retry-After" in http_error(error).headers) == (status == 503)


def test_every_known_error_of_the_disk_has_an_answer() -> None:
    statuses = {http_error(translated("x", OSError(number, ""))).status for number in disk_errors.FAULTS}
    assert statuses == {400, 413, 503, 507}


# --- sizes at their bounds ---


@pytest.mark.parametrize("is_said", [False, True])
@pytest.mark.parametrize("more", [0, 1])
def test_a_file_of_exactly_the_largest_size_is_taken_and_one_byte_more_is_not(
    tmp_path: Path, more: int, is_said: bool
) -> None:
    store = store_in(tmp_path, max_file_size=600, max_chunk_size=300)
    fields: dict[str, Any] = {"file_size": 600 + more} if is_said else {}
    pieces = [b"a" * 300, b"b" * 300, *([b"c"] if more else [])]
    if more and is_said:
        with refused(413, "file_too_large"):
            send(store, 0, pieces[0], total_chunks=len(pieces), **fields)
        return
    for index, data in enumerate(pieces[:2]):
        send(store, index, data, total_chunks=len(pieces), **fields)
    if more:
        with refused(413, "file_too_large"):
            send(store, 2, pieces[2], total_chunks=len(pieces))
    else:
        assert merge(store, 2).size == 600


def test_a_chunk_of_exactly_the_largest_size_is_taken_and_one_byte_more_is_not(tmp_path: Path) -> None:
    store = store_in(tmp_path, max_chunk_size=300)
    assert send(store, 0, b"a" * 300).size == 300
    with refused(413, "chunk_too_large"):
        send(store, 1, b"a" * 301)
