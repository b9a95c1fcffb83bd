"""Detection of list entries that would be written to one file, before a download
starts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from urllib.parse import urlsplit

from dlpool.engine.batch import BatchItem, BatchResult, ListUnreadable
from dlpool.errors import TargetExists
from dlpool.transfer.job import Job
from dlpool.transfer.target.names import file_name

# that are checked; a collision of a later one is found when its name is reserved
MAX_ITEMS = 100_000

TargetLookup = Callable[[Job], "Path | None"]


def find_collisions(
    items: Iterable[BatchItem], learn: TargetLookup
) -> Iterator[BatchResult]:
    """Yield a failure for each item whose file is that of an earlier one with another
    URL, and for an unreadable list.

    An item without a file name gets that of its URL, unless the server gives another
    one. ``learn`` requests the path of a job's file from the server; it is called only
    on a collision, once for URLs that differ only in the query.
    """
    lines: dict[str, tuple[int, str]] = {}
    is_named: dict[
        str, bool
    ] = {}  # by URL without query and by folder: whether the server gives other names
    for item in islice(items, MAX_ITEMS):
        if isinstance(item.error, ListUnreadable):
            yield BatchResult(item, None, item.error)
        if item.job is None:
            continue
        target = str(expected_target(item.job))
        line, url = lines.setdefault(target, (item.line, item.url))
        if url != item.url and not _has_own_name(item.job, target, is_named, learn):
            error = TargetExists(
                f"line {item.line} would overwrite {target}, the file of line {line}"
            )
            yield BatchResult(item, None, error)


def expected_target(job: Job) -> Path:
    """Return the path of a job's file if the server gives it no name."""
    return job.target / file_name(None, job.url) if job.is_folder else job.target


def _has_own_name(
    job: Job, target: str, is_named: dict[str, bool], learn: TargetLookup
) -> bool:
    """Return whether the server gives a job's file a name that is not that of its
    URL."""
    if not job.is_folder:
        return False
    alike = f"{urlsplit(job.url)._replace(query='', fragment='').geturl()} {job.target}"
    if alike not in is_named:
        is_named[alike] = str(learn(job)) != target
    return is_named[alike]
