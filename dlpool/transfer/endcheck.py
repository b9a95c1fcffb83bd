"""The last look at a file that no validator holds together: some of it is asked for again, and compared.

Made when all bytes are written and before they are published, and only where the file came by several answers.
"""

from __future__ import annotations

from dlpool.errors import DlpoolError, RemoteChanged, RetryRange, ShortBody, TimedOut
from dlpool.transfer.answer import Answer, Span
from dlpool.transfer.context import Context, Plan
from dlpool.transfer.evidence import samples
from dlpool.transfer.exchange import Exchange, Figures
from dlpool.transfer.further import ask_further
from dlpool.transfer.partfile import Writer
from dlpool.transfer.retry import Failure
from dlpool.transfer.source import Reply

NETWORK_POLL_S = 2.0
MAX_STALE = 16  # idle connections in a row that had died
ANSWERS = 2.0  # times the usual limits: how long a request for a few bytes may take in all


class EndCheck:
    """Asks for samples again. ``run`` by one thread; ``exchange`` and ``look`` are for others."""

    def __init__(self, context: Context, plan: Plan) -> None:
        self.exchange: Exchange | None = None
        self._context = context
        self._plan = plan
        self._latest: Exchange | None = None
        self._away_since: float | None = None

    @property
    def is_needed(self) -> bool:
        """Whether no validator shows that all bytes are of one version."""
        plan = self._plan
        is_joined = plan.has_ranges and len(self._context.evidence.spans()) > 1
        return is_joined and not plan.resource.has_validator

    @property
    def received(self) -> int:
        """Bytes of body that came over the network."""
        return self._latest.received if self._latest is not None else 0

    def run(self) -> None:
        """Compare. Raises RemoteChanged for a difference, else what ends the job."""
        spans = samples(self._context.evidence.spans())
        self._context.notify("end_checked", path=str(self._plan.place.target))
        reader = self._plan.place.part.writer()
        try:
            for span in spans:
                self._check(span, reader)
        finally:
            self.exchange = None
            reader.close()

    def look(self) -> None:
        """End a request that takes too long; called several times a second, from another thread."""
        exchange, network = self.exchange, self._context.client.settings
        if exchange is None or exchange.asked_at is None:
            return
        if self._context.clock() - exchange.asked_at >= ANSWERS * (network.connect_timeout + network.read_timeout):
            exchange.abort(TimedOut("the server did not complete its answer within the time limits"))

    def _check(self, span: Span, reader: Writer) -> None:
        failures = stale = 0
        while True:
            try:
                return self._compare(span, reader)
            except RetryRange as error:
                self.exchange = None
                if error.is_stale and stale < MAX_STALE:
                    stale += 1
                    continue
                rest_s = self._rest_s(span, error, failures := failures + 1)
            self._context.board.rest(rest_s)

    def _compare(self, span: Span, reader: Writer) -> None:
        context, known = self._context, self._plan.resource
        with self._new_exchange() as exchange:
            reply, answer = ask_further(context, exchange, span, known)
        try:
            if not answer.is_partial:
                raise RemoteChanged("the server serves no ranges any more: nothing shows that all were of one version")
            if not is_same_span(reply, answer, span, reader):
                raise RemoteChanged(
                    "the remote file changed during the download: bytes that came before are others now"
                )
        finally:
            reply.close()

    def _new_exchange(self) -> Exchange:
        context, latest = self._context, self._latest
        before = latest.figures() if latest is not None else Figures(0, 0.0)
        self.exchange = self._latest = Exchange(context.clock, context.board.rest, before)
        context.board.check()  # a stop that came before the exchange could be seen
        return self.exchange

    def _rest_s(self, span: Span, error: RetryRange, failures: int) -> float:
        """Seconds until the next attempt. Raises what ends the job after too many."""
        context = self._context
        if self._is_network_away(error):
            context.notify("network_away", error=str(error))
            return NETWORK_POLL_S
        final: DlpoolError | None = context.policy.verdict(error, failures)
        if final is not None:
            raise final from error
        rest_s = max(context.policy.rest(error, Failure(failures, 0), failures, context.chance()))
        context.notify(
            "range_retry",
            label=error.label,
            error=str(error),
            start=span.start,
            end=span.end,
            attempt=failures,
            delay_s=round(rest_s, 3),
            seconds=0.0,
        )
        return rest_s

    def _is_network_away(self, error: RetryRange) -> bool:
        """Whether our own network is away, and for less than ``network_wait``."""
        context = self._context
        if not error.is_own_network or not context.client.watch.is_away(context.source.host):
            self._away_since = None
            return False
        now = context.clock()
        self._away_since = now if self._away_since is None else self._away_since
        return now - self._away_since < context.settings.network_wait


def is_same_span(reply: Reply, answer: Answer, span: Span, reader: Writer) -> bool:
    """Whether the body has the bytes that the part file has in ``span``, or in its beginning if it ends early."""
    ahead = span.start - answer.start
    left = span.end - span.start + ahead
    if answer.length is not None:
        left = min(left, answer.length)
    data, view = bytearray(), memoryview(bytearray(64 * 1024))
    while len(data) < left:
        size = reply.read(view[: min(len(view), left - len(data))])
        if not size:
            raise ShortBody("the connection ended before the body did")
        data += view[:size]
    wanted = bytes(data[ahead:])
    if not wanted:
        raise ShortBody("the server sent none of the bytes that were asked for")
    return wanted == reader.read(span.start, len(wanted))
