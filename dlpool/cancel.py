"""The cancellation of work that several threads share."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

from dlpool.errors import DlpoolError


class Cancellable(Protocol):
    """Work that another thread can cancel: a request in flight, or a scope."""

    def cancel(self, error: DlpoolError) -> None:
        """Make the work raise ``error``, or the error of an earlier call."""


_ReentrantLock = type(threading.RLock())


class Monitor(_ReentrantLock):  # type: ignore[misc,valid-type]
    """A lock on which threads can also wait, like ``threading.Condition``.

    Creating a monitor is eight times as fast: its ``threading.Condition`` is created
    only when a thread waits. A thread must hold the lock when it calls a method below.
    """

    _condition: threading.Condition | None = None

    def wait(self, timeout_s: float | None = None) -> None:
        """Release the lock until ``notify_all``, at most ``timeout_s`` seconds."""
        self._waitable().wait(timeout_s)

    def wait_for(
        self, predicate: Callable[[], bool], timeout_s: float | None = None
    ) -> bool:
        """Wait until ``predicate`` is true, at most ``timeout_s`` seconds.

        Returns the last value of ``predicate``.
        """
        return predicate() or self._waitable().wait_for(predicate, timeout_s)

    def notify_all(self) -> None:
        """Wake all threads that wait."""
        if self._condition is not None:
            self._condition.notify_all()

    def _waitable(self) -> threading.Condition:
        if self._condition is None:
            self._condition = threading.Condition(self)
        return self._condition


class CancelScope:
    """Cancels work that several threads share. Thread-safe.

    ``cancel`` wakes the threads that sleep in the scope, and cancels its members.
    ``error``: the error with which the work was cancelled; None while the work is not
    cancelled. Only the scope sets ``error``. The monitor ``changed`` guards the error
    and the members. The creator of a scope may guard its own state with ``changed``. No
    thread does I/O while it holds ``changed``.
    """

    def __init__(self) -> None:
        self.changed = Monitor()
        self.error: DlpoolError | None = None
        self._is_sealed = False
        self._members: set[Cancellable] = set()

    def __repr__(self) -> str:
        return f"<CancelScope {len(self._members)} members {self.error or ''}>"

    def cancel(self, error: DlpoolError) -> None:
        """Make the work raise ``error``, or the error of an earlier call.

        Has no effect after ``seal``.
        """
        with self.changed:
            if self._is_sealed:
                return
            self.error = final = self.error or error
            members = tuple(self._members)
            self.changed.notify_all()
        for member in members:
            member.cancel(final)

    def seal(self) -> None:
        """Make the work immune to ``cancel``.

        Raises the error if the work has already been cancelled.
        """
        with self.changed:
            self.raise_if_cancelled()
            self._is_sealed = True

    def raise_if_cancelled(self) -> None:
        """Raise the error if the work has been cancelled."""
        if self.error is not None:
            raise self.error

    def sleep(self, seconds: float) -> None:
        """Sleep for ``seconds``; raise the error as soon as the work is cancelled.

        Returns at once if ``seconds`` is 0 or negative.
        """
        if seconds <= 0:
            return
        with self.changed:
            self.changed.wait_for(lambda: self.error is not None, seconds)
        self.raise_if_cancelled()

    def add(self, member: Cancellable) -> None:
        """Add a member. Raises the error if the work has been cancelled."""
        with self.changed:
            self.raise_if_cancelled()
            self._members.add(member)

    def discard(self, member: Cancellable) -> None:
        """Remove ``member``. Do nothing if it is not a member."""
        with self.changed:
            self._members.discard(member)

    def members(self) -> tuple[Cancellable, ...]:
        """Return the current members."""
        with self.changed:
            return tuple(self._members)
