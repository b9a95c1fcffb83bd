"""``download_many``: a batch of downloads in one call."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from dlpool.dataclass import dataclass
from dlpool.engine.batch import Batch, BatchItem, BatchResult
from dlpool.engine.batch_session import BatchSession
from dlpool.engine.engine import DownloadEngine
from dlpool.transfer.job import Job

POLL_S = 0.1  # between deliveries of results to ``on_result``


@dataclass(frozen=True)
class BatchFailure:
    """A URL of a batch that was not downloaded, and the reason."""

    url: str
    error: str


@dataclass(frozen=True)
class BatchSummary:
    """The result of a batch.

    ``done`` is the number of downloaded files, ``size`` the sum of their sizes in
    bytes, ``seconds`` the elapsed time, ``earlier`` the number of files that earlier
    runs downloaded.
    """

    done: int
    failed: tuple[BatchFailure, ...]
    size: int
    seconds: float
    earlier: int = 0

    @property
    def speed(self) -> float:
        """The average speed in bytes per second."""
        return self.size / self.seconds if self.seconds > 0 else 0.0


def download_many(
    urls: Iterable[str],
    output_path: str | PathLike[str],
    max_workers: int = 3,
    *,
    session: str | PathLike[str] | None = None,
    on_result: Callable[[BatchResult], object] | None = None,
    **options: Any,
) -> BatchSummary:
    """Download all ``urls`` into the folder ``output_path`` and return one summary.

    A download that fails does not stop the other downloads. ``urls`` is read as workers
    become free. ``session`` is a file that records the completed downloads (None: no
    record); the next call with this file skips them. The calling thread calls
    ``on_result`` with each result. If ``on_result`` raises an exception, the batch
    stops and can be resumed. ``options`` are the keyword arguments of DownloadEngine.
    Raises UsageError, LocalFault, ConfigurationError.
    """
    folder = Path(fspath(output_path))
    done = BatchSession(Path(session)) if session is not None else None
    try:
        with DownloadEngine(max_workers, keeps_ended=False, **options) as engine:
            return _run(Batch(engine, _items(urls, folder), done), on_result)
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
        while not batch.finished.wait(POLL_S):
            collect()
        collect()
    except BaseException:
        batch.cancel()
        raise
    end = batch.progress()
    seconds = time.monotonic() - began
    return BatchSummary(
        end.done, tuple(failed), end.completed_bytes, seconds, end.earlier
    )


def _items(urls: Iterable[str], folder: Path) -> Iterator[BatchItem]:
    for number, url in enumerate(urls, 1):
        yield BatchItem(url, Job(url, folder, is_folder=True), line=number)
