"""What a dlpool-web is asked, and what its answers mean: the upload API over HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any
from urllib.parse import quote, urlencode

from dlpool.errors import (
    BadAnswer,
    Conflict,
    DlpoolError,
    Garbled,
    PolicyRefused,
    ProtocolBroken,
    RemoteFull,
    RetryRange,
)
from dlpool.transfer.answer import error_for_status
from dlpool.transfer.client import Client
from dlpool.transfer.exchange import Body, Exchange
from dlpool.transfer.source import Reply, Source

MAX_ANSWER = 16 * 1024 * 1024  # bytes: the chunks of a task in a list
_JSON = {"Content-Type": "application/json"}
_BYTES = {"Content-Type": "application/octet-stream"}
# The server has other bytes than it was sent, in a chunk, or in what it made of them.
_GARBLED = {"md5_mismatch", "file_md5_mismatch", "size_mismatch"}
_OWN: dict[int, type[DlpoolError]] = {409: Conflict, 413: PolicyRefused, 415: PolicyRefused, 507: RemoteFull}


@dataclass(frozen=True)
class Target:
    """Which upload it is: its id, how the file is called at the end, and below which folder."""

    file_id: str
    name: str
    relative_path: str | None


@dataclass(frozen=True)
class Status:
    """What the server has of an upload; ``state`` is ``not_found`` if nothing."""

    state: str
    chunks: tuple[int, ...]


@dataclass(frozen=True)
class Merged:
    """The whole file at the server: ``path`` below its folder of files, ``location`` to fetch it from, md5 in hex."""

    path: str
    location: str
    size: int
    md5: str


@dataclass(frozen=True)
class Incomplete:
    """Why there is no whole file: these are all the chunks that the server has."""

    chunks: tuple[int, ...]


class Server:
    """The upload API below one URL. Thread-safe. Raises RetryRange, FailJob, or the exchange's verdict."""

    def __init__(self, client: Client, url: str, headers: Mapping[str, str]) -> None:
        """Raises UsageError for a URL that is none."""
        self._source = Source(client, url.rstrip("/"), headers)
        self._timeout_s = client.settings.read_timeout

    @property
    def host(self) -> str:
        """Host and port."""
        return self._source.host

    def status(self, exchange: Exchange, target: Target) -> Status:
        """What the server has."""
        said = self._ask(exchange, "upload_status", {"file_id": target.file_id})
        return Status(_text(said, "status"), _indexes(said, "uploaded_chunks"))

    def md5s(self, exchange: Exchange, target: Target) -> dict[int, str]:
        """The md5 of each chunk that the server has."""
        said = self._ask(exchange, f"tasks/{quote(target.file_id, safe='')}")
        chunks = said.get("chunks")
        if not isinstance(chunks, list) or not all(isinstance(chunk, dict) for chunk in chunks):
            raise BadAnswer("the server's list of chunks is none")
        return {chunk["index"]: str(chunk.get("md5")) for chunk in chunks if isinstance(chunk.get("index"), int)}

    def send(
        self, exchange: Exchange, target: Target, fields: Mapping[str, object], blocks: Iterable[memoryview], size: int
    ) -> None:
        """Send a chunk; ``fields`` are what the API calls chunk_index, md5, total_chunks and file_size."""
        query = {"file_id": target.file_id, **fields, **_path(target)}
        said = self._ask(exchange, "upload_chunk", query, _BYTES, Body(blocks, size, self._timeout_s))
        if said.get("size") != size:
            raise BadAnswer(f"the server says that it has {said.get('size')!r} bytes of a chunk of {size}")

    def merge(self, exchange: Exchange, target: Target, count: int, md5: str) -> Merged | Incomplete:
        """Make the file out of its chunks; the same again once it is made."""
        asked = {"file_id": target.file_id, "filename": target.name, "total_chunks": count, "expected_md5": md5,
                 **_path(target)}  # fmt: skip
        data = json.dumps(asked).encode()
        reply = self._reply(exchange, "merge_chunks", {}, _JSON, Body([data], len(data), self._timeout_s))
        said = _said(reply)
        if reply.status == 400 and isinstance(said.get("uploaded_chunks"), list):
            return Incomplete(_indexes(said, "uploaded_chunks"))
        _check(reply, said)
        if not isinstance(said.get("size"), int):
            raise BadAnswer("the server's answer to the merge has no size")
        name = _text(said, "filePath").rpartition("/")[2]  # it may not be the one that was asked for
        path = f"{_text(said, 'relative_path')}/{name}".lstrip("/")
        return Merged(path, f"{self._source.url}/files/{quote(path)}", said["size"], _text(said, "md5"))

    def _ask(
        self, exchange: Exchange, path: str, query: Mapping[str, object] | None = None,
        headers: Mapping[str, str] | None = None, body: Body | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        reply = self._reply(exchange, path, query or {}, headers or {}, body)
        said = _said(reply)
        _check(reply, said)
        return said

    def _reply(
        self, exchange: Exchange, path: str, query: Mapping[str, object], headers: Mapping[str, str], body: Body | None
    ) -> Reply:
        asked = f"?{urlencode(query, quote_via=quote)}" if query else ""
        return self._source.call(exchange, f"{self._source.url}/{path}{asked}", headers, body)


def _path(target: Target) -> dict[str, str]:
    return {} if target.relative_path is None else {"relative_path": target.relative_path}


def _said(reply: Reply) -> dict[str, Any]:
    """The JSON object of an answer, whose body is read to its end; of an error page nothing."""
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
        raise BadAnswer(f"the answer of {reply.url.partition('?')[0]} is not that of a dlpool-web")
    return {}


def _check(reply: Reply, said: Mapping[str, Any]) -> None:
    """Raise the error that an answer is."""
    if reply.status != 200:
        raise refusal(reply.status, reply.headers, said)


def refusal(status: int, headers: Mapping[str, str], said: Mapping[str, Any]) -> DlpoolError:
    """The error of an answer other than 200, with the server's own sentence."""
    text = f"the server answered {status}"
    if isinstance(said.get("error"), str):
        text += ": " + " ".join(said["error"].split())[:300]
    if said.get("code") in _GARBLED:
        return Garbled(text)
    if status in _OWN:
        return _OWN[status](text)
    if 300 <= status < 400:
        return ProtocolBroken(f"{text}, to {headers.get('Location')!r}: uploads need the URL itself")
    known = error_for_status(status, headers, datetime.now(timezone.utc))
    return type(known)(text, retry_after_s=known.retry_after_s) if isinstance(known, RetryRange) else type(known)(text)


def _text(said: Mapping[str, Any], name: str) -> str:
    value = said.get(name)
    if not isinstance(value, str):
        raise BadAnswer(f"the server's answer has no {name}")
    return value


def _indexes(said: Mapping[str, Any], name: str) -> tuple[int, ...]:
    value = said.get(name)
    if not isinstance(value, list) or not all(isinstance(index, int) for index in value):
        raise BadAnswer(f"the server's answer has no {name}")
    return tuple(value)
