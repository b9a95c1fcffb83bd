"""What the answers of a dlpool-web mean: their JSON, and the error that a refusal
is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from dlpool.errors import (
    AccessDenied,
    BadAnswer,
    Conflict,
    DlpoolError,
    Garbled,
    Infected,
    NoTask,
    NotScanned,
    PolicyRefused,
    ProtocolBroken,
    RemoteFull,
    RetryRange,
    ShortBody,
    TaskClosed,
)
from dlpool.transfer.http.answer import error_for_status
from dlpool.transfer.http.source import Reply

MAX_ANSWER = 16 * 1024 * 1024  # bytes: the chunks of a task in a list
_BY_CODE: dict[str, type[DlpoolError]] = {
    # The server has other bytes than it was sent, in a chunk, or in what it made of
    # them.
    "md5_mismatch": Garbled,
    "file_md5_mismatch": Garbled,
    "size_mismatch": Garbled,
    "truncated": ShortBody,
    "no_such_task": NoTask,
    "task_merging": TaskClosed,
    "task_completed": TaskClosed,
    "infected": Infected,
    "not_scanned": NotScanned,
}
_BY_STATUS: dict[int, type[DlpoolError]] = {
    409: Conflict,
    413: PolicyRefused,
    415: PolicyRefused,
    507: RemoteFull,
}
_NOT_OWNER = (
    "somebody else has begun to send this file there: use their token, or another "
    "--name or --path"
)


def read_json(reply: Reply) -> dict[str, Any]:
    """The JSON object of an answer, whose body is read to its end; of an error page
    nothing."""
    data = bytearray()
    view = memoryview(bytearray(64 * 1024))
    try:
        while (size := reply.read(view)) and len(data) < MAX_ANSWER:
            data += view[:size]
    finally:
        reply.close()
    try:
        said = json.loads(data)
    except (ValueError, RecursionError):
        said = None
    if isinstance(said, dict):
        return said
    if reply.status < 300:
        raise BadAnswer(
            f"the answer of {reply.url.partition('?')[0]} is not that of a dlpool-web"
        )
    return {}


def raise_for_error(reply: Reply, said: Mapping[str, Any]) -> None:
    """Raise the error that an answer is."""
    if reply.status != 200:
        raise error_of(reply.status, reply.headers, said)


def error_of(
    status: int, headers: Mapping[str, str], said: Mapping[str, Any]
) -> DlpoolError:
    """The error of an answer other than 200, with the server's own sentence."""
    text, code = f"the server answered {status}", said.get("code")
    if isinstance(said.get("error"), str):
        text += ": " + " ".join(said["error"].split())[:300]
    if code == "not_owner":
        return AccessDenied(f"the server answered {status}: {_NOT_OWNER}")
    kind = _BY_CODE.get(code) if isinstance(code, str) else None
    kind = kind or _BY_STATUS.get(status)
    if kind is not None:
        return kind(text)
    if 300 <= status < 400:
        return ProtocolBroken(
            f"{text}, to {headers.get('Location', '')[:300]!r}: uploads need the URL "
            f"itself"
        )
    known = error_for_status(status, headers, datetime.now(timezone.utc))
    if isinstance(known, RetryRange):
        return type(known)(
            text, retry_after_s=known.retry_after_s, is_away=known.is_away
        )
    return type(known)(text)


def required_text(said: Mapping[str, Any], name: str) -> str:
    """A text that must be there. Raises BadAnswer."""
    value = said.get(name)
    if not isinstance(value, str):
        raise BadAnswer(f"the server's answer has no {name}")
    return value


def required_indexes(said: Mapping[str, Any], name: str) -> tuple[int, ...]:
    """The numbers of a list that must be there. Raises BadAnswer."""
    value = said.get(name)
    if not isinstance(value, list) or not all(
        isinstance(index, int) for index in value
    ):
        raise BadAnswer(f"the server's answer has no {name}")
    return tuple(value)
