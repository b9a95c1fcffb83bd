"""The md5 of the whole file, by a thread that follows the lanes, so that what it reads is still in memory."""

from __future__ import annotations

import threading

from dlpool.errors import DlpoolError, InternalError
from dlpool.upload.context import Context
from dlpool.upload.localfile import new_buffer, new_md5


class WholeHash:
    """Begins at once. An error ends up on the board."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._md5 = new_md5()
        self._thread = threading.Thread(target=self._run, name="dlpool-md5", daemon=True)
        self._thread.start()

    def hexdigest(self) -> str:
        """The md5 in hex, when all chunks have been begun. Raises what ended the upload."""
        self.join()
        self._context.board.check()
        return str(self._md5.hexdigest())

    def join(self) -> None:
        """Wait until it reads no more: at the end, or soon after the upload was stopped."""
        self._thread.join()

    def _run(self) -> None:
        context, buffer = self._context, new_buffer()
        try:
            for index in range(context.plan.count):
                context.board.wait_for_front(index)
                context.file.hash(self._md5, context.plan.span(index), buffer, context.board.check)
        except DlpoolError as error:
            context.board.stop(error)
        except Exception as error:  # noqa: BLE001 - top of a thread
            context.board.stop(InternalError.of(error))
