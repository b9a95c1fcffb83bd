"""The client side of the upload API of a dlpool-web, over HTTP."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

from dlpool.dataclass import dataclass
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
from dlpool.transfer.http.source import Source
from dlpool.transfer.http.urls import display_url
from dlpool.upload.capabilities import ServerCapabilities
from dlpool.upload.localfile import MD5, SHA256
from dlpool.upload.responses import (
    error_of,
    raise_for_error,
    read_json,
    required_indexes,
    required_text,
)

_JSON = {"Content-Type": "application/json"}
_BYTES = {"Content-Type": "application/octet-stream"}
# By the algorithm of the chunks: the name of the digest of the file.
_MERGED_DIGEST = {MD5: MD5, SHA256: "composite_sha256"}
_EXAMPLE = "http://host:18101/go-uploader"


@dataclass(frozen=True)
class UploadTarget:
    """An upload at the server: its id, and the name and folder of the file."""

    file_id: str
    name: str
    relative_path: str | None


@dataclass(frozen=True)
class ServerTaskStatus:
    """The state of an upload, and the indexes of its stored chunks.

    The state is ``not_found`` if the server has no task for the upload.
    """

    state: str
    chunks: tuple[int, ...]


class FileDigest(NamedTuple):
    """The digest of a complete file in hexadecimal.

    ``algorithm``: how the chunks are hashed. With MD5, ``value`` is the MD5 of all
    bytes of the file; with SHA-256, it is the SHA-256 of the SHA-256 digests of the
    chunks.
    """

    algorithm: str
    value: str

    def value_of(self, algorithm: str) -> str | None:
        """Return the value; None if the digest is of another algorithm."""
        return self.value if self.algorithm == algorithm else None

    def __str__(self) -> str:
        return f"{_MERGED_DIGEST[self.algorithm]} {self.value}"


@dataclass(frozen=True)
class UploadedFile:
    """The complete file at the server.

    ``path`` is relative to the server's folder of files, ``location`` is the URL of the
    file.
    """

    path: str
    location: str
    size: int
    digest: FileDigest


@dataclass(frozen=True)
class IncompleteUpload:
    """A failed merge: the reason, and the indexes of the intact stored chunks."""

    chunks: tuple[int, ...]
    reason: DlpoolError


class ServerAvailability:
    """Measures how long a server has been unavailable.

    Thread-safe without a lock: each attribute is set in one step, and no method relies
    on both attributes having been set together.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._has_answered = False
        self._away_since: float | None = None

    def record_success(self) -> None:
        """Record that the server has fulfilled a request."""
        self._has_answered, self._away_since = True, None

    def unavailable_s(self) -> float | None:
        """Record a failed request; return how long the server has been unavailable.

        Returns the seconds since the first failure after the last success. Returns None
        if no request has succeeded yet.
        """
        if not self._has_answered:
            return None
        now, since = self._clock(), self._away_since
        if since is None:
            self._away_since = since = now
        return now - since


class UploadApiClient:
    """Sends requests to the upload API at one URL. Thread-safe.

    All requests raise RetryRange, FailJob, or the error that cancelled the exchange.
    """

    def __init__(
        self, client: HttpClient, url: str, headers: Mapping[str, str]
    ) -> None:
        """Prepare the client; nothing is sent.

        Raises UsageError for an invalid header, and for a ``url`` that is invalid or
        has a query or a fragment.
        """
        url = url.strip()
        if "?" in url or "#" in url:
            raise UsageError(
                f"the URL of an upload API has no query and no fragment: it is one as "
                f"{_EXAMPLE}"
            )
        self._source = Source(client, url, headers)
        self._url = self._source.url.rstrip("/")
        self._timeout_s = client.settings.read_timeout
        self._capabilities: ServerCapabilities | None = None
        self.availability = ServerAvailability(time.monotonic)

    def __repr__(self) -> str:
        return f"<UploadApiClient {display_url(self._url)}>"

    @property
    def host(self) -> str:
        """The host and port of the server."""
        return self._source.host

    def capabilities(self, exchange: Exchange) -> ServerCapabilities:
        """Return the server's limits and defaults; request them only once.

        For an older server, which does not know this request, all fields are unset.
        """
        if self._capabilities is None:
            try:
                answer = self._request_json(exchange, "GET", "client")
                self._capabilities = ServerCapabilities.from_json(answer)
            except AccessDenied:
                raise
            except FailJob:  # the next request reports what is wrong, if anything
                self._capabilities = ServerCapabilities()
        return self._capabilities

    def status(self, exchange: Exchange, target: UploadTarget) -> ServerTaskStatus:
        """Return the state and the stored chunks of an upload."""
        query = {"file_id": target.file_id}
        try:
            answer = self._request_json(exchange, "GET", "upload_status", query)
        except NotFound as error:
            raise NotFound(
                f"{display_url(self._url)} is not where an upload API begins, as "
                f"{_EXAMPLE} is ({error})"
            ) from error
        return ServerTaskStatus(
            required_text(answer, "status"), required_indexes(answer, "uploaded_chunks")
        )

    def delete(self, exchange: Exchange, target: UploadTarget) -> None:
        """Delete the task and its chunks; a merged file stays."""
        with suppress(NotFound):
            self._request_json(exchange, "DELETE", _task_path(target))

    def merged_size(self, exchange: Exchange, merged: UploadedFile) -> int | None:
        """Return the size of the merged file in bytes, None if it is unknown.

        Raises NotFound if the file does not exist.
        """
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

    def chunk_digests(
        self, exchange: Exchange, target: UploadTarget
    ) -> dict[int, tuple[str, str]]:
        """Return algorithm and digest of each stored chunk, by the chunk's index."""
        answer = self._request_json(exchange, "GET", _task_path(target))
        chunks = answer.get("chunks")
        if not isinstance(chunks, list) or not all(
            isinstance(chunk, dict) for chunk in chunks
        ):
            raise BadAnswer("the server's list of chunks is not a list of objects")
        return {
            chunk["index"]: (
                (SHA256, str(chunk[SHA256]))
                if chunk.get(SHA256)
                else (MD5, str(chunk.get(MD5)))
            )
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
        """Send a chunk of ``size`` bytes.

        ``fields`` are the API's ``chunk_index``, ``md5`` or ``sha256``,
        ``total_chunks`` and ``file_size``. The file name is sent with each chunk, so
        that the server can refuse the name before all chunks have been sent.
        """
        query = {
            "file_id": target.file_id,
            "filename": target.name,
            **fields,
            **_folder(target),
        }
        reply = self._source.send(
            exchange,
            "POST",
            self._url_of("upload_chunk", query),
            _BYTES,
            OutgoingBody(blocks, size, self._timeout_s),
        )
        answer = read_json(reply)
        # A proxy that refuses the size of a chunk sends no code.
        if reply.status == 413 and answer.get("code") != "file_too_large":
            raise ChunkTooLarge(str(error_of(reply.status, reply.headers, answer)))
        raise_for_error(reply, answer)
        self.availability.record_success()
        if answer.get("size") != size:
            raise BadAnswer(
                f"the server says that it has {answer.get('size')!r} bytes of a chunk "
                f"of {size}"
            )

    def merge(
        self,
        exchange: Exchange,
        target: UploadTarget,
        count: int,
        digest: FileDigest,
    ) -> UploadedFile | IncompleteUpload:
        """Make the server merge ``count`` chunks into the file with this digest.

        Returns IncompleteUpload if chunks are missing. A server that has already merged
        the file repeats its earlier answer.
        """
        request = {
            "file_id": target.file_id,
            "filename": target.name,
            "total_chunks": count,
            f"expected_{_MERGED_DIGEST[digest.algorithm]}": digest.value,
            **_folder(target),
        }
        data = json.dumps(request).encode()
        body = OutgoingBody([data], len(data), self._timeout_s)
        url = self._url_of("merge_chunks")
        reply = self._source.send(exchange, "POST", url, _JSON, body)
        answer = read_json(reply)
        if reply.status == 400 and isinstance(answer.get("uploaded_chunks"), list):
            self.availability.record_success()
            return IncompleteUpload(
                required_indexes(answer, "uploaded_chunks"),
                error_of(reply.status, reply.headers, answer),
            )
        raise_for_error(reply, answer)
        self.availability.record_success()
        return self._merged_file(answer, digest.algorithm)

    def _merged_file(self, answer: Mapping[str, Any], algorithm: str) -> UploadedFile:
        if not isinstance(answer.get("size"), int):
            raise BadAnswer("the server's answer to the merge has no size")
        # The server may have chosen another name than the requested one.
        name = required_text(answer, "filePath").rpartition("/")[2]
        path = f"{required_text(answer, 'relative_path')}/{name}".lstrip("/")
        location = f"{self._url}/files/{quote(path)}"
        value = required_text(answer, _MERGED_DIGEST[algorithm])
        return UploadedFile(
            path, location, answer["size"], FileDigest(algorithm, value)
        )

    def _request_json(
        self,
        exchange: Exchange,
        method: str,
        path: str,
        query: Mapping[str, object] | None = None,
    ) -> dict[str, Any]:
        """Send a request without a body and return the JSON object of the answer."""
        reply = self._source.send(exchange, method, self._url_of(path, query or {}), {})
        answer = read_json(reply)
        raise_for_error(reply, answer)
        self.availability.record_success()
        return answer

    def _url_of(self, path: str, query: Mapping[str, object] | None = None) -> str:
        encoded = f"?{urlencode(query, quote_via=quote)}" if query else ""
        return f"{self._url}/{path}{encoded}"


def _task_path(target: UploadTarget) -> str:
    return f"tasks/{quote(target.file_id, safe='')}"


def _folder(target: UploadTarget) -> dict[str, str]:
    if target.relative_path is None:
        return {}
    return {"relative_path": target.relative_path}
