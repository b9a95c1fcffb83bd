"""Lists of many tasks in a process of its own, which counts what it opens: ``python -m tests.listings FOLDER ...``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from dlpool.storage.disk.backend import DiskBackend
from dlpool.storage.names import folder_name
from tests.processes import ROOT
from tests.uploads import list_of, store_in


class Calls:
    """Counts the files of tasks that this process opens, and its scans of all folders."""

    def __init__(self, tasks: Path) -> None:
        self.opened = 0
        self.scans = 0
        self._tasks = str(tasks)
        sys.addaudithook(self._note)

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("open", "os.scandir", "os.listdir") and isinstance(arguments[0], str | os.PathLike):
            path = os.fspath(arguments[0])
            self.scans += path == self._tasks
            self.opened += event == "open" and path.startswith(f"{self._tasks}/")

    def since_last(self) -> dict[str, int]:
        found = {"opened": self.opened, "scans": self.scans}
        self.opened = self.scans = 0
        return found


def make_tasks(folder: Path, count: int, *, owner: str | None = None, status: str = "paused") -> list[str]:
    """Make tasks as the store would have, but quickly; return their ids."""
    ids = [f"task {number:06}" for number in range(count)]
    now = time.time()
    record = json.dumps({"status": status, "updated_at": now, "total_chunks": 2})
    for file_id in ids:
        task = folder / "upload" / "tasks" / folder_name(file_id)
        task.mkdir(parents=True)
        identity = {"file_id": file_id, "owner": owner, "created_at": now, "protocol": "chunked"}
        (task / "identity.json").write_text(json.dumps(identity))
        (task / "record.json").write_text(record)
    for name in ("tmp", "locks"):
        (folder / "upload" / name).mkdir(exist_ok=True)
    return ids


def _lists(store: DiskBackend, count: int) -> list[int]:
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(lambda _: list_of(store, None)["total"], range(count)))


def main(folder: str, times: str, number: str) -> None:
    """Print what the first two lists open, then ``times`` lists, then ``times`` after one change, then a sweep.

    The change is that of task ``number``.
    """
    store = store_in(Path(folder))
    calls = Calls(store.layout.tasks_path())
    list_of(store, None)
    steps = [calls.since_last()]
    time.sleep(0.15)  # a tick of the clock of the file system
    list_of(store, None)
    steps.append(calls.since_last())
    totals = _lists(store, int(times))
    steps.append(calls.since_last())
    store.resume(list_of(store, None, limit=10)["tasks"][int(number)]["task_id"], None)
    calls.since_last()
    totals += _lists(store, int(times))
    steps.append(calls.since_last())
    time.sleep(0.15)
    list_of(store, None)
    calls.since_last()
    store.sweep()
    steps.append(calls.since_last())
    print(json.dumps({"steps": steps, "totals": totals}))


def begin(folder: Path, times: int, number: int) -> subprocess.Popen[str]:
    """Start such a process."""
    command = [sys.executable, "-m", "tests.listings", str(folder), str(times), str(number)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
