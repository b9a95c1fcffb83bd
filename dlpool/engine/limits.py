"""Validation of an engine's arguments. Pure."""

from __future__ import annotations

from dataclasses import dataclass, fields

from dlpool.config.sections import DownloaderSettings
from dlpool.errors import UsageError
from dlpool.kinds import DURATION, duration_text


@dataclass(frozen=True)
class EngineArguments:
    """The arguments of ``DownloadEngine`` that are numbers, under the names of their
    settings. Times in seconds."""

    max_workers: int
    chunk_size: int
    retry_times: int
    retry_delay: float
    timeout: float
    progress_interval: float

    def check(self) -> None:
        """Raise UsageError for a value out of its bounds, such as a time in
        milliseconds."""
        for declared in fields(DownloaderSettings):
            if declared.name not in vars(self):
                continue
            name, value, meta = (
                declared.name,
                getattr(self, declared.name),
                declared.metadata,
            )
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise UsageError(f"{name} is {value!r:.80}, not a number")
            low, high = meta["low"] or 0, meta["high"]
            if not value >= low:  # also NaN
                raise UsageError(f"{name} is {value}, less than {low:g}")
            if meta["kind"] is DURATION and high is not None and value > high:
                raise UsageError(
                    f"{name} is {value} s, more than {duration_text(high)}: its unit "
                    f"is seconds, and {value:g} ms are "
                    f"{value / 1000:g}"
                )
