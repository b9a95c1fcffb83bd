"""The first request of a download: it proves or disproves ranges, brings size, validators and the first bytes.

A 206 with a right ``Content-Range`` is the only proof of ranges, a 200 the only disproof; the body of either is used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from dlpool.errors import PolicyRefused, RetryRange
from dlpool.transfer.answer import HEAD_REFUSALS, RANGE_REFUSALS, Answer, Span, check_same_version, is_empty_file
from dlpool.transfer.chunks import ChunkMap, plan, stream
from dlpool.transfer.context import Context, Plan
from dlpool.transfer.exchange import Exchange
from dlpool.transfer.names import file_name
from dlpool.transfer.place import Place
from dlpool.transfer.resource import Resource, Sameness
from dlpool.transfer.source import Reply

PIECE = 8 * 1024 * 1024  # bytes: how far ahead of the hash a connection may work


@dataclass(frozen=True)
class Opened:
    """A plan, its chunks, and the first answer with its body unread."""

    plan: Plan
    chunks: ChunkMap
    reply: Reply
    answer: Answer


class Opening:
    """Makes the first request until it leads to a plan. Used by the first connection thread.

    ``place`` is None while the name of the file is still to be learnt; ``choose_place`` opens it then. ``is_single``
    asks for one body instead of ranges.
    """

    def __init__(
        self, context: Context, place: Place | None, choose_place: Callable[[str], Place], *, is_single: bool
    ) -> None:
        self._context = context
        self._place = place
        self._choose_place = choose_place
        self._is_single = is_single
        self._head: Resource | None = None
        self._asked_head = False
        self._distrusts_if_range = False

    def run(self, exchange: Exchange) -> Opened:
        """One try. Raises what the network, the server or the disk brings."""
        if self._context.settings.probe == "head":
            self._ask_head(exchange)
        reply, answer = self._probe(exchange)
        try:
            place = self._place = self._place or self._choose_place(self._name(answer.resource, reply))
            while place.saved is not None and not self._continues(place, answer):
                reply.close()
                reply, answer = self._probe(exchange)
            return self._planned(place, reply, answer)
        except BaseException:
            reply.close()
            raise

    def _probe(self, exchange: Exchange) -> tuple[Reply, Answer]:
        context, saved = self._context, self._place.saved if self._place else None
        asked: Span | None = self._first_span()
        if_range = saved.resource.if_range if saved and not self._distrusts_if_range else None
        reply = context.source.get(exchange, asked, if_range)
        if is_empty_file(reply.status, reply.headers):
            if saved is not None and self._place is not None:
                self._place.begin_anew("the remote file is empty by now")
            return reply, Answer(Resource.from_headers(reply.headers, 0), 0, 0, is_partial=True)
        if asked is not None and reply.status in RANGE_REFUSALS:
            reply.close()
            if saved is not None and self._place is not None:
                self._place.begin_anew(f"the server answered {reply.status} to the range that is missing")
                return self._probe(exchange)
            asked, reply = None, context.source.get(exchange, None)
        return self._with_size(exchange, reply, context.judge(reply, asked))

    def _with_size(self, exchange: Exchange, reply: Reply, answer: Answer) -> tuple[Reply, Answer]:
        """Find the size of a file of which a 206 did not tell it (``bytes 0-9/*``), else take it as one body."""
        if not answer.is_partial or answer.resource.size is not None:
            return reply, answer
        if not self._asked_head:
            reply.close()
            self._ask_head(exchange)
            return self._probe(exchange)
        size = self._head.size if self._head else None
        if size is not None and size >= answer.start + (answer.length or 0):
            return reply, replace(answer, resource=replace(answer.resource, size=size))
        reply.close()
        reply = self._context.source.get(exchange, None)
        return reply, self._context.judge(reply, None)

    def _first_span(self) -> Span | None:
        """The range to begin with: the first that is missing, or as much as a small file has."""
        settings = self._context.settings
        if self._is_single or (self._head is not None and self._head.refuses_ranges):
            return None
        if self._place is not None and self._place.saved is not None:
            missing = self._place.saved.missing
            return missing[0] if missing else Span(0, min(1, self._place.saved.size) or 1)
        if self._head is not None and self._head.size:
            return Span(0, max(1, min(settings.min_split_size, self._head.size)))
        return Span(0, settings.min_split_size)

    def _ask_head(self, exchange: Exchange) -> None:
        """Learn what HEAD tells; it is a hint only, and no answer to it is an error."""
        self._asked_head = True
        try:
            reply = self._context.source.head(exchange)
            if reply.status in HEAD_REFUSALS:
                return
            self._head = self._context.judge(reply, None).resource
        except RetryRange:
            exchange.check()

    def _name(self, resource: Resource, reply: Reply) -> str:
        """The server's name for the file, else the URL's: the user's, unless its path ends in nothing."""
        first = self._context.source.url
        return file_name(resource.server_name, reply.url if first.endswith("/") else first)

    def _continues(self, place: Place, answer: Answer) -> bool:
        """Whether the saved bytes belong to what the server has now; if not, they are forgotten."""
        assert place.saved is not None
        saved = place.saved.resource
        sameness = saved.compare(answer.resource)
        if sameness is Sameness.SAME and answer.is_partial:
            return True
        if sameness is Sameness.UNKNOWN:
            check_same_version(saved, answer)
        if sameness is Sameness.SAME and not self._distrusts_if_range:
            self._distrusts_if_range = True
            return False
        is_same = sameness is Sameness.SAME
        place.begin_anew("the server serves no ranges any more" if is_same else "the remote file is another by now")
        return False

    def _planned(self, place: Place, reply: Reply, answer: Answer) -> Opened:
        settings, resource = self._context.settings, answer.resource
        limit = settings.max_file_size
        if limit is not None and resource.size is not None and resource.size > limit:
            raise PolicyRefused(f"the file has {resource.size} bytes, max_file_size is {limit}")
        if resource.content_encoding:
            self._context.notify("content_encoded", encoding=resource.content_encoding, path=str(place.target))
        if answer.is_partial:
            chunks = self._ranges(place, resource)
            place.begin_state(resource)
        else:
            chunks = stream(resource.size)
        resumed = chunks.written()
        if resource.size is not None:
            place.part.preallocate(resource.size, settings.preallocate)
        return Opened(Plan(resource, place, answer.is_partial, resumed), chunks, reply, answer)

    def _ranges(self, place: Place, resource: Resource) -> ChunkMap:
        assert resource.size is not None
        settings = self._context.settings
        wants_hash = self._context.job.checksum is not None or resource.digest is not None
        missing = place.saved.missing if place.saved else [Span(0, resource.size)] if resource.size else []
        connections = 1 if resource.refuses_ranges else settings.connections
        return plan(missing, resource.size, connections, settings.min_split_size, PIECE if wants_hash else None)
