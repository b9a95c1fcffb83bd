"""A final upload takes each of its parts once, counts before it makes anything, and leaves no part behind."""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests

from dlpool.storage.disk import concatenation
from dlpool.storage.disk.backend import DiskBackend
from dlpool.storage.disk.merger import Merger
from dlpool.storage.disk.part_claims import with_claim
from dlpool.storage.disk.removal import TaskRemover
from dlpool.storage.disk.tus_uploads import DiskTusUploads
from dlpool.storage.errors import UploadError
from dlpool.storage.upload_requests import FINAL, PARTIAL, TusUploadRequest
from dlpool.storage.values import VolumeCapacity
from dlpool.web.errors import http_error
from tests.test_storage_append import fails
from tests.test_tus import ask, begin, patch
from tests.test_web_access import KEY, token
from tests.uploads import commit_chunk, detail_of, files_below, leftovers, list_of, open_append, refused, store_in
from tests.web import WebServer

SENT = [b"one", b"two2"]


@pytest.fixture
def store(tmp_path: Path) -> DiskBackend:
    return store_in(tmp_path)


def part(store: DiskBackend, *pieces: bytes, owner: str | None = None) -> str:
    """Create a complete part from these pieces and return its id."""
    file_id = store.tus.create(TusUploadRequest(owner, sum(map(len, pieces)), concat=PARTIAL))
    offset = 0
    for piece in pieces:
        with open_append(store, file_id, owner, offset, size=len(piece)) as session:
            session.write(piece)
            session.commit()
        offset += len(piece)
    return file_id


def join(store: DiskBackend, parts: list[str], owner: str | None = None, name: str = "whole") -> str:
    return store.concatenator.concatenate(TusUploadRequest(owner, None, name, concat=f"{FINAL};"), parts)


def ids(store: DiskBackend) -> list[str]:
    return [task["task_id"] for task in list_of(store, None)["tasks"]]


def published(store: DiskBackend) -> dict[str, bytes]:
    folder = Path(store.settings.merged_dir)
    return {name: (folder / name).read_bytes() for name in files_below(folder)}


# --- what is refused, before anything is made ---

Parts = Callable[[DiskBackend], list[str]]


@pytest.mark.parametrize(
    ("parts", "status", "code"),
    [
        (lambda store: [part(store, b"1", owner="ann")] * 2, 400, "repeated_part"),
        (lambda store: [part(store, b"1", owner="ann")] * 1000, 400, "bad_concat"),
        (lambda store: [part(store, b"1", owner="ann"), "0" * 32] * 50, 400, "repeated_part"),
        (lambda _store: [f"{index:032x}" for index in range(101)], 400, "bad_concat"),
        (lambda _store: [], 400, "bad_concat"),
        (lambda store: [part(store, b"1", owner="ann"), part(store, b"2", owner="bob")], 404, "no_such_task"),
        (lambda store: [part(store, b"1", owner="ann"), part(store, b"2")], 404, "no_such_task"),
        (
            lambda store: [part(store, b"123456", owner="ann"), part(store, b"78901", owner="ann")],
            413,
            "file_too_large",
        ),
        (lambda store: [part(store, b"1", b"2", owner="ann"), part(store, b"3", b"4", owner="ann")], 413, "too_large"),
    ],
)
def test_nothing_is_made_of_parts_that_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: Parts, status: int, code: str
) -> None:
    monkeypatch.setattr(concatenation, "MAX_CHUNKS", 3)
    events: list[str] = []
    store = DiskBackend(store_in(tmp_path, max_file_size=10).settings, lambda event: events.append(event.name))
    wanted = parts(store)
    before = sorted(files_below(tmp_path))
    events.clear()
    with refused(status, code):
        join(store, wanted, "ann")
    assert (sorted(files_below(tmp_path)), events) == (before, [])


def test_a_part_of_another_owner_is_refused_like_an_unknown_one(store: DiskBackend) -> None:
    own, foreign, unknown = part(store, b"1", owner="bob"), part(store, b"2", owner="ann"), "0" * 32
    chunked = "a task of chunks"
    with store.chunks.stage() as staged:
        staged.write(b"x")
        commit_chunk(store, staged, file_id=chunked, index=0, owner="ann")
    answers = set()
    for other in (foreign, unknown, chunked):
        with pytest.raises(UploadError) as raised:
            join(store, [own, other], "bob")
        error = http_error(raised.value)
        said = {**error.as_json(), "status": error.status, "headers": str(error.headers)}
        answers.add(str(said).replace(other, "ID"))
    assert len(answers) == 1


def test_an_administrator_concatenates_parts_of_one_owner(store: DiskBackend) -> None:
    parts = [part(store, b"1", owner="ann"), part(store, b"2", owner="ann"), part(store, b"3", owner="bob")]
    with refused(400, "bad_part"):
        join(store, parts)
    file_id = join(store, parts[:2])
    assert detail_of(store, file_id, "ann")["status"] == "completed"
    with refused(404, "no_such_task"):
        detail_of(store, file_id, "bob")


@pytest.mark.parametrize(("free", "status"), [(13, 507), (14, 0)])
def test_copied_chunks_are_refused_unless_all_of_them_fit(
    store: DiskBackend, monkeypatch: pytest.MonkeyPatch, free: int, status: int
) -> None:
    parts = [part(store, data) for data in SENT]
    monkeypatch.setattr(os, "link", fails(OSError(errno.EPERM, "no links")))
    monkeypatch.setattr(
        "dlpool.storage.disk.capacity.capacity_of", lambda folder: VolumeCapacity(folder, 1000, free, 0.5)
    )
    if status:
        with refused(507, "no_space"):
            join(store, parts)
        assert (ids(store), published(store)) == (sorted(parts), {})
    else:
        join(store, parts)
        assert published(store) == {"whole": b"onetwo2"}


# --- each part goes into one file ---


@contextmanager
def stopped(
    monkeypatch: pytest.MonkeyPatch, owner: type, name: str
) -> Iterator[tuple[threading.Event, threading.Event]]:
    """Make the first call of a method wait. Yields the events that are set when it starts and to continue it."""
    begun, go_on, real = threading.Event(), threading.Event(), getattr(owner, name)

    def wait(*arguments: object, **named: object) -> object:
        if not begun.is_set():
            begun.set()
            assert go_on.wait(30)
        return real(*arguments, **named)

    with monkeypatch.context() as context:
        context.setattr(owner, name, wait)
        yield begun, go_on


def test_a_part_in_work_is_refused_to_another_final_upload_and_then_is_gone(
    store: DiskBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [part(store, data) for data in SENT]
    other = part(store, b"other")
    with stopped(monkeypatch, Merger, "merge") as (begun, go_on), ThreadPoolExecutor(1) as pool:
        first = pool.submit(join, store, parts)
        assert begun.wait(30)
        for wanted in ([parts[0]], [other, parts[1]]):
            with refused(409, "part_taken"):
                join(store, wanted, name="second")
        assert store.tus.recover(parts[0], None).offset == len(SENT[0])  # still there
        store.sweep()
        assert store.concatenator.recover(parts[0]) == 0
        go_on.set()
        assert detail_of(store, first.result(), None)["status"] == "completed"
    for wanted in ([parts[0]], [other, parts[1]]):
        with refused(404, "no_such_task"):
            join(store, wanted, name="second")
    for gone in parts:
        with refused(404, "no_such_task"):
            store.tus.recover(gone, None)
    assert published(store) == {"whole": b"onetwo2"}
    assert join(store, [other], name="second")


def test_parts_of_a_final_upload_that_fails_can_be_joined_again(
    store: DiskBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [part(store, data) for data in SENT]
    with monkeypatch.context() as context:
        context.setattr(Merger, "merge", fails(UploadError("no_space", "the disk is full")))
        with refused(507, "no_space"):
            join(store, parts)
    assert sorted(ids(store)) == sorted(parts)
    join(store, parts[::-1])
    assert published(store) == {"whole": b"two2one"}


def test_parts_whose_file_is_there_are_consumed_though_an_error_came_after_it(
    store: DiskBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts, merge = [part(store, data) for data in SENT], Merger.merge

    def fail_late(merger: Merger, request: object) -> None:
        merge(merger, request)  # type: ignore[arg-type]  # of whatever kind it is
        raise UploadError("storage", "the answer is lost")

    monkeypatch.setattr(Merger, "merge", fail_late)
    file_id = join(store, parts)
    assert (ids(store), published(store)) == ([file_id], {"whole": b"onetwo2"})


@pytest.mark.parametrize("way", ["sweep", "delete", "cleanup"])
def test_a_part_that_could_not_be_removed_never_comes_back(
    store: DiskBackend, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Its final upload is not removed before the part is."""
    parts = [part(store, data) for data in SENT]
    with monkeypatch.context() as context:
        context.setattr(TaskRemover, "_trash", fails(OSError(errno.EIO, "the disk")))
        file_id = join(store, parts)
    assert len(ids(store)) == 3
    for gone in parts:
        with refused(404, "no_such_task"):
            store.tus.recover(gone, None)
        with refused(404, "no_such_task"):
            store.tus.state(gone, None)
    if way == "delete":
        store.delete(file_id, None)
    elif way == "cleanup":
        assert store.cleanup(None, ["completed"], 0) == 0
    if way != "delete":
        assert store.sweep().removed == 2
    assert (ids(store), leftovers(store)) == ([] if way == "delete" else [file_id], [])
    with refused(404, "no_such_task"):
        join(store, parts, name="second")


def test_the_claim_of_a_removed_final_upload_is_void(store: DiskBackend) -> None:
    file_id = part(store, b"one")
    with store.layout.lock_id(file_id) as task:
        task.save(with_claim(task.record(), "0" * 32))
    assert store.tus.recover(file_id, None).offset == 3
    join(store, [file_id])
    assert published(store) == {"whole": b"one"}


@pytest.mark.parametrize(("owner", "method"), [(DiskTusUploads, "finish"), (TaskRemover, "remove_parts")])
def test_a_request_for_a_part_recovers_the_final_upload_of_a_killed_process(
    store: DiskBackend, owner: type, method: str
) -> None:
    parts = [part(store, data) for data in SENT]
    child = os.fork()
    if child == 0:
        setattr(owner, method, lambda *_arguments: os.kill(os.getpid(), signal.SIGKILL))
        join(store, parts)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert len(ids(store)) == 3
    if method == "remove_parts":
        with refused(404, "no_such_task"):
            join(store, parts, name="second")
        assert published(store) == {"whole": b"onetwo2"}
    else:
        join(store, parts, name="second")
        assert published(store) == {"second": b"onetwo2"}
    store.sweep()
    assert len(ids(store)) == 1


RACE = 6


def test_of_many_processes_that_join_the_same_parts_one_does(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    parts = [part(store, bytes([index]) * 1000) for index in range(8)]
    together, results = os.pipe(), os.pipe()
    children = [_joining(store, parts if index % 2 else parts[::-1], index, together, results) for index in range(RACE)]
    os.close(together[0])
    os.close(together[1])  # they all begin
    for child in children:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    os.close(results[1])
    with os.fdopen(results[0]) as file:
        said = file.read().split()
    assert len(said) == RACE
    assert set(said) <= {"done", "part_taken", "no_such_task", "part_gone"}
    assert said.count("done") == len(published(store)) == 1
    assert len(ids(store)) == 1
    assert leftovers(store) == []


def _joining(
    store: DiskBackend, parts: list[str], index: int, together: tuple[int, int], results: tuple[int, int]
) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.close(together[1])
        os.read(together[0], 1)
        said = "done"
        try:
            join(store, parts, name=f"file{index}")
        except UploadError as caught:
            said = caught.code
        os.write(results[1], f"{said}\n".encode())
        code = 0
    finally:
        os._exit(code)


# --- the same by requests ---


def test_what_clients_hear_of_parts(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text(KEY)
    settings: dict[str, dict[str, Any]] = {"web": {"jwt_key_file": str(key)}, "upload": {"max_file_size": 1000}}
    with WebServer(tmp_path, settings) as server:
        ann, bob = ({"Authorization": f"Bearer {token(sub=name)}"} for name in ("ann", "bob"))

        def whole(size: int, who: dict[str, str]) -> str:
            path = begin(server, size, Upload_Concat="partial", **who)
            assert patch(server, path, 0, bytes(size), **who).status_code == 204
            return path

        def final(*paths: str, **who: str) -> tuple[int, str]:
            answer = ask(server, "POST", Upload_Concat=f"final;{' '.join(paths)}", **who)
            return answer.status_code, "" if answer.ok else answer.json()["code"]

        mine, other, large, foreign = whole(400, ann), whole(300, ann), whole(601, ann), whole(5, bob)
        unknown = f"/files/{'0' * 32}"
        before = requests.get(f"{server.url}/tasks", timeout=10, headers=ann).json()["total"]
        assert final(mine, mine, **ann) == (400, "repeated_part")
        assert final(mine, f"{server.root}{mine}", **ann) == (400, "repeated_part")
        assert final(mine, foreign, **ann) == final(mine, unknown, **ann) == (404, "no_such_task")
        assert final(mine, large, **ann) == (413, "file_too_large")
        assert requests.get(f"{server.url}/tasks", timeout=10, headers=ann).json()["total"] == before
        assert final(mine, other, **ann) == (201, "")
        for path in (mine, other):
            assert ask(server, "HEAD", path, **ann).status_code == 404
            assert ask(server, "DELETE", path, **ann).status_code == 404
            assert final(path, **ann) == (404, "no_such_task")
        assert len(files_below(server.merged_dir)) == 1
