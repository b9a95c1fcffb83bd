"""The state file: committed atomically, read only if it is a regular file, and without the secrets of its URL."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlpool import disk
from dlpool.errors import LocalFault
from dlpool.transfer.http.remote_resource import RemoteResource
from dlpool.transfer.job import Checksum, Job
from dlpool.transfer.target.file.statefile import MAX_STATE_BYTES, StateFile
from dlpool.transfer.target.state import (
    PublishRecord,
    SavedChunk,
    SavedState,
    StateUnusable,
    url_digest,
    url_without_secrets,
)
from tests.fakes import Events

URL = "https://example.org/files/data.bin"
STATE = SavedState(
    url=URL,
    url_sha256=url_digest(URL),
    size=1000,
    etag=None,
    last_modified=None,
    created_at="2024-05-07T10:00:00Z",
    updated_at="2024-05-07T10:00:04Z",
    attempts=1,
    last_error=None,
    chunks=(SavedChunk(0, 1000, 512, False),),
)
LATER = replace(STATE, updated_at="2024-05-07T10:00:06Z", chunks=(SavedChunk(0, 1000, 900, False),))


@pytest.mark.parametrize("sync", [True, False])
def test_a_committed_state_is_loaded_again(tmp_path: Path, sync: bool) -> None:
    StateFile(tmp_path / "f.part.meta", sync=sync).commit(STATE)
    assert StateFile(tmp_path / "f.part.meta", sync=sync).load() == STATE
    assert os.listdir(tmp_path) == ["f.part.meta"]


def test_a_commit_replaces_what_was_there(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "f.part.meta", sync=False)
    file.commit(STATE)
    file.commit(LATER)
    assert file.load() == LATER


def test_a_temporary_file_of_a_killed_run_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "f.part.meta.tmp").write_bytes(b"x" * 10_000)
    file = StateFile(tmp_path / "f.part.meta", sync=False)
    file.commit(STATE)
    assert file.load() == STATE


def test_without_a_file_there_is_no_state(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "f.part.meta", sync=False)
    assert not file.exists
    assert file.load() is None


def test_a_removed_state_is_gone(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "f.part.meta", sync=True)
    file.commit(STATE)
    file.remove()
    assert (file.exists, file.load(), os.listdir(tmp_path)) == (False, None, [])
    file.remove()


def test_leftovers_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    (tmp_path / "f.part.meta.tmp").write_bytes(b"half")
    file = StateFile(tmp_path / "f.part.meta", sync=False)
    file.remove_stale_temporary()
    file.remove_stale_temporary()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("kind", ["folder", "pipe", "symlink", "dangling symlink"])
def test_what_is_no_plain_file_is_not_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "f.part.meta"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        (tmp_path / "other").write_text(STATE.as_json()) if kind == "symlink" else None
        path.symlink_to(tmp_path / "other")
    with pytest.raises(StateUnusable):
        StateFile(path, sync=False).load()


@pytest.mark.parametrize(("length", "is_read"), [(MAX_STATE_BYTES, True), (MAX_STATE_BYTES + 1, False)])
def test_a_file_too_large_for_a_state_is_not_read(tmp_path: Path, length: int, is_read: bool) -> None:
    path = tmp_path / "f.part.meta"
    path.write_text(STATE.as_json().ljust(length))
    if is_read:
        assert StateFile(path, sync=False).load() == STATE
    else:
        with pytest.raises(StateUnusable, match="too large"):
            StateFile(path, sync=False).load()


def test_a_commit_does_not_write_through_a_symlink(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("precious")
    (tmp_path / "f.part.meta").symlink_to(tmp_path / "other")
    StateFile(tmp_path / "f.part.meta", sync=False).commit(STATE)
    assert (tmp_path / "other").read_text() == "precious"
    assert not (tmp_path / "f.part.meta").is_symlink()


# --- the URL in it ---


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://host/a", "http://host/a"),
        ("http://user:secret@host:81/a?token=secret#secret", "http://host:81/a"),
        ("http://us@er:sec@ret@host/a", "http://host/a"),
        ("http://secret@[::1]:80/a", "http://[::1]:80/a"),
        ("https://host?secret", "https://host"),
    ],
)
def test_a_url_is_saved_without_secrets(url: str, expected: str) -> None:
    assert url_without_secrets(url) == expected


@pytest.mark.parametrize("other", ["http://host/b", "http://host/a?x=2", "http://u@host/a?x=1", "https://host/a?x=1"])
def test_another_url_has_another_digest(other: str) -> None:
    assert url_digest("http://host/a?x=1") != url_digest(other)


def test_a_fragment_does_not_make_another_url() -> None:
    assert url_digest("http://host/a?x=1#one") == url_digest("http://host/a?x=1#two")


@given(st.text(st.characters()))
def test_any_path_has_a_digest(path: str) -> None:
    assert len(url_digest(f"http://host/{path}")) == 64


# --- one step at a time ---

PLACEHOLDER = b'{"version":1,"placeholder":true}'


def failing(number: int) -> Any:
    def fail(*_: object, **__: object) -> Any:
        raise OSError(number, os.strerror(number))

    return fail


def test_a_state_file_is_named_after_its_target(tmp_path: Path) -> None:
    assert StateFile.for_target(tmp_path / "f.bin", sync=False).path == tmp_path / "f.bin.part.meta"


def test_fields_without_a_value_are_left_out_only_where_later_versions_added_them() -> None:
    always = set(vars(STATE)) - {"date", "content_type", "host", "digest", "checksum"} | {"version"}
    assert set(json.loads(STATE.as_json())) == always
    assert set(json.loads(replace(STATE, host="h", checksum="md5:00").as_json())) == always | {"host", "checksum"}


def test_a_record_of_publishing_has_only_what_is_known() -> None:
    for record, names in (
        (PublishRecord(1, 2), {"inode", "size"}),
        (PublishRecord(1, 2, "j", 0), {"inode", "size", "job", "fence"}),
    ):
        text = replace(STATE, publishing=record).as_json()
        assert set(json.loads(text)["publishing"]) == names
        assert SavedState.from_json(text).publishing == record


@pytest.mark.parametrize("size", [0, 1000])
def test_the_state_of_a_published_file_is_complete(size: int) -> None:
    job = Job(URL, Path("f"), checksum=Checksum("sha256", "0" * 64))
    resource = RemoteResource(
        etag='"v"',
        last_modified="Tue, 01 Oct 2024 10:00:00 GMT",
        date="Wed, 02 Oct 2024 10:00:00 GMT",
        digest=("md5", "00"),
        host="h",
    )
    record = PublishRecord(7, size, "j", 3)
    state = SavedState.for_published(job, resource, record, "2026-01-01T00:00:00Z")
    assert SavedState.from_json(state.as_json()) == state
    assert (state.size, state.missing_spans, state.attempts, state.publishing) == (size, [], 1, record)
    assert [tuple(span) for span in state.written_spans] == [(0, size)] * bool(size)
    assert state.resource == replace(resource, size=size)
    assert (state.digest, state.checksum, state.date) == ("md5:00", f"sha256:{'0' * 64}", resource.date)


def test_a_state_that_is_begun_has_no_attempt_and_only_a_date_that_proves() -> None:
    fresh = RemoteResource(size=10, last_modified="Wed, 02 Oct 2024 10:00:00 GMT", date="Wed, 02 Oct 2024 10:00:00 GMT")
    state = SavedState.initial(Job(URL, Path("f")), fresh, "2026-01-01T00:00:00Z")
    assert (state.attempts, state.chunks, state.date, state.digest, state.checksum) == (0, (), None, None, None)
    assert state.last_modified == fresh.last_modified


def test_only_what_was_touched_is_written() -> None:
    chunks = (SavedChunk(0, 400, 400, True), SavedChunk(400, 800, 500, False), SavedChunk(800, 1000, 800, False))
    state = replace(STATE, chunks=chunks)
    assert [tuple(span) for span in state.written_spans] == [(0, 400), (400, 500)]
    assert [tuple(span) for span in state.missing_spans] == [(500, 800), (800, 1000)]


@pytest.mark.parametrize(
    ("sync", "is_durable", "expected"), [(1, 1, True), (1, 0, False), (0, 1, False), (0, 0, False)]
)
def test_a_commit_is_durable_if_both_ask_for_it(
    sync: int, is_durable: int, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    file = StateFile(tmp_path / "f.part.meta", sync=bool(sync))
    monkeypatch.setattr(os, "fsync", synced.append)
    file.commit(STATE, is_durable=bool(is_durable))
    assert len(synced) == 2 * expected, "the file and its folder"


@pytest.mark.parametrize("sync", [True, False])
def test_a_removal_is_durable_if_that_is_asked(sync: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    file = StateFile(tmp_path / "f.part.meta", sync=sync)
    file.commit(STATE)
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_ino))
    file.remove()
    assert synced == [tmp_path.stat().st_ino] * sync
    file.remove()
    assert len(synced) == sync


@pytest.mark.parametrize(
    ("error", "reason"),
    [(OSError(errno.EOPNOTSUPP, "not supported"), "not supported"), (OSError(errno.EINVAL, None), "[Errno 22] None")],
)
def test_a_folder_that_cannot_be_synced_is_told(
    error: OSError, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = Events()

    def fsync(descriptor: int) -> None:
        if os.path.isdir(descriptor):
            raise error

    monkeypatch.setattr(disk, "_reported", set())
    monkeypatch.setattr(os, "fsync", fsync)
    StateFile.for_target(tmp_path / "f", sync=True, notify=events).commit(STATE)
    assert events == [("folder_not_synced", {"folder": str(tmp_path), "reason": reason})]


def test_a_placeholder_is_ours_and_no_state(tmp_path: Path) -> None:
    file = StateFile.for_target(tmp_path / "f", sync=False)
    assert (file.exists, file.holds_progress, file.is_recognized()) == (False, False, False)
    file.write_placeholder()
    assert (file.exists, file.holds_progress, file.is_recognized(), file.load()) == (True, False, True, None)
    assert file.path.read_bytes() == PLACEHOLDER
    other = StateFile.for_target(tmp_path / "f", sync=False)
    assert (other.load(), other.holds_progress) == (None, False)
    other.write_placeholder()
    other.remove_placeholder()
    assert (other.exists, os.listdir(tmp_path)) == (False, [])
    other.remove_placeholder()


def test_a_state_that_replaces_a_placeholder_is_progress_and_stays(tmp_path: Path) -> None:
    file = StateFile.for_target(tmp_path / "f", sync=False)
    file.write_placeholder()
    file.commit(STATE)
    assert (file.holds_progress, file.load()) == (True, STATE)
    file.write_placeholder()
    file.remove_placeholder()
    assert (file.exists, file.load()) == (True, STATE)
    file.reset()
    assert (file.exists, file.holds_progress, file.load()) == (True, False, None)
    assert file.path.read_bytes() == PLACEHOLDER
    file.remove_placeholder()
    assert os.listdir(tmp_path) == []


def test_a_placeholder_is_not_written_again(tmp_path: Path) -> None:
    file = StateFile.for_target(tmp_path / "f", sync=False)
    file.write_placeholder()
    before = file.path.stat().st_ino
    file.reset()
    assert file.path.stat().st_ino == before


def test_a_placeholder_is_never_forced_to_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", failing(errno.EIO))
    StateFile.for_target(tmp_path / "f", sync=True).write_placeholder()


def test_of_two_that_reserve_one_writes_and_none_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    late = StateFile.for_target(tmp_path / "f", sync=False)
    StateFile.for_target(tmp_path / "f", sync=False).commit(STATE)
    late.write_placeholder()
    assert (late.exists, late.is_placeholder, os.listdir(tmp_path)) == (True, False, ["f.part.meta"])
    late.remove_placeholder()
    assert late.load() == STATE


def test_a_placeholder_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = StateFile.for_target(tmp_path / "f", sync=False)
    with monkeypatch.context() as patch, pytest.raises(LocalFault, match=r"cannot write .*f\.part\.meta"):
        patch.setattr(disk, "publish_exclusive", failing(errno.EIO))
        file.write_placeholder()
    assert (file.exists, os.listdir(tmp_path)) == (False, [])


@pytest.mark.parametrize("name", ["f.part.meta.tmp", "f.part.meta.new"])
@pytest.mark.parametrize("kind", ["file", "link", "folder", "pipe"])
def test_a_foreign_file_with_the_name_of_the_temporary_one_stays(kind: str, name: str, tmp_path: Path) -> None:
    foreign = tmp_path / name
    if kind == "file":
        foreign.write_bytes(b"precious")
    elif kind == "link":
        foreign.symlink_to("elsewhere")
    elif kind == "folder":
        foreign.mkdir()
    else:
        os.mkfifo(foreign)
    before = foreign.lstat()
    file = StateFile.for_target(tmp_path / "f", sync=False)
    if name.endswith(".new"):
        file.write_placeholder()
    for state in (STATE, LATER):
        file.commit(state)
    assert file.load() == LATER
    after = foreign.lstat()
    assert (after.st_ino, after.st_mode, after.st_mtime_ns) == (before.st_ino, before.st_mode, before.st_mtime_ns)
    assert sorted(os.listdir(tmp_path)) == sorted([name, "f.part.meta"])
    assert not file.has_stale_temporary


@pytest.mark.parametrize(
    ("content", "is_ours"), [(b"", True), (b'{"ver', True), (b'{"version":1', True), (b"{}", False), (b"x", False)]
)
def test_the_beginning_of_a_state_is_a_leftover(content: bytes, is_ours: bool, tmp_path: Path) -> None:
    file = StateFile.for_target(tmp_path / "f", sync=False)
    assert file.has_stale_temporary is False
    (tmp_path / "f.part.meta.tmp").write_bytes(content)
    assert file.has_stale_temporary is is_ours


@pytest.mark.parametrize(
    ("content", "is_ours"),
    [(b"", False), (b'{"ver', False), (b'{"version":1', True), (PLACEHOLDER, True), (b"x", False)],
)
def test_a_state_is_ours_by_its_beginning(content: bytes, is_ours: bool, tmp_path: Path) -> None:
    (tmp_path / "f.part.meta").write_bytes(content)
    assert StateFile.for_target(tmp_path / "f", sync=False).is_recognized() is is_ours


def test_a_link_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "other").write_text(STATE.as_json())
    (tmp_path / "f.part.meta").symlink_to("other")
    assert StateFile.for_target(tmp_path / "f", sync=False).is_recognized() is False


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES, errno.EMFILE])
def test_a_file_that_cannot_be_read_now_is_neither_unusable_nor_foreign(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    StateFile.for_target(tmp_path / "f", sync=False).commit(STATE)
    (tmp_path / "f.part.meta.tmp").write_bytes(b"x")
    file = StateFile.for_target(tmp_path / "f", sync=False)
    monkeypatch.setattr("dlpool.transfer.target.file.statefile._open_no_follow", failing(number))
    for step in (file.load, file.is_recognized, lambda: file.has_stale_temporary, lambda: file.commit(LATER)):
        with pytest.raises(LocalFault):
            step()


def test_the_state_of_a_published_file_is_removed_at_the_second_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, tries, real = StateFile.for_target(tmp_path / "f", sync=False), list[object](), disk.remove
    file.remove_published()

    def remove(path: Path) -> None:
        tries.append(path)
        if len(tries) in (1, 3, 4):
            raise OSError(errno.EIO, "once")
        real(path)

    monkeypatch.setattr(disk, "remove", remove)
    file.commit(STATE)
    file.remove_published()
    assert (file.exists, os.listdir(tmp_path), len(tries)) == (False, [], 2)
    file.commit(STATE)
    file.remove_published()
    assert (file.exists, len(tries)) == (True, 4)
