"""What a command imports before it works: most of the time of a short command is the time of its imports."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.processes import ROOT

# Imports no command needs for its help.
HEAVY = {
    "ctypes",
    "dataclasses",
    "http.client",
    "inspect",
    "json",
    "logging",
    "pathlib",
    "prometheus_client",
    "psutil",
    "redis",
    "requests",
    "rich",
    "shutil",
    "ssl",
    "structlog",
    "subprocess",
    "threading",
    "urllib3",
}
_MAIN = """
import atexit, json, sys
from dlpool.cli.main import main
before = set(sys.modules)
atexit.register(lambda: print(json.dumps(sorted(sys.modules)), file=sys.stderr))
sys.argv = ["dlpool", *sys.argv[1:]]
main()
"""


def modules_of(*arguments: str) -> set[str]:
    """Run a command in an interpreter without the modules of site; return the modules that it has imported."""
    # -S: the finder of an editable installation imports pathlib
    code = f"import sys; sys.path[:0] = {[str(ROOT), *sys.path]!r}\n{_MAIN}"
    ended = subprocess.run(
        [sys.executable, "-S", "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert ended.returncode == 0, ended.stderr
    return set(json.loads(ended.stderr.splitlines()[-1]))


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_the_help_imports_little(arguments: list[str]) -> None:
    found = modules_of(*arguments)
    assert found & HEAVY <= {"json"}  # this test imports it
    assert len([name for name in found if name.startswith("dlpool")]) <= 12
    assert len(found) <= 95


def test_the_exit_calls_the_handlers_and_keeps_the_code() -> None:
    """The process exits without destroying its objects, but its threads and handlers have finished."""
    code = (
        "import atexit, sys, threading, time\n"
        "from dlpool.cli.main import main\n"
        "atexit.register(lambda: print('handler'))\n"
        "threading.Thread(target=lambda: (time.sleep(0.2), print('thread'))).start()\n"
        "sys.argv = ['dlpool', *sys.argv[1:]]\n"
        "main()\n"
    )
    for arguments, status in ((["--version"], 0), (["fetch"], 2), (["nurse"], 2)):
        command = [sys.executable, "-c", code, *arguments]
        ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
        assert ended.returncode == status
        assert ended.stdout.splitlines()[-2:] == ["thread", "handler"]
        assert "Traceback" not in ended.stderr
