"""The state file: committed whole, read only if it is a plain file, and without the secrets of its URL."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlpool.transfer.state import (
    MAX_STATE_BYTES,
    SavedChunk,
    SavedState,
    StateFile,
    StateUnusable,
    url_digest,
    url_without_secrets,
)

URL = "https://example.org/files/data.bin"
STATE = SavedState(
    url=URL, url_sha256=url_digest(URL), size=1000, etag=None, last_modified=None, created_at="2024-05-07T10:00:00Z",
    updated_at="2024-05-07T10:00:04Z", attempts=1, last_error=None, chunks=(SavedChunk(0, 1000, 512, False),),
)  # fmt: skip
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
    file.remove_leftovers()
    file.remove_leftovers()
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
