"""What an upload is asked to do, and how it ended. Values only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlpool.errors import UsageError


@dataclass(frozen=True)
class FileUploadRequest:
    """What to upload, and as what. None: ``connections`` as the server wants,
    ``chunk_size`` auto, ``name`` the file's.

    ``relative_path`` is a folder below the server's folder of files.
    """

    file: Path
    connections: int | None = None
    chunk_size: int | None = None
    name: str | None = None
    relative_path: str | None = None

    def target(self) -> tuple[str, str | None]:
        """Name and folder at the server. Raises UsageError."""
        name = self.file.name if self.name is None else self.name
        path = (self.relative_path or "").rstrip("/")
        if self.name == "":
            raise UsageError("--name is empty: say how the file is to be called")
        if not is_utf8(name):
            raise UsageError(
                f"{name!a} is not text in UTF-8: say how the file is to be called with "
                f"--name"
            )
        if not is_utf8(path):
            raise UsageError(f"--path {path!a} is not text in UTF-8")
        return name, path or None


@dataclass(frozen=True)
class UploadResult:
    """An upload that ended well. Sizes in bytes: ``sent`` by this run, ``resumed_from``
    were there before.

    ``path`` is below the server's folder of files, ``location`` the URL to fetch it
    from.
    """

    file: Path
    path: str
    location: str
    size: int
    sent: int
    resumed_from: int
    seconds: float
    retries: int
    connections: int
    chunk_size: int
    md5: str
    file_id: str

    def as_json(self) -> dict[str, Any]:
        return vars(self) | {"file": str(self.file)}


def is_utf8(text: str) -> bool:
    """Whether a text can be sent: names of files here may be any bytes."""
    return not any(0xD800 <= ord(letter) < 0xE000 for letter in text)
