"""Each file system call of a download and of an upload fails in each way; their order when none does; locks that are
none.
"""

from __future__ import annotations

import errno
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

from tests.disk_downloads import DOWNLOADS
from tests.disk_faults import Call, build, start
from tests.disk_uploads import UPLOADS

SHARES = {"chunked": 3, "tus": 3, "tus-checked": 2, "tus-parts": 2}  # of the work of the longer ones
SHARED = [
    pytest.param(name, str(share), id=f"{name}-{share}")
    for name in [*DOWNLOADS, *UPLOADS]
    for share in range(SHARES.get(name, 1))
]
LEAST = {"chunked-no-flags": 200, "chunked-no-links": 200, "no-flags": 90, "no-links": 90, "replacing": 200}
"""Combinations of those that begin late, or make few calls."""


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("faults"))


@contextmanager
def in_memory() -> Iterator[Path]:
    """A folder in memory, where there is one: what is tested is not the disk, and takes thousands of syncs."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="dlpool-", dir=memory if memory.is_dir() else None))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# --- calls that fail ---


@pytest.mark.parametrize(("workload", "share"), SHARED)
def test_whichever_call_fails_the_file_is_right_or_the_error_is_named(library: Path, workload: str, share: str) -> None:
    """A wrong file, a complete one behind an error, a traceback, a descriptor that stays open: ``disk_matrix`` says it.

    And a run after that, without a fault, ends right.
    """
    shares = SHARES.get(workload, 1)
    with in_memory() as folder:
        text = start(library, "tests.disk_matrix", workload, str(folder), share, str(shares), timeout_s=500)
    found = json.loads(text)
    assert found["failures"] == []
    assert found["runs"] >= LEAST.get(workload, 300) / shares
    assert found["fired"] > 0.8 * found["runs"]


@pytest.mark.parametrize("number", [0, errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF])
def test_the_store_locks_where_flock_does_not(library: Path, tmp_path: Path, number: int) -> None:
    """It is refused, or (0) it succeeds and locks nothing, as on some cluster file systems."""
    start(library, "tests.disk_locks", str(tmp_path), str(number))


# --- the order of a store's calls ---


@pytest.fixture(scope="session")
def calls_of(library: Path) -> Callable[[str], list[Call]]:
    """The calls of one run of a workload."""

    @cache
    def found(workload: str) -> list[Call]:
        with in_memory() as folder:
            text = start(library, "tests.disk_matrix", workload, str(folder), "calls")
        return [Call(*call) for call in json.loads(text)]

    return found


def assert_order(calls: list[Call], wanted: list[tuple[str, str]]) -> None:
    """These calls come in this order; each is a kind and how its (last) path ends."""
    left = iter(calls)
    for kind, ending in wanted:
        assert any(call.kind == kind and (call.second or call.path).endswith(ending) for call in left), (kind, ending)


def task_of(calls: list[Call]) -> str:
    """The folder of the one task."""
    return next(call.second for call in calls if call.kind == "rename" and call.second.startswith("upload/tasks/"))


def test_a_new_task_is_durable_before_its_first_chunk(calls_of: Callable[[str], list[Call]]) -> None:
    """Identity and record are synced in a folder without a name; then that gets its name, and that is synced."""
    calls = calls_of("chunked")
    assert_order(
        calls,
        [
            ("write", "identity.json.tmp"),
            ("fsync", "identity.json.tmp"),
            ("rename", "identity.json"),
            ("fsync", ".new"),
            ("write", "record.json.tmp"),
            ("fsync", "record.json.tmp"),
            ("rename", "record.json"),
            ("fsync", ".new"),
            ("rename", task_of(calls)),
            ("fsync", "upload/tasks"),
            ("rename", "0.chunk"),
        ],
    )


@pytest.mark.parametrize(
    ("workload", "index"), [("chunked", 0), ("chunked", 1), ("tus", 0), ("tus", 1), ("tus-checked", 0)]
)
def test_a_chunk_is_durable_before_it_is_answered(
    calls_of: Callable[[str], list[Call]], workload: str, index: int
) -> None:
    """Its bytes are synced before it gets its name, and that name is before the next body begins or the merge."""
    calls = calls_of(workload)
    named = next(n for n, call in enumerate(calls) if call.kind == "rename" and call.second.endswith(f"{index}.chunk"))
    done = [call.kind for call in calls[:named] if call.path == calls[named].path]
    assert [kind for kind in done if kind in ("write", "fdatasync")][-2:] == ["write", "fdatasync"]
    ended = next(n for n, call in enumerate(calls) if n > named and is_new_work(call))
    assert Call("fsync", task_of(calls)) in calls[named:ended]


def is_new_work(call: Call) -> bool:
    """Whether it is the first call of the next body, or of a merge."""
    name = call.path.rpartition("/")[2]
    is_body = name.endswith(".tmp") and not name.startswith("record")
    return call.kind == "open" and (is_body or name == "merge.lock")


@pytest.mark.parametrize("workload", ["chunked", "tus"])
def test_the_record_of_the_first_chunk_is_durable(calls_of: Callable[[str], list[Call]], workload: str) -> None:
    calls = calls_of(workload)
    assert_order(
        calls,
        [
            ("rename", "0.chunk"),
            ("write", "record.json.tmp"),
            ("fsync", "record.json.tmp"),
            ("rename", "record.json"),
            ("fsync", task_of(calls)),
        ],
    )


NAMING = {"chunked": "renameat2", "tus": "renameat2", "chunked-no-flags": "link", "chunked-no-links": "rename"}


@pytest.mark.parametrize("workload", NAMING)
def test_a_merge_is_durable_before_its_chunks_go(calls_of: Callable[[str], list[Call]], workload: str) -> None:
    """New folders, the bytes, which file is about to get its name, the name, that it has it; then the chunks go."""
    calls, merged = calls_of(workload), "merged/a/b"
    # chunks of the assembled file stay there: it gets the name of the merged file
    file = ".assembled" if workload in ("chunked", "chunked-no-flags") else ".merging"
    record = [
        ("write", "record.json.tmp"),
        ("fsync", "record.json.tmp"),
        ("rename", "record.json"),
        ("fsync", task_of(calls)),
    ]
    assert_order(
        calls,
        [
            *record,
            ("mkdir", "merged/a"),
            ("fsync", "merged"),
            ("mkdir", merged),
            ("fsync", "merged/a"),
            ("copy_file_range", file),
            ("fdatasync", file),
            *record,
            (NAMING[workload], f"{merged}/file.bin"),
            ("fsync", merged),
            *record,
            ("unlink", "0.chunk"),
        ],
    )
