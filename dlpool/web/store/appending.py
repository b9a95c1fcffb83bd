"""An upload that grows at its end, as tus has it: each body becomes one more chunk of its task.

A body goes to ``patch-OFFSET.tmp`` in the task's folder, and ``patch.lock`` is held as long as it is received, so that
there is one at a time. What a killed writer left there counts: whoever has that lock next makes it a chunk. A body with
a checksum goes to ``patch.tmp``, which counts for nothing as long as nobody has compared. When a body has ended and
before its trailer is written, its file is renamed to ``patch-OFFSET-SIZE.tmp``, so that no part of a trailer is taken
for a part of the body.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from dlpool.config import UploadSettings
from dlpool.web.refusal import Refusal
from dlpool.web.store import states
from dlpool.web.store.chunkfile import Chunk, chunk_path, list_chunks
from dlpool.web.store.content import check_head
from dlpool.web.store.faults import stored
from dlpool.web.store.layout import Layout
from dlpool.web.store.reception import Reception
from dlpool.web.store.record import TUS, Record, sync_folder
from dlpool.web.store.settling import settle
from dlpool.web.store.task import Task
from dlpool.web.store.wishes import MAX_CHUNKS

_LEFT = re.compile(r"patch-([0-9]+)(?:-([0-9]+))?\.tmp")
_CHECKED = "patch.tmp"
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC


def front(chunks: Mapping[int, Chunk]) -> list[Chunk]:
    """The chunks from the first one on without a gap: what has come of an upload that grows at its end."""
    found: list[Chunk] = []
    while len(found) in chunks:
        found.append(chunks[len(found)])
    return found


def size_of(chunks: Mapping[int, Chunk]) -> int:
    """The offset at which the upload goes on, in bytes."""
    return sum(chunk.size for chunk in front(chunks))


def conflict(offset: int) -> Refusal:
    """That the body does not begin where the upload ends."""
    return Refusal(409, "wrong_offset", f"the upload goes on at {offset}: ask for its offset and send from there",
                   headers={"Upload-Offset": str(offset)}, offset=offset)  # fmt: skip


@dataclass(frozen=True)
class Front:
    """The end of one upload that grows, for a process that holds its ``patch.lock``."""

    layout: Layout
    settings: UploadSettings
    file_id: str
    owner: str | None

    def adopt(self, task: Task) -> None:
        """Make a chunk of what a killed writer left. Raises Refusal, OSError."""
        with stored("go on with the upload"):
            offset = size_of(list_chunks(task.folder))
            for path in sorted(task.folder.glob("patch*.tmp")):
                match = _LEFT.fullmatch(path.name)
                if match is not None and int(match[1]) == offset:
                    offset = self._adopt_one(path, offset, int(match[2]) if match[2] else None)
                path.unlink(missing_ok=True)

    def _adopt_one(self, path: Path, offset: int, size: int | None) -> int:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        with Reception(path, descriptor, max_size=self.settings.max_file_size, sync=self.layout.sync) as reception:
            reception.take_over(size)
            return self.commit(reception, offset)

    def receive(self, task: Task, offset: int, room: int, *, is_checked: bool) -> Reception:
        """Somewhere to write a body that begins at ``offset`` and has at most ``room`` bytes. Raises OSError."""
        path = task.folder / (_CHECKED if is_checked else f"patch-{offset}.tmp")
        return Reception(path, os.open(path, _FLAGS, 0o666), max_size=room, sync=self.layout.sync)

    def commit(self, reception: Reception, offset: int) -> int:
        """Make a chunk of what has come; returns the new offset. Raises Refusal."""
        if reception.size == 0:
            return offset
        if offset == 0:
            check_head(self.settings, reception.head)
        with stored("store the upload"):
            reception.rename(reception.path.with_name(f"patch-{offset}-{reception.size}.tmp"))
        reception.seal()
        with self.layout.task(self.file_id) as task:
            task.owned(self.owner, TUS)
            record, chunks = settle(self.settings, task), list_chunks(task.folder)
            states.receiving(record.status)
            self._place(task, record, reception, offset, chunks)
        if self.layout.sync:
            with stored("store the upload"):
                sync_folder(task.folder)
        return offset + reception.size

    def _place(
        self, task: Task, record: Record, reception: Reception, offset: int, chunks: Mapping[int, Chunk]
    ) -> None:
        have = front(chunks)
        end = offset + reception.size
        if sum(chunk.size for chunk in have) != offset:
            raise conflict(sum(chunk.size for chunk in have))
        if len(have) >= MAX_CHUNKS or end > (
            record.file_size if record.file_size >= 0 else self.settings.max_file_size
        ):
            raise Refusal(413, "too_large", "the upload is longer than it was to be, or is sent in too many pieces")
        for index in chunks.keys() - {chunk.index for chunk in have}:  # behind a chunk that was lost
            chunk_path(task.folder, index).unlink(missing_ok=True)
        reception.move(task.chunk_path(len(have)))
        task.save(record, sync=task.sync and not have, status=states.receiving(record.status), received=end)


class Appending:
    """Takes one body. A context manager: what has come when it ends counts, unless ``discard`` was called."""

    def __init__(self, front_of: Front, reception: Reception, offset: int, room: int, hold: int) -> None:
        self._front = front_of
        self._reception = reception
        self._room = room
        self._hold = hold
        self.offset = offset

    def expect(self, size: int) -> None:
        """So many more bytes are to come. Raises Refusal (413)."""
        if self._reception.size + size > self._room:
            raise Refusal(413, "too_large", f"the upload may have {self.offset + self._room} bytes: no more than "
                          f"{self._room} can follow the first {self.offset}")  # fmt: skip

    def write(self, data: bytes) -> None:
        """Take the next bytes. Raises Refusal."""
        self.expect(len(data))
        self._reception.write(data)

    def commit(self) -> int:
        """Let what has come count; returns the new offset. Raises Refusal."""
        try:
            self.offset = self._front.commit(self._reception, self.offset)
        finally:
            self._reception.discard()
        return self.offset

    def discard(self) -> None:
        """Let nothing of it count."""
        self._reception.discard()

    def __enter__(self) -> Appending:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._reception.discard()
        os.close(self._hold)
