"""Whether an upload is over, and why: what all its threads look at, and what ends
whatever they wait for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dlpool.errors import DlpoolError
from dlpool.transfer.http.exchange import Exchange, ExchangeStats


class UploadCancelScope:
    """Thread-safe. ``changed`` guards the error and the exchanges, and what others
    (``Board``) keep under it.

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

    def cancel(self, error: DlpoolError) -> None:
        """End it, waits and requests in flight included; the first error stands."""
        with self.changed:
            self._error = final = self._error or error
            self.changed.notify_all()
        for exchange in self.exchanges():
            exchange.cancel(final)

    def raise_if_cancelled(self) -> None:
        """Raise the error, if there is one."""
        if self._error is not None:
            raise self._error

    def sleep(self, seconds: float) -> None:
        """Sleep, but not beyond an error, which is raised."""
        if seconds <= 0:
            return
        with self.changed:
            self.changed.wait_for(lambda: self._error is not None, seconds)
        self.raise_if_cancelled()

    @contextmanager
    def open_exchange(self) -> Iterator[Exchange]:
        """A new request of this thread, which ``stop`` ends."""
        exchange = Exchange(self._clock, self.sleep, ExchangeStats(0, 0.0))
        with self.changed:
            self.raise_if_cancelled()
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
