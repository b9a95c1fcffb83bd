"""Compute the checksum of a file while it is downloaded, on a separate thread.

If no thread or descriptor is available, the file is hashed when it is complete.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress

from dlpool import threads
from dlpool.errors import DlpoolError, LocalFault, NoThread
from dlpool.transfer.scheduler import ChunkScheduler
from dlpool.transfer.target.protocol import RangeReader

READ_SIZE = 256 * 1024
POLL_S = 1.0  # how often a waiting hash checks whether the download has ended


class FollowingHash:
    """Hashes the contiguous bytes of a file, from its beginning, while it grows.

    Bytes of an earlier run are included.
    """

    def __init__(
        self,
        algorithm: str,
        scheduler: ChunkScheduler,
        open_reader: Callable[[], RangeReader],
        *,
        follows: bool = True,
    ) -> None:
        """Start the thread, if ``follows``; otherwise ``digest`` computes the hash.

        ``open_reader`` returns a new reader of the part file. This object closes the
        reader.
        """
        self._hash = hashlib.new(algorithm)
        self._scheduler = scheduler
        self._open_reader = open_reader
        self._error: DlpoolError | None = None
        self._thread: threads.DaemonThread | None = None
        if follows:
            with suppress(LocalFault):
                self._thread = self._start(open_reader())

    def digest(self) -> str:
        """Wait until all bytes are hashed; return the digest in hexadecimal digits.

        Raises LocalFault if the file cannot be read. If the download has been
        cancelled, raises the error with which it was cancelled.
        """
        if self._thread is not None:
            self._thread.join()
        self._scheduler.scope.raise_if_cancelled()
        if self._thread is None:
            self._run(self._open_reader())
        if self._error is not None:
            raise self._error
        return self._hash.hexdigest()

    def _start(self, reader: RangeReader) -> threads.DaemonThread:
        try:
            return threads.start_thread(lambda: self._run(reader), "dlpool-hash")
        except NoThread:
            reader.close()
            raise

    def _run(self, reader: RangeReader) -> None:
        position = 0
        scheduler = self._scheduler
        try:
            while not (
                scheduler.is_over
                and (scheduler.scope.error or position >= scheduler.contiguous_end())
            ):
                position = self._hash_to(
                    reader, scheduler.wait_for_contiguous(position, POLL_S), position
                )
        except DlpoolError as error:
            self._error = error
        finally:
            with suppress(LocalFault):  # closing a reader loses no data
                reader.close()

    def _hash_to(self, reader: RangeReader, end: int, position: int) -> int:
        while position < end and self._scheduler.scope.error is None:
            data = reader.read(position, min(READ_SIZE, end - position))
            if not data:
                raise LocalFault("the part file became shorter while it was hashed")
            self._hash.update(data)
            position += len(data)
        return position
