"""A real Redis whose clock the test sets, forward and back, while it runs."""

from __future__ import annotations

import mmap
import os
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

from tests.redis_server import RedisServer

SHIM = Path(__file__).with_name("clock_shim.c")
_FORM = "q"  # int64, seconds


class ShiftedRedis(RedisServer):
    """A server that reads the time from a shim; ``set_clock`` moves its time of day, and nothing else."""

    def __init__(self, folder: Path, **options: Any) -> None:
        super().__init__(folder, **options)
        folder.mkdir(parents=True, exist_ok=True)
        shift = folder / "shift"
        shift.write_bytes(struct.pack(_FORM, 0))
        with shift.open("r+b") as file:
            self._shift = mmap.mmap(file.fileno(), struct.calcsize(_FORM))
        self.environment = os.environ | {"LD_PRELOAD": str(_built(folder)), "CLOCK_SHIFT": str(shift)}

    def __enter__(self) -> ShiftedRedis:
        self.start()
        return self

    def set_clock(self, seconds: int) -> None:
        """Let the server's clock differ from ours by ``seconds``, from the next look on."""
        self._shift[:] = struct.pack(_FORM, seconds)


def _built(folder: Path) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler is not None, "no C compiler is installed: scripts/test installs gcc"
    library = folder / "clock.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, SHIM], check=True)
    return library
