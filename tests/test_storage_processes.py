"""Several processes and threads at once on one store."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from dlpool.storage import states
from dlpool.storage.errors import UploadError
from tests.conftest import make_data
from tests.uploads import ID, detail_of, files_below, leftovers, md5, merge, send, send_all, state, store_in, uploaded

PROCESSES, THREADS = 4, 4
SIZE = 300_000


def chunk_of(number: int) -> bytes:
    return bytes([number]) * SIZE


def _send_one(folder: Path, number: int) -> str:
    return f"{send(store_in(folder), 0, chunk_of(number), md5=md5(chunk_of(number)), total_chunks=1).size}"


def _merge_one(folder: Path, number: int) -> str:
    return merge(store_in(folder), 2).md5


def _upload_and_clean(folder: Path, number: int) -> str:
    """Upload and merge a file while other processes sweep."""
    store, file_id, data = store_in(folder), f"upload {number}", [chunk_of(number), b"end", b""]
    for index, chunk in enumerate(data):
        send(store, index, chunk, file_id=file_id, md5=md5(chunk))
        store.sweep()
        store.cleanup(None, (states.FAILED, states.PAUSED), 0)
    result = merge(store, len(data), f"{number}.bin", file_id=file_id)
    store.cleanup(None, (states.COMPLETED,), 1)
    return str(result.md5 == md5(b"".join(data)))


def _in_threads(work: Callable[[Path, int], str], folder: Path, first: int) -> list[str]:
    with ThreadPoolExecutor(THREADS) as threads:
        return list(threads.map(partial(_heard, work, folder), range(first, first + THREADS)))


def _heard(work: Callable[[Path, int], str], folder: Path, number: int) -> str:
    try:
        return work(folder, number)
    except UploadError as error:
        return error.code


def at_once(work: Callable[[Path, int], str], folder: Path) -> list[str]:
    """What sixteen threads of four processes return."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(PROCESSES, mp_context=context) as pool:
        calls: list[Any] = [pool.submit(_in_threads, work, folder, THREADS * n) for n in range(PROCESSES)]
        return [found for call in calls for found in call.result(120)]


def test_one_of_sixteen_concurrent_chunks_is_stored_completely(tmp_path: Path) -> None:
    assert at_once(_send_one, tmp_path) == [str(SIZE)] * 16
    store = store_in(tmp_path)
    [chunk] = detail_of(store, ID, None)["chunks"]
    assert (chunk["size"], chunk["retry_count"]) == (SIZE, 15)
    data = Path(merge(store, 1).path).read_bytes()
    assert data == chunk_of(data[0])
    assert md5(data) == chunk["md5"]


def test_of_many_merges_at_once_one_works_and_the_others_hear_so(tmp_path: Path) -> None:
    store, chunks = store_in(tmp_path), [make_data(4_000_000), make_data(1_000_000, 2)]
    send_all(store, chunks)
    events = at_once(_merge_one, tmp_path)
    assert set(events) <= {md5(b"".join(chunks)), "task_merging"}
    assert md5(b"".join(chunks)) in events
    assert files_below(tmp_path / "merged") == ["file.bin"]
    assert merge(store, 2).md5 == md5((tmp_path / "merged" / "file.bin").read_bytes())
    assert detail_of(store, ID, None)["retry_count"] == 0


def test_cleaning_while_others_upload_takes_nothing_of_theirs(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    send(store, 0, b"old", file_id="paused")
    store.pause("paused", None)
    assert at_once(_upload_and_clean, tmp_path) == ["True"] * 16
    assert (leftovers(store), state(store, "paused")) == ([], "not_found")
    assert len(files_below(tmp_path / "merged")) == 16
    assert uploaded(store, "upload 3") == [0, 1, 2]
