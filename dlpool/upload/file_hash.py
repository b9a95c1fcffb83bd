"""Compute the MD5 of the complete file while its chunks are sent.

A thread hashes each chunk after a connection worker has begun to send the chunk, so
that the bytes are in the page cache. If no thread can be started, the file is hashed
after all chunks have been sent.
"""

from __future__ import annotations

from contextlib import suppress

from dlpool import threads
from dlpool.errors import DlpoolError, InternalError, NoThread
from dlpool.upload.context import ServerTask
from dlpool.upload.localfile import new_buffer, new_md5


class FileHashThread:
    """The hash of the file, and the thread that computes it.

    The constructor starts the thread. An error of the thread cancels the upload.
    """

    def __init__(self, task: ServerTask) -> None:
        self._task = task
        self._md5 = new_md5()
        self._thread: threads.DaemonThread | None = None
        with suppress(NoThread):
            self._thread = threads.start_thread(self._run, "dlpool-md5")

    def hexdigest(self) -> str:
        """Wait until the complete file is hashed; return its MD5 in hexadecimal.

        Raises the error that has cancelled the upload.
        """
        self.join()
        if self._thread is None:
            self._md5 = new_md5()  # an earlier call has used it
            self._run()
        self._task.context.scope.raise_if_cancelled()
        return str(self._md5.hexdigest())

    def join(self) -> None:
        """Wait until the thread ends, after the last chunk or after a cancellation."""
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        task, buffer = self._task, new_buffer()
        scope, file = task.context.scope, task.context.file
        try:
            for index in range(task.plan.count):
                task.scheduler.wait_until_begun(index)
                file.hash(
                    self._md5, task.plan.span(index), buffer, scope.raise_if_cancelled
                )
        except DlpoolError as error:
            scope.cancel(error)
        except Exception as error:  # noqa: BLE001 - top of a thread
            scope.cancel(InternalError.of(error))
