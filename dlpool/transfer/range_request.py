"""Request byte ranges of a known file, and check that the file has not changed."""

from __future__ import annotations

from collections.abc import Callable

from dlpool.errors import BadAnswer, RemoteChanged
from dlpool.transfer.context import TransferContext, host_of
from dlpool.transfer.http.answer import (
    Answer,
    ByteRange,
    check_same_version,
    check_unsatisfied,
    is_empty_file,
)
from dlpool.transfer.http.exchange import Exchange
from dlpool.transfer.http.remote_resource import RemoteResource
from dlpool.transfer.http.source import Reply

FIRST_BYTE = ByteRange(0, 1)


Judge = Callable[[Reply, ByteRange | None], Answer]


def request_range(
    context: TransferContext,
    exchange: Exchange,
    requested: ByteRange | None,
    known: RemoteResource,
    if_range: str | None = None,
    *,
    judge: Judge | None = None,
) -> tuple[Reply, Answer]:
    """Request a byte range, and return the response as a reply and an answer.

    The body of the reply is unread; the answer is what the status and the header say.
    ``requested`` is None for the complete file. ``judge`` makes the answer from the
    reply, or raises; by default it is ``TransferContext.judge``.

    Raises RemoteChanged, RetryRange, FailJob, or the error of a cancelled exchange. In
    these cases closes the reply and forgets the redirect: the next request goes to the
    original URL.
    """
    judge = judge or context.judge
    reply = context.source.get(exchange, requested, if_range)
    try:
        if _tells_other_size(reply, known):
            reply.close()
            reply = context.source.get(exchange, FIRST_BYTE)
            _check_refusal(context, reply, known)
        answer = judge(reply, requested)
        _check_version(context, known, answer, is_conditional=if_range is not None)
    except BaseException:
        context.source.forget_location()
        reply.close()
        raise
    if known.has_digest_of(answer.resource) is False:
        context.evidence.has_wrong_digest = True
    return reply, answer


def _check_version(
    context: TransferContext,
    known: RemoteResource,
    answer: Answer,
    *,
    is_conditional: bool = False,
) -> None:
    allows_change = context.settings.allow_change
    check_same_version(
        known, answer, is_conditional=is_conditional, allows_change=allows_change
    )


def _tells_other_size(reply: Reply, known: RemoteResource) -> bool:
    try:
        check_unsatisfied(reply.status, reply.headers, known)
    except RemoteChanged:
        return True
    return False


def _check_refusal(
    context: TransferContext, reply: Reply, known: RemoteResource
) -> None:
    """Raise an error after a 416 that states another size than the known size.

    The 416 alone does not prove that the file has changed: the server may have sent an
    error page in place of the file. ``reply``: the response to a second request, which
    was for the first byte of the file.
    """
    if is_empty_file(reply.status, reply.headers):
        if context.settings.allow_change or known.host in (None, host_of(reply)):
            raise RemoteChanged("the remote file has become empty")
        raise BadAnswer(
            f"{host_of(reply)} sent an empty file in place of the known one"
        )
    if reply.status != 416:
        _check_version(context, known, context.judge(reply, FIRST_BYTE))
    raise BadAnswer(
        "the server refused a range of the file (416), although the file has not "
        "changed"
    )
