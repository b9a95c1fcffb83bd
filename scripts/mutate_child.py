"""Coverage of the processes that tests start, for ``scripts/mutate``: imported by a ``sitecustomize`` of its own.

Many of them end by SIGKILL or ``os._exit``, so what they covered is saved twice a second, not only at their end.
"""

from __future__ import annotations

import os
import threading
import time
from typing import NoReturn

import coverage

SAVE_S = 0.5


def start() -> None:
    """Measure this process under the name of the test that started it."""
    measured = coverage.Coverage(config_file=os.environ["DLPOOL_COVERAGE"], data_suffix=True)
    measured.start()
    leave = os._exit

    def save_for_ever() -> None:
        while True:
            time.sleep(SAVE_S)
            measured.save()

    def save_and_leave(status: int) -> NoReturn:
        measured.save()
        leave(status)

    os._exit = save_and_leave
    threading.Thread(target=save_for_ever, name="coverage", daemon=True).start()
