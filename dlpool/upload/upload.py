"""One upload: ask what the server has, send the rest, merge; again, until the whole file is there."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from dlpool.config import TransferSettings
from dlpool.errors import Cancelled, ChecksumMismatch, Conflict, DlpoolError, Garbled, RetryRange, UsageError
from dlpool.transfer.client import Client
from dlpool.transfer.exchange import Exchange
from dlpool.transfer.job import Notify, Progress, ignore
from dlpool.transfer.limits import RateLimit, RateLimits
from dlpool.upload.board import Board
from dlpool.upload.context import Context, Patience
from dlpool.upload.lane import Lane
from dlpool.upload.localfile import LocalFile, new_buffer, new_md5
from dlpool.upload.plan import file_id, plan
from dlpool.upload.server import Incomplete, Merged, Server, Target
from dlpool.upload.whole import WholeHash

MERGE_POLL_S = 1.0
MAX_REPAIRS = 5  # merges that found chunks missing or wrong
T = TypeVar("T")


@dataclass(frozen=True)
class Wish:
    """What to upload, and as what. ``chunk_size`` None is auto, ``name`` None the file's own."""

    file: Path
    connections: int = 4
    chunk_size: int | None = None
    name: str | None = None
    relative_path: str | None = None


@dataclass(frozen=True)
class Outcome:
    """An upload that ended well. Sizes in bytes: ``sent`` by this run, ``resumed_from`` were there before.

    ``path`` is below the server's folder of files, ``location`` the URL to fetch it from.
    """

    file: Path
    path: str
    location: str
    size: int
    sent: int
    resumed_from: int
    seconds: float
    retries: int
    connections: int
    chunk_size: int
    md5: str
    file_id: str

    def as_json(self) -> dict[str, Any]:
        return vars(self) | {"file": str(self.file)}


class Upload:
    """``run`` by one thread; ``cancel`` and ``moment`` by any. It keeps the file open until ``run`` has ended."""

    def __init__(
        self, wish: Wish, server: Server, client: Client, settings: TransferSettings, notify: Notify = ignore
    ) -> None:
        """Raises LocalFault and UsageError."""
        name = wish.name or wish.file.name
        if any(0xD800 <= ord(letter) < 0xE000 for letter in name + (wish.relative_path or "")):
            raise UsageError(f"{name!a} is not text in UTF-8: say how the file is to be called with --name")
        file = LocalFile(wish.file)
        cut = plan(file.identity.size, wish.chunk_size)
        target = Target(file_id(file.identity, cut.chunk_size, name, wish.relative_path), name, wish.relative_path)
        rate = RateLimits(RateLimit(settings.limit_rate, time.monotonic), client.rate)
        board = Board(cut, time.monotonic)
        self._context = Context(file, cut, target, settings, client, server, board, rate, notify)
        self._lanes = [Lane(self._context) for _ in range(min(wish.connections, cut.count))]
        self._patience = Patience(self._context)
        self._exchange: Exchange | None = None
        self._whole: WholeHash | None = None
        self._phase = "connecting"
        self._repairs = 0

    def cancel(self) -> None:
        """End it; the same upload goes on another time."""
        self._stop(Cancelled("the upload was cancelled"))

    def moment(self) -> Progress:
        """Where it is."""
        context = self._context
        return Progress(context.file.path, context.board.done, context.plan.size, context.board.sending, self._phase)

    def run(self) -> Outcome:
        """Upload the file. Raises DlpoolError."""
        try:
            return self._run()
        except BaseException as error:
            self._stop(error if isinstance(error, DlpoolError) else Cancelled("the upload was interrupted"))
            raise
        finally:
            if self._whole is not None:
                self._whole.join()  # it reads the file, too
            self._context.file.close()

    def _run(self) -> Outcome:
        context, began = self._context, time.monotonic()
        context.board.begin(self._stored())
        resumed_from = context.board.stored
        context.notify("upload_started", file_id=context.target.file_id, size=context.plan.size,
                       chunks=context.plan.count, resumed_from=resumed_from)  # fmt: skip
        whole = self._whole = WholeHash(context)
        self._send()
        merged = self._merged(whole)
        return Outcome(
            context.file.path, merged.path, merged.location, merged.size, context.board.accepted, resumed_from,
            time.monotonic() - began, context.board.retries, len(self._lanes), context.plan.chunk_size, merged.md5,
            context.target.file_id,
        )  # fmt: skip

    def _stored(self) -> tuple[int, ...]:
        """The chunks that the server has."""
        context = self._context
        status = self._asked(lambda exchange: context.server.status(exchange, context.target))
        if status.state == "paused":
            raise Conflict(f"the upload is paused at the server: resume its task {context.target.file_id} there")
        if status.state in ("merging", "completed"):
            return tuple(range(context.plan.count))  # the merge tells
        return status.chunks

    def _send(self) -> None:
        """Send what is missing, over all lanes."""
        self._phase = "uploading"
        threads = [threading.Thread(target=lane.run, name="dlpool-upload", daemon=True) for lane in self._lanes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self._context.board.check()

    def _merged(self, whole: WholeHash) -> Merged:
        """The file at the server. Chunks that turn out to be bad or missing are sent again."""
        context = self._context
        while True:
            self._phase = "hashing"
            md5 = whole.hexdigest()
            context.file.check_unchanged()
            self._phase = "merging"
            answer = self._merge(md5)
            if isinstance(answer, Merged):
                if (answer.size, answer.md5) != (context.plan.size, md5):
                    raise ChecksumMismatch(f"the file at the server has md5 {answer.md5}, the one here {md5}")
                return answer
            self._repairs += 1
            missing = context.board.begin(answer.chunks)
            context.notify("chunks_missing", chunks=missing)
            if not missing or self._repairs > MAX_REPAIRS:
                raise ChecksumMismatch(f"the server cannot make the file, although it has all of its chunks ({md5})")
            self._send()

    def _merge(self, md5: str) -> Merged | Incomplete:
        """Ask for the merge, and wait where another request is at it already."""
        context = self._context

        def merge(exchange: Exchange) -> Merged | Incomplete:
            return context.server.merge(exchange, context.target, context.plan.count, md5)

        was_completed = False
        while True:
            try:
                return self._asked(merge, is_final=lambda error: isinstance(error, Garbled))
            except Garbled:
                return Incomplete(self._right_chunks())
            except Conflict:
                state = self._asked(lambda exchange: context.server.status(exchange, context.target)).state
                if state not in ("merging", "completed") or was_completed:
                    raise
                was_completed = state == "completed"  # asked once more, it gives the result
            context.board.pause(MERGE_POLL_S)

    def _right_chunks(self) -> tuple[int, ...]:
        """Those of the server's chunks that have the md5 of what is in the file."""
        context, buffer, right = self._context, new_buffer(), []
        md5s = self._asked(lambda exchange: context.server.md5s(exchange, context.target))
        for index in range(context.plan.count):
            digest = new_md5()
            context.file.hash(digest, context.plan.span(index), buffer, context.board.check)
            if md5s.get(index) == digest.hexdigest():
                right.append(index)
        return tuple(right)

    def _asked(self, ask: Callable[[Exchange], T], is_final: Callable[[RetryRange], bool] = lambda _error: False) -> T:
        """What the server says, by as many attempts as it takes. Raises what ends it, and errors that are final."""
        attempts = 0

        def count() -> int:
            nonlocal attempts
            attempts += 1
            return attempts

        while True:
            try:
                with self._context.exchange() as exchange:
                    self._exchange = exchange
                    self._context.board.check()  # a stop that came before the exchange could be seen
                    answer = ask(exchange)
            except RetryRange as error:
                if is_final(error):
                    raise
                self._context.board.pause(self._patience.rest_s(error, count))
            else:
                self._patience.renew()
                return answer

    def _stop(self, error: DlpoolError) -> None:
        """End what waits: threads at the board, and requests in flight."""
        self._context.board.stop(error)
        for exchange in [self._exchange, *(lane.exchange for lane in self._lanes)]:
            if exchange is not None:
                exchange.abort(error)
