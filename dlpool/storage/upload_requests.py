"""Requests of the upload API and of tus, as immutable values. Pure.

``check`` makes the checks that need no stored state.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from dlpool.config import UploadSettings
from dlpool.dataclass import dataclass
from dlpool.storage.content_types import check_extension
from dlpool.storage.digests import MD5, SHA256, FileDigests
from dlpool.storage.errors import UploadError
from dlpool.storage.names import check_new_names, folder_name, split_folders
from dlpool.storage.values import StoredChunk, TaskTotals

MAX_CHUNKS = 100_000
MAX_PARTS = 100  # of a final upload: their URLs have to fit into one header field
CHUNKED, TUS = "chunked", "tus"  # protocols of a task
# Values of Upload-Concat; FINAL is followed by the URLs of the parts.
PARTIAL, FINAL = "partial", "final"


@dataclass(frozen=True)
class ChunkRequest:
    """A chunk to store.

    Fields that the client did not send are None. ``file_size`` is in bytes.
    ``md5`` or ``sha256``: the digest of the chunk in hexadecimal. ``filename`` is the
    name that the merge will use; a client may send it with a chunk, so that a bad name
    is refused early.
    """

    file_id: str
    index: int
    owner: str | None
    md5: str | None = None
    total_chunks: int | None = None
    file_size: int | None = None
    relative_path: str | None = None
    filename: str | None = None
    sha256: str | None = None

    @property
    def algorithm(self) -> str:
        """The algorithm of the digest to compute, MD5 if the client sent no digest."""
        return SHA256 if self.sha256 else MD5

    @property
    def expected_digest(self) -> str | None:
        """The digest that the client sent, in lower case; None if it sent none."""
        expected = self.sha256 or self.md5
        return expected.lower() if expected else None

    def check(self, settings: UploadSettings) -> None:
        """Raise UploadError for an invalid, oversized or forbidden field."""
        folder_name(self.file_id)
        check_new_names(self.filename, self.relative_path or "")
        if self.filename is not None:
            check_extension(settings, self.filename)
        _check_digests(self.md5, self.sha256)
        _check_total(self.total_chunks)
        if not 0 <= self.index < (self.total_chunks or MAX_CHUNKS):
            raise _bad_index(self.index, self.total_chunks or MAX_CHUNKS)
        if self.file_size is not None and self.file_size < 0:
            raise UploadError(
                "bad_file_size",
                "file_size is negative: send the size of the complete file in bytes",
            )
        check_size(settings, self.file_size or 0)

    def adds_totals(self, known: TaskTotals) -> bool:
        """Return whether the request states a total that the task does not know yet."""
        return bool(self.total_chunks and not known.total_chunks) or (
            self.file_size is not None and known.file_size < 0
        )

    def merged_into(
        self, known: TaskTotals, chunks: Mapping[int, StoredChunk]
    ) -> TaskTotals:
        """Return the known totals, with unknown ones taken from this request.

        ``chunks``: the stored chunks; needed only if ``adds_totals`` returns True.
        Raises UploadError if the request contradicts the known totals or the chunks.
        """
        self._check_agrees(known)
        if known.total_chunks and self.index >= known.total_chunks:
            raise _bad_index(self.index, known.total_chunks)
        if self.total_chunks and max(chunks, default=0) >= self.total_chunks:
            text = (
                f"the task has a chunk {max(chunks)}: its total_chunks cannot be "
                f"{self.total_chunks}"
            )
            raise UploadError("conflict", text)
        stored = sum(
            chunk.size for chunk in chunks.values() if chunk.index != self.index
        )
        if self.file_size is not None and stored > self.file_size:
            text = (
                f"the task has {stored} bytes already: its file_size cannot be "
                f"{self.file_size}"
            )
            raise UploadError("conflict", text)
        return TaskTotals(
            total_chunks=known.total_chunks or self.total_chunks or 0,
            file_size=known.file_size
            if known.file_size >= 0 or self.file_size is None
            else self.file_size,
            relative_path=known.relative_path or self.relative_path or "",
        )

    def _check_agrees(self, known: TaskTotals) -> None:
        """Raise UploadError if a field differs from what an earlier request stated."""
        if (
            self.total_chunks
            and known.total_chunks
            and self.total_chunks != known.total_chunks
        ):
            text = f"the task has {known.total_chunks} chunks, not {self.total_chunks}"
            raise UploadError("conflict", text, total_chunks=known.total_chunks)
        if (
            self.file_size is not None
            and known.file_size >= 0
            and self.file_size != known.file_size
        ):
            text = f"the task's file has {known.file_size} bytes, not {self.file_size}"
            raise UploadError("conflict", text, file_size=known.file_size)
        path = known.relative_path
        if (
            self.relative_path
            and path
            and split_folders(self.relative_path) != split_folders(path)
        ):
            text = (
                f"the task's file goes to {path[:100]!r}: use another file_id for "
                "another folder"
            )
            raise UploadError("conflict", text, relative_path=path)


@dataclass(frozen=True)
class MergeRequest:
    """A merge of all chunks of a task.

    ``relative_path``: None to use the path that was sent with the chunks.
    ``is_shared``: every user may read the file, not only its owner. If the client sends
    ``expected_composite_sha256``, the result has this digest instead of the MD5.
    """

    file_id: str
    filename: str
    total_chunks: int
    owner: str | None
    relative_path: str | None = None
    expected_md5: str | None = None
    protocol: str = CHUNKED
    is_shared: bool = False
    expected_composite_sha256: str | None = None

    @property
    def expected_digests(self) -> FileDigests:
        """The digests that the client sent, in lower case; empty if it sent none."""
        return FileDigests(
            (self.expected_md5 or "").lower(),
            (self.expected_composite_sha256 or "").lower(),
        )

    def check(self, settings: UploadSettings) -> None:
        """Raise UploadError for an invalid or forbidden field."""
        folder_name(self.file_id)
        check_new_names(self.filename, self.relative_path or "")
        _check_digests(self.expected_md5, self.expected_composite_sha256)
        _check_total(self.total_chunks)
        check_extension(settings, self.filename)


@dataclass(frozen=True)
class TusUploadRequest:
    """A tus upload to create.

    ``length``: the size in bytes, None if the client will send it later. ``metadata``
    is stored and returned to the client. ``filename``: empty to use the id of the
    upload as the name. ``concat``: ``PARTIAL`` for a part of a final upload, a text
    that starts with ``FINAL`` for a final upload, else empty. ``is_shared``: every user
    may read the file.
    """

    owner: str | None
    length: int | None
    filename: str = ""
    relative_path: str = ""
    metadata: str = ""
    concat: str = ""
    is_shared: bool = False

    def check(self, settings: UploadSettings) -> None:
        """Raise UploadError for an invalid, oversized or forbidden field."""
        check_new_names(self.filename or None, self.relative_path)
        if self.concat != PARTIAL:
            check_extension(settings, self.filename)
        if self.length is not None:
            check_size(settings, self.length)


@dataclass(frozen=True)
class AppendRequest:
    """A body to append to a tus upload at ``offset``.

    ``size``: the bytes of the body, None if unknown. ``length``: the size of the
    complete upload, if the client did not send it before; else None. ``has_checksum``:
    the client sent a checksum of the complete body, so the bytes of an incomplete body
    are discarded.
    """

    file_id: str
    owner: str | None
    offset: int
    size: int | None = None
    length: int | None = None
    has_checksum: bool = False


def check_size(settings: UploadSettings, size: int) -> None:
    """Raise UploadError for a file larger than ``max_file_size``."""
    limit = settings.max_file_size
    if size > limit:
        raise UploadError(
            "file_too_large",
            f"a file may have at most {limit} bytes",
            max_file_size=limit,
        )


def check_parts(parts: Sequence[str]) -> None:
    """Raise UploadError if the list of parts is empty, too long or repeats a part."""
    if not 1 <= len(parts) <= MAX_PARTS:
        raise UploadError("bad_concat", f"a final upload has 1 to {MAX_PARTS} parts")
    if len(set(parts)) < len(parts):
        raise UploadError(
            "repeated_part", "the list has a part twice: a part goes into a file once"
        )


def _check_digests(md5: str | None, sha256: str | None) -> None:
    if md5 is not None and not re.fullmatch("[0-9a-fA-F]{32}", md5):
        raise UploadError("bad_md5", "the md5 does not have 32 hexadecimal digits")
    if sha256 is None:
        return
    if not re.fullmatch("[0-9a-fA-F]{64}", sha256):
        text = "the SHA-256 digest does not have 64 hexadecimal digits"
        raise UploadError("bad_sha256", text)
    if md5 is not None:
        raise UploadError("bad_sha256", "send an MD5 or a SHA-256 digest, not both")


def _check_total(total_chunks: int | None) -> None:
    if total_chunks is not None and not 1 <= total_chunks <= MAX_CHUNKS:
        raise UploadError(
            "bad_total_chunks",
            f"total_chunks is {total_chunks}: it must be 1 to {MAX_CHUNKS}",
        )


def _bad_index(index: int, total_chunks: int) -> UploadError:
    return UploadError(
        "bad_index", f"chunk_index is {index}: it must be 0 to {total_chunks - 1}"
    )
