"""Which requests of an upload are to be ended because they take for ever: the rules of downloads, for both ways."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from dlpool.config import NetworkSettings
from dlpool.errors import DlpoolError
from dlpool.transfer.exchange import Exchange
from dlpool.transfer.watch import Gauge, below_minimum, overdue


class Watch:
    """Used by the ticker's thread."""

    def __init__(self, settings: NetworkSettings, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._clock = clock
        self._gauges: dict[Exchange, Gauge] = {}

    def look(self, exchanges: Iterable[Exchange]) -> None:
        """Take a sample of each request in flight, and abort what is hopeless."""
        self._gauges = {exchange: self._gauges.get(exchange) or Gauge() for exchange in exchanges}
        for exchange, gauge in self._gauges.items():
            gauge.add(exchange.figures())
            error = self._hopeless(exchange, gauge)
            if error is not None:
                exchange.abort(error)

    def _hopeless(self, exchange: Exchange, gauge: Gauge) -> DlpoolError | None:
        """A body that hardly moves, or an answer whose header does not come."""
        settings, asked_at = self._settings, exchange.asked_at
        if asked_at is not None and exchange.answered_at is None:
            return overdue(self._clock() - asked_at, settings.connect_timeout, settings.read_timeout)
        return below_minimum(gauge, settings.low_speed_limit, settings.low_speed_time)
