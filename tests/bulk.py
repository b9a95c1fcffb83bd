"""A small stand-in for Elasticsearch's ``_bulk``: takes ``create`` once an id, is busy or away when it is told to."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any


class Bulk:
    """A context. ``documents`` by id; ``busy``: how many of the next items get 429.

    ``away``: how many of the next calls get no answer. ``invalid``: the message of a document that it does not take.
    ``refused`` counts the items that were there already.
    """

    def __init__(self) -> None:
        self.documents: dict[str, dict[str, Any]] = {}
        self.indices: set[str] = set()
        self.invalid = ""
        self.busy = self.away = self.refused = 0
        self._lock = threading.Lock()
        bulk = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # an answer is one write: headers alone would wait for their acknowledgement

            def do_HEAD(self) -> None:
                self._answer(200, {})

            do_GET = do_HEAD

            def do_POST(self) -> None:
                lines = self.rfile.read(int(self.headers["Content-Length"])).splitlines()
                with bulk._lock:
                    if bulk.away > 0:
                        bulk.away -= 1
                        self.close_connection = True
                        return
                    self._answer(200, bulk.take(lines))

            def _answer(self, status: int, value: dict[str, Any]) -> None:
                body = b"" if self.command == "HEAD" else json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
                self.wfile.flush()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port

    def __enter__(self) -> Bulk:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def take(self, lines: list[bytes]) -> dict[str, Any]:
        """The answer to a call with these lines: an action and a document in turn."""
        items = [
            self._create(json.loads(action)["create"], json.loads(document))
            for action, document in zip(lines[::2], lines[1::2], strict=True)
        ]
        return {"errors": any(item["create"]["status"] != 201 for item in items), "items": items}

    def _create(self, action: dict[str, str], document: dict[str, Any]) -> dict[str, Any]:
        self.indices.add(action["_index"])
        status, reason = 201, ""
        if self.busy > 0:
            self.busy -= 1
            status, reason = 429, "es_rejected_execution_exception"
        elif self.invalid and document["message"] == self.invalid:
            status, reason = 400, "document_parsing_exception"
        elif action["_id"] in self.documents:
            self.refused += 1
            status, reason = 409, "version_conflict_engine_exception"
        else:
            self.documents[action["_id"]] = document
        item: dict[str, Any] = {"_index": action["_index"], "_id": action["_id"], "status": status}
        if reason:
            item["error"] = {"type": reason, "reason": reason}
        return {"create": item}
