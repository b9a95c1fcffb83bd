"""What a list costs a file: counted, and bounded where an error would multiply it."""

from __future__ import annotations

import os
from pathlib import Path

from tests.conftest import Nginx
from tests.processes import start

FILES = 300
ATTEMPTS = 5  # other tests run lists, too, and may have reserved all CPUs


def list_of_small_files(nginx: Nginx, folder: Path) -> Path:
    for number in range(FILES):
        (nginx.root / f"small{number}").write_bytes(b"x" * 2000)
    path = folder / "list"
    path.write_text("".join(f"{nginx.url}/small{number}\n" for number in range(FILES)))
    return path


def test_small_files_need_few_context_switches(nginx: Nginx, tmp_path: Path) -> None:
    """Threads that bounce between CPUs, passing the interpreter's lock, need about 80 a file."""
    links = list_of_small_files(nginx, tmp_path)
    for attempt in range(ATTEMPTS):
        folder = tmp_path / f"out{attempt}"
        process = start("fetch", "-q", "--no-sync", "-i", links, folder, "-j", 8)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        assert len(list(folder.iterdir())) == FILES
        switches = (usage.ru_nvcsw + usage.ru_nivcsw) / FILES
        if switches < 20:
            return
    raise AssertionError(f"{switches} context switches a file")
