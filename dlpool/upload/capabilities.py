"""The limits and defaults of a server, and the settings that follow from them. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from dlpool.config import TransferSettings
from dlpool.dataclass import dataclass
from dlpool.upload.localfile import MD5, SHA256

CONNECTIONS = 4  # if neither the user nor the server gives a number
MAX_CONNECTIONS = 64
MAX_DELAY_S = 86_400.0  # a longer delay from the server is ignored


@dataclass(frozen=True)
class ServerCapabilities:
    """The values in the answer of ``GET /client``; None for a missing or invalid one.

    Sizes are in bytes, the delay in seconds. ``digests``: the digests that a chunk may
    have; empty if the server names none.
    """

    max_file_size: int | None = None
    max_chunk_size: int | None = None
    concurrent_uploads: int | None = None
    retry_max_attempts: int | None = None
    retry_initial_delay: float | None = None
    digests: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, answer: Mapping[str, Any]) -> ServerCapabilities:
        """Return the valid values of an answer; invalid ones become None."""
        return cls(
            _count(answer, "max_file_size"),
            _count(answer, "max_chunk_size"),
            _count(answer, "concurrent_uploads"),
            _count(answer, "retry_max_attempts"),
            _seconds(answer, "retry_initial_delay"),
            _texts(answer, "digests"),
        )

    @property
    def algorithm(self) -> str:
        """The algorithm of the digests: SHA-256, or MD5 for an older server."""
        return SHA256 if SHA256 in self.digests else MD5

    @property
    def connections(self) -> int:
        """The number of chunks to send at once; a default if the server gives none."""
        return min(self.concurrent_uploads or CONNECTIONS, MAX_CONNECTIONS)

    def apply_to(
        self, settings: TransferSettings, user_settings: Collection[str]
    ) -> TransferSettings:
        """Return ``settings`` with the server's number of attempts and first delay.

        The first delay is the delay before the first retry. Settings whose names are in
        ``user_settings`` were set by the user and are kept.
        """
        retries, delay = settings.retries, settings.retry_delay
        if self.retry_max_attempts is not None and "retries" not in user_settings:
            retries = self.retry_max_attempts - 1  # the first attempt is not a retry
        if self.retry_initial_delay is not None and "retry_delay" not in user_settings:
            delay = min(self.retry_initial_delay, settings.retry_max_delay)
        return replace(settings, retries=retries, retry_delay=delay)


def _count(answer: Mapping[str, Any], name: str) -> int | None:
    value = answer.get(name)
    return (
        value
        if isinstance(value, int) and not isinstance(value, bool) and value > 0
        else None
    )


def _texts(answer: Mapping[str, Any], name: str) -> tuple[str, ...]:
    value = answer.get(name)
    if not isinstance(value, list):
        return ()
    return tuple(text for text in value if isinstance(text, str))


def _seconds(answer: Mapping[str, Any], name: str) -> float | None:
    value = answer.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value <= MAX_DELAY_S else None
