"""Turn the first usable response into the plan of a download.

The plan says which version of the file is downloaded, into which chunks it is split,
and whether its body is decoded.
"""

from __future__ import annotations

from dlpool.dataclass import dataclass
from dlpool.errors import PolicyRefused
from dlpool.transfer.chunks import ChunkMap, plan_chunks, single_chunk
from dlpool.transfer.context import DownloadPlan, TransferContext
from dlpool.transfer.http.answer import Answer, ByteRange
from dlpool.transfer.http.decoding import (
    CodingAction,
    DecodedReply,
    coding_action,
    decode_reply,
)
from dlpool.transfer.http.remote_resource import RemoteResource
from dlpool.transfer.http.source import Reply
from dlpool.transfer.target.protocol import Target

# bytes that a connection is assigned at once while a hash follows (``ChunkMap.piece``)
PIECE = 8 * 1024 * 1024


@dataclass(frozen=True)
class ProbeResult:
    """A plan, its chunks, and the first response with its body unread."""

    plan: DownloadPlan
    chunks: ChunkMap
    reply: Reply
    answer: Answer


def make_plan(
    context: TransferContext, target: Target, reply: Reply, answer: Answer
) -> ProbeResult | None:
    """Return the plan, and allocate the space of the file.

    Returns None if the response is a range of a file that must be decoded: the complete
    file must then be requested as one body. Raises PolicyRefused (for example for a
    file above ``max_file_size``), ProtocolBroken for a coding that cannot be decoded,
    and LocalFault.
    """
    if _is_decoded(context, target, reply, answer):
        if answer.is_partial:
            return None
        reply, answer = decode_reply(reply, answer)
    settings, resource = context.settings, answer.resource
    limit = settings.max_file_size
    if limit is not None and resource.size is not None and resource.size > limit:
        raise PolicyRefused(
            f"the file has {resource.size} bytes, max_file_size is {limit}"
        )
    target.drop_unverifiable()
    _report_coding(
        context, target, resource, is_decoded=isinstance(reply, DecodedReply)
    )
    if answer.is_partial:
        chunks = _plan_ranges(context, target, resource)
        target.enable_checkpoints(resource)
    else:
        chunks = single_chunk(resource.size)
    resumed = chunks.written()
    if resource.size is not None:
        target.preallocate(resource.size, settings.preallocate, context.space)
    return ProbeResult(
        DownloadPlan(resource, target, answer.is_partial, resumed),
        chunks,
        reply,
        answer,
    )


def _report_coding(
    context: TransferContext,
    target: Target,
    resource: RemoteResource,
    *,
    is_decoded: bool,
) -> None:
    if resource.content_encoding and is_decoded:
        context.notify(
            "content_decoded",
            encoding=resource.content_encoding,
            path=str(target.path),
        )
    elif resource.content_encoding:
        context.notify(
            "content_encoded",
            encoding=resource.content_encoding,
            path=str(target.path),
        )


def _is_decoded(
    context: TransferContext, target: Target, reply: Reply, answer: Answer
) -> bool:
    """Return whether to decode the body.

    Raises PolicyRefused or ProtocolBroken for a coding that is not accepted.
    """
    if not answer.resource.content_encoding or answer.length == 0:
        return False
    urls = (context.source.url, reply.url)
    rule = context.settings.content_encoding
    return (
        coding_action(rule, answer.resource, urls, target.path.name)
        is CodingAction.DECODE
    )


def _plan_ranges(
    context: TransferContext, target: Target, resource: RemoteResource
) -> ChunkMap:
    assert resource.size is not None
    settings = context.settings
    wants_hash = context.expected_checksum(resource) is not None
    missing = (
        target.saved.missing_spans
        if target.saved
        else [ByteRange(0, resource.size)]
        if resource.size
        else []
    )
    connections = 1 if resource.refuses_ranges else context.initial_connections()
    return plan_chunks(
        missing,
        resource.size,
        connections,
        settings.min_split_size,
        PIECE if wants_hash else None,
    )
