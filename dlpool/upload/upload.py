"""One upload: a file, and the task at the server that it becomes; anew, where the server wants it otherwise."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import replace

from dlpool.config import TransferSettings
from dlpool.errors import Cancelled, ChunkTooLarge, FailJob, MergedGone, PolicyRefused
from dlpool.transfer.client import Client
from dlpool.transfer.job import Notify, Progress, ignore
from dlpool.transfer.limits import RateLimit, RateLimits
from dlpool.upload.advice import Advice
from dlpool.upload.asking import Asker
from dlpool.upload.context import Context
from dlpool.upload.ending import Ending
from dlpool.upload.localfile import LocalFile
from dlpool.upload.plan import auto_chunk_size, file_id, plan, smaller_chunk_size
from dlpool.upload.round import Round
from dlpool.upload.server import Merged, Server, Target
from dlpool.upload.values import Outcome, Wish
from dlpool.upload.watch import Watch

LEAST_RATE = 16 * 1024  # bytes a second of one connection: more of them would only take turns


class Upload:
    """``run`` by one thread, once; ``cancel`` and ``moment`` by any. The lock guards the ending and the cancelling."""

    def __init__(
        self,
        wish: Wish,
        server: Server,
        client: Client,
        settings: TransferSettings,
        notify: Notify = ignore,
        own: Collection[str] = (),
    ) -> None:
        """``own``: the settings that the server has no say in. Raises UsageError."""
        self._wish = wish
        self._name, self._path = wish.target()
        self._server = server
        self._client = client
        self._settings = settings
        self._notify = notify
        self._own = own
        self._rate = RateLimits(RateLimit(settings.limit_rate, time.monotonic), client.rate)
        self._watch = Watch(client.settings, time.monotonic)
        self._lock = threading.Lock()
        self._cancelled: Cancelled | None = None
        self._ending = Ending(time.monotonic)
        self._rounds: list[Round] = []
        self._most_done = 0

    def cancel(self) -> None:
        """End it; the same upload goes on another time."""
        with self._lock:
            self._cancelled = Cancelled("the upload was cancelled")
            ending = self._ending
        ending.stop(self._cancelled)

    def moment(self) -> Progress:
        """Where it is. What is sent again after a failure does not count again."""
        if not self._rounds:
            return Progress(self._wish.file, 0, None, 0, "connecting")
        current = self._rounds[-1]
        self._most_done = max(self._most_done, current.board.done)
        return Progress(self._wish.file, self._most_done, current.task.plan.size, current.board.sending, current.phase)

    def run(self) -> Outcome:
        """Upload the file. Raises DlpoolError."""
        began = time.monotonic()
        with LocalFile(self._wish.file) as file, self._client.ticker.calling(self._look):
            merged = self._run(self._context(file))
        last = self._rounds[-1]
        return Outcome(
            self._wish.file,
            merged.path,
            merged.location,
            merged.size,
            sum(each.board.accepted for each in self._rounds),
            last.resumed_from,
            time.monotonic() - began,
            sum(each.board.retries for each in self._rounds),
            last.connections,
            last.task.plan.chunk_size,
            merged.md5,
            last.task.target.file_id,
        )

    def _run(self, context: Context) -> Merged:
        """Rounds, until one ends well: a task whose file is gone is begun anew once, chunks become smaller."""
        advice, size = Asker(context).ask(self._server.advice), context.file.identity.size
        if advice.max_file_size is not None and size > advice.max_file_size:
            text = f"the file has {size} bytes, and the server takes at most {advice.max_file_size}"
            raise PolicyRefused(text)
        context = replace(context, settings=advice.followed(self._settings, self._own))
        chunk_size, has_begun_anew = self._first_chunk_size(size, advice), False
        while True:
            current = self._round(context, chunk_size, advice)
            try:
                return current.run()
            except ChunkTooLarge as error:
                chunk_size = self._next_chunk_size(error, min(chunk_size, size), advice)
                self._notify("chunk_size_reduced", error=str(error), chunk_size=chunk_size)
            except MergedGone as error:
                if has_begun_anew:
                    raise
                has_begun_anew = True
                self._notify("begun_anew", error=str(error))
            context = replace(context, ending=self._next_ending())
            self._forget(current.task.target, context)

    def _round(self, context: Context, chunk_size: int, advice: Advice) -> Round:
        identity, limit = context.file.identity, self._settings.limit_rate
        cut = plan(identity.size, chunk_size)
        target = Target(file_id(identity, chunk_size, self._name, self._path), self._name, self._path)
        connections = self._wish.connections or advice.connections
        if limit is not None:
            connections = max(1, min(connections, limit // LEAST_RATE))
        current = Round(context, cut, target, connections)
        self._rounds.append(current)
        return current

    def _first_chunk_size(self, size: int, advice: Advice) -> int:
        wanted, most = self._wish.chunk_size, advice.max_chunk_size
        if wanted is None:
            return auto_chunk_size(size, most)
        if most is not None and min(wanted, size) > most:
            raise PolicyRefused(f"the server takes chunks of at most {most} bytes: use a smaller --chunk-size")
        return wanted

    def _next_chunk_size(self, error: ChunkTooLarge, refused: int, advice: Advice) -> int:
        """What to try after chunks were too large. Raises the error where nothing is left to try."""
        if self._wish.chunk_size is not None:
            raise ChunkTooLarge(f"{error}: use a smaller --chunk-size") from error
        smaller = smaller_chunk_size(refused, advice.max_chunk_size)
        if smaller is None:
            raise error
        return smaller

    def _forget(self, target: Target, context: Context) -> None:
        """Have the server forget a task. It may not have it, or not let us: the next round tells."""
        with suppress(FailJob):
            Asker(context).ask(lambda exchange: self._server.delete(exchange, target))

    def _context(self, file: LocalFile) -> Context:
        return Context(file, self._settings, self._client, self._server, self._next_ending(), self._rate, self._notify)

    def _next_ending(self) -> Ending:
        """What ends from now on; an end that was asked for stands."""
        with self._lock:
            self._ending = Ending(time.monotonic)
            if self._cancelled is not None:
                raise self._cancelled
            return self._ending

    def _look(self) -> None:
        self._watch.look(self._ending.exchanges())
