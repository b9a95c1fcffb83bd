"""Kills a process at each line of the disk backend, and checks what the next one finds. Run as a module, by tests.

``python -m tests.upload_kills SCENARIO FOLDER``: a child runs the scenario's step and is killed (SIGKILL) when it comes
to its Nth line of the store that it has not been at before; for each N until a child gets to the end. Where the disk is
as the kill before left it, that need not be looked at again.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import dlpool.storage.disk
from dlpool.storage.disk.backend import DiskBackend
from dlpool.storage.errors import UploadError
from dlpool.storage.upload_requests import FINAL, PARTIAL, ChunkRequest, TusUploadRequest
from dlpool.web.errors import http_error
from tests.uploads import (
    ID,
    detail_of,
    files_below,
    leftovers,
    list_of,
    md5,
    merge,
    open_append,
    send,
    send_all,
    state,
    store_in,
    uploaded,
)

STORE = str(Path(dlpool.storage.disk.__file__).parent)
# Where nothing is done to the disk, a kill is no other than one at the next line.
PURE = (f"{STORE}/os_errors.py",)
OLD = [b"old" * 50, b"second" * 30]
NEW = b"new bytes" * 40
PLACED = [b"placed" * 50, b"second" * 30]  # the last one is not longer than the first


def killed_at(count: int, step: Callable[[], object]) -> bool:
    """Run ``step`` in a child that is killed at its ``count``-th new line; False if it came to its end."""
    child = os.fork()
    if child == 0:
        _trace(count)
        step()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL), status
    return status != 0


def _trace(count: int) -> None:
    seen: set[tuple[str, int]] = set()

    def trace(frame: FrameType, event: str, _argument: Any) -> Any:
        name = frame.f_code.co_filename
        if not name.startswith(STORE) or name in PURE:
            return None
        if event == "line":
            seen.add((name, frame.f_lineno))
            if len(seen) >= count:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    threading.settrace(trace)
    sys.settrace(trace)


def sweep_is_clean(store: DiskBackend) -> None:
    store.sweep()
    assert leftovers(store) == []


def chunk_is_whole(store: DiskBackend) -> None:
    """A chunk was sent in place of an earlier one."""
    [first, *_] = detail_of(store, ID, None)["chunks"]
    assert first["md5"] in (md5(OLD[0]), md5(NEW))
    assert uploaded(store) == [0, 1]
    sweep_is_clean(store)
    send_all(store, OLD)
    assert merge(store, 2).md5 == md5(b"".join(OLD))


def first_is_whole(store: DiskBackend) -> None:
    """The first chunk of a task was sent."""
    assert uploaded(store) in ([], [0])
    assert state(store) == ("uploading" if uploaded(store) else state(store))
    sweep_is_clean(store)
    send_all(store, OLD)
    assert uploaded(store) == [0, 1]
    assert merge(store, 2).md5 == md5(b"".join(OLD))


def merge_is_repeatable(store: DiskBackend, chunks: list[bytes] | None = None) -> None:
    """A task was merged."""
    data = b"".join(chunks or (OLD if store.task(ID, None).chunks[0].size == len(OLD[0]) else PLACED))
    assert state(store) in ("uploading", "completed")
    assert uploaded(store) == [0, 1]
    assert set(files_below(Path(store.settings.merged_dir))) - set(leftovers(store)) <= {"a/file.bin"}
    result = merge(store, 2, relative_path="a")
    assert Path(result.path).read_bytes() == data
    assert merge(store, 2, relative_path="a") == result
    store.sweep()
    assert files_below(Path(store.settings.merged_dir)) == ["a/file.bin"]
    assert not list(Path(store.settings.upload_dir).rglob("*.chunk"))
    assert not list(Path(store.settings.upload_dir).rglob("*.assembled"))


def placed_is_whole(store: DiskBackend) -> None:
    """The second chunk was received into the assembled file, perhaps in place of a broken one."""
    assert uploaded(store) in ([0], [0, 1])
    sweep_is_clean(store)
    if uploaded(store) == [0]:
        _place(store, 1)
    merge_is_repeatable(store, PLACED)


def merge_is_swept(store: DiskBackend) -> None:
    """A task was merged, and a sweep comes before anybody asks for it again."""
    sweep_is_clean(store)
    is_published = files_below(Path(store.settings.merged_dir)) == ["a/file.bin"]
    assert state(store) == ("completed" if is_published else "uploading")
    merge_is_repeatable(store)


_turn = itertools.cycle((merge_is_repeatable, merge_is_swept))


def merge_holds(store: DiskBackend) -> None:
    """The one and the other in turns."""
    next(_turn)(store)


def task_is_there_or_not(store: DiskBackend) -> None:
    """A task was deleted."""
    assert uploaded(store) in ([0, 1], [])
    assert list_of(store, None)["total"] == (1 if uploaded(store) else 0)
    sweep_is_clean(store)
    send_all(store, OLD)
    assert merge(store, 2).md5 == md5(b"".join(OLD))


def bad_merge_is_over(store: DiskBackend) -> None:
    """A merge found that a chunk was changed."""
    assert state(store) in ("uploading", "failed")
    assert 1 in uploaded(store)
    sweep_is_clean(store)
    assert files_below(Path(store.settings.merged_dir)) == []
    send_all(store, OLD)
    assert merge(store, 2).md5 == md5(b"".join(OLD))


def append_goes_on(store: DiskBackend) -> None:
    """An upload got its first bytes, its second ones, and was merged."""
    [file_id] = [task["task_id"] for task in list_of(store, None)["tasks"]]
    store.sweep()
    progress = store.tus.recover(file_id, None)
    data = b"".join(OLD)
    assert progress.offset in (0, 10, 20, len(OLD[0]), len(data))  # nothing but whole writes
    assert progress.length == len(data)
    assert progress.is_ready_to_merge == (progress.offset == len(data) and state(store, file_id) != "completed")
    if progress.offset < len(data):
        with open_append(store, file_id, None, progress.offset, size=None) as session:
            session.write(data[progress.offset :])
            session.commit()
        assert (session.position.offset, session.is_complete) == (len(data), True)
    if store.tus.recover(file_id, None).is_ready_to_merge:
        store.tus.finish(file_id, None)
    store.sweep()
    assert files_below(Path(store.settings.merged_dir)) == ["file.bin"]
    assert (Path(store.settings.merged_dir) / "file.bin").read_bytes() == data
    assert [name for name in files_below(Path(store.settings.upload_dir)) if "patch-" in name or ".chunk" in name] == []


def _create(store: DiskBackend) -> None:
    store.tus.create(TusUploadRequest(None, sum(map(len, OLD)), "file.bin"))


def _append(store: DiskBackend) -> None:
    [task] = list_of(store, None)["tasks"]
    file_id, offset = task["task_id"], 0
    for pieces in ([OLD[0][:10], OLD[0][10:20], OLD[0][20:]], [OLD[1]]):
        with open_append(store, file_id, None, offset, size=None) as session:
            for piece in pieces:
                session.write(piece)
            session.commit()
        offset = session.position.offset
        store.tus.finish(file_id, None)


def _make_parts(store: DiskBackend) -> None:
    for data in OLD:
        file_id = store.tus.create(TusUploadRequest(None, len(data), concat=PARTIAL))
        (Path(store.settings.upload_dir) / f"{OLD.index(data)}.part").write_text(file_id)
        with open_append(store, file_id, None, 0, size=len(data)) as session:
            session.write(data)
            session.commit()


def _parts(store: DiskBackend) -> list[str]:
    return [(Path(store.settings.upload_dir) / f"{index}.part").read_text() for index in range(len(OLD))]


def _join(store: DiskBackend, name: str = "file.bin") -> None:
    store.concatenator.concatenate(TusUploadRequest(None, None, name, concat=f"{FINAL};"), _parts(store))


def join_is_swept(store: DiskBackend) -> None:
    """Two parts were made one file: the next start has it without the parts, or the parts without it."""
    sweep_is_clean(store)
    tasks = list_of(store, None)["tasks"]
    is_done = files_below(Path(store.settings.merged_dir)) == ["file.bin"]
    assert [task["status"] for task in tasks] == (["completed"] if is_done else ["uploading"] * 2), tasks
    assert len(list(Path(store.settings.upload_dir).rglob("*.chunk"))) == (0 if is_done else 2)
    join_is_asked_again(store)


def join_is_asked_again(store: DiskBackend) -> None:
    """A second final upload wants the same parts: it gets them if the first one has not, whatever was cleaned."""
    try:
        _join(store, "again.bin")
    except UploadError as error:
        assert (http_error(error).status, error.code) == (404, "no_such_task"), error.text
        name = "file.bin"
    else:
        name = "again.bin"
    for part in _parts(store):
        assert refusal_of(lambda part=part: store.tus.recover(part, None)) == "no_such_task"  # type: ignore[misc]
    sweep_is_clean(store)
    assert files_below(Path(store.settings.merged_dir)) == [name]
    assert (Path(store.settings.merged_dir) / name).read_bytes() == b"".join(OLD)
    assert [task["status"] for task in list_of(store, None)["tasks"]] == ["completed"]
    assert not list(Path(store.settings.upload_dir).rglob("*.chunk"))


def join_is_forgotten(store: DiskBackend) -> None:
    """Every task is deleted: no part comes back that is in a file."""
    for task in list_of(store, None)["tasks"]:
        if task["task_id"] not in _parts(store):
            store.delete(task["task_id"], None)
    is_done = files_below(Path(store.settings.merged_dir)) == ["file.bin"]
    assert len(list_of(store, None)["tasks"]) == (0 if is_done else 2)
    join_is_asked_again(store) if not is_done else sweep_is_clean(store)


def refusal_of(step: Callable[[], object]) -> str:
    try:
        step()
    except UploadError as error:
        return error.code
    return ""


def join_holds(store: DiskBackend) -> None:
    """The next one to come is a start, a client, or one who deletes: each finds the disk as it was left."""
    folder = Path(store.settings.upload_dir).parent
    for check in (join_is_swept, join_is_asked_again, join_is_forgotten):
        copy = folder.with_name(f"{folder.name}.{check.__name__}")
        shutil.copytree(folder, copy, copy_function=os.link)  # the same inodes: a record names that of its file
        check(store_in(copy))
        shutil.rmtree(copy)


def _place(store: DiskBackend, *indexes: int) -> None:
    """Send chunks of ``PLACED`` whose size is known before they are received."""
    for index in indexes:
        data = PLACED[index]
        request = ChunkRequest(ID, index, None, total_chunks=2, file_size=sum(map(len, PLACED)))
        with store.chunks.stage() as staged:
            store.chunks.check(staged, request, len(data))
            staged.reserve(len(data))
            staged.write(data[:100])
            staged.write(data[100:])
            store.chunks.commit(staged, request)


def _damage(store: DiskBackend) -> None:
    send_all(store, OLD)
    [path] = Path(store.settings.upload_dir).rglob("0.chunk")
    path.write_bytes(b"X" + path.read_bytes()[1:])


Step = Callable[[DiskBackend], object]
SCENARIOS: dict[str, tuple[Step, Step, Step]] = {
    "chunk": (lambda store: send_all(store, OLD), lambda store: send(store, 0, NEW), chunk_is_whole),
    "first": (lambda store: store.sweep(), lambda store: send(store, 0, OLD[0], total_chunks=2), first_is_whole),
    "merge": (lambda store: send_all(store, OLD), lambda store: merge(store, 2, relative_path="a"), merge_holds),
    "placed": (lambda store: _place(store, 0), lambda store: _place(store, 1), placed_is_whole),
    "placed-merge": (
        lambda store: _place(store, 0, 1),
        lambda store: merge(store, 2, relative_path="a"),
        merge_holds,
    ),
    "append": (_create, _append, append_goes_on),
    "join": (_make_parts, _join, join_holds),
    "bad-merge": (_damage, lambda store: merge(store, 2), bad_merge_is_over),
    "delete": (lambda store: send_all(store, OLD), lambda store: store.delete(ID, None), task_is_there_or_not),
}


def _ignoring_refusals(step: Step, store: DiskBackend) -> None:
    try:
        step(store)
    except UploadError as error:
        assert http_error(error).status == 400, error.text


def _left(folder: Path) -> list[tuple[str, bytes]]:
    """What is on the disk, but for random names and for numbers."""
    found = []
    for path in folder.rglob("*"):
        content = b"" if path.is_dir() else path.read_bytes()
        if path.suffix in (".json", ".tmp", ".part"):
            content = re.sub(rb"[0-9a-f]{32}|[0-9.]+", b"", content)
        found.append((re.sub("[0-9a-f]{32,64}|(?<=locks/)..", "", str(path.relative_to(folder))), content))
    return sorted(found)


def main(scenario: str, folder: Path) -> tuple[int, int]:
    """Run one scenario for all lines; return their number, and the number of different disks that were checked."""
    prepare, step, check = SCENARIOS[scenario]
    count, was_killed, disks, before = 0, True, 0, None
    while was_killed:
        count += 1
        output = folder / str(count)
        store = store_in(output)
        prepare(store)
        was_killed = killed_at(count, lambda store=store: _ignoring_refusals(step, store))  # type: ignore[misc]
        left = _left(output)
        is_known, before = left == before, left
        if is_known:
            shutil.rmtree(output)
            continue
        disks += 1
        try:
            check(store_in(output))
        except BaseException:
            print(f"{scenario}: killed at its line {count}", file=sys.stderr)
            raise
        shutil.rmtree(output)
    return count - 1, disks


if __name__ == "__main__":
    print(*main(sys.argv[1], Path(sys.argv[2])))
