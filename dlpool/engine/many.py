"""``download_many``: a batch in one call."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from dlpool.engine.batch import (
    Batch,
    BatchFailure,
    BatchItem,
    BatchResult,
    BatchSummary,
    make_summary,
)
from dlpool.engine.batch_session import BatchSession
from dlpool.engine.engine import DownloadEngine
from dlpool.transfer.job import Job

LOOK_S = 0.1


def download_many(
    urls: Iterable[str],
    output_path: str | PathLike[str],
    max_workers: int = 3,
    *,
    session: str | PathLike[str] | None = None,
    on_result: Callable[[BatchResult], object] | None = None,
    **options: Any,
) -> BatchSummary:
    """Download all ``urls`` into the folder ``output_path`` and return one summary; one
    failure stops no other.

    ``urls`` is read as it is needed. ``session``: a file that remembers what is done,
    so that the next call with it goes on. ``on_result`` is called with each result, on
    the calling thread; what it raises ends the batch, resumably. ``options`` are those
    of DownloadEngine. Raises UsageError, LocalFault, ConfigurationError.
    """
    folder = Path(fspath(output_path))
    done = BatchSession(Path(session)) if session is not None else None
    try:
        with DownloadEngine(max_workers, keeps_ended=False, **options) as engine:
            batch = Batch(engine, _items(urls, folder), done)
            return _run(batch, on_result)
    finally:
        if done is not None:
            done.close()


def _run(
    batch: Batch, on_result: Callable[[BatchResult], object] | None
) -> BatchSummary:
    began, failed = time.monotonic(), list[BatchFailure]()

    def collect() -> None:
        for result in batch.take_results():
            if result.error is not None and not result.is_duplicate:
                failed.append(BatchFailure(result.item.url, str(result.error)))
            if on_result is not None:
                on_result(result)

    batch.start()
    try:
        while not batch.finished.wait(LOOK_S):
            collect()
        collect()
    except BaseException:
        batch.cancel()
        raise
    return make_summary(batch, began, failed)


def _items(urls: Iterable[str], folder: Path) -> Iterator[BatchItem]:
    for number, url in enumerate(urls, 1):
        yield BatchItem(url, Job(url, folder, is_folder=True), line=number)
