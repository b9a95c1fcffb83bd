"""Whether an upload is over, and why: what all its threads look at, and what ends whatever they wait for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dlpool.errors import DlpoolError
from dlpool.transfer.exchange import Exchange, Figures


class Ending:
    """Thread-safe. ``changed`` guards the error and the exchanges, and what others (``Board``) keep under it.

    No I/O happens under it.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.changed = threading.Condition()
        self._clock = clock
        self._error: DlpoolError | None = None
        self._exchanges: set[Exchange] = set()

    def __repr__(self) -> str:
        return f"<Ending {len(self._exchanges)} exchanges, {self._error or ''}>"

    @property
    def error(self) -> DlpoolError | None:
        """Why it is over."""
        return self._error

    def stop(self, error: DlpoolError) -> None:
        """End it, waits and requests in flight included; the first error stands."""
        with self.changed:
            self._error = final = self._error or error
            self.changed.notify_all()
        for exchange in self.exchanges():
            exchange.abort(final)

    def check(self) -> None:
        """Raise the error, if there is one."""
        if self._error is not None:
            raise self._error

    def pause(self, seconds: float) -> None:
        """Sleep, but not beyond an error, which is raised."""
        if seconds <= 0:
            return
        with self.changed:
            self.changed.wait_for(lambda: self._error is not None, seconds)
        self.check()

    @contextmanager
    def exchange(self) -> Iterator[Exchange]:
        """A new request of this thread, which ``stop`` ends."""
        exchange = Exchange(self._clock, self.pause, Figures(0, 0.0))
        with self.changed:
            self.check()
            self._exchanges.add(exchange)
        try:
            with exchange:
                yield exchange
        finally:
            with self.changed:
                self._exchanges.discard(exchange)

    def exchanges(self) -> tuple[Exchange, ...]:
        """The requests in flight."""
        with self.changed:
            return tuple(self._exchanges)
