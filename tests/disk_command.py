"""Runs the dlpool command on a file system that fails at chosen calls.

``python -m tests.disk_command FOLDER [KIND,NTH,LAST,ACTION,ERRNO,ENDING ...] -- ARGUMENTS...`` under the library of
``disk_faults``: each of these faults, as in ``disk_faults.Fault``, is in force below FOLDER.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.disk_faults import DiskFaults, Fault
from tests.processes import ROOT


def start(library: Path, folder: Path, faults: list[Fault], *arguments: str | Path) -> subprocess.Popen[str]:
    """Start the command with these faults; finish it with ``processes.finish``."""
    told = [
        f"{fault.kind},{fault.nth},{fault.last or fault.nth},{fault.action},{fault.number},{fault.ending}"
        for fault in faults
    ]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.disk_command", str(folder), *told, "--", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "LD_PRELOAD": str(library)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def main() -> int:
    from dlpool.cli.main import main as dlpool

    split = sys.argv.index("--")
    folder, *told = sys.argv[1:split]
    faults = DiskFaults()
    faults.watch(folder)
    for fault in told:
        kind, nth, last, action, number, ending = fault.split(",")
        faults.add(Fault(kind, int(nth), int(action), int(number), int(last), ending))
    return dlpool(sys.argv[split + 1 :])


if __name__ == "__main__":
    sys.exit(main())
