"""Records which functions of dlpool the tests and their child processes call, for ``scripts/mutate``.

One line for the first call of each function in each test: ``TEST<tab>FILE<tab>LINE``. It is written at once, because
many processes end by SIGKILL or ``os._exit``, and the file is closed in between, because some tests count descriptors.
"""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress
from types import FrameType
from typing import Any


class Recorder:
    """A trace function for sys.settrace that traces no lines. Thread-safe: a function may be recorded twice."""

    def __init__(self, path: str, prefix: str) -> None:
        """Append to the file ``path`` the functions of files whose name begins with ``prefix``."""
        self._path = path
        self._prefix = prefix
        self._test = ""
        self._seen: set[int] = set()

    def start(self, test: str) -> None:
        """Record calls under the name ``test``, in this thread and those that start from now on."""
        self._test, self._seen = test, set()
        threading.settrace(self)
        sys.settrace(self)

    def __call__(self, frame: FrameType, _event: str, _argument: Any) -> None:
        """Record the called function."""
        code = frame.f_code
        if id(code) in self._seen:
            return
        self._seen.add(id(code))
        if self._test and code.co_filename.startswith(self._prefix):
            with suppress(OSError):  # a test has no descriptor left, or a limit of file sizes
                file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
                os.write(file, f"{self._test}\t{code.co_filename}\t{code.co_firstlineno}\n".encode())
                os.close(file)


def start_in_child() -> None:
    """Record a process that a test has started; called by a ``sitecustomize``."""
    test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" (")[0]
    if test:
        Recorder(os.environ["DLPOOL_CALLS"], os.environ["DLPOOL_CALLS_OF"]).start(test)
