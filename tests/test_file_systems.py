"""What docs/fetch.md promises of files, on each file system that it names: real ones, mounted for the test."""

from __future__ import annotations

import filecmp
import json
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.conftest import IN_FLIGHT, make_data, wait_until
from tests.disks import exfat, image_of, mounted, mounted_image, needs_root, overlay, ramfs, tmpfs
from tests.origin import Connection, File, Origin
from tests.processes import finish, run, start

Serve = Callable[..., Origin]

pytestmark = needs_root
MIB = 1024 * 1024
DATA = make_data(6 * MIB, seed=71)
JOURNALED = ("ext4", "xfs", "btrfs")
KINDS = (*JOURNALED, "tmpfs", "ramfs", "overlay", "exfat")
OPTIONS = ("-q", "-c", "3", "--min-split-size", "1M")


def made(stack: ExitStack, kind: str, folder: Path) -> Path:
    """Mount an empty file system of that kind at ``folder`` until the stack is left."""
    if kind in JOURNALED:
        return stack.enter_context(mounted_image(kind, folder))
    if kind == "tmpfs":
        return stack.enter_context(tmpfs(folder, "64m"))
    if kind == "exfat":
        return stack.enter_context(exfat(folder, 64 * MIB))
    return stack.enter_context({"ramfs": ramfs, "overlay": overlay}[kind](folder))


@pytest.fixture(params=KINDS)
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    with ExitStack() as stack:
        yield made(stack, request.param, tmp_path / "disk")


def committed(target: Path) -> int:
    """What the state file claims; 0 while there is none, or only one that keeps the name."""
    with suppress(FileNotFoundError, ValueError):
        state = json.loads(target.with_name(f"{target.name}.part.meta").read_bytes())
        return sum(chunk["position"] - chunk["start"] for chunk in state.get("chunks", ()))
    return 0


def lose_power(disk: Path, copy: Path) -> None:
    """Copy the disk as it is, mounted. Nothing may write to it; until the kernel has ceased, two copies differ."""

    def is_calm() -> bool:
        shutil.copyfile(image_of(disk), copy)
        return filecmp.cmp(image_of(disk), copy, shallow=False)

    wait_until(is_calm, 60)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize(
    ("if_exists", "code", "expected"),
    [
        ("fail", 13, {"f.bin": b"old"}),
        ("skip", 0, {"f.bin": b"old"}),
        ("overwrite", 0, {"f.bin": DATA}),
        ("rename", 0, {"f.bin": b"old", "f.1.bin": DATA}),
    ],
)
def test_a_target_that_exists_is_treated_as_asked(
    serve: Serve, disk: Path, if_exists: str, code: int, expected: dict[str, bytes]
) -> None:
    (disk / "f.bin").write_bytes(b"old")
    ended = run("fetch", f"{serve(File(DATA)).url}/f.bin", disk / "f.bin", *OPTIONS, "--if-exists", if_exists)
    assert ended.code == code, ended.err
    assert files(disk) == expected


class HeldBack(File):
    """Sends the first half of each body, and the rest only when it is released."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.released = threading.Event()

    def stream(self, connection: Connection, status: int, headers: dict[str, str], start: int, end: int) -> None:
        connection.answer(status, {"Content-Length": str(end - start), **headers}, length=False)
        half = start + (end - start) // 2
        connection.send(self.data[start:half])
        self.sent += half - start
        self.released.wait(60)
        connection.send(self.data[half:end])
        self.sent += end - half


def test_a_second_writer_is_kept_out_and_a_killed_download_is_resumed(serve: Serve, disk: Path) -> None:
    handler = HeldBack(DATA)
    origin = serve(handler)
    url, target = f"{origin.url}/f.bin", disk / "f.bin"
    first = start("fetch", url, target, *OPTIONS)
    wait_until(lambda: committed(disk / "f.bin") >= 2 * MIB, 60)
    second = run("fetch", url, target, *OPTIONS)
    assert second.code == 13, second.err
    first.send_signal(signal.SIGKILL)
    finish(first)
    kept = handler.sent
    handler.released.set()
    wait_until(lambda: origin.open_connections == 0, 60)
    handler.sent = 0
    ended = run("fetch", url, target, *OPTIONS)
    assert ended.code == 0, ended.err
    assert files(disk) == {"f.bin": DATA}
    assert handler.sent <= len(DATA) - kept + 6 * IN_FLIGHT


@pytest.mark.parametrize("kind", JOURNALED)
def test_a_published_file_outlives_the_loss_of_power(serve: Serve, tmp_path: Path, kind: str) -> None:
    """The disk is copied as it is, mounted, right after the command returned: that is what a power failure leaves."""
    copy = tmp_path / "copy.image"
    with mounted_image(kind, tmp_path / "disk") as disk:
        ended = run("fetch", f"{serve(File(DATA)).url}/f.bin", disk / "a" / "b" / "f.bin", *OPTIONS)
        assert ended.code == 0, ended.err
        lose_power(disk, copy)
    with mounted(copy, tmp_path / "after") as after:
        assert files(after / "a" / "b") == {"f.bin": DATA}


@pytest.mark.parametrize("kind", JOURNALED)
def test_a_download_is_resumed_after_the_loss_of_power(serve: Serve, tmp_path: Path, kind: str) -> None:
    """The process is stopped behind a checkpoint, wherever it is then, and the disk copied."""
    handler, copy = HeldBack(DATA), tmp_path / "copy.image"
    origin = serve(handler)
    url = f"{origin.url}/f.bin"
    with mounted_image(kind, tmp_path / "disk") as disk:
        running = start("fetch", url, disk / "f.bin", *OPTIONS)
        wait_until(lambda: committed(disk / "f.bin") >= 2 * MIB, 60)
        running.send_signal(signal.SIGSTOP)
        lose_power(disk, copy)
        running.send_signal(signal.SIGKILL)
        finish(running)
    kept = handler.sent
    handler.released.set()
    wait_until(lambda: origin.open_connections == 0, 60)
    handler.sent = 0
    with mounted(copy, tmp_path / "after") as after:
        ended = run("fetch", url, after / "f.bin", *OPTIONS)
        assert ended.code == 0, ended.err
        assert files(after) == {"f.bin": DATA}
    assert handler.sent <= len(DATA) - kept + 6 * IN_FLIGHT
