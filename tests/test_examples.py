"""The examples in docs/examples run as they stand, against a local nginx; the types of the API are complete."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Nginx, make_data
from tests.processes import ROOT

EXAMPLES = ROOT / "docs" / "examples"
PAGES = {"a.bin": make_data(300_000), "b.bin": make_data(2_000_000), "c.bin": b""}


@pytest.fixture
def site(nginx: Nginx) -> str:
    folder = nginx.root / "examples"
    folder.mkdir(exist_ok=True)
    for name, data in PAGES.items():
        (folder / name).write_bytes(data)
    return f"{nginx.url}/examples"


def run(name: str, folder: Path, *arguments: str) -> str:
    command: list[str | Path] = [sys.executable, EXAMPLES / name, *arguments]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (0, ""), ended.stderr
    return ended.stdout


def test_one(site: str, tmp_path: Path) -> None:
    assert run("one.py", tmp_path, f"{site}/b.bin").splitlines()[-1] == "downloads/my-download.zip"
    assert (tmp_path / "downloads" / "my-download.zip").read_bytes() == PAGES["b.bin"]


def test_many(site: str, tmp_path: Path) -> None:
    said = run("many.py", tmp_path, *(f"{site}/{name}" for name in PAGES))
    assert f"3 completed, 0 failed, {sum(map(len, PAGES.values()))} bytes" in said


def test_callbacks(site: str, tmp_path: Path) -> None:
    said = run("callbacks.py", tmp_path, f"{site}/a.bin", f"{site}/none")
    assert "completed downloads/a.bin" in said
    assert "failed the server answered 404" in said


def test_pause(site: str, tmp_path: Path) -> None:
    assert run("pause.py", tmp_path, f"{site}/a.bin").splitlines()[-1] == "completed downloads/a.bin"


def test_session(site: str, tmp_path: Path) -> None:
    assert run("session.py", tmp_path, f"{site}/a.bin").startswith("0 unfinished")
    assert (tmp_path / "downloads" / "a.bin").read_bytes() == PAGES["a.bin"]


def test_batch(site: str, tmp_path: Path) -> None:
    urls = [f"{site}/a.bin", f"{site}/none"]
    assert run("batch.py", tmp_path, *urls).startswith("1 done, 0 earlier, 300000 bytes")
    assert run("batch.py", tmp_path, *urls).startswith("0 done, 1 earlier, 0 bytes")
    assert run("session.py", tmp_path, *urls).startswith("0 unfinished")
    assert run("batch.py", tmp_path, *urls).startswith("0 done, 1 earlier, 0 bytes")


def test_tour(site: str, tmp_path: Path) -> None:
    said = run("tour.py", tmp_path, f"{site}/b.bin", f"{site}/a.bin", f"{site}/none").splitlines()
    assert "downloads/my-download.zip" in said
    ends = sorted(line.split(" ", 1)[1] for line in said if " completed " in line or " failed " in line)
    assert ends[:2] == ["completed downloads/a.bin", "completed downloads/b.bin"]
    assert any(end.startswith("failed the server answered 404") for end in ends)
    assert {path.name: path.read_bytes() for path in (tmp_path / "downloads").iterdir()} == {
        "a.bin": PAGES["a.bin"],
        "b.bin": PAGES["b.bin"],
        "my-download.zip": PAGES["b.bin"],
    }


def test_every_example_is_run_here() -> None:
    tests = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert {path.stem for path in EXAMPLES.glob("*.py")} <= tests


def test_a_program_that_uses_the_api_is_fully_typed() -> None:
    command: list[str | Path] = [sys.executable, "-m", "mypy", "--strict", *EXAMPLES.glob("*.py")]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert checked.returncode == 0, checked.stdout
