"""Bad targets, bad part and state files, full and read-only disks: one clear error, and nothing lost."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dlpool import errors
from dlpool.errors import Cancelled
from dlpool.transfer.target.state import SavedState
from tests.conftest import Fetcher, make_data, wait_until
from tests.disks import needs_root, remount, tmpfs
from tests.origin import Connection, File, Origin, Request

Serve = Callable[..., Origin]

SIZE = 1_000_003
DATA = make_data(SIZE)


@pytest.fixture
def origin(serve: Serve) -> Origin:
    return serve(File(DATA))


# --- targets ---


def test_a_target_that_is_a_folder_is_refused(origin: Origin, fetch: Fetcher, tmp_path: Path) -> None:
    transfer = fetch.transfer(f"{origin.url}/f", tmp_path / "f")
    (tmp_path / "f").mkdir()
    with pytest.raises(errors.LocalFault, match="is a folder, not a file"):
        transfer.run()


def test_a_dangling_symlink_is_refused_and_left_alone(origin: Origin, fetch: Fetcher, tmp_path: Path) -> None:
    (tmp_path / "f").symlink_to(tmp_path / "nowhere")
    with pytest.raises(errors.LocalFault, match=r"is a symbolic link to .*nowhere, which does not exist"):
        fetch(f"{origin.url}/f", tmp_path / "f")
    assert os.listdir(tmp_path) == ["f"]


def test_a_symlink_loop_is_refused(origin: Origin, fetch: Fetcher, tmp_path: Path) -> None:
    (tmp_path / "f").symlink_to(tmp_path / "f")
    with pytest.raises(errors.LocalFault):
        fetch(f"{origin.url}/f", tmp_path / "f")


def test_a_symlink_to_a_file_replaces_what_it_points_to(origin: Origin, fetch: Fetcher, tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "f").symlink_to("real")
    fetch(f"{origin.url}/f", tmp_path / "f")
    assert (tmp_path / "f").is_symlink()
    assert (tmp_path / "real").read_bytes() == DATA


def test_a_device_is_refused(origin: Origin, fetch: Fetcher) -> None:
    with pytest.raises(errors.LocalFault, match="not a regular file"):
        fetch(f"{origin.url}/f", Path("/dev/null"))
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize("suffix", [".part", ".part.meta"])
def test_targets_that_end_like_our_own_files_are_refused(
    suffix: str, origin: Origin, fetch: Fetcher, tmp_path: Path
) -> None:
    with pytest.raises(errors.PolicyRefused):
        fetch(f"{origin.url}/f", tmp_path / f"f{suffix}")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "name", ["x" * 5000, "/".join(["x" * 100] * 50), "y" * 250, "nul\0byte"], ids=["name", "path", "250", "nul"]
)
def test_paths_that_no_file_can_have_are_refused(name: str, origin: Origin, fetch: Fetcher, tmp_path: Path) -> None:
    with pytest.raises(errors.LocalFault):
        fetch(f"{origin.url}/f", tmp_path / name)
    assert origin.requests == []


def test_a_file_in_the_place_of_a_folder_is_named(origin: Origin, fetch: Fetcher, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(errors.LocalFault, match="a part of the path is a file"):
        fetch(f"{origin.url}/f", tmp_path / "file" / "f")


def test_missing_parent_folders_are_made(origin: Origin, fetch: Fetcher, tmp_path: Path) -> None:
    fetch(f"{origin.url}/f", tmp_path / "a" / "b" / "f")
    assert (tmp_path / "a" / "b" / "f").read_bytes() == DATA


# --- if_exists ---


def test_an_existing_file_is_overwritten_atomically(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    target = tmp_path / "f"
    target.write_bytes(b"old")
    seen: set[bytes] = set()
    file = File(DATA)

    def handle(request: Request, connection: Connection) -> None:
        seen.add(target.read_bytes())
        file(request, connection)

    fetch(f"{serve(handle).url}/f", target)
    assert seen == {b"old"}
    assert target.read_bytes() == DATA


def test_skip_fail_and_rename_leave_an_existing_file_alone(origin: Origin, fetch: Fetcher, tmp_path: Path) -> None:
    target = tmp_path / "f.tar.gz"
    target.write_bytes(b"old")
    assert fetch(f"{origin.url}/f", target, if_exists="skip").is_skipped
    with pytest.raises(errors.TargetExists):
        fetch(f"{origin.url}/f", target, if_exists="fail")
    assert origin.requests == []
    assert fetch(f"{origin.url}/f", target, if_exists="rename").path == tmp_path / "f.tar.1.gz"
    assert fetch(f"{origin.url}/f", target, if_exists="rename").path == tmp_path / "f.tar.2.gz"
    assert target.read_bytes() == b"old"
    assert (tmp_path / "f.tar.2.gz").read_bytes() == DATA


@pytest.mark.parametrize("if_exists", ["fail", "skip", "rename"])
def test_a_file_that_appears_meanwhile_is_not_overwritten(
    if_exists: str, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    target = tmp_path / "f"
    file = File(DATA)

    def handle(request: Request, connection: Connection) -> None:
        target.write_bytes(b"mine")
        file(request, connection)

    transfer = fetch.transfer(f"{serve(handle).url}/f", target, if_exists=if_exists)
    if if_exists == "rename":
        assert transfer.run().path == tmp_path / "f.1"
        assert (tmp_path / "f.1").read_bytes() == DATA
    elif if_exists == "skip":
        assert transfer.run().is_skipped
    else:
        with pytest.raises(errors.TargetExists):
            transfer.run()
    assert target.read_bytes() == b"mine"


# --- part and state files of an earlier run ---


@pytest.fixture
def interrupted(serve: Serve, fetch: Fetcher, tmp_path: Path) -> tuple[Origin, Path]:
    """A download that was cancelled half way, with its state on disk."""
    slow = File(DATA, block=16 * 1024, pause_s=0.02)
    origin = serve(slow)
    target = tmp_path / "f"
    transfer = fetch.transfer(f"{origin.url}/f", target, connections=2)
    import threading

    def cancel_half_way() -> None:
        wait_until(lambda: transfer.progress().done > SIZE // 3)
        transfer.cancel()

    threading.Thread(target=cancel_half_way).start()
    with pytest.raises(Cancelled):
        transfer.run()
    slow.pause_s = 0.0
    return origin, target


def state_of(target: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(target.with_name("f.part.meta").read_bytes())
    return value


def write_state(target: Path, value: object) -> None:
    target.with_name("f.part.meta").write_text(value if isinstance(value, str) else json.dumps(value))


def test_a_good_state_is_resumed_and_only_the_rest_fetched(interrupted: tuple[Origin, Path], fetch: Fetcher) -> None:
    origin, target = interrupted
    saved = SavedState.from_json(target.with_name("f.part.meta").read_bytes())
    missing = sum(span.end - span.start for span in saved.missing_spans)
    outcome = fetch(f"{origin.url}/f", target)
    assert target.read_bytes() == DATA
    assert missing <= outcome.received <= missing * 1.02
    assert outcome.resumed_from == SIZE - missing


def test_the_state_holds_no_secrets(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    origin = serve(File(DATA, block=16 * 1024, pause_s=0.1))
    url = f"http://me:hunter2@127.0.0.1:{origin.port}/f?token=hunter3"
    transfer = fetch.transfer(url, tmp_path / "f", headers={"X-Key": "hunter4"}, deadline=0.6)
    with pytest.raises(errors.DeadlineExceeded):
        transfer.run()
    assert "hunter" not in (tmp_path / "f.part.meta").read_text()
    assert state_of(tmp_path / "f")["url"] == f"http://127.0.0.1:{origin.port}/f"


def overlap(state: dict[str, Any]) -> dict[str, Any]:
    state["chunks"][0]["end"] += 10
    return state


def claim_more(state: dict[str, Any]) -> dict[str, Any]:
    state["chunks"][-1]["position"] = state["chunks"][-1]["end"] + 1
    return state


WORTHLESS: dict[str, Callable[[dict[str, Any]], object]] = {
    "empty": lambda _state: "",
    "cut": lambda state: json.dumps(state)[:100],
    "not an object": lambda _state: [1, 2],
    "another version": lambda state: {**state, "version": 99},
    "another URL": lambda state: {**state, "url": "http://h/other", "url_sha256": "0" * 64},
    "another size": lambda state: {**state, "size": SIZE + 1},
    "overlapping chunks": overlap,
    "position beyond its end": claim_more,
    "no chunks": lambda state: {**state, "chunks": []},
    "a text as number": lambda state: {**state, "size": str(SIZE)},
    "a huge number": lambda state: {**state, "size": 10**30},
    "deeply nested": lambda _state: "[" * 100_000,
}


@pytest.mark.parametrize("change", WORTHLESS.values(), ids=WORTHLESS.keys())
def test_a_worthless_state_begins_anew_and_says_why(
    change: Callable[[dict[str, Any]], object], interrupted: tuple[Origin, Path], fetch: Fetcher
) -> None:
    origin, target = interrupted
    write_state(target, change(state_of(target)))
    outcome = fetch(f"{origin.url}/f", target)
    assert target.read_bytes() == DATA
    assert outcome.resumed_from == 0
    assert fetch.named("state_unusable")[0]["reason"]
    assert os.listdir(target.parent) == ["f"]


def test_a_state_that_is_a_folder_or_link_is_not_followed(interrupted: tuple[Origin, Path], fetch: Fetcher) -> None:
    origin, target = interrupted
    meta = target.with_name("f.part.meta")
    meta.rename(target.with_name("elsewhere"))
    meta.symlink_to("elsewhere")
    assert fetch(f"{origin.url}/f", target).resumed_from == 0
    assert target.read_bytes() == DATA


@pytest.mark.parametrize("length", [0, 1000, SIZE + 1, 3 * SIZE])
def test_a_part_file_shorter_or_longer_than_its_state_begins_anew(
    length: int, interrupted: tuple[Origin, Path], fetch: Fetcher
) -> None:
    origin, target = interrupted
    os.truncate(target.with_name("f.part"), length)
    assert fetch(f"{origin.url}/f", target).resumed_from == 0
    assert target.read_bytes() == DATA


def test_a_missing_part_file_begins_anew(interrupted: tuple[Origin, Path], fetch: Fetcher) -> None:
    origin, target = interrupted
    target.with_name("f.part").unlink()
    assert fetch(f"{origin.url}/f", target).resumed_from == 0
    assert target.read_bytes() == DATA


def test_a_part_file_without_state_begins_anew(interrupted: tuple[Origin, Path], fetch: Fetcher) -> None:
    origin, target = interrupted
    target.with_name("f.part.meta").unlink()
    target.with_name("f.part").write_bytes(b"x" * 3 * SIZE)
    fetch(f"{origin.url}/f", target)
    assert target.read_bytes() == DATA


def test_a_part_file_that_is_a_link_is_refused(origin: Origin, fetch: Fetcher, tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(b"precious")
    (tmp_path / "f.part").symlink_to("victim")
    with pytest.raises(errors.LocalFault, match="symbolic link"):
        fetch(f"{origin.url}/f", tmp_path / "f")
    assert (tmp_path / "victim").read_bytes() == b"precious"


def test_a_part_file_that_is_a_folder_or_a_pipe_is_refused(origin: Origin, fetch: Fetcher, tmp_path: Path) -> None:
    (tmp_path / "f.part").mkdir()
    with pytest.raises(errors.LocalFault, match="folder"):
        fetch(f"{origin.url}/f", tmp_path / "f")
    os.mkfifo(tmp_path / "g.part")
    with pytest.raises(errors.LocalFault, match="not a regular file"):
        fetch(f"{origin.url}/f", tmp_path / "g")


@pytest.mark.parametrize("probe", ["range", "head"])
def test_a_remote_that_changed_since_begins_anew(probe: str, interrupted: tuple[Origin, Path], fetch: Fetcher) -> None:
    origin, target = interrupted
    other = make_data(SIZE // 2, seed=5)
    origin.handler = File(other, etag='"v2"')
    assert fetch(f"{origin.url}/f", target, probe=probe).resumed_from == 0
    assert target.read_bytes() == other


def test_a_remote_that_is_empty_by_now_is_an_empty_file(interrupted: tuple[Origin, Path], fetch: Fetcher) -> None:
    origin, target = interrupted

    def handle(request: Request, connection: Connection) -> None:
        if request.range:
            connection.answer(416, {"Content-Range": "bytes */0"})
        else:
            connection.answer(200, {"ETag": '"v2"'})

    origin.handler = handle
    fetch(f"{origin.url}/f", target)
    assert target.read_bytes() == b""


def test_a_remote_without_ranges_by_now_is_fetched_anew(interrupted: tuple[Origin, Path], fetch: Fetcher) -> None:
    origin, target = interrupted
    origin.handler = File(DATA, serves_ranges=False)
    assert fetch(f"{origin.url}/f", target).resumed_from == 0
    assert target.read_bytes() == DATA


def test_a_resume_into_a_folder_finds_its_file_by_the_servers_name(
    interrupted: tuple[Origin, Path], fetch: Fetcher
) -> None:
    origin, target = interrupted
    outcome = fetch(f"{origin.url}/f", target.parent)
    assert outcome.path == target
    assert outcome.resumed_from > 0
    assert target.read_bytes() == DATA


def test_no_resume_begins_anew(interrupted: tuple[Origin, Path], fetch: Fetcher) -> None:
    origin, target = interrupted
    assert fetch(f"{origin.url}/f", target, resume=False).received == SIZE
    assert target.read_bytes() == DATA


def test_a_resumed_download_verifies_the_whole_file(interrupted: tuple[Origin, Path], fetch: Fetcher) -> None:
    import hashlib

    origin, target = interrupted
    part = target.with_name("f.part")
    with part.open("r+b") as file:
        file.write(b"damage")
    with pytest.raises(errors.ChecksumMismatch):
        fetch(f"{origin.url}/f", target, checksum=f"sha256:{hashlib.sha256(DATA).hexdigest()}")
    assert os.listdir(target.parent) == []


# --- disks ---


@needs_root
@pytest.mark.parametrize("preallocate", ["auto", "falloc", "truncate", "none"])
def test_too_little_space_is_found_before_the_first_byte_is_written(
    preallocate: str, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    origin = serve(File(make_data(3 * 1024 * 1024)))
    with tmpfs(tmp_path / "disk", "2m") as disk:
        with pytest.raises(errors.NoSpace) as raised:
            fetch(f"{origin.url}/f", disk / "f", preallocate=preallocate)
        assert raised.value.exit_code == 9
        assert os.listdir(disk) == []


@needs_root
def test_a_disk_that_fills_up_is_one_error_and_the_next_run_goes_on(
    serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    data = make_data(4 * 1024 * 1024)
    file = File(data, block=64 * 1024, pause_s=0.01)
    with tmpfs(tmp_path / "disk", "6m") as disk:

        def handle(request: Request, connection: Connection) -> None:
            if request.number == 3:
                (disk / "other").write_bytes(b"x" * 5 * 1024 * 1024)
            file(request, connection)

        origin = serve(handle)
        with pytest.raises(errors.NoSpace):
            fetch(f"{origin.url}/f", disk / "f", preallocate="none", connections=2, min_split_size=256 * 1024)
        asked = len(origin.requests)
        (disk / "other").unlink()
        file.pause_s = 0.0
        outcome = fetch(f"{origin.url}/f", disk / "f", preallocate="none")
        assert (disk / "f").read_bytes() == data
        assert outcome.resumed_from + outcome.received >= len(data)
        assert asked < 8


@needs_root
def test_a_read_only_file_system_is_named(origin: Origin, fetch: Fetcher, tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk", "8m") as disk:
        remount(disk, "ro")
        with pytest.raises(errors.ReadOnly, match="read-only") as raised:
            fetch(f"{origin.url}/f", disk / "f")
        assert raised.value.exit_code == 3
