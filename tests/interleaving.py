"""Two operations of two threads on one object, with a switch of threads at each place where there can be one.

The interpreter may switch between any two bytecodes. ``violations`` tries every switch in the first operation: it
stops there, the second operation runs to its end, or up to a lock that the first holds, and the first goes on. Each
outcome must be one that the operations give one after the other. So a missing lock is found for certain, not by luck.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import dlpool
from dlpool.cancel import Monitor
from dlpool.transfer.scheduler import ChunkScheduler

PACKAGE = f"{Path(dlpool.__file__).parent}/"
LIMIT_S = 20.0
MOST_SWITCHES = 20_000
Operation = Callable[[Any], object]


class Watched:
    """A lock that tells when a thread is about to wait for it."""

    def __init__(self) -> None:
        self.blocks = threading.Event()
        self._lock = threading.RLock()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        if self._lock.acquire(blocking=False):
            return True
        if not blocking:
            return False
        self.blocks.set()
        return self._lock.acquire(timeout=timeout)

    def release(self) -> None:
        self._lock.release()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _is_owned(self) -> bool:
        return bool(self._lock._is_owned())  # type: ignore[attr-defined]  # as threading.Condition asks it


class Missing(Watched):
    """No lock at all."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        return True

    def release(self) -> None:
        pass

    def _is_owned(self) -> bool:
        return True


def put_lock(holder: object, name: str, lock: Watched) -> None:
    """Put ``lock`` in the place of the lock, or of the condition's lock, that ``holder`` has by that name."""
    is_condition = isinstance(getattr(holder, name), threading.Condition | Monitor)
    put = threading.Condition(lock) if is_condition else lock  # type: ignore[arg-type]
    setattr(holder, name, put)
    if isinstance(holder, ChunkScheduler):  # its scope has the same lock
        holder.scope.changed = put  # type: ignore[assignment]


class Stopper:
    """Traces the first operation and stops it at its ``at``-th bytecode within the package."""

    def __init__(self, at: int) -> None:
        self.stopped, self.resumed = threading.Event(), threading.Event()
        self.steps = 0
        self._at = at

    def __call__(self, frame: FrameType, event: str, _argument: object) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            self.steps += 1
            if self.steps == self._at:
                self.stopped.set()
                assert self.resumed.wait(LIMIT_S)
        return self


class Running:
    """An operation on a thread of its own."""

    def __init__(self, work: Callable[[], object], trace: Any = None) -> None:
        self.result: object = None
        self._work, self._trace = work, trace
        self.changed = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def end(self) -> object:
        self._thread.join(LIMIT_S)
        assert not self._thread.is_alive(), "an operation hangs"
        return self.result

    def _run(self) -> None:
        try:
            sys.settrace(self._trace)
            self.result = result_of(self._work)
        finally:
            sys.settrace(None)
            self.changed.set()


def result_of(work: Callable[[], object]) -> object:
    """What an operation returned, or the type of what it raised."""
    try:
        return work()
    except Exception as error:  # noqa: BLE001 - an outcome like others
        return type(error).__name__


def outcome_of(made: object, first: object, second: object, seen: Callable[[Any], object]) -> str:
    return repr((first, second, seen(made)))


def violations(
    make: Callable[[], Any],
    first: Operation,
    second: Operation,
    seen: Callable[[Any], object],
    *,
    lock: tuple[Callable[[Any], object], str],
    is_locked: bool,
) -> tuple[int, list[str]]:
    """Return how many switches were tried, and the outcomes that no order of the two operations gives.

    ``make`` makes the object, ``seen`` tells its state; ``lock``: who holds the lock of it, and by which name.
    ``is_locked``: with the lock; else with none.
    """
    allowed = set()
    for is_reverse in (False, True):
        made = make()
        if is_reverse:
            later = result_of(lambda made=made: second(made))  # type: ignore[misc]
            earlier = result_of(lambda made=made: first(made))  # type: ignore[misc]
        else:
            earlier = result_of(lambda made=made: first(made))  # type: ignore[misc]
            later = result_of(lambda made=made: second(made))  # type: ignore[misc]
        allowed.add(outcome_of(made, earlier, later, seen))
    found: list[str] = []
    for at in range(1, MOST_SWITCHES):
        made, put = make(), Watched() if is_locked else Missing()
        holder, name = lock
        put_lock(holder(made), name, put)
        stopper = Stopper(at)
        one = Running(lambda made=made: first(made), stopper)  # type: ignore[misc]
        if not _first_of(stopper.stopped, one.changed):
            one.end()
            return at - 1, found
        other = Running(lambda made=made: second(made))  # type: ignore[misc]
        _first_of(put.blocks, other.changed)
        stopper.resumed.set()
        outcome = outcome_of(made, one.end(), other.end(), seen)
        if outcome not in allowed:
            found.append(outcome)
    raise AssertionError("the first operation does not end")


def _first_of(wanted: threading.Event, other: threading.Event) -> bool:
    """Wait until one of two events is set; return whether it is ``wanted``."""
    for _ in range(int(LIMIT_S / 0.0005)):
        if wanted.is_set() or other.is_set():
            return wanted.is_set()
        wanted.wait(0.0005)
    raise AssertionError("nothing happened in time")


def wait_for_lock(made: Any, operation: Operation) -> None:
    """Check that an operation does not end while its object's lock is held, and ends then."""
    lock = Watched()
    put_lock(made, "_lock", lock)
    lock.acquire()
    running = Running(lambda: operation(made))
    while not lock.blocks.wait(0.001):
        assert not running.changed.is_set(), "it did not take the lock"
    lock.release()
    running.end()
