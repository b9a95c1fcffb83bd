"""The digest of a file that is being written, computed behind the download front on a
separate thread.

Where this process may have no further thread or descriptor the file is hashed when it
is complete.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress

from dlpool import threads
from dlpool.errors import DlpoolError, LocalFault, NoThread
from dlpool.transfer.scheduler import ChunkScheduler
from dlpool.transfer.target.file.partfile import PartWriter

READ_SIZE = 256 * 1024
POLL_S = 1.0  # how often a waiting hash looks whether it is still wanted


class FollowingHash:
    """Hashes all bytes below the front, those of an earlier run too. Ends with the
    download."""

    def __init__(
        self,
        algorithm: str,
        board: ChunkScheduler,
        open_reader: Callable[[], PartWriter],
    ) -> None:
        """``open_reader`` returns a descriptor of the file that the follower may
        close."""
        self._hash = hashlib.new(algorithm)
        self._board = board
        self._open_reader = open_reader
        self._error: DlpoolError | None = None
        self._thread: threads.DaemonThread | None = None
        with suppress(LocalFault):
            self._thread = self._started(open_reader())

    def digest(self) -> str:
        """Wait for the end and return the digest in hex.

        Raises LocalFault if the file could not be read, and what stopped the download
        meanwhile.
        """
        if self._thread is not None:
            self._thread.join()
        self._board.scope.raise_if_cancelled()
        if self._thread is None:
            self._run(self._open_reader())
        if self._error is not None:
            raise self._error
        return self._hash.hexdigest()

    def _started(self, reader: PartWriter) -> threads.DaemonThread:
        try:
            return threads.start_thread(lambda: self._run(reader), "dlpool-hash")
        except NoThread:
            reader.close()
            raise

    def _run(self, reader: PartWriter) -> None:
        position = 0
        board = self._board
        try:
            while not (
                board.is_over
                and (board.scope.error or position >= board.contiguous_end())
            ):
                position = self._hash_up_to(
                    reader, board.wait_for_contiguous(position, POLL_S), position
                )
        except DlpoolError as error:
            self._error = error
        finally:
            with suppress(LocalFault):  # nothing was written by it
                reader.close()

    def _hash_up_to(self, reader: PartWriter, front: int, position: int) -> int:
        while position < front and self._board.scope.error is None:
            data = reader.read(position, min(READ_SIZE, front - position))
            if not data:
                raise LocalFault("the part file became shorter while it was hashed")
            self._hash.update(data)
            position += len(data)
        return position
