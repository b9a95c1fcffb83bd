"""What a program asks for, as a job. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike, fspath
from pathlib import Path

from dlpool.errors import UsageError
from dlpool.transfer.job import Checksum, Job
from dlpool.transfer.names import safe_name


def job_of(
    url: str, output_path: str | PathLike[str], filename: str | None, headers: Mapping[str, str] | None,
    checksum: str | None,
) -> Job:  # fmt: skip
    """The job for a file in the folder ``output_path``. Raises UsageError."""
    folder = Path(fspath(output_path))
    if filename is not None and safe_name(filename) != filename:
        raise UsageError(f"filename {filename[:80]!r} is not the plain name of a file")
    target = folder if filename is None else folder / filename
    return Job(
        url, target, filename is None, dict(headers or {}), checksum=Checksum.parse(checksum) if checksum else None
    )
