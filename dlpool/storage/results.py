"""What the store answers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class ChunkResult:
    """A chunk that is stored. ``size`` in bytes; ``md5_checked``: one was sent and
    compared."""

    chunk_index: int
    md5_checked: bool
    relative_path: str
    size: int

    def as_json(self) -> dict[str, Any]:
        """The body of the answer."""
        return {"status": "ok", **asdict(self)}


@dataclass(frozen=True)
class MergeResult:
    """A file that is published. ``size`` in bytes, ``merge_time`` in nanoseconds."""

    path: str
    md5: str
    relative_path: str
    size: int
    merge_time: int

    def as_json(self) -> dict[str, Any]:
        """The body of the answer."""
        body = asdict(self)
        return {"status": "ok", "filePath": body.pop("path"), **body}
