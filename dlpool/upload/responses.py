"""Functions that read the responses of dlpool-web: their JSON and their errors."""

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

MAX_ANSWER = 16 * 1024 * 1024  # bytes; the list of all chunks of a task is the largest
_BY_CODE: dict[str, type[DlpoolError]] = {
    # The server has received or merged other bytes than were sent.
    "md5_mismatch": Garbled,
    "sha256_mismatch": Garbled,
    "file_md5_mismatch": Garbled,
    "file_sha256_mismatch": Garbled,
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
    "another user has begun to upload this file there: use their token, or another "
    "--name or --path"
)


def read_json(reply: Reply) -> dict[str, Any]:
    """Read the body of a response, close the response, and return the JSON object.

    If the body is not a JSON object, raises BadAnswer for a status below 300, and
    returns an empty object for any other status. Raises the errors of ``reply.read``.
    """
    data = bytearray()
    view = memoryview(bytearray(64 * 1024))
    try:
        while (size := reply.read(view)) and len(data) < MAX_ANSWER:
            data += view[:size]
    finally:
        reply.close()
    try:
        answer = json.loads(data)
    except (ValueError, RecursionError):
        answer = None
    if isinstance(answer, dict):
        return answer
    if reply.status < 300:
        raise BadAnswer(
            f"the answer of {reply.url.partition('?')[0]} is not that of a dlpool-web"
        )
    return {}


def raise_for_error(reply: Reply, answer: Mapping[str, Any]) -> None:
    """Raise the error of a response unless its status is 200."""
    if reply.status != 200:
        raise error_of(reply.status, reply.headers, answer)


def error_of(
    status: int, headers: Mapping[str, str], answer: Mapping[str, Any]
) -> DlpoolError:
    """Return the error for a response with a status other than 200."""
    text, code = f"the server answered {status}", answer.get("code")
    if isinstance(answer.get("error"), str):
        text += ": " + " ".join(answer["error"].split())[:300]
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


def required_text(answer: Mapping[str, Any], name: str) -> str:
    """Return the text in the field ``name`` of an answer.

    Raises BadAnswer if the field is missing or is not a text.
    """
    value = answer.get(name)
    if not isinstance(value, str):
        raise BadAnswer(f"the server's answer has no {name}")
    return value


def required_indexes(answer: Mapping[str, Any], name: str) -> tuple[int, ...]:
    """Return the chunk indexes in the field ``name`` of an answer.

    Raises BadAnswer if the field is missing or is not a list of integers.
    """
    value = answer.get(name)
    if not isinstance(value, list) or not all(
        isinstance(index, int) for index in value
    ):
        raise BadAnswer(f"the server's answer has no {name}")
    return tuple(value)
