"""Clients that others wrote, tuspy and tus-js-client: 100 MB, killed in mid-way, resumed by another process."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import make_data
from tests.processes import ROOT
from tests.web import WebServer

MIB = 1024 * 1024
SIZE, STOP = 100 * MIB, 40 * MIB
NODE = ROOT / "tests" / "node"
PATIENCE_S = 120


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebServer]:
    with WebServer(tmp_path_factory.mktemp("tus")) as server:
        yield server


def python_command() -> list[str]:
    return [sys.executable, "-m", "tests.tus_upload"]


def node_command() -> list[str]:
    """tus-js-client, as its lock file has it, comes from the registry once."""
    node, npm = shutil.which("node"), shutil.which("npm")
    assert node is not None and npm is not None, "node and npm are not installed: scripts/test installs them"
    with open(NODE / "package.json", "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (NODE / "node_modules" / "tus-js-client").exists():
            command = [npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
            ended = subprocess.run(command, cwd=NODE, capture_output=True, text=True, timeout=PATIENCE_S)
            if ended.returncode != 0:
                pytest.skip(f"npm cannot install tus-js-client: {ended.stderr[-300:]}")
    return [node, str(NODE / "tus_upload.js")]


def start(command: list[str], *arguments: object) -> subprocess.Popen[str]:
    words = [*command, *map(str, arguments)]
    return subprocess.Popen(
        words,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.parametrize(
    ("command", "name"), [(python_command, "from python.bin"), (node_command, "from node.bin")], ids=["tuspy", "tus-js"]
)
def test_an_upload_that_is_killed_is_resumed_by_another_process(
    server: WebServer, tmp_path: Path, command: Any, name: str
) -> None:
    data = make_data(SIZE)
    source, state = tmp_path / "source.bin", tmp_path / "state.json"
    source.write_bytes(data)
    words = command()
    with start(words, f"{server.root}/files", source, state, STOP) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "begins at 0\n", first.communicate()[1]
        assert first.stdout.readline() == "waits\n"
        first.kill()
    assert not (server.merged_dir / name).exists()
    with start(words, f"{server.root}/files", source, state) as second:
        said, errors = second.communicate(timeout=PATIENCE_S)
    assert second.returncode == 0, errors
    begins, url = said.splitlines()
    assert STOP <= int(begins.removeprefix("begins at ")) < SIZE
    assert url.startswith(f"{server.root}/files/")
    published = hashlib.sha256((server.merged_dir / name).read_bytes()).hexdigest()
    assert published == hashlib.sha256(data).hexdigest()
