"""Uploads whose file system calls are made to fail, over the real application: see ``disk_matrix``."""

from __future__ import annotations

import base64
import errno
import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from falcon import testing

from dlpool.config import Settings
from dlpool.storage.disk import file_locks
from dlpool.web import janitor
from dlpool.web.app import make_app
from dlpool.web.wiring import WebServices
from tests.conftest import make_data
from tests.disk_faults import ALWAYS, FAIL, Fault
from tests.disk_matrix import Ended, Workload

NAME, FOLDER = "file.bin", "a/b"
API = "/go-uploader"
BODY = "application/offset+octet-stream"
CHUNKS = [make_data(9_000, 1), make_data(5_000, 2)]
DATA = b"".join(CHUNKS)
_NAMED = {
    errno.ENOSPC: "no_space",
    errno.EDQUOT: "no_space",
    errno.EROFS: "read_only",
    errno.EACCES: "permission",
}


def _start_nothing(self: janitor.Janitor) -> None:
    """No thread sweeps meanwhile: ``Upload.wrong`` does."""


class Upload(Workload):
    """An upload by HTTP requests, of a client that first asks which chunks are stored."""

    settings: ClassVar[dict[str, Any]] = {}

    def __init__(self, scratch: Path) -> None:
        janitor.Janitor.start = _start_nothing  # type: ignore[method-assign]
        self._run = scratch / "run"
        own, settings = scratch / "own", Settings()
        folders: dict[str, Any] = {"upload_dir": str(self._run / "upload"), "merged_dir": str(self._run / "merged")}
        settings = replace(
            settings,
            upload=replace(settings.upload, **folders, **self.settings),
            web=replace(settings.web, request_rate=None),
            paths=replace(settings.paths, state_dir=str(own / "state"), log_dir=str(own / "log")),
        )
        self._parts = WebServices(settings)
        self._client = testing.TestClient(make_app(self._parts), headers={"Host": "127.0.0.1"})

    def prepare(self, folder: Path) -> None:
        assert folder == self._run
        file_locks._has_flock.clear()  # each run tries again whether flock(2) locks

    def ask(self, method: str, path: str, **options: Any) -> testing.Result:
        """Make a request. Raises Refused."""
        said = self._client.simulate_request(method, path, **options)
        if said.status_code >= 400:
            code = said.json.get("code", "") if said.text else said.headers.get("x", "")
            raise Refused(said.status_code, f"{said.status_code} {code}".strip(), said.text)
        return said

    def run(self, folder: Path) -> Ended:
        try:
            self.upload()
        except Refused as refused:
            return Ended(refused.label, refused.text)
        return Ended("")

    def upload(self) -> None:
        """Upload the file, or what of it is missing. Raises Refused."""
        raise NotImplementedError

    def wrong(self, folder: Path, ended: Ended) -> str:
        target = folder / "merged" / FOLDER / NAME
        content = target.read_bytes() if target.exists() else None
        if ended.label:
            return "" if content is None else f"an error, and {'the' if content == DATA else 'a wrong'} file published"
        if content != DATA:
            return "success, and not the right file"
        self._parts.backend.sweep()
        left = [path.name for path in (folder / "upload" / "tmp").iterdir()]
        left += [path.name for path in target.parent.iterdir() if path != target]
        return f"left {left}" if left else ""

    def labels(self, number: int) -> set[str]:
        return {f"507 {_NAMED.get(number, 'storage')}", "507"}  # an answer to HEAD has no body


class Refused(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, label: str, text: str) -> None:
        super().__init__(label)
        self.status = status
        self.label = label
        self.text = text


class Chunked(Upload):
    """Two chunks and a merge."""

    def upload(self) -> None:
        found = self.ask("GET", f"{API}/upload_status", params={"file_id": "id"}).json
        for index, data in enumerate(CHUNKS):
            if found["status"] != "completed" and index not in found["uploaded_chunks"]:
                self._send(index, data)
        merge = {
            "file_id": "id",
            "filename": NAME,
            "total_chunks": len(CHUNKS),
            "relative_path": FOLDER,
            "expected_md5": hashlib.md5(DATA).hexdigest(),
        }
        self.ask("POST", f"{API}/merge_chunks", json=merge)

    def _send(self, index: int, data: bytes) -> None:
        self.ask(
            "POST",
            f"{API}/upload_chunk",
            headers={"Content-Type": "application/octet-stream"},
            params={
                "file_id": "id",
                "chunk_index": index,
                "total_chunks": len(CHUNKS),
                "md5": hashlib.md5(data).hexdigest(),
                "file_size": len(DATA),
            },
            body=data,
        )


class NoFlags(Chunked):
    """The same on a file system without flags of renameat2(2), as in user space."""

    always = (Fault("renameat2", 1, FAIL, errno.EINVAL, last=ALWAYS),)
    since = "renameat2"


class NoLinks(Chunked):
    """The same without hard links either, as exFAT is."""

    always = (*NoFlags.always, Fault("link", 1, FAIL, errno.EPERM, last=ALWAYS))
    since = "renameat2"


class Tus(Upload):
    """An upload by tus in two requests; the server publishes the file automatically after the last byte."""

    _url = ""

    def prepare(self, folder: Path) -> None:
        super().prepare(folder)
        self._url = ""

    def upload(self) -> None:
        offset = self.offset() if self._url else None
        if offset is None:
            self._url = self.ask("POST", "/files", headers=self.begin()).headers["location"]
            offset = 0
        while offset < len(DATA):
            offset = self._patch(offset)

    def begin(self) -> dict[str, str]:
        """The headers that begin the upload."""
        metadata = {"filename": NAME, "relative_path": FOLDER}
        note = ",".join(f"{name} {base64.b64encode(value.encode()).decode()}" for name, value in metadata.items())
        return {"Tus-Resumable": "1.0.0", "Upload-Length": str(len(DATA)), "Upload-Metadata": note}

    def offset(self) -> int | None:
        """Return the offset of the upload; None if it does not exist."""
        try:
            said = self.ask("HEAD", self._url, headers={"Tus-Resumable": "1.0.0"})
        except Refused as refused:
            if refused.status not in (404, 410):
                raise
            return None
        return int(said.headers["upload-offset"])

    def _patch(self, offset: int) -> int:
        data = DATA[offset : len(CHUNKS[0])] if offset < len(CHUNKS[0]) else DATA[offset:]
        headers = {
            "Tus-Resumable": "1.0.0",
            "Upload-Offset": str(offset),
            "Content-Type": BODY,
        }
        return int(self.ask("PATCH", self._url, headers=headers, body=data).headers["upload-offset"])


class TusChecked(Tus):
    """All in one request, with a checksum; what comes before its bytes are synced is as in ``Tus``."""

    since = "fdatasync"

    def upload(self) -> None:
        if self._url and self.offset() == len(DATA):
            return
        checksum = base64.b64encode(hashlib.sha1(DATA).digest()).decode()
        headers = {**self.begin(), "Upload-Checksum": f"sha1 {checksum}", "Content-Type": BODY}
        self._url = self.ask("POST", "/files", headers=headers, body=DATA).headers["location"]


class TusParts(Tus):
    """Two uploads that are parts, and one that is made of them."""

    since = "link"

    def prepare(self, folder: Path) -> None:
        super().prepare(folder)
        self._urls = ["" for _ in CHUNKS]
        self._is_made = False

    def upload(self) -> None:
        if not self._is_made:
            for number, data in enumerate(CHUNKS):
                self._part(number, data)
            headers = {**self.begin(), "Upload-Concat": f"final;{' '.join(self._urls)}"}
            del headers["Upload-Length"]
            self.ask("POST", "/files", headers=headers)
            self._is_made = True

    def _part(self, number: int, data: bytes) -> None:
        self._url = self._urls[number]
        offset = self.offset() if self._url else None
        if offset is None:
            headers = {"Tus-Resumable": "1.0.0", "Upload-Length": str(len(data)), "Upload-Concat": "partial"}
            self._url = self._urls[number] = self.ask("POST", "/files", headers=headers).headers["location"]
            offset = 0
        if offset < len(data):
            headers = {
                "Tus-Resumable": "1.0.0",
                "Upload-Offset": str(offset),
                "Content-Type": BODY,
            }
            self.ask("PATCH", self._url, headers=headers, body=data[offset:])


UPLOADS: dict[str, Callable[[Path], Workload]] = {
    "chunked": Chunked,
    "chunked-no-flags": NoFlags,
    "chunked-no-links": NoLinks,
    "tus": Tus,
    "tus-checked": TusChecked,
    "tus-parts": TusParts,
}
