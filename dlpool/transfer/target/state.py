"""The chunk state of an unfinished download: ``PATH.part.meta``, JSON, committed by
temporary file and rename.

The file never claims a byte that is not on disk: whoever commits has synced the data
first. What is read back is believed only if every field has its type and range and the
chunks tile the file; else ``StateUnusable`` says why, and the download begins anew. It
holds no secrets: user info and query are left out of ``url``, ``url_sha256`` tells
whether it is the same one. What was fetched belongs to the resource, not to the query
of a signed URL: the same ``url`` with another query resumes if the validators show that
it is the same file.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import stat
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dlpool import disk
from dlpool.disk import translated
from dlpool.errors import LocalFault
from dlpool.transfer.chunks import Chunk
from dlpool.transfer.http.answer import ByteRange
from dlpool.transfer.http.remote_resource import RemoteResource
from dlpool.transfer.job import Job, Notify, ignore_event
from dlpool.transfer.target.names import STATE_SUFFIX

VERSION = 1
MODE = 0o600  # for its owner alone: hosts and validators of what is being fetched
MAX_SIZE = 2**62  # bytes
MAX_INODE = 2**64
_to_json = json.JSONEncoder(separators=(",", ":")).encode
MAX_STATE_BYTES = 16 * 1024 * 1024
# fields that are omitted if they are None
_ABSENT = "date", "content_type", "host", "digest", "checksum"
# of every state file, also of one truncated by a power failure
_BEGINNING = b'{"version":'
_PLACEHOLDER = b'{"version":1,"placeholder":true}'
# kinds of faults in which the content is unknown
_NOT_READ = {"disk_failed", "permission", "too_many_files"}


class StateUnusable(Exception):
    """The state file cannot be trusted; the message says why."""


@dataclass(frozen=True)
class SavedChunk:
    """Bytes ``start..end`` (exclusive) of which those below ``position`` are on
    disk."""

    start: int
    end: int
    position: int
    done: bool


@dataclass(frozen=True)
class PublishRecord:
    """The part file with this inode number and size was about to be renamed to its
    target.

    ``job``, ``fence`` and ``claim``: of a queue's job and the random id of its first
    claim, None without a queue.
    """

    inode: int
    size: int
    job: str | None = None
    fence: int | None = None
    claim: str | None = None


@dataclass(frozen=True)
class SavedState:
    """All that the next run needs to resume. Times are RFC 3339, UTC.

    ``date`` is the answer's, and there only if it makes ``last_modified`` a proof.
    ``digest`` is what the server said of the whole file, ``checksum`` what the job
    demands of it, both as ``ALGO:HEX``.
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
        """Return the state of a download of which nothing has been written. The size
        must be known."""
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
        """The spans on disk, sorted."""
        return [
            ByteRange(chunk.start, chunk.position)
            for chunk in self.chunks
            if chunk.start < chunk.position
        ]

    @property
    def missing_spans(self) -> list[ByteRange]:
        """What is not on disk, sorted."""
        return [
            ByteRange(chunk.position, chunk.end)
            for chunk in self.chunks
            if chunk.position < chunk.end
        ]

    def with_chunks(
        self, chunks: Iterable[Chunk], now: str, last_error: str | None
    ) -> SavedState:
        """The state after more was written."""
        saved = tuple(
            SavedChunk(chunk.start, chunk.end, chunk.position, chunk.is_done)
            for chunk in chunks
        )
        return replace(self, chunks=saved, updated_at=now, last_error=last_error)

    @classmethod
    def for_published(
        cls, job: Job, resource: RemoteResource, record: PublishRecord, now: str
    ) -> SavedState:
        """The state of a download that needed none until it was complete."""
        chunks = (SavedChunk(0, record.size, record.size, True),) if record.size else ()
        begun = cls.initial(job, replace(resource, size=record.size), now)
        return replace(begun, attempts=1, chunks=chunks, publishing=record)

    def as_json(self) -> str:
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
        """Parse and check a state. Raises StateUnusable."""
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
    """The URL less user info, query and fragment."""
    parts = urlsplit(url)
    return parts._replace(
        netloc=parts.netloc.rpartition("@")[2], query="", fragment=""
    ).geturl()


def url_digest(url: str) -> str:
    """SHA-256 of the URL without its fragment, as hex."""
    return hashlib.sha256(
        urlsplit(url)._replace(fragment="").geturl().encode(errors="surrogatepass")
    ).hexdigest()


class StateFile:
    """The state file of one part file. Used by the thread that holds the part file's
    lock.

    ``exists``: the name exists. ``is_placeholder``: the file only marks the part file
    beside it as dlpool's.
    """

    def __init__(
        self, path: Path, *, sync: bool, notify: Notify = ignore_event
    ) -> None:
        """Check whether the state file exists. Raises LocalFault."""
        self.path = path
        self._temporary: Path | None = None
        self._sync = sync
        self._notify = notify
        self.is_placeholder = False
        with translated(f"look at {path}"):
            self.exists = disk.exists(path)

    @classmethod
    def for_target(
        cls, target: Path, *, sync: bool, notify: Notify = ignore_event
    ) -> StateFile:
        """Return the state file of a target. Raises LocalFault."""
        return cls(
            target.with_name(target.name + STATE_SUFFIX), sync=sync, notify=notify
        )

    @property
    def holds_progress(self) -> bool:
        """True if it is not a placeholder."""
        return self.exists and not self.is_placeholder

    def is_recognized(self) -> bool:
        """Return whether the existing file was written by dlpool. Raises LocalFault."""
        try:
            return self.exists and self._content(len(_BEGINNING)).startswith(_BEGINNING)
        except StateUnusable:
            return False

    def load(self) -> SavedState | None:
        """Return the committed state, None if there is none. Raises StateUnusable,
        LocalFault."""
        if not self.exists:
            return None
        text = self._content(MAX_STATE_BYTES + 1)
        if len(text) > MAX_STATE_BYTES:
            raise StateUnusable("it is too large")
        self.is_placeholder = text == _PLACEHOLDER
        return None if self.is_placeholder else SavedState.from_json(text)

    def commit(self, state: SavedState, *, is_durable: bool = True) -> None:
        """Replace the state atomically and durably; readers see the old or the new one.
        Raises LocalFault.

        Not durably is enough for what only a killed process needs: after a power
        failure it may be absent or empty.
        """
        self._write(state.as_json().encode(), sync=self._sync and is_durable)
        self.is_placeholder = False

    def write_placeholder(self) -> None:
        """Write a placeholder, unless a state exists or is committed meanwhile. Raises
        LocalFault.

        It may be called without the part file's lock.
        """
        if self.exists:
            return
        with translated(f"write {self.path}"):
            temporary = self._free(f"{self.path.name}.new")
            descriptor = disk.create_exclusive(temporary, MODE)
            try:
                identity = disk.write_and_close(descriptor, _PLACEHOLDER, sync=False)
                disk.publish_exclusive(temporary, self.path, identity=identity)
                self.is_placeholder = True
            except FileExistsError:
                disk.remove_quietly(temporary)  # another process created it first
            except OSError:
                disk.remove_quietly(temporary)
                raise
        self.exists = True

    def remove_placeholder(self) -> None:
        """Remove the placeholder, if this object has written or read one."""
        if self.is_placeholder:
            disk.remove_quietly(self.path)
            self.exists = self.is_placeholder = False

    def reset(self) -> None:
        """Replace the state by a placeholder, durably: the part file remains marked as
        dlpool's. Raises LocalFault."""
        if not self.is_placeholder:
            self._write(_PLACEHOLDER, sync=self._sync)
            self.is_placeholder = True

    @property
    def has_stale_temporary(self) -> bool:
        """Return whether a run that was killed during a commit left its temporary file.
        Raises LocalFault."""
        temporary = self._usual_temporary
        with translated(f"look at {temporary}"):
            return disk.exists(temporary) and _is_leftover(temporary)

    def remove_stale_temporary(self) -> None:
        """Remove the temporary file of a killed run. Raises LocalFault."""
        with translated(f"remove {self._usual_temporary}"):
            disk.remove(self._usual_temporary)

    def remove(self) -> None:
        """Remove the state, durably, as it would be wrong for the bytes written next.
        Raises LocalFault."""
        if not self.exists:
            return
        with translated(f"remove {self.path}"):
            disk.remove(self.path)
            self.exists = self.is_placeholder = False
            if self._sync:
                disk.sync_folder(self.path.parent, on_unsynced=self._on_unsynced)

    def remove_published(self) -> None:
        """Remove the state of a published file; errors are ignored, as the next run
        detects that it is unused."""
        for _ in range(2):
            if self.exists:
                with suppress(LocalFault):
                    self.remove()

    def _content(self, most: int) -> bytes:
        """Return the first ``most`` bytes. Raises StateUnusable, LocalFault."""
        try:
            with open(self.path, "rb", opener=_open_itself) as file:
                # read(most) would allocate that many bytes
                size = os.fstat(file.fileno()).st_size
                return file.read(min(size, most))
        except OSError as error:
            if disk.fault_of(error).kind in _NOT_READ:
                raise disk.local_fault(f"read {self.path}", error) from error
            raise StateUnusable(f"it cannot be read ({error.strerror})") from error

    def _write(self, data: bytes, *, sync: bool) -> None:
        with translated(f"write {self.path}"):
            disk.atomic_write(
                self.path,
                data,
                sync=sync,
                mode=MODE,
                temporary=self._free_temporary(),
                on_unsynced=self._on_unsynced,
            )
        self.exists = True

    @property
    def _usual_temporary(self) -> Path:
        return self.path.with_name(f"{self.path.name}.tmp")

    def _free_temporary(self) -> Path:
        """Return the name to write to: not the usual one if a foreign file has it.
        Raises OSError."""
        if self._temporary is None:
            self._temporary = self._free(self._usual_temporary.name)
        return self._temporary

    def _free(self, name: str) -> Path:
        """Return the name, or a random one if a foreign file has it. Raises OSError."""
        path = self.path.with_name(name)
        if disk.exists(path) and not _is_leftover(path):
            return self.path.with_name(f".dlpool-{secrets.token_hex(8)}.tmp")
        return path

    def _on_unsynced(self, folder: str, error: OSError) -> None:
        self._notify(
            "folder_not_synced", folder=folder, reason=error.strerror or str(error)
        )


def _is_leftover(temporary: Path) -> bool:
    """Return whether a temporary file is of a killed run: a state, or the beginning of
    one. Raises OSError."""
    try:
        with open(temporary, "rb", opener=_open_itself) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return False  # an empty pipe would look like the beginning of a state
            beginning = file.read(len(_BEGINNING))
    except OSError as error:
        if disk.fault_of(error).kind in _NOT_READ:
            raise
        return False  # a link or a folder
    return _BEGINNING.startswith(beginning)


def _open_itself(path: str, flags: int) -> int:
    """Open a file, without following a link or blocking on a pipe."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


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


def _integer(fields: Mapping[str, Any], name: str, most: int = MAX_SIZE) -> int:
    value = fields.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
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
