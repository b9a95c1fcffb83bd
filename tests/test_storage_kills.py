"""A process is killed at each line of the disk backend: the next one finds complete chunks and continues at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import ROOT
from tests.upload_kills import SCENARIOS
from tests.uploads import ID, commit_chunk, leftovers, send, store_in, uploaded

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
LEAST, LEAST_DISKS = 30, 2  # with fewer, the killing itself is broken
RECEIVE = """
import sys
from pathlib import Path
from tests.uploads import store_in
staged = store_in(Path(sys.argv[1])).chunks.stage()
staged.write(b"half a chunk")
print(flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_killed_at_any_line(scenario: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.upload_kills", scenario, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, env=ENVIRONMENT)
    assert ended.returncode == 0, ended.stderr
    lines, disks = map(int, ended.stdout.split())
    assert lines > LEAST and disks > LEAST_DISKS


def test_a_sweep_removes_only_files_of_killed_writers(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    command = [sys.executable, "-c", RECEIVE, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENVIRONMENT) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == b"\n"
        with store.chunks.stage() as staged:
            staged.write(b"mine")
            assert (store.sweep().removed, len(leftovers(store))) == (0, 2)
            writer.send_signal(signal.SIGKILL)
            writer.wait(20)
            assert (store.sweep().removed, len(leftovers(store))) == (1, 1)
            commit_chunk(store, staged, file_id=ID, index=0, owner=None)
    assert (uploaded(store), leftovers(store)) == ([0], [])
    send(store, 1, b"more")
