"""The request and the result of an upload. Values only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dlpool.dataclass import dataclass
from dlpool.errors import UsageError


@dataclass(frozen=True)
class FileUploadRequest:
    """A file to upload, and its name and folder at the server.

    ``connections``: the number of connections, None for the number that the server
    advises. ``chunk_size``: bytes, None for an automatic size. ``name``: the name at
    the server, None for the name of ``file``. ``relative_path``: the path of a folder
    in the server's folder of files, None for the folder of files itself.
    """

    file: Path
    connections: int | None = None
    chunk_size: int | None = None
    name: str | None = None
    relative_path: str | None = None

    def target(self) -> tuple[str, str | None]:
        """Return the name at the server, and the folder as in ``relative_path``.

        Raises UsageError for a name or a folder that cannot be sent.
        """
        name = self.file.name if self.name is None else self.name
        path = (self.relative_path or "").rstrip("/")
        if self.name == "":
            raise UsageError("--name is empty: give the file a name")
        if not is_utf8(name):
            raise UsageError(
                f"{name!a} is not text in UTF-8: give the file another name with --name"
            )
        if not is_utf8(path):
            raise UsageError(f"--path {path!a} is not text in UTF-8")
        return name, path or None


@dataclass(frozen=True)
class UploadResult:
    """A successful upload. Sizes are in bytes.

    ``sent``: the bytes that the server accepted in this run. ``resumed_from``: the
    bytes that the server had stored before the last attempt. The file at the server has
    been verified by one of the digests ``md5`` and ``composite_sha256``; the other is
    None.
    ``path`` is relative to the server's folder of files, ``location`` is the URL of the
    file.
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
    md5: str | None
    composite_sha256: str | None
    file_id: str

    def as_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return vars(self) | {"file": str(self.file)}


def is_utf8(text: str) -> bool:
    """Return whether a text, such as a file name, can be encoded in UTF-8."""
    return not any(0xD800 <= ord(letter) < 0xE000 for letter in text)
