"""The md5 of the complete file, computed by a thread that follows the lanes, so that it
reads cached pages.

Where this process may have no further thread, it is computed when all chunks have been
sent.
"""

from __future__ import annotations

from contextlib import suppress

from dlpool import threads
from dlpool.errors import DlpoolError, InternalError, NoThread
from dlpool.upload.context import ServerTask
from dlpool.upload.localfile import new_buffer, new_md5


class FileHashThread:
    """Begins at once. An error ends the upload."""

    def __init__(self, task: ServerTask) -> None:
        self._task = task
        self._md5 = new_md5()
        self._thread: threads.DaemonThread | None = None
        with suppress(NoThread):
            self._thread = threads.start_thread(self._run, "dlpool-md5")

    def hexdigest(self) -> str:
        """The md5 in hex, when all chunks have been begun. Raises what ended the
        upload."""
        self.join()
        if self._thread is None:
            self._md5 = new_md5()  # it may be requested more than once
            self._run()
        self._task.context.scope.raise_if_cancelled()
        return str(self._md5.hexdigest())

    def join(self) -> None:
        """Wait until it reads no more: at the end, or soon after the upload was
        stopped."""
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        task, buffer = self._task, new_buffer()
        ending, file = task.context.scope, task.context.file
        try:
            for index in range(task.plan.count):
                task.scheduler.wait_until_begun(index)
                file.hash(
                    self._md5, task.plan.span(index), buffer, ending.raise_if_cancelled
                )
        except DlpoolError as error:
            ending.cancel(error)
        except Exception as error:  # noqa: BLE001 - top of a thread
            ending.cancel(InternalError.of(error))
