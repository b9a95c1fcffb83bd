"""What a server wants of its clients, and what follows from that. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from dlpool.config import TransferSettings

CONNECTIONS = 4  # where neither the user nor the server says
MAX_CONNECTIONS = 64
MAX_DELAY_S = 86_400.0


@dataclass(frozen=True)
class ServerCapabilities:
    """What ``GET /client`` says; None where it does not. Sizes in bytes, the delay in
    seconds."""

    max_file_size: int | None = None
    max_chunk_size: int | None = None
    concurrent_uploads: int | None = None
    retry_max_attempts: int | None = None
    retry_initial_delay: float | None = None

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> ServerCapabilities:
        """What of an answer can be followed."""
        return cls(
            _count(said, "max_file_size"),
            _count(said, "max_chunk_size"),
            _count(said, "concurrent_uploads"),
            _count(said, "retry_max_attempts"),
            _seconds(said, "retry_initial_delay"),
        )

    @property
    def connections(self) -> int:
        """Chunks at once."""
        return min(self.concurrent_uploads or CONNECTIONS, MAX_CONNECTIONS)

    def apply_to(
        self, settings: TransferSettings, own: Collection[str]
    ) -> TransferSettings:
        """The settings of an upload: what the server wants, but for what the user said,
        ``own``."""
        retries, delay = settings.retries, settings.retry_delay
        if self.retry_max_attempts is not None and "retries" not in own:
            retries = self.retry_max_attempts - 1  # the first attempt is no repetition
        if self.retry_initial_delay is not None and "retry_delay" not in own:
            delay = min(self.retry_initial_delay, settings.retry_max_delay)
        return replace(settings, retries=retries, retry_delay=delay)


def _count(said: Mapping[str, Any], name: str) -> int | None:
    value = said.get(name)
    return (
        value
        if isinstance(value, int) and not isinstance(value, bool) and value > 0
        else None
    )


def _seconds(said: Mapping[str, Any], name: str) -> float | None:
    value = said.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value <= MAX_DELAY_S else None
