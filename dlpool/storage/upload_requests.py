"""What a client asks for, checked as far as that needs no disk. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from dlpool.config import UploadSettings
from dlpool.storage.content_types import check_extension
from dlpool.storage.disk.chunk_file import StoredChunk
from dlpool.storage.disk.task_record import CHUNKED, TaskRecord
from dlpool.storage.errors import UploadError
from dlpool.storage.names import check_new_names, folder_name, split_folders

MAX_CHUNKS = 100_000


@dataclass(frozen=True)
class ChunkRequest:
    """A chunk that is to be stored. ``file_size``: in bytes; what is None was not
    said.

    ``filename``: what the merge will ask for; said with a chunk it is refused before
    all bytes have come.
    """

    file_id: str
    index: int
    owner: str | None
    md5: str | None = None
    total_chunks: int | None = None
    file_size: int | None = None
    relative_path: str | None = None
    filename: str | None = None

    def check(self, settings: UploadSettings) -> None:
        """Raise Refusal: 400 for what has no meaning, 413 for a file that is too large,
        415 for a type not taken."""
        folder_name(self.file_id)
        check_new_names(self.filename, self.relative_path or "")
        if self.filename is not None:
            check_extension(settings, self.filename)
        check_md5(self.md5)
        check_total(self.total_chunks)
        if not 0 <= self.index < (self.total_chunks or MAX_CHUNKS):
            most = (self.total_chunks or MAX_CHUNKS) - 1
            raise UploadError(
                400,
                "bad_index",
                f"chunk_index is {self.index}: it is to be from 0 to {most}",
            )
        if self.file_size is not None and self.file_size < 0:
            raise UploadError(
                400,
                "bad_file_size",
                "file_size is negative: say the bytes of the whole file",
            )
        check_size(settings, self.file_size or 0)

    def adds_totals(self, record: TaskRecord) -> bool:
        """Whether it says how much there is to be, and the record does not: then the
        chunks that are there count."""
        return bool(self.total_chunks and not record.total_chunks) or (
            self.file_size is not None and record.file_size < 0
        )

    def merged_into(
        self, record: TaskRecord, chunks: Mapping[int, StoredChunk]
    ) -> TaskRecord:
        """The record with what the wish adds. ``chunks``: those that are there, if the
        wish ``is_news``.

        Raises Refusal where they disagree: 409, or 400 for the index.
        """
        self._agrees(record)
        if record.total_chunks and self.index >= record.total_chunks:
            most = record.total_chunks - 1
            raise UploadError(
                400,
                "bad_index",
                f"chunk_index is {self.index}: it is to be from 0 to {most}",
            )
        if self.total_chunks and max(chunks, default=0) >= self.total_chunks:
            raise UploadError(
                409,
                "conflict",
                f"the task has a chunk {max(chunks)}: it cannot be of "
                f"{self.total_chunks}",
            )
        there = sum(
            chunk.size for chunk in chunks.values() if chunk.index != self.index
        )
        if self.file_size is not None and there > self.file_size:
            raise UploadError(
                409,
                "conflict",
                f"the task has {there} bytes already: its file cannot be of "
                f"{self.file_size}",
            )
        return record.with_details(
            self.total_chunks, self.file_size, self.relative_path
        )

    def _agrees(self, record: TaskRecord) -> None:
        """Raise Refusal where it says something else than was said before."""
        if (
            self.total_chunks
            and record.total_chunks
            and self.total_chunks != record.total_chunks
        ):
            raise UploadError(
                409,
                "conflict",
                f"the task has {record.total_chunks} chunks, not {self.total_chunks}",
                total_chunks=record.total_chunks,
            )
        if (
            self.file_size is not None
            and record.file_size >= 0
            and self.file_size != record.file_size
        ):
            raise UploadError(
                409,
                "conflict",
                f"the task's file has {record.file_size} bytes, not {self.file_size}",
                file_size=record.file_size,
            )
        path = record.relative_path
        if (
            self.relative_path
            and path
            and split_folders(self.relative_path) != split_folders(path)
        ):
            raise UploadError(
                409,
                "conflict",
                f"the task's file goes to {path[:100]!r}: use another file_id for "
                f"another one",
                relative_path=path,
            )


@dataclass(frozen=True)
class MergeRequest:
    """A merge that is to be done; ``relative_path`` None: what the chunks said.

    ``is_shared``: everybody may read the file.
    """

    file_id: str
    filename: str
    total_chunks: int
    owner: str | None
    relative_path: str | None = None
    expected_md5: str | None = None
    protocol: str = CHUNKED
    is_shared: bool = False

    def check(self, settings: UploadSettings) -> None:
        """Raise Refusal: 400 for what has no meaning, 415 for a type that is not
        taken."""
        folder_name(self.file_id)
        check_new_names(self.filename, self.relative_path or "")
        check_md5(self.expected_md5)
        check_total(self.total_chunks)
        check_extension(settings, self.filename)


def check_md5(text: str | None) -> None:
    """Raise Refusal (400) for what is no md5."""
    if text is not None and not re.fullmatch("[0-9a-fA-F]{32}", text):
        raise UploadError(400, "bad_md5", "the md5 is not of 32 hexadecimal digits")


def check_total(total_chunks: int | None) -> None:
    """Raise Refusal (400) for a number of chunks that no file has."""
    if total_chunks is not None and not 1 <= total_chunks <= MAX_CHUNKS:
        raise UploadError(
            400,
            "bad_total_chunks",
            f"total_chunks is {total_chunks}: it is to be from 1 to {MAX_CHUNKS}",
        )


def check_size(settings: UploadSettings, size: int) -> None:
    """Raise Refusal (413) for a file that is too large."""
    if size > settings.max_file_size:
        raise UploadError(
            413,
            "file_too_large",
            f"a file has at most {settings.max_file_size} bytes",
            max_file_size=settings.max_file_size,
        )
