"""The digests of the file and of its chunks.

The worker that sends a chunk computes the digest of the chunk. A thread computes the
other digests:

- If the server accepts SHA-256 digests, the digest of the file is the composite
  SHA-256: the SHA-256 of the digests of all chunks. The thread computes the digests of
  the chunks that the server had stored before this attempt.
- For an older server, the digests are MD5. The thread computes the MD5 of the complete
  file. It reads an unsent chunk only after a worker has begun to send the chunk, so
  that the bytes are in the page cache.

If the thread cannot be started, its work is done after all chunks have been sent.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from typing import Any

from dlpool import threads
from dlpool.errors import DlpoolError, InternalError, NoThread
from dlpool.upload.context import ServerTask
from dlpool.upload.localfile import MD5, SHA256, new_buffer, new_hash


class FileHashThread:
    """The digest of the file, and the thread that computes it.

    The constructor starts the thread. An error of the thread cancels the scope.
    ``algorithm``: the hash algorithm of the chunks. ``stored``: the indexes of the
    chunks that no worker will send.
    """

    def __init__(
        self, task: ServerTask, algorithm: str, stored: Collection[int]
    ) -> None:
        self.algorithm = algorithm
        self._task = task
        self._stored = stored
        self._md5 = new_hash(MD5)
        self._digests: dict[int, bytes] = {}
        self._thread: threads.DaemonThread | None = None
        with suppress(NoThread):
            self._thread = threads.start_thread(self._run, "dlpool-hash")

    def add_chunk(self, index: int, digest: Any) -> None:
        """Record the digest of a chunk. Called by the worker that sends the chunk."""
        self._digests[index] = digest.digest()

    def hexdigest(self) -> str:
        """Wait until all bytes are hashed; return the digest of the file.

        Raises the errors of ``ServerTask.hash_chunk``, and the scope's error if the
        scope was cancelled.
        """
        self.join()
        if self._thread is None:
            self._md5 = new_hash(MD5)  # an earlier call has used it
            self._run()
        self._task.context.scope.raise_if_cancelled()
        if self.algorithm == MD5:
            return str(self._md5.hexdigest())
        buffer, composite = new_buffer(), new_hash(SHA256)
        for index in range(self._task.plan.count):
            if index not in self._digests:  # another client has sent it meanwhile
                self._hash_chunk(index, buffer)
            composite.update(self._digests[index])
        return str(composite.hexdigest())

    def join(self) -> None:
        """Wait until the thread ends; return at once if it could not be started."""
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        scope = self._task.context.scope
        try:
            if self.algorithm == MD5:
                self._hash_file()
                return
            buffer = new_buffer()
            for index in self._stored:
                self._hash_chunk(index, buffer)
        except DlpoolError as error:
            scope.cancel(error)
        except Exception as error:  # noqa: BLE001 - top of a thread
            scope.cancel(InternalError.of(error))

    def _hash_file(self) -> None:
        task, buffer = self._task, new_buffer()
        for index in range(task.plan.count):
            task.scheduler.wait_until_begun(index)
            task.hash_chunk(self._md5, index, buffer)

    def _hash_chunk(self, index: int, buffer: memoryview) -> None:
        digest = new_hash(SHA256)
        self._task.hash_chunk(digest, index, buffer)
        self._digests[index] = digest.digest()
