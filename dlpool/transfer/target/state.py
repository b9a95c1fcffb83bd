"""The saved state of an unfinished download, as JSON.

A state is used only if every field has a valid type and value, and the chunks cover the
file without gaps or overlaps. Otherwise ``StateUnusable`` gives the reason, and the
download starts at the beginning. The state contains no secrets: ``url`` lacks user info
and query, and ``url_sha256`` identifies the complete URL. The saved bytes belong to the
resource, not to the query of a signed URL: a download of the same ``url`` with another
query resumes if the validators prove that it is the same file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from dlpool.dataclass import dataclass
from dlpool.transfer.chunks import Chunk
from dlpool.transfer.http.answer import ByteRange
from dlpool.transfer.http.remote_resource import RemoteResource
from dlpool.transfer.job import Job

VERSION = 1
MAX_SIZE = 2**62  # bytes
MAX_INODE = 2**64
_to_json = json.JSONEncoder(separators=(",", ":")).encode
# fields that the JSON omits if they are None
_ABSENT = (
    "date",
    "content_type",
    "host",
    "digest",
    "checksum",
)


class StateUnusable(Exception):
    """The state cannot be trusted; the message gives the reason."""


@dataclass(frozen=True)
class SavedChunk:
    """A range of bytes; those below ``position`` are on disk. ``end`` is exclusive."""

    start: int
    end: int
    position: int
    done: bool


@dataclass(frozen=True)
class PublishRecord:
    """The part file that is about to be renamed: its inode number and size.

    ``job``, ``fence`` and ``claim``: the id of a queue's job, the fencing token of its
    claim and the random id of its first claim; None without a queue.
    """

    inode: int
    size: int
    job: str | None = None
    fence: int | None = None
    claim: str | None = None


@dataclass(frozen=True)
class SavedState:
    """Everything that the next run needs to resume. Times are RFC 3339, UTC.

    ``date``: the ``Date`` of the response, saved only if it makes ``last_modified`` a
    strong validator. ``digest``: the server's digest of the complete file;
    ``checksum``: the job's checksum; both as ``ALGO:HEX``.
    """

    url: str
    url_sha256: str
    size: int
    etag: str | None
    last_modified: str | None
    created_at: str
    updated_at: str
    attempts: int
    last_error: str | None
    chunks: tuple[SavedChunk, ...]
    publishing: PublishRecord | None = None
    date: str | None = None
    content_type: str | None = None
    host: str | None = None
    digest: str | None = None
    checksum: str | None = None

    @classmethod
    def initial(cls, job: Job, resource: RemoteResource, now: str) -> SavedState:
        """Return the state of a download without any bytes.

        ``resource`` must have a known size.
        """
        assert resource.size is not None
        return cls(
            url=url_without_secrets(job.url),
            url_sha256=url_digest(job.url),
            size=resource.size,
            etag=resource.etag,
            last_modified=resource.last_modified,
            created_at=now,
            updated_at=now,
            attempts=0,
            last_error=None,
            chunks=(),
            date=resource.date if resource.has_settled_date else None,
            content_type=resource.content_type,
            host=resource.host,
            digest=":".join(resource.digest) if resource.digest else None,
            checksum=str(job.checksum) if job.checksum else None,
        )

    @property
    def resource(self) -> RemoteResource:
        """The remote resource that the saved bytes belong to."""
        algorithm, _, digest = (self.digest or "").partition(":")
        return RemoteResource(
            size=self.size,
            etag=self.etag,
            last_modified=self.last_modified,
            date=self.date,
            content_type=self.content_type,
            digest=(algorithm, digest) if digest else None,
            host=self.host,
        )

    @property
    def written_spans(self) -> list[ByteRange]:
        """The ranges on disk, sorted."""
        return [
            ByteRange(chunk.start, chunk.position)
            for chunk in self.chunks
            if chunk.start < chunk.position
        ]

    @property
    def missing_spans(self) -> list[ByteRange]:
        """The ranges that are not on disk, sorted."""
        return [
            ByteRange(chunk.position, chunk.end)
            for chunk in self.chunks
            if chunk.position < chunk.end
        ]

    def with_chunks(
        self, chunks: Iterable[Chunk], now: str, last_error: str | None
    ) -> SavedState:
        """Return a copy with these chunks, this update time and this last error."""
        saved = tuple(
            SavedChunk(chunk.start, chunk.end, chunk.position, chunk.is_done)
            for chunk in chunks
        )
        return replace(self, chunks=saved, updated_at=now, last_error=last_error)

    @classmethod
    def for_published(
        cls, job: Job, resource: RemoteResource, record: PublishRecord, now: str
    ) -> SavedState:
        """Return the state of a complete download that has not committed any state."""
        chunks = (SavedChunk(0, record.size, record.size, True),) if record.size else ()
        state = cls.initial(job, replace(resource, size=record.size), now)
        return replace(state, attempts=1, chunks=chunks, publishing=record)

    def as_json(self) -> str:
        """Return the state as JSON text."""
        fields = {
            "version": VERSION,
            **vars(self),
            "chunks": [vars(chunk) for chunk in self.chunks],
        }
        if self.publishing is not None:
            fields["publishing"] = {
                name: value
                for name, value in vars(self.publishing).items()
                if value is not None
            }
        return _to_json(
            {
                name: value
                for name, value in fields.items()
                if name not in _ABSENT or value is not None
            }
        )

    @classmethod
    def from_json(cls, text: str | bytes) -> SavedState:
        """Parse and validate a state. Raises StateUnusable."""
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise StateUnusable("it is not JSON") from error
        if not isinstance(fields, dict):
            raise StateUnusable("it is not a JSON object")
        if fields.get("version") != VERSION or isinstance(fields["version"], bool):
            raise StateUnusable(
                f"its version is {fields.get('version')!r}, not {VERSION}"
            )
        state = cls(
            url=_text(fields, "url"),
            url_sha256=_text(fields, "url_sha256"),
            size=_integer(fields, "size"),
            etag=_optional_text(fields, "etag"),
            last_modified=_optional_text(fields, "last_modified"),
            created_at=_text(fields, "created_at"),
            updated_at=_text(fields, "updated_at"),
            attempts=_integer(fields, "attempts"),
            last_error=_optional_text(fields, "last_error"),
            chunks=tuple(_chunk(item) for item in _list(fields, "chunks")),
            publishing=_publishing(fields.get("publishing")),
            **{name: _optional_text(fields, name) for name in _ABSENT},
        )
        _check_tiling(state)
        return state


def url_without_secrets(url: str) -> str:
    """Return the URL without user info, query and fragment."""
    parts = urlsplit(url)
    return parts._replace(
        netloc=parts.netloc.rpartition("@")[2], query="", fragment=""
    ).geturl()


@lru_cache(maxsize=1024)  # of the job in flight: it is asked for several times
def url_digest(url: str) -> str:
    """Return the SHA-256 of the URL without its fragment, in hexadecimal digits."""
    return hashlib.sha256(
        urlsplit(url)._replace(fragment="").geturl().encode(errors="surrogatepass")
    ).hexdigest()


def _check_tiling(state: SavedState) -> None:
    expected = 0
    for chunk in state.chunks:
        if (
            chunk.start != expected
            or not chunk.start <= chunk.position <= chunk.end
            or chunk.start == chunk.end
        ):
            raise StateUnusable("its chunks do not tile the file")
        if chunk.done != (chunk.position == chunk.end):
            raise StateUnusable("a chunk is done and not done")
        expected = chunk.end
    if expected != state.size:
        raise StateUnusable("its chunks do not add up to its size")


def _chunk(item: object) -> SavedChunk:
    if not isinstance(item, dict) or not isinstance(item.get("done"), bool):
        raise StateUnusable("a chunk is malformed")
    return SavedChunk(
        _integer(item, "start"),
        _integer(item, "end"),
        _integer(item, "position"),
        item["done"],
    )


def _publishing(item: object) -> PublishRecord | None:
    if item is None:
        return None
    if not isinstance(item, dict):
        raise StateUnusable("its publishing record is malformed")
    fence = None if item.get("fence") is None else _integer(item, "fence")
    return PublishRecord(
        _integer(item, "inode", MAX_INODE),
        _integer(item, "size"),
        _optional_text(item, "job"),
        fence,
        _optional_text(item, "claim"),
    )


def _integer(fields: Mapping[str, Any], name: str, maximum: int = MAX_SIZE) -> int:
    value = fields.get(name)
    if (
        not isinstance(value, int)
        or isinstance(value, bool)
        or not 0 <= value <= maximum
    ):
        raise StateUnusable(f"{name} is {str(value)[:40]!r}")
    return value


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise StateUnusable(f"{name} is {str(value)[:40]!r}")
    return value


def _optional_text(fields: Mapping[str, Any], name: str) -> str | None:
    return None if fields.get(name) is None else _text(fields, name)


def _list(fields: Mapping[str, Any], name: str) -> list[object]:
    value = fields.get(name)
    if not isinstance(value, list):
        raise StateUnusable(f"{name} is no list")
    return value
