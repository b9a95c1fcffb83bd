"""A server of the upload API in memory, for faults that must come exactly then: see ``Fault``."""

from __future__ import annotations

import hashlib
import json
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from hashlib import md5, sha256
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from tests.origin import Connection, Origin, Request

# Called with the name of each call ("client", "status", "chunk", "merge", "task", "delete", "head"), its fields, its
# number among those of its name from 1 on, and the connection; what it returns is the answer, status and JSON, instead
# of the right one.
Fault = Callable[[str, Mapping[str, str], int, Connection], "tuple[int, dict[str, Any]] | None"]


_CALLS = {"client": "client", "upload_status": "status", "upload_chunk": "chunk", "merge_chunks": "merge"}


def composite(chunks: Iterable[bytes]) -> tuple[str, str]:
    """Return the name and the value of the composite SHA-256 of a file with these chunks."""
    return "composite_sha256", sha256(b"".join(sha256(chunk).digest() for chunk in chunks)).hexdigest()


def no_fault(_call: str, _fields: Mapping[str, str], _number: int, _connection: Connection) -> None:
    """All goes well."""


class UploadOrigin(Origin):
    """Use as a context manager. ``stored`` are the chunks, ``merged`` the files, ``calls`` what was asked, in order.

    ``advice`` is what it wants of clients, None: it is an older one that does not say. ``algorithm`` is that of the
    chunks' digests: "md5", or "sha256", which it then announces.
    """

    def __init__(self, fault: Fault = no_fault, *, tls: ssl.SSLContext | None = None, algorithm: str = "md5") -> None:
        super().__init__(self._handle, tls=tls)
        self.algorithm = algorithm
        self.fault = fault
        self.state = "uploading"
        self.advice: dict[str, Any] | None = None if algorithm == "md5" else {"digests": ["md5", "sha256"]}
        self.stored: dict[int, bytes] = {}
        self.merged: dict[str, bytes] = {}
        self.calls: list[tuple[str, dict[str, str]]] = []
        self._result: dict[str, Any] = {}
        self._counts: Counter[str] = Counter()
        self._calls_lock = threading.Lock()

    def __enter__(self) -> UploadOrigin:
        super().__enter__()
        return self

    @property
    def api(self) -> str:
        return f"{self.url}/go-uploader"

    def sent(self) -> list[int]:
        """The chunks that were sent, in order."""
        return [int(fields["chunk_index"]) for call, fields in self.calls if call == "chunk"]

    def _handle(self, request: Request, connection: Connection) -> None:
        body = connection.read_body(int(request.headers.get("content-length", "0")))
        parts = urlsplit(request.path)
        fields = dict(parse_qsl(parts.query))
        last = parts.path.removeprefix("/go-uploader/")
        call = _CALLS.get(last) or {"HEAD": "head", "DELETE": "delete"}.get(request.method, "task")
        if call == "merge":
            fields = {name: str(value) for name, value in json.loads(body).items()}
        with self._calls_lock:
            self._counts[call] += 1
            number = self._counts[call]
            self.calls.append((call, fields))
        if call == "head":
            fields = {"path": unquote(last.removeprefix("files/"))}
        status, answer = self.fault(call, fields, number, connection) or self._answer(call, fields, body)
        headers = {"Content-Type": "application/json"}
        if call == "head":
            connection.answer(status, {**headers, "Content-Length": str(answer.get("size", 0))})
        else:
            connection.answer(status, headers, json.dumps(answer).encode())

    def _answer(self, call: str, fields: Mapping[str, str], body: bytes) -> tuple[int, dict[str, Any]]:
        if call == "client":
            return (404, {"error": "nothing"}) if self.advice is None else (200, self.advice)
        if call == "head":
            data = self.merged.get(fields["path"])
            return (404, {}) if data is None else (200, {"size": len(data)})
        if call == "delete":
            self.stored, self.state = {}, "uploading"
            return 200, {"status": "ok"}
        if call == "status":
            return 200, {"uploaded_chunks": sorted(self.stored), "status": self.state if self.stored else "not_found"}
        if call == "task":
            chunks = [{"index": index, **self._digest(data)} for index, data in sorted(self.stored.items())]
            return 200, {"chunks": chunks}
        return self._store(fields, body) if call == "chunk" else self._merge(fields)

    def _digest(self, data: bytes) -> dict[str, str]:
        return {self.algorithm: hashlib.new(self.algorithm, data).hexdigest()}

    def _store(self, fields: Mapping[str, str], body: bytes) -> tuple[int, dict[str, Any]]:
        if self._digest(body)[self.algorithm] != fields[self.algorithm]:
            return 400, {"error": "the chunk has another digest", "code": f"{self.algorithm}_mismatch"}
        if not self.stored:
            self.state = "uploading"
        self.stored[int(fields["chunk_index"])] = body
        return 200, {"status": "ok", "chunk_index": int(fields["chunk_index"]), "md5_checked": True, "size": len(body)}

    def _merge(self, fields: Mapping[str, str]) -> tuple[int, dict[str, Any]]:
        if self.state == "completed" and self.stored:
            return 200, self._result
        total = int(fields["total_chunks"])
        if len(self.stored) < total:
            return 400, {
                "error": "chunks are missing",
                "code": "incomplete",
                "uploaded": len(self.stored),
                "total_required": total,
                "uploaded_chunks": sorted(self.stored),
            }
        chunks = [self.stored[index] for index in range(total)]
        data = b"".join(chunks)
        name, digest = ("md5", md5(data).hexdigest()) if self.algorithm == "md5" else composite(chunks)
        if digest != fields[f"expected_{name}"]:
            return 400, {"error": "the file has another digest", "code": f"file_{self.algorithm}_mismatch"}
        path = f"{fields.get('relative_path', '')}/{fields['filename']}".lstrip("/")
        self.merged[path] = data
        self.state = "completed"
        self._result = {
            "status": "ok",
            "filePath": f"/srv/{path}",
            name: digest,
            "relative_path": path.rpartition("/")[0],
            "size": len(data),
        }
        return 200, self._result
