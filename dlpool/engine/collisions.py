"""Finds list entries with the same target file, before any download starts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from urllib.parse import urlsplit

from dlpool.engine.batch import BatchItem, BatchResult, ListUnreadable
from dlpool.errors import TargetExists
from dlpool.transfer.job import Job
from dlpool.transfer.target.names import file_name

# Only the first items are checked. A later collision is found when the file name is
# reserved.
MAX_ITEMS = 100_000

TargetLookup = Callable[[Job], "Path | None"]


def find_collisions(
    items: Iterable[BatchItem], look_up: TargetLookup
) -> Iterator[BatchResult]:
    """Yield a failure for each item that would overwrite the file of an earlier item.

    Checks at most 100,000 items. Items with the same URL do not collide. If the list is
    not text, yields a failure with the error ListUnreadable. An item without a file
    name has the last part of its URL as name, unless the server sends another name.

    ``look_up`` asks the server for the path of a job's file, and returns None if the
    request fails. This function calls ``look_up`` only for an item that seems to
    collide, and only once for URLs that differ only in the query.
    """
    lines: dict[str, tuple[int, str]] = {}
    # Whether the server gives other names, by URL without query and by folder.
    is_named: dict[str, bool] = {}
    for item in islice(items, MAX_ITEMS):
        if isinstance(item.error, ListUnreadable):
            yield BatchResult(item, None, item.error)
        if item.job is None:
            continue
        target = expected_target(item.job)
        line, url = lines.setdefault(target, (item.line, item.url))
        if url != item.url and not _has_own_name(item.job, target, is_named, look_up):
            error = TargetExists(
                f"line {item.line} would overwrite {target}, the file of line {line}"
            )
            yield BatchResult(item, None, error)


def expected_target(job: Job) -> str:
    """Return the path of a job's file if the server sends no file name."""
    target = str(job.target)
    if not job.is_folder:
        return target
    name = file_name(None, job.url)
    return name if target == "." else os.path.join(target, name)


def _has_own_name(
    job: Job, target: str, is_named: dict[str, bool], look_up: TargetLookup
) -> bool:
    """Return whether the server gives the file another name than the URL does.

    Returns True if the request fails. ``is_named`` stores earlier answers by URL
    without query and by folder.
    """
    if not job.is_folder:
        return False
    key = f"{urlsplit(job.url)._replace(query='', fragment='').geturl()} {job.target}"
    if key not in is_named:
        is_named[key] = str(look_up(job)) != target
    return is_named[key]
