"""Sizes, times and progress as text for people."""

from __future__ import annotations

from dlpool.transfer.job import Progress


def size_text(size: float) -> str:
    """Return a number of bytes with a unit: 512B, 1.5K, 200.0M (powers of 1024)."""
    if size < 1023.5:
        return f"{size:.0f}B"
    for unit in ("K", "M", "G"):
        size /= 1024
        if size < 1023.95:  # values that round to 1024.0 take the next unit
            return f"{size:.1f}{unit}"
    return f"{size / 1024:.1f}T"


def time_text(seconds: float) -> str:
    """Return seconds with units: 7s, 3m20s, 2h05m."""
    rounded = round(seconds)
    if rounded < 60:
        return f"{rounded}s"
    return (
        f"{rounded // 60}m{rounded % 60:02d}s"
        if rounded < 3600
        else f"{rounded // 3600}h{rounded % 3600 // 60:02d}m"
    )


def percent(progress: Progress) -> float | None:
    """Return the downloaded percentage; None if the size is unknown or 0."""
    return 100.0 * progress.done / progress.size if progress.size else None


def eta_s(progress: Progress, speed: float) -> float | None:
    """Return the remaining seconds at ``speed`` bytes per second; None if unknown."""
    return (
        (progress.size - progress.done) / speed if progress.size and speed > 0 else None
    )


def status_text(progress: Progress, speed: float) -> str:
    """Return the progress of one file in one line, without its name."""
    share, left = percent(progress), eta_s(progress, speed)
    parts = [f"{share:.0f}%"] if share is not None else []
    parts.append(
        size_text(progress.done)
        + (f" of {size_text(progress.size)}" if progress.size else "")
    )
    parts.append(f"{size_text(speed)}/s")
    parts += [f"ETA {time_text(left)}"] if left is not None else []
    at_work = (
        f"{progress.connections} connection{'' if progress.connections == 1 else 's'}"
    )
    return ", ".join([*parts, at_work if progress.connections else progress.phase])
