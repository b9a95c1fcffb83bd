"""Make the first request of a download.

The response shows whether the server supports ranges, and brings size, validators and
the first bytes of the body. A 206 with a correct ``Content-Range`` proves that the
server supports ranges, a 200 proves that it does not; other responses prove neither.
The download uses the body of a 206 or 200.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from enum import Enum

from dlpool.errors import (
    BadAnswer,
    ContradictoryAnswer,
    FailJob,
    PolicyRefused,
    RetryRange,
)
from dlpool.transfer.context import TransferContext
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
from dlpool.transfer.http.exchange import Exchange
from dlpool.transfer.http.remote_resource import RemoteResource, ValidatorMatch
from dlpool.transfer.http.source import Reply
from dlpool.transfer.planning import ProbeResult, make_plan
from dlpool.transfer.sample_check import is_same_span
from dlpool.transfer.target.names import file_name
from dlpool.transfer.target.protocol import RangeReader, Target
from dlpool.transfer.target.state import SavedState

MAX_STEPS = 8  # requests until a response is accepted


class ResumeStep(Enum):
    """What a response means for the bytes of an earlier run."""

    USE = "use the response"
    PLAIN_RANGE = "request the range without If-Range"
    RESTART = "discard the saved bytes and request the file again"
    RESTART_WITH_BODY = "discard the saved bytes and use this body"


def resume_step(
    saved: RemoteResource,
    answer: Answer,
    *,
    is_complete: bool,
    is_proven: bool | None = None,
    has_other_query: bool = False,
    allows_change: bool = False,
) -> ResumeStep:
    """Return how to continue with saved bytes.

    ``is_complete``: the request was for the complete file. ``is_proven``: whether the
    version is known to be the same; None means that the validators decide.
    ``has_other_query``: the saved bytes were requested with another query in the URL.
    ``allows_change``: any content may replace the saved bytes. Raises BadAnswer if the
    response lacks the validator that could decide, unless ``has_other_query``. Raises
    UnexpectedContent if the response must not replace the saved bytes.
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
    """The first requests of a download, until one leads to a plan.

    Used by the first connection thread. ``target``: None until the file's name is
    known; then ``open_target`` makes it. ``is_single``: request one body instead of
    ranges.
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
        self._wants_complete = is_single
        self._head: RemoteResource | None = None
        self._has_requested_head = False
        self._wants_head = False
        self._min_size = 0  # end of a part whose total is unknown
        self._ignores_if_range = False
        self._is_contradicted = False
        # whether samples match the server; None: not requested
        self._samples_match: bool | None = None
        self.on_exchange: Callable[[Exchange], None] = lambda _exchange: None

    def run(self, exchange: Exchange) -> ProbeResult:
        """Send requests until a response leads to a plan.

        Raises errors of the network, the server and the disk, and BadAnswer after
        ``MAX_STEPS`` responses without a plan.
        """
        self.on_exchange(exchange)
        if self._context.settings.probe == "head" and not self._has_requested_head:
            self._request_head(exchange)
        for _ in range(MAX_STEPS):
            saved = self._target.saved if self._target else None
            if saved is not None and self._needs_samples(saved):
                self._samples_match = self._has_samples_of(exchange, saved)
            requested = self._first_range(saved)
            uses_if_range = (
                not self._ignores_if_range and self._samples_match is not False
            )
            if_range = saved.resource.if_range if saved and uses_if_range else None
            reply = self._context.source.get(exchange, requested, if_range)
            try:
                opened = self._step(reply, requested, if_range)
            except BaseException:
                self._context.source.forget_location()
                reply.close()
                raise
            if opened is not None:
                return opened
            reply.close()
            if self._wants_head:
                self._request_head(exchange)
        raise BadAnswer("the server's responses contradict each other")

    def _step(
        self, reply: Reply, requested: ByteRange | None, if_range: str | None
    ) -> ProbeResult | None:
        """Return the result if the download can begin with this response.

        Else set up the next request and return None.
        """
        is_refusal = requested is not None and self._is_refusal(reply)
        if is_refusal and not is_empty_file(reply.status, reply.headers):
            self._wants_complete = True
            return None
        answer = self._read_answer(reply, requested)
        if answer is None:
            return None
        target = self._target = self._target or self._open_target(
            self._name(answer.resource, reply)
        )
        if target.unverifiable is not None and not self._context.settings.allow_change:
            check_family(target.unverifiable, answer.resource, ALLOW_CHANGE)
        if target.saved is not None and is_refusal:
            # "empty" has no validator, so the saved bytes take precedence
            self._wants_complete = True
            return None
        resumed = (
            answer
            if target.saved is None
            else self._resume(target, target.saved, answer, requested, if_range)
        )
        if resumed is None:
            return None
        answer = resumed
        if answer.is_partial and answer.resource.size is None:
            size = self._size_by_head(answer)
            if size is None:
                return None
            answer = replace(answer, resource=replace(answer.resource, size=size))
        result = make_plan(self._context, target, reply, answer)
        self._wants_complete = self._wants_complete or result is None
        return result

    def _resume(
        self,
        target: Target,
        saved: SavedState,
        answer: Answer,
        requested: ByteRange | None,
        if_range: str | None,
    ) -> Answer | None:
        """Return the answer if it continues or replaces the saved bytes.

        Else set up the next request and return None.
        """
        if self._needs_samples(saved):  # ``run`` requests them before the next step
            return None
        next_step = resume_step(
            saved.resource,
            answer,
            is_complete=requested is None,
            is_proven=self._is_proven(saved, answer, if_range),
            has_other_query=target.has_other_query,
            allows_change=self._context.settings.allow_change,
        )
        if next_step is ResumeStep.PLAIN_RANGE and not self._ignores_if_range:
            self._ignores_if_range = True
            return None
        if next_step is not ResumeStep.USE:
            target.restart(
                "the remote file has changed, or the server stopped serving ranges"
            )
            self._wants_complete = next_step is ResumeStep.PLAIN_RANGE
        if next_step in (ResumeStep.RESTART, ResumeStep.PLAIN_RANGE):
            return None
        return (
            replace(answer, resource=answer.resource.completed_by(saved.resource))
            if next_step is ResumeStep.USE
            else answer
        )

    def _read_answer(self, reply: Reply, requested: ByteRange | None) -> Answer | None:
        """Return the answer, or None for the first contradictory one.

        After None, the next request must be a GET without a range. Raises an error if
        the response cannot be used.
        """
        if is_empty_file(reply.status, reply.headers):
            return Answer(
                RemoteResource.from_headers(reply.headers, 0), 0, 0, is_partial=True
            )
        try:
            answer = self._context.judge(reply, requested)
            self._check_previous(answer)
        except ContradictoryAnswer as error:
            if self._is_contradicted:
                raise ContradictoryAnswer(
                    f"{error}, also without a range", is_final=True
                ) from error
            self._is_contradicted = self._wants_complete = True
            return None
        if self._context.settings.html_guard:
            check_expected_type(self._context.source.url, answer.resource)
        return answer

    def _check_previous(self, answer: Answer) -> None:
        """Raise an error if the answer contradicts what the previous attempt found.

        Raises UnexpectedContent for a media type of another family, unless
        ``allow_change`` is set. Raises ContradictoryAnswer for a shorter complete file
        of the same version.
        """
        previous, resource = self._context.previous_resource, answer.resource
        if previous is None:
            return
        if not self._context.settings.allow_change:
            check_family(previous, resource)
        is_same = (
            previous.strong_etag is not None
            and previous.strong_etag == resource.strong_etag
        )
        if (
            is_same
            and not answer.is_partial
            and resource.size is not None
            and resource.size < (previous.size or 0)
        ):
            message = (
                f"the server sent {resource.size} bytes as the complete file, which "
                f"has {previous.size} bytes"
            )
            raise ContradictoryAnswer(message)

    def _is_proven(
        self, saved: SavedState, answer: Answer, if_range: str | None
    ) -> bool:
        """Return whether the saved bytes count as the same version as the answer.

        A URL with a different query string may name another file of the same size and
        date. So if the saved bytes were fetched with a different query string, an equal
        date alone proves nothing: samples of the bytes must be equal, too.
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
        return not (has_other_query and is_date_alone) or self._samples_match is True

    def _needs_samples(self, saved: SavedState) -> bool:
        assert self._target is not None
        known = saved.resource
        is_date_alone = known.has_settled_date and known.strong_etag is None
        return (
            self._samples_match is None
            and self._target.has_other_query
            and is_date_alone
        )

    def _has_samples_of(self, exchange: Exchange, saved: SavedState) -> bool:
        """Return whether samples of the saved bytes equal the server's bytes."""
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
        """Return the size of a file whose 206 has no size (``bytes 0-9/*``).

        Returns None if another request must be sent first: HEAD, or GET for the
        complete file.
        """
        end = answer.start + (answer.length or 1)
        if not self._has_requested_head:
            self._wants_head, self._min_size = True, end
            return None
        head, min_size = self._head, max(end, self._min_size)
        is_same = (
            head is not None
            and answer.resource.has_validator
            and answer.resource.compare(head) is ValidatorMatch.SAME
        )
        if is_same and head is not None and head.size and head.size >= min_size:
            # otherwise HEAD contradicts the part
            return head.size
        self._wants_complete = True
        return None

    def _first_range(self, saved: SavedState | None) -> ByteRange | None:
        """Return the range to request first; None requests the complete file.

        This is the first missing range, or the first byte if no byte is missing.
        Without saved bytes, it is at most the first ``min_split_size`` bytes.
        """
        settings = self._context.settings
        if self._wants_complete or (
            self._head is not None and self._head.refuses_ranges
        ):
            return None
        if saved is not None:
            return saved.missing_spans[0] if saved.missing_spans else ByteRange(0, 1)
        if self._head is not None and self._head.size:
            return ByteRange(0, max(1, min(settings.min_split_size, self._head.size)))
        return ByteRange(0, settings.min_split_size)

    def _request_head(self, exchange: Exchange) -> None:
        """Send a HEAD request for hints; ignore its errors except PolicyRefused.

        Raises the error of a cancelled exchange.
        """
        self._has_requested_head, self._wants_head = True, False
        try:
            self._head = self._context.judge(
                self._context.source.head(exchange), None
            ).resource
        except PolicyRefused:
            raise
        except (RetryRange, FailJob):
            exchange.check()

    def _name(self, resource: RemoteResource, reply: Reply) -> str:
        """Return the server's name for the file, else the one in the URL.

        For a URL that ends in a slash, the redirect's target names the file.
        """
        first = self._context.source.url
        return file_name(
            resource.server_name, reply.url if first.endswith("/") else first
        )
