"""What a program asks for, as a job. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike, fspath
from pathlib import Path

from dlpool.errors import UsageError
from dlpool.transfer.job import Checksum, Job
from dlpool.transfer.target.names import safe_name


def job_of(
    url: str,
    output_path: str | PathLike[str],
    filename: str | None,
    headers: Mapping[str, str] | None,
    checksum: str | None,
) -> Job:
    """Return the job for a file in the folder ``output_path``; an empty ``filename`` is
    none.

    Raises UsageError, also for values of another type.
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
    target = folder if filename is None else folder / filename
    return Job(
        url,
        target,
        filename is None,
        dict(headers or {}),
        checksum=Checksum.parse(checksum) if checksum else None,
    )


def check_priority(priority: object) -> None:
    """Raise UsageError for a priority that cannot be compared with others."""
    _check("priority", priority, (int, float), "a number")
    if priority != priority:
        raise UsageError("priority is NaN, and must be a number")


def _check(name: str, value: object, kinds: tuple[type, ...], wanted: str) -> None:
    if not isinstance(value, kinds):
        raise UsageError(
            f"{name} is of the type {type(value).__name__}, and must be {wanted}"
        )
