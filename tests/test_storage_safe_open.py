"""Links and FIFOs planted in the backend's folders: nothing outside is read or written, and no request blocks."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from dlpool.storage.disk.backend import DiskBackend
from dlpool.storage.errors import UploadError
from dlpool.storage.names import folder_name
from dlpool.web.errors import http_error
from tests.uploads import (
    ID,
    detail_of,
    files_below,
    leftovers,
    list_of,
    merge,
    refused,
    send,
    state,
    status_of,
    store_in,
    uploaded,
)

FILES = ("identity.json", "record.json", "record.json.tmp", "merge.lock", "0.chunk", "1.chunk")


@pytest.fixture
def store(tmp_path: Path) -> DiskBackend:
    """With a task of two chunks, of which one is there."""
    store = store_in(tmp_path)
    store.sweep()
    send(store, 0, b"zero", total_chunks=2)
    return store


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "secret").write_bytes(b"secret")
    return folder


def folder_of(store: DiskBackend) -> Path:
    return Path(store.settings.upload_dir) / "tasks" / folder_name(ID)


def use_all(store: DiskBackend) -> set[int]:
    """Whatever a client can do; the statuses of what was refused."""
    statuses = set()
    for use in (
        lambda: status_of(store, ID, None),
        lambda: detail_of(store, ID, None),
        lambda: list_of(store, None),
        lambda: send(store, 1, b"one"),
        lambda: merge(store, 2),
        lambda: store.pause(ID, None),
        lambda: store.resume(ID, None),
        lambda: store.cleanup(None, ("failed",), 0),
        lambda: store.delete(ID, None),
        store.sweep,
    ):
        try:
            use()
        except UploadError as error:
            statuses.add(http_error(error).status)
    return statuses


@pytest.mark.parametrize("target", ["secret", "new"])  # what is there, and what is not yet
@pytest.mark.parametrize("name", FILES)
def test_a_link_in_place_of_a_file_of_a_task_is_not_followed(
    store: DiskBackend, outside: Path, name: str, target: str
) -> None:
    path = folder_of(store) / name
    path.unlink(missing_ok=True)
    path.symlink_to(outside / target)
    use_all(store)
    assert (files_below(outside), (outside / "secret").read_bytes()) == (["secret"], b"secret")


@pytest.mark.parametrize("name", ["record.json.tmp", "1.chunk"])
def test_a_link_where_a_file_is_to_come_gives_way(store: DiskBackend, outside: Path, name: str) -> None:
    (folder_of(store) / name).symlink_to(outside / "secret")
    send(store, 1, b"one")
    assert Path(merge(store, 2).path).read_bytes() == b"zeroone"
    assert (outside / "secret").read_bytes() == b"secret"


def test_a_symlink_in_place_of_a_merge_lock_does_not_prevent_deletion(store: DiskBackend, outside: Path) -> None:
    send(store, 1, b"one")
    (folder_of(store) / "merge.lock").symlink_to(outside / "secret")
    with refused(507, "symbolic_link"):
        merge(store, 2)
    store.delete(ID, None)
    assert (list_of(store, None)["total"], (outside / "secret").read_bytes()) == (0, b"secret")


def test_a_link_in_place_of_a_task_is_refused_and_hides_no_other(store: DiskBackend, outside: Path) -> None:
    send(store, 0, b"other", file_id="other")
    folder = folder_of(store)
    shutil.move(folder, outside / "moved")
    before = files_below(outside)
    folder.symlink_to(outside / "moved")
    assert use_all(store) == {507}
    assert files_below(outside) == before
    assert [task["task_id"] for task in list_of(store, None)["tasks"]] == ["other"]
    folder.unlink()
    shutil.move(outside / "moved", folder)
    assert uploaded(store) == [0]


@pytest.mark.parametrize("name", ["tasks", "tmp", "locks"])
def test_a_link_in_place_of_a_folder_of_the_store_is_refused(store: DiskBackend, outside: Path, name: str) -> None:
    folder = Path(store.settings.upload_dir) / name
    shutil.move(folder, folder.with_name("kept"))
    folder.symlink_to(outside)
    assert 507 in use_all(store)
    with refused(507, "symbolic_link"):
        send(store, 1, b"one")
    assert files_below(outside) == ["secret"]
    folder.unlink()
    shutil.move(folder.with_name("kept"), folder)


def test_a_link_among_what_is_swept_goes_and_its_target_stays(store: DiskBackend, outside: Path) -> None:
    link = Path(store.settings.upload_dir) / "tmp" / "x.trash"
    link.symlink_to(outside)
    store.sweep()
    assert not link.is_symlink()
    assert files_below(outside) == ["secret"]


def test_a_link_in_place_of_the_file_that_a_merge_makes_is_not_followed(store: DiskBackend, outside: Path) -> None:
    send(store, 1, b"one")
    merged = Path(store.settings.merged_dir)
    merged.mkdir()
    (merged / f".dlpool-{folder_name(ID)[:32]}.merging").symlink_to(outside / "secret")
    assert Path(merge(store, 2).path).read_bytes() == b"zeroone"
    assert ((outside / "secret").read_bytes(), leftovers(store)) == (b"secret", [])


@pytest.mark.parametrize("name", FILES)
def test_a_fifo_blocks_no_request(store: DiskBackend, name: str) -> None:
    send(store, 0, b"other", file_id="other")
    path = folder_of(store) / name
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    use_all(store)
    assert uploaded(store, "other") == [0]


@pytest.mark.parametrize("name", ["record.json", "record.json.tmp", "1.chunk"])
def test_a_fifo_in_place_of_metadata_loses_nothing(store: DiskBackend, name: str) -> None:
    path = folder_of(store) / name
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    send(store, 1, b"one")
    assert state(store) == "uploading"
    assert Path(merge(store, 2).path).read_bytes() == b"zeroone"
