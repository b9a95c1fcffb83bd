"""Validation of the arguments of the Python API."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from os import PathLike, fspath
from pathlib import Path

from dlpool.config.downloads import DownloaderSettings
from dlpool.dataclass import dataclass
from dlpool.errors import UsageError
from dlpool.kinds import DURATION, duration_text
from dlpool.transfer.job import Checksum, Job
from dlpool.transfer.target.names import safe_name


@dataclass(frozen=True)
class EngineArguments:
    """The numeric arguments of ``DownloadEngine``.

    Sizes are in bytes, times in seconds. The names are those of the settings in
    ``[downloader]``.
    """

    max_workers: int
    chunk_size: int
    retry_times: int
    retry_delay: float
    timeout: float
    progress_interval: float

    def check(self) -> None:
        """Check each value. Raises UsageError for an invalid value."""
        for declared in fields(DownloaderSettings):
            name, meta = declared.name, declared.metadata
            if name not in vars(self):
                continue
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise UsageError(f"{name} is {value!r:.80}, not a number")
            low, high = meta["low"] or 0, meta["high"]
            if not value >= low:  # also NaN
                raise UsageError(f"{name} is {value}, less than {low:g}")
            if meta["kind"] is DURATION and high is not None and value > high:
                raise UsageError(
                    f"{name} is {value} s, more than {duration_text(high)}: its unit "
                    f"is seconds, and {value:g} ms are {value / 1000:g}"
                )


def job_of(
    url: str,
    output_path: str | PathLike[str],
    filename: str | None,
    headers: Mapping[str, str] | None,
    checksum: str | None,
) -> Job:
    """Return the job that downloads ``url`` to a file in the folder ``output_path``.

    If ``filename`` is None or empty, the server or the URL names the file. Raises
    UsageError for a value that is invalid or of a wrong type.
    """
    _check("url", url, (str,), "a text")
    _check("output_path", output_path, (str, PathLike), "a text or a path")
    _check("filename", filename, (str, type(None)), "a text or None")
    _check("headers", headers, (Mapping, type(None)), "a mapping of texts or None")
    _check("checksum", checksum, (str, type(None)), "a text or None")
    for name in headers or ():
        _check("the name of a header", name, (str,), "a text")
    filename = filename or None
    folder = Path(fspath(output_path))
    if filename is not None and safe_name(filename) != filename:
        raise UsageError(f"filename {filename[:80]!r} is not the plain name of a file")
    return Job(
        url,
        folder if filename is None else folder / filename,
        filename is None,
        dict(headers or {}),
        checksum=Checksum.parse(checksum) if checksum else None,
    )


def check_priority(priority: object) -> None:
    """Raise UsageError for a priority that is not a number, or is NaN."""
    _check("priority", priority, (int, float), "a number")
    if priority != priority:
        raise UsageError("priority is NaN, and must be a number")


def _check(name: str, value: object, kinds: tuple[type, ...], expected: str) -> None:
    if not isinstance(value, kinds):
        raise UsageError(
            f"{name} is of the type {type(value).__name__}, and must be {expected}"
        )
