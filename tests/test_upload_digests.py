"""Uploads with SHA-256 digests: each byte is hashed once at either end, and what is not certain is read again."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import requests

from dlpool.storage.disk import assembly, chunk_file
from dlpool.storage.disk.backend import DiskBackend
from dlpool.storage.disk.chunk_file import list_chunks
from dlpool.storage.disk.merge_output import open_merge_output
from dlpool.storage.disk.task_record import load_record
from dlpool.storage.errors import UploadError
from dlpool.storage.upload_requests import ChunkRequest
from dlpool.storage.values import ChunkResult, MergeResult
from tests.conftest import make_data
from tests.processes import run
from tests.test_storage_chunks import chunk_file as path_of
from tests.upload_origin import composite
from tests.uploads import ID, detail_of, md5, merge, refused, send_all, store_in, uploaded
from tests.web import WebServer

DATA = [b"one" * 1000, b"two" * 70_000, b"", b"four"]
WHOLE = b"".join(DATA)
NAME, COMPOSITE = composite(DATA)


@pytest.fixture
def store(tmp_path: Path) -> DiskBackend:
    return store_in(tmp_path)


def send(store: DiskBackend, index: int, data: bytes, digest: str | None = None) -> ChunkResult:
    """Send a chunk with its SHA-256, as the HTTP layer does."""
    request = ChunkRequest(ID, index, None, sha256=digest or sha256(data).hexdigest(), total_chunks=len(DATA))
    with store.chunks.stage() as staged:
        store.chunks.check(staged, request)
        staged.write(data)
        return store.chunks.commit(staged, request)


def send_sha256(store: DiskBackend) -> None:
    for index, data in enumerate(DATA):
        send(store, index, data)


def merge_composite(store: DiskBackend, digest: str = COMPOSITE, **fields: Any) -> MergeResult:
    return merge(store, len(DATA), expected_composite_sha256=digest, **fields)


def count_reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count the bytes that are hashed by readv(2) from now on."""
    counts: Counter[str] = Counter()
    readv = os.readv

    def note(descriptor: int, buffers: list[memoryview]) -> int:
        size = readv(descriptor, buffers)
        counts["bytes"] += size
        return size

    monkeypatch.setattr(os, "readv", note)
    return counts


def test_the_merge_hashes_no_byte_of_chunks_that_were_verified(
    store: DiskBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    send_sha256(store)
    counts = count_reads(monkeypatch)
    result = merge_composite(store)
    assert (result.composite_sha256, result.md5, counts["bytes"]) == (COMPOSITE, "", 0)
    assert Path(result.path).read_bytes() == WHOLE
    assert merge_composite(store) == result
    detail = detail_of(store, ID, None)
    assert (detail["file_md5"], detail["file_composite_sha256"]) == ("", COMPOSITE)
    assert [(chunk["md5"], chunk["sha256"]) for chunk in detail["chunks"]] == [
        ("", sha256(data).hexdigest()) for data in DATA
    ]


@pytest.mark.parametrize("why", ["age", "another boot", "another file", "unknown boot"])
def test_chunks_that_cannot_be_trusted_are_read_again(
    store: DiskBackend, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    send_sha256(store)
    if why == "age":
        monkeypatch.setattr(assembly, "TRUSTED_S", 0.0)
    elif why == "another file":
        for index, data in enumerate(DATA):
            path = path_of(store, index)
            status, content = path.stat(), path.read_bytes()
            path.rename(path.with_suffix(".old"))
            path.write_bytes(content)
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
            assert path.stat().st_size > len(data)
    else:
        monkeypatch.setattr(chunk_file, "_boot_id", lambda: "" if why == "unknown boot" else "other")
    counts = count_reads(monkeypatch)
    assert merge_composite(store).composite_sha256 == COMPOSITE
    assert counts["bytes"] == len(WHOLE)


@pytest.mark.parametrize("is_trusted", [True, False])
def test_a_chunk_that_another_program_changed_is_missing_and_sent_again(
    store: DiskBackend, monkeypatch: pytest.MonkeyPatch, is_trusted: bool
) -> None:
    send_sha256(store)
    with path_of(store, 1).open("r+b") as file:
        file.write(b"X")
    if not is_trusted:
        monkeypatch.setattr(assembly, "TRUSTED_S", 0.0)
    with refused(400, "chunks_missing") as error:
        merge_composite(store)
    assert error.details["uploaded_chunks"] == uploaded(store) == [0, 2, 3]
    send(store, 1, DATA[1])
    assert Path(merge_composite(store).path).read_bytes() == WHOLE


def test_a_wrong_digest_discards_the_chunk_and_keeps_the_earlier_one(store: DiskBackend) -> None:
    send(store, 0, DATA[0])
    with refused(400, "sha256_mismatch") as error:
        send(store, 0, b"rubbish", sha256(DATA[0]).hexdigest())
    assert error.details == {"chunk_index": 0, "sha256": sha256(b"rubbish").hexdigest()}
    [chunk] = detail_of(store, ID, None)["chunks"]
    assert (chunk["sha256"], chunk["retry_count"]) == (sha256(DATA[0]).hexdigest(), 1)


def test_another_composite_digest_is_refused_before_the_file_is_published(store: DiskBackend, tmp_path: Path) -> None:
    send_sha256(store)
    with refused(400, "file_sha256_mismatch") as error:
        merge_composite(store, "0" * 64)
    assert error.details == {"composite_sha256": COMPOSITE}
    assert not list((tmp_path / "merged").iterdir())
    first = merge_composite(store, COMPOSITE.upper())
    with refused(400, "file_sha256_mismatch"):
        merge_composite(store, "0" * 64)
    assert merge_composite(store) == first


def test_chunks_of_both_kinds_become_one_file_of_either_digest(tmp_path: Path) -> None:
    for number, expected in enumerate(({"expected_composite_sha256": COMPOSITE}, {"expected_md5": md5(WHOLE)}, {})):
        store = store_in(tmp_path / str(number))
        send_all(store, DATA)
        send(store, 1, DATA[1])
        result = merge(store, len(DATA), **expected)
        assert Path(result.path).read_bytes() == WHOLE
        assert (result.md5, result.composite_sha256) == (("", COMPOSITE) if number == 0 else (md5(WHOLE), ""))


def test_a_client_with_the_other_digest_gets_the_result_of_the_same_file(store: DiskBackend) -> None:
    send_sha256(store)
    first = merge_composite(store)
    both = replace(first, md5=md5(WHOLE))
    assert merge(store, len(DATA)) == merge(store, len(DATA), expected_md5=md5(WHOLE)) == both
    with refused(400, "file_md5_mismatch"):
        merge(store, len(DATA), expected_md5="0" * 32)
    Path(first.path).unlink()
    assert merge_composite(store) == first
    with refused(404, "not_found"):
        merge(store, len(DATA))


def test_a_client_with_composite_digests_finds_a_file_that_was_merged_by_md5(store: DiskBackend) -> None:
    send_all(store, DATA)
    first = merge(store, len(DATA))
    assert merge_composite(store) == replace(first, composite_sha256=COMPOSITE)
    with refused(400, "file_sha256_mismatch"):
        merge_composite(store, "0" * 64)


def test_a_published_file_is_recognized_by_its_composite_digest(
    store: DiskBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A merge was killed after the rename, and the file system then gave the file another inode number."""
    send_sha256(store)
    with monkeypatch.context() as patch:
        patch.setattr("dlpool.storage.disk.merger.complete_merge", fail)
        first = merge_composite(store)
    task = store.layout.task_by_id(ID)
    record = load_record(task.folder)
    assert record is not None and record.publishing is not None
    task.save(record, publishing=replace(record.publishing, inode=1))
    sizes = [chunk.size for chunk in list_chunks(task.folder).values()]
    output = open_merge_output(store.settings.merged_dir, (), task.folder.name, make=False)
    assert output.has_published(replace(record.publishing, inode=1), sizes)
    assert not output.has_published(replace(record.publishing, inode=1, composite_sha256="0" * 64), sizes)
    output.close()
    assert merge_composite(store) == first


def fail(*_arguments: object) -> None:
    raise OSError("killed")


@pytest.mark.parametrize(
    "fields", [{"sha256": "0" * 63}, {"sha256": "0" * 64, "md5": "0" * 32}, {"sha256": "x" * 64}], ids=str
)
def test_an_invalid_digest_is_refused(store: DiskBackend, fields: dict[str, Any]) -> None:
    with refused(400, "bad_sha256"):
        store.chunks.check_request(ChunkRequest(ID, 0, None, **fields))
    with pytest.raises(UploadError, match="SHA-256"):
        merge(store, 1, expected_composite_sha256=fields["sha256"], expected_md5=fields.get("md5"))


def test_dlpool_upload_agrees_on_sha256_with_a_server_that_knows_it(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    data = make_data(5 * 65536 + 3)
    path.write_bytes(data)
    chunks = [data[start : start + 65536] for start in range(0, len(data), 65536)]
    with WebServer(tmp_path / "web") as web:
        assert "sha256" in requests.get(f"{web.url}/client", timeout=20).json()["digests"]
        for resumed in (0, len(data)):
            ended = run("upload", path, web.url, "--chunk-size", "64K", "--json")
            assert ended.code == 0, ended.err
            result = ended.json
            assert (result["composite_sha256"], result["md5"]) == (composite(chunks)[1], None)
            assert (result["resumed_from"], result["sent"]) == (resumed, len(data) - resumed)
        assert (web.merged_dir / "file.bin").read_bytes() == data
        form = {"file_id": "late", "chunk_index": "0"}
        late: list[Any] = [*((name, (None, value)) for name, value in form.items()), ("chunk", ("c", b"abc"))]
        digest: Any = ("sha256", (None, sha256(b"abc").hexdigest()))
        for files, status in (([*late, digest], 400), ([digest, *late], 200)):
            answer = requests.post(f"{web.url}/upload_chunk", files=files, timeout=20)
            assert answer.status_code == status, answer.text
