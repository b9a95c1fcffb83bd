"""The first request of a download: it proves or disproves ranges, brings size,
validators and the first bytes.

A 206 with a right ``Content-Range`` is the only proof of ranges, a 200 the only
disproof; the body of either is used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from enum import Enum

from dlpool.errors import (
    BadAnswer,
    ContradictoryAnswer,
    FailJob,
    PolicyRefused,
    RetryRange,
)
from dlpool.transfer.chunks import ChunkMap, plan_chunks, single_chunk
from dlpool.transfer.context import DownloadPlan, TransferContext
from dlpool.transfer.evidence import choose_samples
from dlpool.transfer.http.answer import (
    ALLOW_CHANGE,
    Answer,
    ByteRange,
    check_expected_type,
    check_family,
    check_replacement,
    check_same_version,
    is_empty_file,
    refuses_ranges,
)
from dlpool.transfer.http.decoding import (
    CodingAction,
    DecodedReply,
    coding_action,
    decode_reply,
)
from dlpool.transfer.http.exchange import Exchange
from dlpool.transfer.http.remote_resource import RemoteResource, ValidatorMatch
from dlpool.transfer.http.source import Reply
from dlpool.transfer.sample_check import is_same_span
from dlpool.transfer.target.names import file_name
from dlpool.transfer.target.protocol import RangeReader, Target
from dlpool.transfer.target.state import SavedState

MAX_STEPS = 8  # of asking otherwise, before the first answer is taken
PIECE = 8 * 1024 * 1024  # bytes: how far ahead of the hash a connection may work


@dataclass(frozen=True)
class ProbeResult:
    """A plan, its chunks, and the first answer with its body unread."""

    plan: DownloadPlan
    chunks: ChunkMap
    reply: Reply
    answer: Answer


class ResumeStep(Enum):
    """What an answer means for the bytes of an earlier run."""

    USE = "use it"
    PLAIN_RANGE = "ask for the range without If-Range"
    RESTART = "forget them and ask anew"
    RESTART_WITH_BODY = "forget them and take this body"


def resume_step(
    saved: RemoteResource,
    answer: Answer,
    *,
    is_complete: bool,
    is_proven: bool | None = None,
    has_other_query: bool = False,
    allows_change: bool = False,
) -> ResumeStep:
    """Whether saved bytes belong to what the server has now. ``is_whole``: no range was
    asked for.

    ``is_proven``: whether it is shown that it has the same version; None: as the
    validators alone show it. Raises BadAnswer where the answer lacks the validator that
    could tell (what another query of the URL brings needs none: it may well be another
    file), and UnexpectedContent where it may not replace what was saved.
    """
    if saved.proves_same(answer.resource) if is_proven is None else is_proven:
        if answer.is_partial:
            return ResumeStep.USE
        return ResumeStep.RESTART_WITH_BODY if is_complete else ResumeStep.PLAIN_RANGE
    if saved.compare(answer.resource) is ValidatorMatch.UNKNOWN and not has_other_query:
        check_same_version(saved, answer)
    check_replacement(saved, answer.resource, allows_change=allows_change)
    return ResumeStep.RESTART_WITH_BODY if is_complete else ResumeStep.RESTART


class Probe:
    """Makes the first request until it leads to a plan. Used by the first connection
    thread.

    ``target`` is None while the name of the file is still to be learnt; ``open_target``
    opens it then. ``is_single`` asks for one body instead of ranges.
    """

    def __init__(
        self,
        context: TransferContext,
        target: Target | None,
        open_target: Callable[[str], Target],
        *,
        is_single: bool,
    ) -> None:
        self._context = context
        self._target = target
        self._open_target = open_target
        self._is_whole = is_single
        self._head: RemoteResource | None = None
        self._asked_head = False
        self._wants_head = False
        self._least_size = 0  # what a part had that did not tell the total
        self._distrusts_if_range = False
        self._is_contradicted = False
        self._agrees: bool | None = (
            # whether samples of the saved bytes match the server; None: not requested
            None
        )

    def run(self, exchange: Exchange) -> ProbeResult:
        """One try. Raises what the network, the server or the disk brings."""
        if self._context.settings.probe == "head" and not self._asked_head:
            self._ask_head(exchange)
        for _ in range(MAX_STEPS):
            saved = self._target.saved if self._target else None
            if saved is not None and self._needs_samples(saved):
                self._agrees = self._has_samples_of(exchange, saved)
            asked = self._first_span(saved)
            trusts_if_range = not self._distrusts_if_range and self._agrees is not False
            if_range = saved.resource.if_range if saved and trusts_if_range else None
            reply = self._context.source.get(exchange, asked, if_range)
            try:
                opened = self._step(reply, asked, if_range)
            except BaseException:
                self._context.source.forget_location()
                reply.close()
                raise
            if opened is not None:
                return opened
            reply.close()
            if self._wants_head:
                self._ask_head(exchange)
        raise BadAnswer("the server's answers contradict each other")

    def _step(
        self, reply: Reply, asked: ByteRange | None, if_range: str | None
    ) -> ProbeResult | None:
        """Take the answer as the beginning, or note what to ask instead and return
        None."""
        is_refusal = asked is not None and self._is_refusal(reply)
        if is_refusal and not is_empty_file(reply.status, reply.headers):
            self._is_whole = True
            return None
        answer = self._judged(reply, asked)
        if answer is None:
            return None
        target = self._target = self._target or self._open_target(
            self._name(answer.resource, reply)
        )
        if target.unverifiable is not None and not self._context.settings.allow_change:
            check_family(target.unverifiable, answer.resource, ALLOW_CHANGE)
        if (
            target.saved is not None and is_refusal
        ):  # "empty" needs a validator to be believed against what is there
            self._is_whole = True
            return None
        resumed = (
            answer
            if target.saved is None
            else self._resumed(target, target.saved, answer, asked, if_range)
        )
        if resumed is None:
            return None
        answer = resumed
        if answer.is_partial and answer.resource.size is None:
            size = self._size_by_head(answer)
            if size is None:
                return None
            answer = replace(answer, resource=replace(answer.resource, size=size))
        return self._planned(target, reply, answer)

    def _resumed(
        self,
        target: Target,
        saved: SavedState,
        answer: Answer,
        asked: ByteRange | None,
        if_range: str | None,
    ) -> Answer | None:
        """Return the answer if it continues or replaces the saved bytes; else set the
        next request and return None."""
        if self._needs_samples(saved):  # the output was found only now
            return None
        next_step = resume_step(
            saved.resource,
            answer,
            is_complete=asked is None,
            is_proven=self._is_proven(saved, answer, if_range),
            has_other_query=target.has_other_query,
            allows_change=self._context.settings.allow_change,
        )
        if next_step is ResumeStep.PLAIN_RANGE and not self._distrusts_if_range:
            self._distrusts_if_range = True
            return None
        if next_step is not ResumeStep.USE:
            target.restart(
                "the remote file has changed, or the server stopped serving ranges"
            )
            self._is_whole = next_step is ResumeStep.PLAIN_RANGE
        if next_step in (ResumeStep.RESTART, ResumeStep.PLAIN_RANGE):
            return None
        return (
            replace(answer, resource=answer.resource.completed_by(saved.resource))
            if next_step is ResumeStep.USE
            else answer
        )

    def _judged(self, reply: Reply, asked: ByteRange | None) -> Answer | None:
        """Return the answer, if it may be the file; None if it contradicts itself, and
        a plain GET must follow."""
        if is_empty_file(reply.status, reply.headers):
            return Answer(
                RemoteResource.from_headers(reply.headers, 0), 0, 0, is_partial=True
            )
        try:
            answer = self._context.judge(reply, asked)
            self._check_earlier(answer)
        except ContradictoryAnswer as error:
            if self._is_contradicted:
                raise ContradictoryAnswer(
                    f"{error}, also without a range", is_final=True
                ) from error
            self._is_contradicted = self._is_whole = True
            return None
        if self._context.settings.html_guard:
            check_expected_type(self._context.source.url, answer.resource)
        return answer

    def _check_earlier(self, answer: Answer) -> None:
        """Raise BadAnswer if the answer cannot be the complete file of the previous
        round."""
        earlier, resource = self._context.previous_resource, answer.resource
        if earlier is None:
            return
        if not self._context.settings.allow_change:
            check_family(earlier, resource)
        is_same = (
            earlier.strong_etag is not None
            and earlier.strong_etag == resource.strong_etag
        )
        if (
            is_same
            and not answer.is_partial
            and resource.size is not None
            and resource.size < (earlier.size or 0)
        ):
            said = (
                f"the server sent {resource.size} bytes as the whole of a file of "
                f"{earlier.size} bytes"
            )
            raise ContradictoryAnswer(said)

    def _is_proven(
        self, saved: SavedState, answer: Answer, if_range: str | None
    ) -> bool:
        """Return whether the saved bytes are of the version of the answer.

        Bytes that came by another query of the same URL may be of another file beside
        it, which has been written in the same second and has the same size. So there a
        date proves only together with samples.
        """
        assert self._target is not None
        known, resource, job = saved.resource, answer.resource, self._context.job
        is_confirmed = if_range is not None and answer.is_partial
        if (
            known.compare(resource, is_confirmed=is_confirmed)
            is not ValidatorMatch.SAME
        ):
            return False
        has_other_query = self._target.has_other_query
        is_verified = job.checksum is not None and self._context.settings.verify
        if is_verified and (not has_other_query or saved.checksum == str(job.checksum)):
            return True
        if not (is_confirmed or known.proves_same(resource)):
            return False
        is_date_alone = known.strong_etag is None and not known.has_digest_of(resource)
        return not (has_other_query and is_date_alone) or self._agrees is True

    def _needs_samples(self, saved: SavedState) -> bool:
        assert self._target is not None
        known = saved.resource
        is_date_alone = known.has_settled_date and known.strong_etag is None
        return self._agrees is None and self._target.has_other_query and is_date_alone

    def _has_samples_of(self, exchange: Exchange, saved: SavedState) -> bool:
        """Request samples of the saved bytes, and return whether the server sends the
        same."""
        assert self._target is not None
        reader = self._target.reader()
        try:
            return all(
                self._is_sample(exchange, saved, span, reader)
                for span in choose_samples(saved.written_spans)
            )
        finally:
            reader.close()

    def _is_sample(
        self,
        exchange: Exchange,
        saved: SavedState,
        span: ByteRange,
        reader: RangeReader,
    ) -> bool:
        reply = self._context.source.get(exchange, span)
        try:
            if self._is_refusal(reply):
                return False
            answer = self._context.judge(reply, span)
            if saved.resource.compare(answer.resource) is ValidatorMatch.SAME:
                return answer.is_partial and is_same_span(reply, answer, span, reader)
            check_replacement(
                saved.resource,
                answer.resource,
                allows_change=self._context.settings.allow_change,
            )
            return False
        finally:
            reply.close()

    @staticmethod
    def _is_refusal(reply: Reply) -> bool:
        return refuses_ranges(reply.status, reply.headers, datetime.now(timezone.utc))

    def _size_by_head(self, answer: Answer) -> int | None:
        """The size of a file of which a 206 did not tell it (``bytes 0-9/*``); None:
        ask HEAD, or for the whole."""
        end = answer.start + (answer.length or 1)
        if not self._asked_head:
            self._wants_head, self._least_size = True, end
            return None
        head, least = self._head, max(end, self._least_size)
        is_same = (
            head is not None
            and answer.resource.has_validator
            and answer.resource.compare(head) is ValidatorMatch.SAME
        )
        if (
            is_same and head is not None and head.size and head.size >= least
        ):  # else HEAD contradicts the part
            return head.size
        self._is_whole = True
        return None

    def _first_span(self, saved: SavedState | None) -> ByteRange | None:
        """The range to begin with: the first that is missing, or as much as a small
        file has; None: everything."""
        settings = self._context.settings
        if self._is_whole or (self._head is not None and self._head.refuses_ranges):
            return None
        if saved is not None:
            return saved.missing_spans[0] if saved.missing_spans else ByteRange(0, 1)
        if self._head is not None and self._head.size:
            return ByteRange(0, max(1, min(settings.min_split_size, self._head.size)))
        return ByteRange(0, settings.min_split_size)

    def _ask_head(self, exchange: Exchange) -> None:
        """Learn what HEAD tells; it is a hint only, and no answer to it is an error."""
        self._asked_head, self._wants_head = True, False
        try:
            self._head = self._context.judge(
                self._context.source.head(exchange), None
            ).resource
        except PolicyRefused:
            raise
        except (RetryRange, FailJob):
            exchange.check()

    def _name(self, resource: RemoteResource, reply: Reply) -> str:
        """The server's name for the file, else the URL's: the user's, unless its path
        ends in nothing."""
        first = self._context.source.url
        return file_name(
            resource.server_name, reply.url if first.endswith("/") else first
        )

    def _planned(
        self, target: Target, reply: Reply, answer: Answer
    ) -> ProbeResult | None:
        """Return the plan; None for a range of an encoded file, which must be requested
        as one body instead."""
        if self._is_decoded(target, reply, answer):
            if answer.is_partial:
                self._is_whole = True
                return None
            reply, answer = decode_reply(reply, answer)
        settings, resource = self._context.settings, answer.resource
        limit = settings.max_file_size
        if limit is not None and resource.size is not None and resource.size > limit:
            raise PolicyRefused(
                f"the file has {resource.size} bytes, max_file_size is {limit}"
            )
        target.drop_unverifiable()
        self._tell_coding(target, resource, is_decoded=isinstance(reply, DecodedReply))
        if answer.is_partial:
            chunks = self._ranges(target, resource)
            target.enable_checkpoints(resource)
        else:
            chunks = single_chunk(resource.size)
        resumed = chunks.written()
        if resource.size is not None:
            target.preallocate(resource.size, settings.preallocate, self._context.space)
        return ProbeResult(
            DownloadPlan(resource, target, answer.is_partial, resumed),
            chunks,
            reply,
            answer,
        )

    def _tell_coding(
        self, target: Target, resource: RemoteResource, *, is_decoded: bool
    ) -> None:
        if resource.content_encoding and is_decoded:
            self._context.notify(
                "content_decoded",
                encoding=resource.content_encoding,
                path=str(target.path),
            )
        elif resource.content_encoding:
            self._context.notify(
                "content_encoded",
                encoding=resource.content_encoding,
                path=str(target.path),
            )

    def _is_decoded(self, target: Target, reply: Reply, answer: Answer) -> bool:
        """Return whether to decode the body. Raises PolicyRefused or ProtocolBroken for
        an unaccepted coding."""
        if not answer.resource.content_encoding or answer.length == 0:
            return False
        urls = (self._context.source.url, reply.url)
        wish = self._context.settings.content_encoding
        return (
            coding_action(wish, answer.resource, urls, target.path.name)
            is CodingAction.DECODE
        )

    def _ranges(self, target: Target, resource: RemoteResource) -> ChunkMap:
        assert resource.size is not None
        settings = self._context.settings
        wants_hash = self._context.expected_checksum(resource) is not None
        missing = (
            target.saved.missing_spans
            if target.saved
            else [ByteRange(0, resource.size)]
            if resource.size
            else []
        )
        connections = (
            1 if resource.refuses_ranges else self._context.initial_connections()
        )
        return plan_chunks(
            missing,
            resource.size,
            connections,
            settings.min_split_size,
            PIECE if wants_hash else None,
        )
