"""The digest of a file that is being written: hashing runs behind the download front, on a thread of its own."""

from __future__ import annotations

import hashlib
import threading
from contextlib import suppress

from dlpool.errors import DlpoolError, LocalFault
from dlpool.transfer.board import Board
from dlpool.transfer.partfile import Writer

READ_SIZE = 256 * 1024
LOOK_S = 1.0  # how often a waiting hash looks whether it is still wanted


class Follower:
    """Hashes all bytes below the front, those of an earlier run too. Ends with the download."""

    def __init__(self, algorithm: str, board: Board, reader: Writer) -> None:
        self._hash = hashlib.new(algorithm)
        self._board = board
        self._reader = reader
        self._error: DlpoolError | None = None
        self._thread = threading.Thread(target=self._run, name="dlpool-hash", daemon=True)
        self._thread.start()

    def digest(self) -> str:
        """Wait for the end and return the digest in hex.

        Raises LocalFault if the file could not be read, and what stopped the download meanwhile.
        """
        self._thread.join()
        self._board.check()
        if self._error is not None:
            raise self._error
        return self._hash.hexdigest()

    def _run(self) -> None:
        position = 0
        board = self._board
        try:
            while not (board.is_over and (board.error or position >= board.front())):
                position = self._hash_up_to(board.wait_for_front(position, LOOK_S), position)
        except DlpoolError as error:
            self._error = error
        finally:
            with suppress(LocalFault):  # it only read
                self._reader.close()

    def _hash_up_to(self, front: int, position: int) -> int:
        while position < front and self._board.error is None:
            data = self._reader.read(position, min(READ_SIZE, front - position))
            if not data:
                raise LocalFault("the part file became shorter while it was hashed")
            self._hash.update(data)
            position += len(data)
        return position
