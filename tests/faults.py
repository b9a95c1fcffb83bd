"""Runs the dlpool command with a fault at one of its file operations.

``python -m tests.faults LOG [kill-before|kill-after|fail|hang] [STEP] [ERRNO] -- ARGUMENTS...``

Every call that the transfer modules and ``disk.py`` make to change or sync a file is a step, named
PHASE:FUNCTION:NUMBER (as ``checkpoint:fsync:2``) and written to LOG. At STEP the process is killed with SIGKILL, before
or after the call, or the call fails with ERRNO, or hangs.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from types import FrameType
from typing import Any

PHASES = {"checkpoint": "checkpoint", "prepare": "publish", "publish": "publish", "write": "data"}
WATCHED = ("open", "write", "fsync", "fdatasync", "replace", "unlink", "ftruncate", "link", "utime", "posix_fallocate")


class Faults:
    """Wraps the functions of ``os``."""

    def __init__(self, log: str, action: str, step: str, number: int) -> None:
        self._log = open(log, "a", buffering=1, encoding="utf-8")  # noqa: SIM115
        self._action = action
        self._step = step
        self._errno = number
        self._counts: Counter[tuple[str, str]] = Counter()

    def wrap(self, name: str, owner: Any = os) -> None:
        real: Callable[..., Any] = getattr(owner, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            frame = sys._getframe(1)
            if not frame.f_globals.get("__name__", "").startswith(
                ("dlpool.transfer", "dlpool.disk")
            ) or self._is_plain_read(name, args):
                return real(*args, **kwargs)
            step = self._named(name, frame)
            print(step, *(arg for arg in args if isinstance(arg, str | os.PathLike)), file=self._log)
            if step == self._step and self._action == "kill-before":
                os.kill(os.getpid(), signal.SIGKILL)
            if step == self._step and self._action == "hang":
                time.sleep(60)
            if step == self._step and self._action == "fail":
                raise OSError(self._errno, os.strerror(self._errno))
            result = real(*args, **kwargs)
            if step == self._step and self._action == "kill-after":
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(owner, name, wrapped)

    def _named(self, name: str, frame: FrameType | None) -> str:
        phase = "open"
        while frame is not None and phase == "open":
            if frame.f_code.co_name in PHASES:
                phase = PHASES[frame.f_code.co_name]
            frame = frame.f_back
        self._counts[phase, name] += 1
        return f"{phase}:{name}:{self._counts[phase, name]}"

    @staticmethod
    def _is_plain_read(name: str, args: tuple[Any, ...]) -> bool:
        return name == "open" and not args[1] & os.O_CREAT


def refuse(*_: object) -> None:
    """As a file system that cannot rename without replacing: with WITHOUT_NOREPLACE in the environment."""
    raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


def main() -> int:
    from dlpool import disk
    from dlpool.cli.main import main as dlpool
    from dlpool.transfer import attempt as rounds

    split = sys.argv.index("--")
    log, *rest = sys.argv[1:split]
    action, step, number = [*rest, *["none", "", "0"][len(rest) :]]
    rounds.CHECKPOINT_S = rounds.CHECKPOINT_POLL_S = 0.1  # many checkpoints in a short download
    faults = Faults(log, action, step, int(number))
    for name in WATCHED:
        faults.wrap(name)
    if "WITHOUT_NOREPLACE" in os.environ:
        setattr(disk, "rename_noreplace", refuse)  # noqa: B010 - it is imported there
    faults.wrap("rename_noreplace", disk)
    return dlpool(sys.argv[split + 1 :])


if __name__ == "__main__":
    sys.exit(main())
