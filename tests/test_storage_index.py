"""Lists and figures of tasks: what they read, what they share, and what they say while tasks change."""

from __future__ import annotations

import json
import os
import random
import shutil
import threading
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import pytest

from dlpool import disk
from dlpool.storage.disk import change_log, layout, task_index
from dlpool.storage.disk.backend import DiskBackend
from dlpool.storage.disk.capacity import CHUNK_COUNT_STEP
from dlpool.storage.disk.catalog import TaskCatalog, make_cursor, read_cursor
from dlpool.storage.disk.change_log import ChangeLogReader, append_change
from dlpool.storage.disk.file_locks import release, try_lock
from dlpool.storage.disk.layout import StoreLayout
from dlpool.storage.disk.task_folder import TaskFolder
from dlpool.storage.disk.task_record import load_record, save_record
from dlpool.storage.disk.task_summary import TaskReading, read_task
from dlpool.storage.errors import UploadError
from dlpool.storage.names import folder_name, owner_folder_name
from dlpool.storage.states import STATES
from dlpool.storage.upload_requests import TusUploadRequest
from dlpool.storage.values import MAX_PAGE, TaskCounts, TaskSummary
from dlpool.web.errors import http_error
from tests.conftest import wait_until
from tests.listings import begin, make_tasks
from tests.uploads import (
    ID,
    counts_of,
    detail_of,
    list_of,
    md5,
    merge,
    open_append,
    refused,
    send,
    send_all,
    status_of,
    store_in,
)

TICK_S = 0.12


@pytest.fixture
def store(tmp_path: Path) -> DiskBackend:
    return store_in(tmp_path)


def ids(store: DiskBackend, **options: Any) -> list[str]:
    return [task["task_id"] for task in list_of(store, None, **options)["tasks"]]


def folder_of(store: DiskBackend, file_id: str = ID, owner: str | None = None) -> Path:
    return Path(store.settings.upload_dir) / "tasks" / owner_folder_name(file_id, owner)


# --- what is read ---


def test_lists_read_what_has_changed_and_not_what_was_asked_for(tmp_path: Path) -> None:
    count, times = 8000, 35
    make_tasks(tmp_path, count)
    children = [begin(tmp_path, times, number) for number in range(2)]
    answers = [json.loads(child.communicate(timeout=120)[0]) for child in children]
    for answer in answers:
        first, again, unchanged, changed, swept = answer["steps"]
        assert answer["totals"] == [count] * 2 * times
        assert first == {"opened": 2 * count, "scans": 1}
        assert again["scans"] <= 1 and again["opened"] < count, "the first read was within a tick for some of them only"
        assert unchanged["opened"] <= 2 * 3, "but what the other process has changed meanwhile"
        assert changed["opened"] <= 2 * 2 * 10, "of two tasks, a few times until a tick has passed"
        assert unchanged["scans"] + changed["scans"] <= 10, "once a second at most"
        assert swept["opened"] <= 2 * 2 * 2


def test_waiting_threads_share_one_scan(store: DiskBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    send(store, 0, b"x")
    is_reading, goes_on, scans = threading.Event(), threading.Event(), []
    original = task_index._stamps_of

    def slow(tasks: Path, *names: Any) -> Any:
        scans.append(time.monotonic())
        is_reading.set()
        assert goes_on.wait(10)
        return original(tasks, *names)

    monkeypatch.setattr(task_index, "_stamps_of", slow)
    monkeypatch.setattr(task_index, "MAX_WAITING", 100)
    with ThreadPoolExecutor(12) as pool:
        first = pool.submit(store.index.rescan)
        assert is_reading.wait(10)
        others = [pool.submit(store.index.rescan) for _ in range(11)]
        wait_until(lambda: store.index._waiting == 11)
        goes_on.set()
        assert {len(one.result().summaries) for one in (first, *others)} == {1}
    assert len(scans) == 2  # those who came while the first one was under way may not have its result


def test_few_threads_wait_for_long(store: DiskBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    goes_on = threading.Event()
    monkeypatch.setattr(task_index, "_stamps_of", lambda _tasks: {} if goes_on.wait(10) else None)
    monkeypatch.setattr(task_index, "SHORT_TIMEOUT_S", 0.05)
    with ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(store.index.current) for _ in range(6)]
        wait_until(lambda: store.index._waiting == task_index.MAX_WAITING and sum(one.done() for one in asked) == 1)
        goes_on.set()
        failed = [one.exception() for one in asked if one.exception() is not None]
    [error] = failed
    assert isinstance(error, UploadError)
    assert (http_error(error).status, error.code, error.retry_after_s is not None) == (503, "busy", True)


def test_two_scans_run_at_once_in_all_processes(store: DiskBackend, tmp_path: Path) -> None:
    send(store, 0, b"x")
    earlier = store.index.current()
    other = store_in(tmp_path)
    slots = [try_lock(store.layout.lock_path(f"scan-{number}")) for number in range(task_index.SCANS)]
    assert None not in slots
    with refused(503, "busy"):
        other.index.current(timeout_s=0.05)
    assert store.index.rescan(timeout_s=0.05) is earlier
    release(slots[1] or 0)
    send(store, 0, b"x", file_id="another")
    assert ids(other) == ids(store) == [ID, "another"]
    release(slots[0] or 0)


def test_a_scan_keeps_its_place_until_it_has_ended(store: DiskBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    send(store, 0, b"x")
    free: list[int] = []
    original = task_index._stamps_of

    def probing(tasks: Path, *names: Any) -> Any:
        slots = [try_lock(store.layout.lock_path(f"scan-{number}")) for number in range(task_index.SCANS)]
        free.append(sum(slot is not None for slot in slots))
        for slot in slots:
            if slot is not None:
                release(slot)
        return original(tasks, *names)

    monkeypatch.setattr(task_index, "_stamps_of", probing)
    assert len(store.index.rescan().summaries) == len(store.index.rescan().summaries) == 1
    assert free == [task_index.SCANS - 1] * 2


def test_a_scan_that_fails_leaves_its_turn_to_the_next(store: DiskBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    send(store, 0, b"x")

    def fails(_tasks: Path) -> Any:
        raise OSError(5, "Input/slot error")

    with monkeypatch.context() as patch:
        patch.setattr(task_index, "_stamps_of", fails)
        for _ in range(2):
            with refused(507, "storage"):
                list_of(store, None)
    assert ids(store) == [ID]


def test_a_store_that_cannot_be_written_is_listed(store: DiskBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    send(store, 0, b"x")
    reader = store_in(Path(store.settings.upload_dir).parent)

    def fails(_path: Path) -> int:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(task_index, "try_lock", fails)
    assert ids(reader) == [ID]


def test_a_catalog_that_is_new_enough_is_not_made_again(store: DiskBackend) -> None:
    send(store, 0, b"x")
    earlier = store.index.current()
    send(store, 0, b"x", file_id="another")
    assert store.index.current(max_age_s=60) is earlier
    assert counts_of(store, None, max_age_s=60).tasks == 1
    assert counts_of(store, None).tasks == 2


def test_a_catalog_takes_little_memory() -> None:
    count = 5000
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        catalog = TaskCatalog().with_changes({folder_name(f"{n}"): summary(f"{n}", owner="ann") for n in range(count)})
        taken = (tracemalloc.get_traced_memory()[0] - before) / count
    finally:
        tracemalloc.stop()
    assert catalog.page(None, STATES, "", 1).total == count
    assert taken < 1500


# --- a change is seen at once ---


def begun(store: DiskBackend) -> None:
    store.tus.create(TusUploadRequest("ann", 4, "tus.bin"))


def appended(store: DiskBackend) -> None:
    [file_id] = [one for one in ids(store) if len(one) == 32]
    with open_append(store, file_id, "ann", 0, size=4) as session:
        session.write(b"1234")
        session.commit()


def mismatch(store: DiskBackend) -> None:
    with suppress(UploadError):
        send(store, 0, b"x", md5=md5(b"y"))


CHANGES: list[Callable[[DiskBackend], object]] = [
    lambda store: send(store, 0, b"x", total_chunks=2),
    lambda store: send(store, 0, b"longer"),
    lambda store: send(store, 0, b"x", file_id="of ann", owner="ann", total_chunks=3, file_size=9),
    lambda store: send(store, 2, b"xyz", file_id="of ann", owner="ann"),
    mismatch,
    lambda store: store.pause(ID, None),
    lambda store: store.resume(ID, None),
    begun,
    lambda store: send(store, 1, b"end"),
    lambda store: merge(store, 2),
    appended,
    lambda store: store.pause("of ann", "ann"),
    lambda store: store.sweep(),
    lambda store: store.cleanup(None, ["paused"], 0),
    lambda store: send(store, 0, b"again", file_id="of ann", owner="bob"),
    lambda store: store.delete(ID, None),
]
FOREIGN: list[Callable[[DiskBackend], object]] = [
    lambda store: os.unlink(folder_of(store, "of ann", "ann") / "0.chunk"),
    lambda store: os.unlink(folder_of(store, "of ann", "ann") / "record.json"),
    lambda store: os.unlink(folder_of(store, "of ann", "ann") / "identity.json"),
    lambda store: shutil.rmtree(folder_of(store, "of ann", "ann")),
]


def said(store: DiskBackend) -> dict[str, Any]:
    lists = {f"{owner}": list_of(store, owner) for owner in (None, "ann", "bob", "")}
    counts = {f"counts of {owner}": counts_of(store, owner) for owner in (None, "ann", "bob")}
    return {**lists, **counts, "states": store.counts_by_state()}


@pytest.fixture
def no_scans(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is seen is seen by the journal."""
    monkeypatch.setattr(task_index, "SCAN_INTERVAL_S", 1000.0)


@pytest.mark.usefixtures("no_scans")
@pytest.mark.parametrize("pause_s", [0.0, TICK_S])
def test_each_change_is_seen_at_once_by_each_process(tmp_path: Path, pause_s: float) -> None:
    writer, reader = store_in(tmp_path), store_in(tmp_path)
    writer.layout.create_folders()
    for change in CHANGES:
        change(writer)
        fresh = store_in(tmp_path)
        assert said(writer) == said(reader) == said(fresh)
        for task in list_of(fresh, None)["tasks"]:
            one = detail_of(fresh, task["task_id"], None)
            assert {**one, "uploaded_chunks": len(one["uploaded_chunks"])}.items() >= task.items()
        time.sleep(pause_s)
    assert len(ids(reader)) == 2


def test_what_another_program_changes_is_seen_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_index, "SCAN_INTERVAL_S", 0.05)
    writer, reader = store_in(tmp_path), store_in(tmp_path)
    send(writer, 0, b"x", file_id="of ann", owner="ann")
    for change in FOREIGN:
        assert said(writer) == said(reader)
        change(writer)
        wait_until(lambda: said(writer) == said(reader) == said(store_in(tmp_path)))


@pytest.mark.parametrize("seed", range(3))
def test_counters_follow_any_order_of_changes(tmp_path: Path, seed: int) -> None:
    chosen, writer, reader = random.Random(seed), store_in(tmp_path), store_in(tmp_path)
    for _ in range(60):
        with suppress(UploadError, OSError, ValueError):
            chosen.choice(CHANGES + FOREIGN)(writer)
            reader.index.rescan()
        if chosen.random() < 0.3:
            assert said(reader) == said(store_in(tmp_path))


def test_a_change_in_the_same_tick_of_a_coarse_clock_is_seen(
    store: DiskBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = 1_000_000_000

    def coarse(path: str) -> bytes:
        status = os.stat(path)
        return task_index._STAMP.pack(status.st_ino, status.st_mtime_ns // second // 3600 * 3600 * second, 0)

    reads: list[str] = []
    original = read_task

    def noted(task: TaskFolder) -> TaskReading:
        reads.append(task.folder.name)
        return original(task)

    monkeypatch.setattr(task_index, "_stamp_of", coarse)
    monkeypatch.setattr(task_index, "_COARSE_TICK_S", 0.4)
    monkeypatch.setattr(task_index, "read_task", noted)
    send(store, 0, b"x", total_chunks=5)
    begun_at = time.monotonic()
    for index in range(1, 4):
        send(store, index, b"x")
        store.layout.change_log_path().unlink()
        assert list_of(store, None)["tasks"][0]["uploaded_chunks"] == index + 1
    wait_until(lambda: bool(store.index.rescan()) and time.monotonic() > begun_at + 1)
    reads.clear()
    assert store.index.rescan().counts()["uploading"].chunks == 4
    assert reads == []


def test_times_that_are_set_back_hide_no_change(store: DiskBackend) -> None:
    send(store, 0, b"x")
    folder = folder_of(store)
    before = folder.stat()
    store.index.rescan()
    time.sleep(TICK_S)
    store.index.rescan()
    (folder / "record.json").unlink()
    (folder / "0.chunk").unlink()
    os.utime(folder, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert store.index.rescan().counts()["uploading"].chunks == 0


def test_a_merge_whose_process_was_killed_is_shown_as_it_is(store: DiskBackend) -> None:
    send_all(store, [b"x"])
    with store.layout.lock_id(ID) as task:
        lock = task.try_lock_merge()
        assert lock is not None
        task.save(task.record(), status="merging", output_folder=())
    assert [list_of(store, None, status=["merging"])["total"], store.counts_by_state()["merging"].tasks] == [1, 1]
    time.sleep(TICK_S)
    assert list_of(store, None, status=["merging"])["total"] == 1
    release(lock)
    assert list_of(store, None, status=["uploading"])["total"] == 1
    assert store.counts_by_state()["merging"] == TaskCounts()


def test_a_task_whose_lock_is_held_does_not_stop_a_list(store: DiskBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_index, "_LOCK_TIMEOUT_S", 0.05)
    send_all(store, [b"x"])
    with store.layout.lock_id(ID) as task:
        task.save(task.record(), status="merging", output_folder=())
        assert list_of(store, None)["tasks"][0]["status"] == "merging"
    assert list_of(store, None)["tasks"][0]["status"] == "uploading"


# --- the journal ---


def test_a_reader_gets_each_note_once(tmp_path: Path) -> None:
    path, names = tmp_path / "changed", [folder_name(f"{number}") for number in range(5000)]
    reader, late = ChangeLogReader(lambda: path), ChangeLogReader(lambda: path)
    assert reader.read_changes() is None
    append_change(path, names[0])
    assert reader.read_changes() is None
    assert reader.read_changes() == frozenset()
    for name in (*names, names[3]):
        append_change(path, name)
    assert late.read_changes() is None
    assert reader.read_changes() == frozenset(names)
    append_change(path, names[7])
    assert reader.read_changes() == late.read_changes() == frozenset({names[7]})
    assert reader.read_changes() == late.read_changes() == frozenset()
    os.truncate(path, 0)
    assert reader.read_changes() is None
    append_change(path, names[0])
    assert (reader.read_changes(), reader.read_changes()) == (None, frozenset())


@pytest.mark.usefixtures("no_scans")
def test_a_full_change_log_is_created_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(change_log, "MAX_BYTES", 3 * 32)
    writer, reader = store_in(tmp_path), store_in(tmp_path)
    for number in range(20):
        send(writer, number, b"x")
        assert list_of(reader, None)["tasks"][0]["uploaded_chunks"] == number + 1
        with suppress(FileNotFoundError):
            assert writer.layout.change_log_path().stat().st_size < 3 * 32


def appending_to_a_removed_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process removes the journal as soon as it is open."""
    original = os.open

    def opened(name: Any, flags: int, *rest: Any, **options: Any) -> int:
        descriptor = original(name, flags, *rest, **options)
        if os.fspath(name) == str(path) and flags & os.O_APPEND:
            monkeypatch.setattr(os, "open", original)
            path.unlink()
        return descriptor

    monkeypatch.setattr(os, "open", opened)


def failing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full."""
    del path

    def full(_descriptor: int, _data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(change_log, "_write", full)


def short(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full after half of a note."""
    del path
    monkeypatch.setattr(change_log, "_write", lambda descriptor, data: os.write(descriptor, data[:16]))


def a_link(path: Path, _monkeypatch: pytest.MonkeyPatch) -> None:
    path.unlink()
    path.with_name("elsewhere").write_text("")
    path.symlink_to("elsewhere")


def a_pipe(path: Path, _monkeypatch: pytest.MonkeyPatch) -> None:
    path.unlink()
    os.mkfifo(path)


def a_folder(path: Path, _monkeypatch: pytest.MonkeyPatch) -> None:
    path.unlink()
    path.mkdir()


def removed(path: Path, _monkeypatch: pytest.MonkeyPatch) -> None:
    path.unlink()


@pytest.mark.usefixtures("no_scans")
@pytest.mark.parametrize("trouble", [appending_to_a_removed_one, failing, short, a_link, a_pipe, a_folder, removed])
def test_trouble_with_the_journal_hides_no_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: Callable[[Path, pytest.MonkeyPatch], None]
) -> None:
    writer, reader = store_in(tmp_path), store_in(tmp_path)
    send(writer, 0, b"x", total_chunks=9)
    assert list_of(reader, None)["tasks"][0]["uploaded_chunks"] == 1
    trouble(writer.layout.change_log_path(), monkeypatch)
    for index in (1, 2):
        send(writer, index, b"x")
        assert list_of(reader, None)["tasks"][0]["uploaded_chunks"] == index + 1
    monkeypatch.undo()
    monkeypatch.setattr(task_index, "SCAN_INTERVAL_S", 1000.0)
    send(writer, 3, b"x")
    assert list_of(reader, None)["tasks"][0]["uploaded_chunks"] == 4


# --- what is broken or foreign ---


def break_it(folder: Path, kind: str) -> None:
    """Damage the folder of a task, or its files, in one way."""
    identity, record = folder / "identity.json", folder / "record.json"
    if kind in IDENTITIES:
        identity.write_text(IDENTITIES[kind])
    elif kind == "no identity":
        identity.unlink()
    elif kind == "another name":
        folder.rename(folder.with_name("not ours"))
    elif kind.startswith("a record"):
        record.unlink()
        if kind == "a record that is a folder":
            record.mkdir()
        else:
            record.symlink_to("record.json")
    else:
        shutil.rmtree(folder)
        if kind == "a file":
            folder.write_text("")
        elif kind == "a pipe":
            os.mkfifo(folder)
        else:
            folder.symlink_to(folder.with_name(folder_name("good")))


IDENTITIES = {
    "an empty identity": "",
    "an identity of a control character": '{"file_id":"\\u0000","owner":null,"created_at":1}',
    "an identity that cannot be encoded": '{"file_id":"\\ud800","owner":null,"created_at":1}',
    "the identity of another": '{"file_id":"good","owner":null,"created_at":1}',
}
BROKEN = (
    *IDENTITIES,
    "no identity",
    "another name",
    "a record that is a folder",
    "a record that is a loop",
    "a file",
    "a pipe",
    "a link to a good one",
)


@pytest.mark.parametrize("is_known", [False, True])
@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_broken_or_foreign_hides_nothing(store: DiskBackend, kind: str, is_known: bool) -> None:
    send(store, 0, b"x", file_id="good")
    send(store, 0, b"x")
    if is_known:
        assert ids(store) == [ID, "good"]
    break_it(folder_of(store), kind)
    store.index.rescan()
    for _ in range(2):
        assert ids(store) == ["good"]
        assert counts_of(store, None).tasks == 1
    store.sweep()
    store.cleanup(None, list(STATES), 0)
    assert ids(store) == []


@pytest.mark.parametrize(
    "text", ['{"status":"uploading","updated_at":1e300}', '{"status":"uploading","updated_at":-1e300}']
)
def test_a_time_beyond_the_calendar_is_empty(store: DiskBackend, text: str) -> None:
    send(store, 0, b"x")
    (folder_of(store) / "record.json").write_text(text)
    assert (list_of(store, None)["tasks"][0]["updated_at"], status_of(store, ID, None)["updated_at"]) == ("", "")


# --- counts ---


def test_counts_of_an_owner(store: DiskBackend) -> None:
    send(store, 0, b"12345", file_id="a", owner="ann", total_chunks=2)
    send(store, 1, b"678", file_id="a", owner="ann")
    send_all(store, [b"merged"], file_id="b", owner="ann")
    merge(store, 1, file_id="b", owner="ann")
    send(store, 0, b"other", file_id="c", owner="bob", file_size=10)
    send(store, 0, b"nobody's", file_id="d")
    owners = {"a": "ann", "b": "ann", "c": "bob", "d": None}
    entries = {one: len(os.listdir(folder_of(store, one, owner))) + 1 for one, owner in owners.items()}
    ann = TaskCounts(
        2,
        8 + 6,
        entries["a"] + entries["b"],
        chunks=3,
        file_size=6,
        declared_bytes=6,
        unknown_sizes=1,
        expected_chunks=2,
    )
    bob = TaskCounts(1, 5, entries["c"], chunks=1, file_size=10, declared_bytes=10, expected_chunks=CHUNK_COUNT_STEP)
    assert (counts_of(store, "ann"), counts_of(store, "bob"), counts_of(store, "nobody")) == (ann, bob, TaskCounts())
    nobody = TaskCounts(1, 8, entries["d"], chunks=1, unknown_sizes=1, expected_chunks=CHUNK_COUNT_STEP)
    assert store.index.current().counts_of(None) == nobody
    assert counts_of(store, None) == TaskCounts.sum_of([ann, bob, nobody])
    store.delete("a", "ann")
    assert counts_of(store, "ann") == TaskCounts(1, 6, entries["b"], chunks=1, file_size=6, declared_bytes=6)


def test_an_exact_count_is_refused_rather_than_outdated(store: DiskBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    send(store, 0, b"x")
    store.index.current()
    slots = [try_lock(store.layout.lock_path(f"scan-{number}")) for number in range(task_index.SCANS)]
    store.layout.change_log_path().unlink()
    monkeypatch.setattr(task_index, "TIMEOUT_S", 0.05)
    assert store.index.current(timeout_s=0.05).counts_of(None).tasks == 1
    with refused(503, "busy"):
        store.index.current(timeout_s=0.05, is_exact=True)
    for slot in slots:
        release(slot or 0)
    assert store.index.current(is_exact=True).counts_of(None).tasks == 1


def test_a_quota_check_does_not_scan_all_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tasks(tmp_path, 300, owner="ann")
    monkeypatch.setattr(task_index, "SCAN_INTERVAL_S", 1000.0)
    store = store_in(tmp_path, owner_tasks=310, owner_bytes=1 << 60, owner_files=1 << 40)
    store.layout.create_folders()
    counts_of(store, "ann")
    looks: list[str] = []

    def noted(task: TaskFolder, **options: Any) -> TaskReading:
        looks.append(task.folder.name)
        return read_task(task, **options)

    monkeypatch.setattr(task_index, "read_task", noted)
    for number in range(10):
        send(store, 0, b"x", file_id=f"{number}", owner="ann")
    with refused(507, "over_quota"):
        send(store, 0, b"x", file_id="one more", owner="ann")
    assert counts_of(store, "ann").tasks == 310
    assert len(looks) <= 2 * 11


def test_a_task_of_a_process_killed_before_its_log_entry_is_counted(
    store: DiskBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_index, "SCAN_INTERVAL_S", 1000.0)
    send(store, 0, b"x")
    seen: list[int] = []
    reader = store_in(Path(store.settings.upload_dir).parent)
    original = disk.replace

    def killed(source: Any, target: Any, **options: Any) -> None:
        if Path(target).parent.name == "tasks":
            seen.append(counts_of(reader, None).tasks)
            monkeypatch.setattr(layout, "append_change", lambda *_arguments: None)
        original(source, target, **options)

    monkeypatch.setattr(disk, "replace", killed)
    counts_of(reader, None)
    send(store, 0, b"x", file_id="another")
    assert (seen, counts_of(reader, None).tasks) == ([1], 2)


# --- the sweep ---


def test_a_sweep_touches_only_what_is_due(store: DiskBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("new", "old", "left", "lost")
    for name in names:
        send_all(store, [b"x"], file_id=name)
    with store.layout.lock_id("left") as task:
        task.save(task.record(), status="merging", output_folder=())
    (folder_of(store, "lost") / "identity.json").unlink()
    record = load_record(folder_of(store, "old"))
    assert record is not None
    save_record(
        folder_of(store, "old"), type(record)(status="paused", updated_at=1), durability=store.layout.durability
    )
    os.utime(folder_of(store, "old"), (1, 1))
    tended: list[str] = []
    original = type(store.layout).lock_folder

    def noted(layout: StoreLayout, name: str) -> AbstractContextManager[TaskFolder]:
        tended.append(name)
        return original(layout, name)

    monkeypatch.setattr(type(store.layout), "lock_folder", noted)
    assert store.sweep().removed == 1
    assert set(tended) == {folder_name(name) for name in ("old", "left", "lost")}
    assert ids(store) == ["left", "new"]


# --- pages ---


def summary(file_id: str, *, owner: str | None = None, status: str = "paused") -> TaskSummary:
    return TaskSummary(file_id, owner, status, 1.0, 1.0, f"{file_id}.bin", "", 2, 9, 1, 5, 50.0, 0, 1.0, 4)


def catalog_of(*summaries: TaskSummary) -> TaskCatalog:
    return TaskCatalog().with_changes({owner_folder_name(one.file_id, one.owner): one for one in summaries})


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 30, MAX_PAGE])
@pytest.mark.parametrize("owner", [None, "ann", "nobody"])
@pytest.mark.parametrize("wanted", [STATES, ("paused",), ("failed", "paused"), ("merging",)])
def test_all_pages_together_are_the_complete_list(limit: int, owner: str | None, wanted: tuple[str, ...]) -> None:
    names = ["a", "b", "ä", "\U0001f600", "/", "x" * 500, *map(str, range(20))]
    chosen = random.Random(limit)
    tasks = [summary(name, owner=chosen.choice([None, "ann", "bob"]), status=chosen.choice(STATES)) for name in names]
    tasks += [summary("same", owner=owner, status="paused") for owner in (None, "ann", "bob", "eve")]
    catalog, after = catalog_of(*tasks), ""
    found: list[str] = []
    while True:
        page = catalog.page(owner, wanted, after, limit)
        assert len(page.tasks) <= limit
        found += [one.file_id for one in page.tasks]
        if not page.next_cursor:
            break
        after = read_cursor(page.next_cursor)
    right = sorted(one.file_id for one in tasks if one.status in wanted and one.is_visible_to(owner))
    assert found == right
    assert page.total == len(right)


def test_a_task_that_comes_or_goes_between_pages_moves_no_other(store: DiskBackend) -> None:
    stays = [f"{number:02}" for number in range(0, 20, 2)]
    for name in (*stays, "04a", "08a"):
        send(store, 0, b"x", file_id=name)
    found: list[str] = []
    cursor = ""
    changes: list[Callable[[], object]] = [
        lambda: send(store, 0, b"x", file_id="000"),
        lambda: store.delete("04a", None),
        lambda: send(store, 0, b"x", file_id="07"),
        lambda: store.delete(found[-1], None),
    ]
    while True:
        page = list_of(store, None, limit=3, cursor=cursor)
        found += [task["task_id"] for task in page["tasks"]]
        if "next" not in page:
            break
        cursor = page["next"]
        if changes:
            changes.pop(0)()
    assert set(stays) <= set(found) and len(found) == len(set(found))
    assert found == sorted(found)


@pytest.mark.parametrize(
    "cursor",
    [
        "x",
        "!",
        "MQ",
        "MQ==",
        "MQA",
        "MWE=",
        "MmE",
        " MWE",
        "MWE\n",
        "MWE?",
        make_cursor("x" * 1024),
        make_cursor(f"a\0{folder_name('a')}") + "A",
        make_cursor(f"a\0{folder_name('a')}x"),
        make_cursor(f"\0{folder_name('a')}"),
        "A" * 5000,
        "ä",
        make_cursor(f"a\0{folder_name('a')}")[:-1],
    ],
)
def test_a_cursor_that_was_not_given_out_is_refused(store: DiskBackend, cursor: str) -> None:
    with refused(400, "bad_cursor"):
        list_of(store, None, cursor=cursor)


@pytest.mark.parametrize(
    "options",
    [{"limit": 0}, {"limit": MAX_PAGE + 1}, {"status": ["bad"]}, {"status": [""]}, {"status": ["paused", "not_found"]}],
)
def test_what_no_page_can_have_is_refused(store: DiskBackend, options: dict[str, Any]) -> None:
    with refused(400, "bad_field"):
        list_of(store, None, **options)
