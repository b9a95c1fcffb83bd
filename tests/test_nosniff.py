"""Each answer of dlpool-web forbids browsers to guess the type of its body."""

from __future__ import annotations

import re
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import requests

from dlpool.web.operations import BASE
from tests.redis_server import RedisServer
from tests.web import RawClient, WebServer, multipart

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND")


def is_forbidden(answer: requests.Response | HTTPResponse) -> bool:
    return answer.headers.get("X-Content-Type-Options") == "nosniff"


def raw(port: int, text: str) -> HTTPResponse:
    with RawClient(port) as client:
        client.say(text).end()
        answer = HTTPResponse(client.sock)
        answer.begin()
        return answer


MERGE = "POST /go-uploader/merge_chunks HTTP/1.1\r\nHost: localhost\r\n"
RAW = {
    "no HTTP": "nonsense\r\n\r\n",
    "a long line": f"GET /{'x' * 9000} HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a long field": f"GET / HTTP/1.1\r\nHost: localhost\r\nA: {'x' * 9000}\r\n\r\n",
    "a bad field": "GET / HTTP/1.1\r\nHost: localhost\r\nA B: x\r\n\r\n",
    "two lengths": "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    "an unknown coding": "POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: br\r\n\r\n",
    "an unknown expectation": "POST / HTTP/1.1\r\nHost: localhost\r\nExpect: more\r\nContent-Length: 1\r\n\r\n",
    "bad framing": f"{MERGE}Transfer-Encoding: chunked\r\n\r\nx\r\n",
    "a body that ends early": f"{MERGE}Content-Length: 9\r\n\r\nx",
}


def test_every_answer_of_dlpool_web(tmp_path: Path) -> None:
    with RedisServer(tmp_path / "redis") as redis:
        settings: dict[str, dict[str, Any]] = {
            "redis": {"url": redis.url},
            "web": {"request_rate": "100000/s", "request_burst": 100000},
        }
        with WebServer(tmp_path / "web", settings) as server, requests.Session() as session:
            paths = [*session.get(f"{server.root}{BASE}/openapi.json", timeout=20).json()["paths"]]
            assert len(paths) > 30
            page = session.get(f"{server.root}/", timeout=20)
            paths += [
                "/",
                "/nothing",
                f"{BASE}/openapi.json",
                *re.findall(r'(?:src|href)="(/static/[^"]+)"', page.text),
            ]
            bare, statuses = [], set()
            for path in paths:
                for method in METHODS:
                    url = server.root + re.sub("{[a-z_]+}", "x", path)
                    answer = session.request(method, url, timeout=30)
                    statuses.add(answer.status_code)
                    if not is_forbidden(answer):
                        bare.append((method, path, answer.status_code))
            kind, form = multipart({"file_id": "a", "chunk_index": "0"}, b"<html>")
            assert session.post(f"{server.url}/upload_chunk", data=form, headers={"Content-Type": kind}, timeout=20).ok
            merged = session.post(
                f"{server.url}/merge_chunks", timeout=20, json={"file_id": "a", "filename": "a.html", "total_chunks": 1}
            )
            assert merged.ok, merged.text
            sent = session.get(f"{server.url}/files/a.html", headers={"Range": "bytes=0-1"}, timeout=20)
            assert (sent.status_code, sent.content) == (206, b"<h")
            assert not bare and all(map(is_forbidden, (page, merged, sent)))
            assert {200, 400, 404, 405} <= statuses and 500 not in statuses
            for name, text in RAW.items():
                refused = raw(server.port, text)
                assert refused.status >= 400 and is_forbidden(refused), name
