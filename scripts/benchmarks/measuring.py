"""Run tools in rounds, on a machine that other processes disturb.

In each round every tool runs once, in a rotated order, so that a slow minute of the machine meets all tools alike. The
ratio of two tools is the median of the ratios of their rounds.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

TOLERATED = 0.05  # share of the processors' time that other processes may take
MAX_REPEATS = 3
KERNEL_THREADS = 2  # their parent


@dataclass(frozen=True)
class Run:
    """One run of a tool: seconds of wall and processor time (user and system), and peak memory in MB."""

    wall: float
    cpu: float = 0.0
    peak: float = 0.0


Measure = Callable[[], Run]


class Outputs:
    """New folders for the files that tools write.

    ext4 creates files slowly for some time after many were deleted. Folders of small files are therefore kept until
    the end of the benchmark; only large files are deleted after each run.
    """

    def __init__(self, parent: Path) -> None:
        self._parent = parent
        self._numbers = itertools.count()

    def new(self) -> Path:
        """Return a new, empty folder."""
        folder = self._parent / f"out{next(self._numbers)}"
        folder.mkdir(parents=True)
        return folder

    def delete_large(self, folder: Path) -> None:
        """Delete the folder if it holds few files."""
        if sum(1 for _ in itertools.islice(folder.iterdir(), 17)) <= 16:
            shutil.rmtree(folder)


def measure_command(command: Sequence[str], *, is_ok: Callable[[], bool] = lambda: True) -> Run:
    """Run a command; exit if it fails, or if ``is_ok`` then returns False."""
    os.sync()
    began = time.monotonic()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peak, delay_s = 0.0, 0.001
    while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
        peak = max(peak, peak_memory(process.pid))
        time.sleep(delay_s)
        delay_s = min(delay_s * 1.2, 0.01)
    wall = time.monotonic() - began
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0 or not is_ok():
        sys.exit(f"{' '.join(command)} ended with {process.returncode}, or did not write its files")
    return Run(wall, usage.ru_utime + usage.ru_stime, peak)


def peak_memory(process: int) -> float:
    """Return the peak resident memory in MB: VmHWM of proc_pid_status(5).

    ``ru_maxrss`` would include the memory of the parent at the time of the fork.
    """
    try:
        text = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0.0
    found = re.search(r"VmHWM:\s+(\d+) kB", text)
    return int(found[1]) / 1024 if found else 0.0


class OtherLoad:
    """Measures which share of the processors' time others took: processes outside our tree, and the hypervisor."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._used = _used_by_others()

    def share(self) -> float:
        """Return the share, between 0 and 1, since the object was created."""
        seconds = (time.monotonic() - self._began) * (os.cpu_count() or 1)
        used = _used_by_others()
        return sum(max(0.0, value - self._used.get(key, 0.0)) for key, value in used.items()) / max(seconds, 1e-6)


def _used_by_others() -> dict[object, float]:
    """Return the seconds of processor time that each foreign process has used, and those stolen by the hypervisor."""
    own = {os.getpid(), *(child.pid for child in psutil.Process().children(recursive=True))}
    used: dict[object, float] = {"steal": psutil.cpu_times().steal}
    for process in psutil.process_iter(["pid", "ppid", "cpu_times", "create_time"]):
        info = process.info
        if info["pid"] not in own and KERNEL_THREADS not in (info["pid"], info["ppid"]) and info["cpu_times"]:
            used[info["pid"], info["create_time"]] = info["cpu_times"].user + info["cpu_times"].system
    return used


@dataclass(frozen=True)
class Results:
    """The runs of a row, by tool, one for each round; ``repeated``: rounds that were repeated, as others took time."""

    runs: Mapping[str, Sequence[Run]]
    repeated: int = 0

    def median(self, tool: str, quantity: str = "wall") -> float:
        return float(statistics.median(getattr(one, quantity) for one in self.runs[tool]))

    def ratio(self, tool: str, peer: str, quantity: str = "wall") -> float:
        """Return the median of the ratios of the rounds."""
        pairs = zip(self.runs[tool], self.runs[peer], strict=True)
        return float(statistics.median(getattr(one, quantity) / getattr(other, quantity) for one, other in pairs))


def run_rounds(
    measures: Mapping[str, Measure], rounds: int, *, warm_up: bool = True, tolerated: float = TOLERATED
) -> Results:
    """Measure each tool once in each round; a first round to warm up is not counted.

    A round is measured again, at most ``MAX_REPEATS`` times in all, if others took more than the share ``tolerated``.
    """
    names, runs, repeated = list(measures), {name: [] for name in measures}, 0  # type: ignore[var-annotated]
    if warm_up:
        _run_round(names, measures)
    for number in range(rounds):
        order = names[number % len(names) :] + names[: number % len(names)]
        for _ in range(MAX_REPEATS):
            load = OtherLoad()
            round_runs = _run_round(order, measures)
            if load.share() <= tolerated:
                break
            repeated += 1
        for name, one in round_runs.items():
            runs[name].append(one)
    return Results(runs, repeated)


def _run_round(order: Sequence[str], measures: Mapping[str, Measure]) -> dict[str, Run]:
    return {name: measures[name]() for name in order}
