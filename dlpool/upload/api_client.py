"""What a dlpool-web is asked, and what its answers mean: the upload API over HTTP."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

from dlpool.errors import (
    AccessDenied,
    BadAnswer,
    ChunkTooLarge,
    DlpoolError,
    FailJob,
    NotFound,
    RetryRange,
    UsageError,
)
from dlpool.transfer.http.client import HttpClient
from dlpool.transfer.http.exchange import Exchange, OutgoingBody
from dlpool.transfer.http.headers import content_length
from dlpool.transfer.http.source import Reply, Source
from dlpool.transfer.http.urls import display_url
from dlpool.upload.capabilities import ServerCapabilities
from dlpool.upload.presence import ServerAvailability
from dlpool.upload.responses import (
    error_of,
    raise_for_error,
    read_json,
    required_indexes,
    required_text,
)

_JSON = {"Content-Type": "application/json"}
_BYTES = {"Content-Type": "application/octet-stream"}
_EXAMPLE = "http://host:18101/go-uploader"


@dataclass(frozen=True)
class UploadTarget:
    """Which upload it is: its id, how the file is called at the end, and below which
    folder."""

    file_id: str
    name: str
    relative_path: str | None


@dataclass(frozen=True)
class ServerTaskStatus:
    """What the server has of an upload; ``state`` is ``not_found`` if nothing."""

    state: str
    chunks: tuple[int, ...]


@dataclass(frozen=True)
class MergedFile:
    """The whole file at the server: ``path`` below its folder of files, ``location`` to
    fetch it from, md5 in hex."""

    path: str
    location: str
    size: int
    md5: str


@dataclass(frozen=True)
class IncompleteUpload:
    """There is no whole file, and this is why: these are all the chunks that the server
    has."""

    chunks: tuple[int, ...]
    reason: DlpoolError


class UploadApiClient:
    """The upload API below one URL. Thread-safe. Raises RetryRange, FailJob, or the
    exchange's verdict."""

    def __init__(
        self, client: HttpClient, url: str, headers: Mapping[str, str]
    ) -> None:
        """Raises UsageError for a URL that is none, or that has a query or a
        fragment."""
        url = url.strip()
        if "?" in url or "#" in url:
            raise UsageError(
                f"the URL of an upload API has no query and no fragment: it is one as "
                f"{_EXAMPLE}"
            )
        self._source = Source(client, url, headers)
        self._url = self._source.url.rstrip("/")
        self._timeout_s = client.settings.read_timeout
        self._advice: ServerCapabilities | None = None
        self.availability = ServerAvailability(time.monotonic)

    def __repr__(self) -> str:
        return f"<Server {display_url(self._url)}>"

    @property
    def host(self) -> str:
        """Host and port."""
        return self._source.host

    def capabilities(self, exchange: Exchange) -> ServerCapabilities:
        """What the server wants of clients, which is asked once; an older one says
        nothing."""
        if self._advice is None:
            try:
                self._advice = ServerCapabilities.from_json(
                    self._ask(exchange, "client")
                )
            except AccessDenied:
                raise
            except (
                FailJob
            ):  # what comes next tells whether it is a server of ours at all
                self._advice = ServerCapabilities()
        return self._advice

    def status(self, exchange: Exchange, target: UploadTarget) -> ServerTaskStatus:
        """What the server has."""
        try:
            said = self._ask(exchange, "upload_status", {"file_id": target.file_id})
        except NotFound as error:
            where = display_url(self._url)
            raise NotFound(
                f"{where} is not where an upload API begins, as {_EXAMPLE} is ({error})"
            ) from error
        return ServerTaskStatus(
            required_text(said, "status"), required_indexes(said, "uploaded_chunks")
        )

    def delete(self, exchange: Exchange, target: UploadTarget) -> None:
        """Have the task and its chunks forgotten; a merged file stays. Best done for a
        task that is there."""
        with suppress(NotFound):
            self._ask(
                exchange, f"tasks/{quote(target.file_id, safe='')}", method="DELETE"
            )

    def merged_size(self, exchange: Exchange, merged: MergedFile) -> int | None:
        """How many bytes the merged file has; None if the server does not tell. Raises
        NotFound if it is gone."""
        reply = self._source.send(exchange, "HEAD", merged.location, {})
        reply.close()
        if reply.status == 200:
            with suppress(ValueError):
                return content_length(reply.headers.get("Content-Length"))
            return None
        error = error_of(reply.status, reply.headers, {})
        if isinstance(error, NotFound | RetryRange):
            raise error
        return None

    def chunk_md5s(self, exchange: Exchange, target: UploadTarget) -> dict[int, str]:
        """The md5 of each chunk that the server has."""
        said = self._ask(exchange, f"tasks/{quote(target.file_id, safe='')}")
        chunks = said.get("chunks")
        if not isinstance(chunks, list) or not all(
            isinstance(chunk, dict) for chunk in chunks
        ):
            raise BadAnswer("the server's list of chunks is none")
        return {
            chunk["index"]: str(chunk.get("md5"))
            for chunk in chunks
            if isinstance(chunk.get("index"), int)
        }

    def send_chunk(
        self,
        exchange: Exchange,
        target: UploadTarget,
        fields: Mapping[str, object],
        blocks: Iterable[memoryview],
        size: int,
    ) -> None:
        """Send a chunk; ``fields`` are what the API calls chunk_index, md5,
        total_chunks and file_size.

        The name goes along, so that a server that would refuse it does so before it has
        all.
        """
        query = {
            "file_id": target.file_id,
            "filename": target.name,
            **fields,
            **_path(target),
        }
        reply = self._reply(
            exchange,
            "POST",
            "upload_chunk",
            query,
            _BYTES,
            OutgoingBody(blocks, size, self._timeout_s),
        )
        said = read_json(reply)
        if (
            reply.status == 413 and said.get("code") != "file_too_large"
        ):  # a proxy's has no code at all
            raise ChunkTooLarge(str(error_of(reply.status, reply.headers, said)))
        raise_for_error(reply, said)
        self.availability.record_success()
        if said.get("size") != size:
            raise BadAnswer(
                f"the server says that it has {said.get('size')!r} bytes of a chunk of "
                f"{size}"
            )

    def merge(
        self, exchange: Exchange, target: UploadTarget, count: int, md5: str
    ) -> MergedFile | IncompleteUpload:
        """Make the file out of its chunks; the same again once it is made."""
        asked = {
            "file_id": target.file_id,
            "filename": target.name,
            "total_chunks": count,
            "expected_md5": md5,
            **_path(target),
        }
        data = json.dumps(asked).encode()
        reply = self._reply(
            exchange,
            "POST",
            "merge_chunks",
            {},
            _JSON,
            OutgoingBody([data], len(data), self._timeout_s),
        )
        said = read_json(reply)
        if reply.status == 400 and isinstance(said.get("uploaded_chunks"), list):
            self.availability.record_success()
            return IncompleteUpload(
                required_indexes(said, "uploaded_chunks"),
                error_of(reply.status, reply.headers, said),
            )
        raise_for_error(reply, said)
        self.availability.record_success()
        if not isinstance(said.get("size"), int):
            raise BadAnswer("the server's answer to the merge has no size")
        name = required_text(said, "filePath").rpartition("/")[
            2
        ]  # it may not be the one that was asked for
        path = f"{required_text(said, 'relative_path')}/{name}".lstrip("/")
        return MergedFile(
            path,
            f"{self._url}/files/{quote(path)}",
            said["size"],
            required_text(said, "md5"),
        )

    def _ask(
        self,
        exchange: Exchange,
        path: str,
        query: Mapping[str, object] | None = None,
        headers: Mapping[str, str] | None = None,
        body: OutgoingBody | None = None,
        method: str | None = None,
    ) -> dict[str, Any]:
        method = method or ("GET" if body is None else "POST")
        reply = self._reply(exchange, method, path, query or {}, headers or {}, body)
        said = read_json(reply)
        raise_for_error(reply, said)
        self.availability.record_success()
        return said

    def _reply(
        self,
        exchange: Exchange,
        method: str,
        path: str,
        query: Mapping[str, object],
        headers: Mapping[str, str],
        body: OutgoingBody | None,
    ) -> Reply:
        asked = f"?{urlencode(query, quote_via=quote)}" if query else ""
        return self._source.send(
            exchange, method, f"{self._url}/{path}{asked}", headers, body
        )


def _path(target: UploadTarget) -> dict[str, str]:
    return (
        {} if target.relative_path is None else {"relative_path": target.relative_path}
    )
