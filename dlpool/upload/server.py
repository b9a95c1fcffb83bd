"""What a dlpool-web is asked, and what its answers mean: the upload API over HTTP."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

from dlpool.errors import AccessDenied, BadAnswer, ChunkTooLarge, DlpoolError, FailJob, NotFound, RetryRange, UsageError
from dlpool.transfer.client import Client
from dlpool.transfer.exchange import Body, Exchange
from dlpool.transfer.headers import content_length
from dlpool.transfer.source import Reply, Source
from dlpool.transfer.urls import shown_url
from dlpool.upload.advice import Advice
from dlpool.upload.answers import check, indexes_of, refusal, said_by, text_of
from dlpool.upload.presence import Presence

_JSON = {"Content-Type": "application/json"}
_BYTES = {"Content-Type": "application/octet-stream"}
_EXAMPLE = "http://host:18101/go-uploader"


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
    """There is no whole file, and this is why: these are all the chunks that the server has."""

    chunks: tuple[int, ...]
    reason: DlpoolError


class Server:
    """The upload API below one URL. Thread-safe. Raises RetryRange, FailJob, or the exchange's verdict."""

    def __init__(self, client: Client, url: str, headers: Mapping[str, str]) -> None:
        """Raises UsageError for a URL that is none, or that has a query or a fragment."""
        url = url.strip()
        if "?" in url or "#" in url:
            raise UsageError(f"the URL of an upload API has no query and no fragment: it is one as {_EXAMPLE}")
        self._source = Source(client, url, headers)
        self._url = self._source.url.rstrip("/")
        self._timeout_s = client.settings.read_timeout
        self._advice: Advice | None = None
        self.presence = Presence(time.monotonic)

    def __repr__(self) -> str:
        return f"<Server {shown_url(self._url)}>"

    @property
    def host(self) -> str:
        """Host and port."""
        return self._source.host

    def advice(self, exchange: Exchange) -> Advice:
        """What the server wants of clients, which is asked once; an older one says nothing."""
        if self._advice is None:
            try:
                self._advice = Advice.from_json(self._ask(exchange, "client"))
            except AccessDenied:
                raise
            except FailJob:  # what comes next tells whether it is a server of ours at all
                self._advice = Advice()
        return self._advice

    def status(self, exchange: Exchange, target: Target) -> Status:
        """What the server has."""
        try:
            said = self._ask(exchange, "upload_status", {"file_id": target.file_id})
        except NotFound as error:
            where = shown_url(self._url)
            raise NotFound(f"{where} is not where an upload API begins, as {_EXAMPLE} is ({error})") from error
        return Status(text_of(said, "status"), indexes_of(said, "uploaded_chunks"))

    def delete(self, exchange: Exchange, target: Target) -> None:
        """Have the task and its chunks forgotten; a merged file stays. Best done for a task that is there."""
        with suppress(NotFound):
            self._ask(exchange, f"tasks/{quote(target.file_id, safe='')}", method="DELETE")

    def length(self, exchange: Exchange, merged: Merged) -> int | None:
        """How many bytes the merged file has; None if the server does not tell. Raises NotFound if it is gone."""
        reply = self._source.call(exchange, "HEAD", merged.location, {})
        reply.close()
        if reply.status == 200:
            with suppress(ValueError):
                return content_length(reply.headers.get("Content-Length"))
            return None
        error = refusal(reply.status, reply.headers, {})
        if isinstance(error, NotFound | RetryRange):
            raise error
        return None

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
        """Send a chunk; ``fields`` are what the API calls chunk_index, md5, total_chunks and file_size.

        The name goes along, so that a server that would refuse it does so before it has all.
        """
        query = {"file_id": target.file_id, "filename": target.name, **fields, **_path(target)}
        reply = self._reply(exchange, "POST", "upload_chunk", query, _BYTES, Body(blocks, size, self._timeout_s))
        said = said_by(reply)
        if reply.status == 413 and said.get("code") != "file_too_large":  # a proxy's has no code at all
            raise ChunkTooLarge(str(refusal(reply.status, reply.headers, said)))
        check(reply, said)
        self.presence.seen()
        if said.get("size") != size:
            raise BadAnswer(f"the server says that it has {said.get('size')!r} bytes of a chunk of {size}")

    def merge(self, exchange: Exchange, target: Target, count: int, md5: str) -> Merged | Incomplete:
        """Make the file out of its chunks; the same again once it is made."""
        asked = {
            "file_id": target.file_id,
            "filename": target.name,
            "total_chunks": count,
            "expected_md5": md5,
            **_path(target),
        }
        data = json.dumps(asked).encode()
        reply = self._reply(exchange, "POST", "merge_chunks", {}, _JSON, Body([data], len(data), self._timeout_s))
        said = said_by(reply)
        if reply.status == 400 and isinstance(said.get("uploaded_chunks"), list):
            self.presence.seen()
            return Incomplete(indexes_of(said, "uploaded_chunks"), refusal(reply.status, reply.headers, said))
        check(reply, said)
        self.presence.seen()
        if not isinstance(said.get("size"), int):
            raise BadAnswer("the server's answer to the merge has no size")
        name = text_of(said, "filePath").rpartition("/")[2]  # it may not be the one that was asked for
        path = f"{text_of(said, 'relative_path')}/{name}".lstrip("/")
        return Merged(path, f"{self._url}/files/{quote(path)}", said["size"], text_of(said, "md5"))

    def _ask(
        self,
        exchange: Exchange,
        path: str,
        query: Mapping[str, object] | None = None,
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
        method: str | None = None,
    ) -> dict[str, Any]:
        method = method or ("GET" if body is None else "POST")
        reply = self._reply(exchange, method, path, query or {}, headers or {}, body)
        said = said_by(reply)
        check(reply, said)
        self.presence.seen()
        return said

    def _reply(
        self,
        exchange: Exchange,
        method: str,
        path: str,
        query: Mapping[str, object],
        headers: Mapping[str, str],
        body: Body | None,
    ) -> Reply:
        asked = f"?{urlencode(query, quote_via=quote)}" if query else ""
        return self._source.call(exchange, method, f"{self._url}/{path}{asked}", headers, body)


def _path(target: Target) -> dict[str, str]:
    return {} if target.relative_path is None else {"relative_path": target.relative_path}
