"""Which requests of an upload are to be ended because they take for ever: the rules of
downloads, for both ways."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from dlpool.config import NetworkSettings
from dlpool.errors import DlpoolError
from dlpool.transfer.http.exchange import Exchange
from dlpool.transfer.speed_monitor import SpeedSamples, below_minimum, header_timed_out


class UploadSpeedMonitor:
    """Used by the ticker's thread."""

    def __init__(self, settings: NetworkSettings, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._clock = clock
        self._gauges: dict[Exchange, SpeedSamples] = {}

    def sample(self, exchanges: Iterable[Exchange]) -> None:
        """Take a sample of each request in flight, and abort what is hopeless."""
        self._gauges = {
            exchange: self._gauges.get(exchange) or SpeedSamples()
            for exchange in exchanges
        }
        for exchange, gauge in self._gauges.items():
            gauge.add(exchange.stats())
            error = self._hopeless(exchange, gauge)
            if error is not None:
                exchange.cancel(error)

    def _hopeless(self, exchange: Exchange, gauge: SpeedSamples) -> DlpoolError | None:
        """A body that hardly moves, or an answer whose header does not come."""
        settings, asked_at = self._settings, exchange.sent_at
        if asked_at is not None and exchange.answered_at is None:
            return header_timed_out(
                self._clock() - asked_at,
                settings.connect_timeout,
                settings.read_timeout,
            )
        return below_minimum(gauge, settings.low_speed_limit, settings.low_speed_time)
