"""The quota of one owner's uploads, for every way to create them and for several processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import requests

from dlpool.storage.disk import capacity, tus_uploads
from dlpool.storage.disk.backend import DiskBackend
from dlpool.storage.disk.capacity import FILES_PER_TASK
from dlpool.storage.disk.layout import StoreLayout
from dlpool.storage.disk.task_folder import SharedTaskLock
from dlpool.storage.errors import UploadError
from dlpool.storage.upload_requests import FINAL, PARTIAL, TusUploadRequest
from tests.test_tus import ask
from tests.test_tus_final import part
from tests.test_web_access import KEY, bearer, token
from tests.uploads import check_chunk, list_of, merge, open_append, refused, send, send_all, store_in
from tests.web import WebServer

MOST = 1000


def by_chunk(store: DiskBackend, size: int | None, owner: str | None, number: int) -> None:
    send(store, 0, b"x", file_id=f"{owner} {number}", owner=owner, total_chunks=2, file_size=size)


def by_foresight(store: DiskBackend, size: int | None, owner: str | None, number: int) -> None:
    """A chunk is refused before its bytes come; where it is not, it is sent."""
    lock = check_chunk(store, file_id=f"{owner} {number}", index=0, owner=owner, file_size=size)
    assert lock is None
    by_chunk(store, size, owner, number)


def by_tus(store: DiskBackend, size: int | None, owner: str | None, _number: int) -> None:
    store.tus.create(TusUploadRequest(owner, size))


def by_part(store: DiskBackend, size: int | None, owner: str | None, _number: int) -> None:
    store.tus.create(TusUploadRequest(owner, size, concat=PARTIAL))


Way = Callable[[DiskBackend, "int | None", "str | None", int], None]
WAYS = [by_chunk, by_foresight, by_tus, by_part]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("owner", ["ann", None])
def test_an_owner_has_so_many_tasks(tmp_path: Path, way: Way, owner: str | None) -> None:
    store = store_in(tmp_path, owner_tasks=2)
    for number in range(2):
        way(store, 10, owner, number)
    with refused(507, "over_quota") as error:
        way(store, 10, owner, 2)
    assert error.details == {"quota": "owner_tasks", "limit": 2, "used": 2, "wanted": 1}
    assert "2" in error.text
    way(store, 10, "bob", 0)  # another one's do not count
    store.delete(list_of(store, owner)["tasks"][0]["task_id"], None)
    assert list_of(store, owner)["total"] == 1 + (owner is None)
    if owner is not None:
        way(store, 10, owner, 3)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("most", "first", "second", "used", "wanted"),
    [
        (1000, 600, 400, 0, 0),
        (1000, 600, 401, 600, 401),
        (1000, 1000, 1, 1000, 1),
        (500, None, 500, 0, 0),  # an unknown size is the largest that a file may have
        (500, 500, None, 0, 0),
        (500, 501, None, 501, 500),
        (501, None, 500, 501, 500),
    ],
)
def test_an_owner_has_so_many_bytes_and_what_is_announced_counts(
    tmp_path: Path, way: Way, most: int, first: int | None, second: int | None, used: int, wanted: int
) -> None:
    way(store_in(tmp_path), first, "ann", 0)
    store = store_in(tmp_path, owner_bytes=MOST, max_file_size=most)
    if not wanted:
        way(store, second, "ann", 1)
        return
    with refused(507, "over_quota") as error:
        way(store, second, "ann", 1)
    assert error.details == {"quota": "owner_bytes", "limit": MOST, "used": used, "wanted": wanted}
    assert (str(MOST) in error.text, list_of(store, None)["total"]) == (True, 1)


def test_a_size_that_becomes_known_frees_the_rest(tmp_path: Path) -> None:
    store = store_in(tmp_path, owner_bytes=MOST, max_file_size=MOST)
    file_id = store.tus.create(TusUploadRequest("ann", None))
    with refused(507, "over_quota"):
        by_tus(store, 1, "ann", 0)
    with open_append(store, file_id, "ann", 0, size=3, length=400) as session:
        session.write(b"abc")
        session.commit()
    by_tus(store, 600, "ann", 0)
    with refused(507, "over_quota"):
        by_chunk(store, 1, "ann", 0)


def test_a_merged_file_counts_with_its_own_size_as_long_as_its_task_is_known(tmp_path: Path) -> None:
    store = store_in(tmp_path, owner_bytes=MOST, max_file_size=MOST)
    send(store, 0, b"x" * 300, owner="ann")
    merge(store, 1, owner="ann")
    by_tus(store, 700, "ann", 0)
    with refused(507, "over_quota"):
        by_tus(store, 1, "ann", 0)
    store.delete("a file", "ann")
    by_tus(store, 300, "ann", 0)


def test_chunks_of_a_task_that_is_there_are_not_asked_for_room(tmp_path: Path) -> None:
    """Also where the limits were lowered."""
    send(store_in(tmp_path), 0, b"x", owner="ann", total_chunks=2)
    by_tus(store_in(tmp_path), 5, "ann", 0)
    store = store_in(tmp_path, owner_tasks=1, owner_bytes=1)
    lock = check_chunk(store, file_id="a file", index=1, owner="ann", total_chunks=2)
    assert lock is not None
    lock.release()
    send(store, 1, b"x", owner="ann", total_chunks=2)
    assert merge(store, 2, owner="ann").size == 2


def test_a_task_removed_before_its_chunk_is_not_created_without_a_quota_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_in(tmp_path, owner_tasks=1)
    by_chunk(store, 5, "ann", 0)
    task_of = StoreLayout.lock_owned

    def task_after_removal(layout: StoreLayout, file_id: str, owner: str | None) -> object:
        monkeypatch.setattr(StoreLayout, "lock_owned", task_of)
        store.delete("ann 0", None)
        by_chunk(store, 5, "ann", 1)
        return task_of(layout, file_id, owner)

    monkeypatch.setattr(StoreLayout, "lock_owned", task_after_removal)
    with refused(404, "no_such_task"):
        by_chunk(store, 5, "ann", 0)
    assert [entry["task_id"] for entry in list_of(store, None)["tasks"]] == ["ann 1"]


@pytest.mark.parametrize("owner", ["ann", None])
def test_a_final_upload_takes_what_its_parts_took(tmp_path: Path, owner: str | None) -> None:
    store = store_in(tmp_path, owner_tasks=2, owner_bytes=MOST, max_file_size=MOST)
    parts = [part(store, b"x" * 500, owner=owner), part(store, b"y" * 500, owner=owner)]
    for size in (0, 1):
        with refused(507, "over_quota"):
            by_part(store, size, owner, 0)
    file_id = store.concatenator.concatenate(TusUploadRequest(owner, None, "whole", concat=f"{FINAL};"), parts)
    with refused(507, "over_quota") as error:
        by_tus(store, 1, owner, 0)
    assert (error.details["quota"], error.details["used"]) == ("owner_bytes", 1000)
    store.delete(file_id, owner)
    by_tus(store, 1000, owner, 0)


def test_an_unreadable_folder_counts_for_no_owner(tmp_path: Path) -> None:
    store = store_in(tmp_path, owner_tasks=2)
    by_chunk(store, 5, "ann", 0)
    folders = list((tmp_path / "upload" / "tasks").iterdir())
    for index, text in enumerate(("{", "", "[]")):
        broken = folders[0].with_name(f"{index:064x}")
        broken.mkdir()
        (broken / "identity.json").write_text(text)
    (folders[0].with_name("f" * 64)).mkdir()
    (folders[0] / "record.json").unlink()
    by_chunk(store, 5, "ann", 1)
    with refused(507, "over_quota"):
        by_chunk(store, 5, "ann", 2)


FILES = FILES_PER_TASK
STEPS = capacity.CHUNK_COUNT_STEP


@pytest.mark.parametrize(
    ("limit", "chunks", "second", "refusal"),
    [
        (2 * FILES + 30, 10, 20, ()),
        (2 * FILES + 29, 10, 20, (FILES + 10, FILES + 20)),
        (2 * FILES + 10 + STEPS, 10, None, ()),  # an unknown number counts in thousands
        (2 * FILES + 9 + STEPS, 10, None, (FILES + 10, FILES + STEPS)),
        (2 * FILES + 10 + STEPS, None, 10, ()),
        (2 * FILES + 9 + STEPS, None, 10, (FILES + STEPS, FILES + 10)),
        (FILES + 9, 10, 1, (0, FILES + 10)),
    ],
)
def test_an_owner_has_so_many_files(
    tmp_path: Path, limit: int, chunks: int | None, second: int | None, refusal: tuple[int, int] | tuple[()]
) -> None:
    store = store_in(tmp_path, owner_files=limit)
    wanted = [("first", chunks), ("second", second)]
    if refusal and not refusal[0]:
        wanted = wanted[:1]
    for file_id, total in wanted[:-1]:
        send(store, 0, b"x", file_id=file_id, owner="ann", total_chunks=total)
    last, total = wanted[-1]
    if not refusal:
        send(store, 0, b"x", file_id=last, owner="ann", total_chunks=total)
        return
    for ask_for in (
        lambda: send(store, 0, b"x", file_id=last, owner="ann", total_chunks=total),
        lambda: check_chunk(store, file_id=last, index=0, owner="ann", total_chunks=total),
    ):
        with refused(507, "over_quota") as said:
            ask_for()
        assert said.details == {"quota": "owner_files", "limit": limit, "used": refusal[0], "wanted": refusal[1]}


@pytest.mark.parametrize(
    ("total", "status", "code"), [(None, 400, "bad_index"), (1002, 507, "over_quota"), (1001, 0, "")]
)
def test_many_chunks_are_announced_where_files_are_limited(
    tmp_path: Path, total: int | None, status: int, code: str
) -> None:
    store = store_in(tmp_path, owner_files=FILES + 1001)
    for file_id in ("new", "begun"):
        if file_id == "begun":
            send(store, 0, b"x", file_id=file_id, owner="ann")
        for ask_for in (partial(check_chunk, store), partial(send, store, data=b"x")):
            if status:
                with refused(status, code):
                    ask_for(index=1000, file_id=file_id, owner="ann", total_chunks=total)
                continue
            lock = ask_for(index=1000, file_id=file_id, owner="ann", total_chunks=total)
            if isinstance(lock, SharedTaskLock):
                lock.release()
        if list_of(store, "ann")["total"]:
            store.delete(file_id, "ann")


def test_uploads_count_only_for_their_owner(tmp_path: Path) -> None:
    store = store_in(tmp_path, owner_files=FILES + 1000)
    send(store, 0, b"x", file_id="hers", owner="ann")
    for ask_for in (partial(check_chunk, store), partial(send, store, data=b"x")):
        for file_id in ("hers", "nobodys"):
            with refused(507, "over_quota") as caught:
                ask_for(index=1, file_id=file_id, owner="bob", total_chunks=100_000)
            assert caught.details["used"] == 0


def test_an_upload_in_many_pieces_counts_in_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (capacity, tus_uploads):
        monkeypatch.setattr(module, "CHUNK_COUNT_STEP", 3)
    store = store_in(tmp_path, owner_files=FILES + 6)
    file_id = store.tus.create(TusUploadRequest("ann", 100))
    for offset in range(6):
        with open_append(store, file_id, "ann", offset, size=1) as session:
            session.write(b"x")
            session.commit()
    with refused(507, "over_quota") as error, open_append(store, file_id, "ann", 6, size=1):
        pass
    assert error.details == {"quota": "owner_files", "limit": FILES + 6, "used": FILES + 6, "wanted": 3}
    assert store.tus.recover(file_id, "ann").offset == 6


def test_a_completed_upload_has_no_chunks_any_more(tmp_path: Path) -> None:
    store = store_in(tmp_path, owner_files=2 * FILES + 50)
    send_all(store, [b"x"] * 50, owner="ann")
    with refused(507, "over_quota"):
        by_chunk(store, 5, "ann", 0)
    merge(store, 50, owner="ann")
    send(store, 0, b"x", file_id="next", owner="ann", total_chunks=50)


RACE, MAY = 8, 5


@pytest.mark.parametrize("is_killed", [False, True])
def test_processes_that_begin_at_once_keep_to_the_limit(tmp_path: Path, is_killed: bool) -> None:
    """Also when others have been killed while it was their turn."""
    store = store_in(tmp_path, owner_tasks=MAY)
    if is_killed:
        for _ in range(2):
            child = os.fork()
            if child == 0:
                StoreLayout.create_task = lambda *_arguments: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign,assignment]  # the child's alone
                by_tus(store, 5, "ann", 0)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    begin, end = os.pipe()
    children = [_beginning(store, number, (begin, end)) for number in range(RACE)]
    os.close(begin)
    os.close(end)  # they all begin
    ended = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert sorted(ended) == [0] * MAY + [3] * (RACE - MAY)
    assert list_of(store, "ann")["total"] == MAY


def _beginning(store: DiskBackend, number: int, together: tuple[int, int]) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.close(together[1])
        os.read(together[0], 1)
        try:
            (by_chunk, by_tus)[number % 2](store, 5, "ann", number)
            code = 0
        except UploadError as error:
            code = 3 if error.code == "over_quota" else 1
    finally:
        os._exit(code)


def test_what_clients_hear(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text(KEY)
    with WebServer(tmp_path, {"web": {"jwt_key_file": key}, "upload": {"owner_tasks": 1}}) as server:
        ann, bob = (bearer(token(sub=name)) for name in ("ann", "bob"))
        for who in (ann, bob):
            assert ask(server, "POST", Upload_Length=5, **who).status_code == 201
        said = ask(server, "POST", Upload_Length=5, **ann)
        assert (said.status_code, said.json()["code"], said.json()["limit"]) == (507, "over_quota", 1)
        chunk = {"file_id": "x", "chunk_index": "0"}
        said = requests.post(f"{server.url}/upload_chunk", data=chunk, files={"chunk": b"x"}, headers=ann, timeout=10)
        assert (said.status_code, said.json()["code"]) == (507, "over_quota")
        assert requests.get(f"{server.url}/tasks", headers=ann, timeout=10).json()["total"] == 1
