"""``traceparent`` sent to dlpool-web: its trace id is in the log and in the jobs that are pushed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

from dlpool.jobs.keys import QueueKeys
from dlpool.observe.tracing import parse_traceparent
from dlpool.web.middleware import AccessMiddleware
from tests.conftest import wait_until
from tests.redis_server import RedisServer
from tests.web import WebServer, multipart

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
GOOD = f"00-{TRACE}-{SPAN}-01"
JOB = {"url": "https://example.org/a", "save_path": "a"}
INVALID = [
    "",
    " ",
    "00",
    TRACE,
    f"00-{TRACE}-{SPAN}",
    f"00-{TRACE}-{SPAN}-",
    f"00-{TRACE}-{SPAN}-1",
    f"00-{TRACE}-{SPAN}-001",
    f"00-{TRACE}-{SPAN}-01-",
    f"00-{TRACE}-{SPAN}-01-more",
    f"00-{TRACE}-{SPAN}-01x",
    f"01-{TRACE}-{SPAN}-01x",
    f"ff-{TRACE}-{SPAN}-01",
    f"0-{TRACE}-{SPAN}-01",
    f"000-{TRACE}-{SPAN}-01",
    f"0g-{TRACE}-{SPAN}-01",
    f"00-{'0' * 32}-{SPAN}-01",
    f"00-{TRACE}-{'0' * 16}-01",
    f"00-{TRACE.upper()}-{SPAN}-01",
    f"00-{TRACE}-{SPAN.upper()}-01",
    f"00-{TRACE}-{SPAN}-0G",
    f"00-{TRACE[1:]}-{SPAN}-01",
    f"00-{TRACE}0-{SPAN}-01",
    f"00-{TRACE}-{SPAN[1:]}-01",
    f"00_{TRACE}_{SPAN}_01",
    f"{GOOD},{GOOD}",
    f"{GOOD}, 00-{'1' * 32}-{SPAN}-01",
    f"{GOOD}\n",
    f"00-{TRACE[:-1]}\u0660-{SPAN}-01",
    f"FF-{TRACE}-{SPAN}-01",
    "x" * 10_000,
]


@pytest.mark.parametrize(
    "header",
    [
        GOOD,
        f"00-{TRACE}-{SPAN}-00",
        f"00-{TRACE}-{SPAN}-ff",
        f" {GOOD}\t",
        f"01-{TRACE}-{SPAN}-01",
        f"cc-{TRACE}-{SPAN}-01",
        f"01-{TRACE}-{SPAN}-01-what-the-future-will-be-like",
        f"fe-{TRACE}-{SPAN}-01-",
        f"00-{TRACE}-{'0' * 15}1-01",
    ],
)
def test_a_valid_header_names_its_trace(header: str) -> None:
    assert parse_traceparent(header) == TRACE


@pytest.mark.parametrize("header", [None, *INVALID])
def test_an_invalid_header_is_ignored(header: str | None) -> None:
    assert parse_traceparent(header) is None


@dataclass(frozen=True)
class Api:
    """A server with a Redis."""

    server: WebServer
    redis: RedisServer

    def push(self, body: dict[str, Any], header: str | None = GOOD) -> dict[str, Any]:
        """The answer to a push."""
        answer = requests.post(
            f"{self.server.root}/api/v1/jobs",
            json=body,
            timeout=10,
            headers={} if header is None else {"traceparent": header},
        )
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def trace_of(self, job_id: str) -> str | None:
        """What the queue has."""
        with self.redis.client() as client:
            job = json.loads(client.hget(QueueKeys().job(job_id), "raw") or b"")
        trace_id: str | None = job.get("dlpool", {}).get("trace_id")
        return trace_id


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    folder = tmp_path_factory.mktemp("api")
    with RedisServer(folder / "redis") as redis:
        settings: Any = {"redis": {"url": redis.url}, "paths": {"download_dir": folder / "out"}}
        with WebServer(folder / "web", settings) as server:
            yield Api(server, redis)


def line_of(server: WebServer, path: str) -> dict[str, Any]:
    """The record of the one request for ``path``."""
    found: list[dict[str, Any]] = []

    def is_there() -> bool:
        found[:] = [one for one in server.events("request_served") if one["url.path"] == path]
        return bool(found)

    wait_until(is_there)
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize(
    ("path", "method"),
    [
        ("/go-uploader/tasks/a", "GET"),
        ("/go-uploader/tasks/b", "DELETE"),
        ("/nothing/here", "GET"),
        ("/files/c", "PATCH"),
        ("/api/v1/jobs/d", "GET"),
        ("/go-uploader/tasks/e", "PUT"),
    ],
)
def test_each_line_about_a_request_has_its_trace(api: Api, path: str, method: str) -> None:
    requests.request(method, api.server.root + path, headers={"traceparent": GOOD}, timeout=10)
    assert line_of(api.server, path)["trace.id"] == TRACE


@pytest.mark.parametrize("number", range(len(INVALID) - 4))
def test_a_request_with_an_invalid_header_is_answered_and_has_none(api: Api, number: int) -> None:
    path = f"/go-uploader/tasks/invalid{number}"
    header = INVALID[number].strip()
    assert requests.get(api.server.root + path, headers={"traceparent": header}, timeout=10).status_code == 404
    assert "trace.id" not in line_of(api.server, path)


def test_an_upload_has_its_trace(api: Api) -> None:
    kind, body = multipart({"file_id": "traced", "chunk_index": 0}, b"x")
    answer = requests.post(
        f"{api.server.url}/upload_chunk", data=body, timeout=10, headers={"Content-Type": kind, "traceparent": GOOD}
    )
    assert answer.status_code == 200
    assert line_of(api.server, "/go-uploader/upload_chunk")["trace.id"] == TRACE


@pytest.mark.parametrize(
    ("own", "header", "expected"),
    [
        ({}, GOOD, TRACE),
        ({"priority": "high"}, GOOD, TRACE),
        ({"headers": {"X-A": "b"}}, GOOD, TRACE),
        ({"trace_id": "mine"}, GOOD, "mine"),
        ({"headers": {"TraceParent": f"00-{'a' * 32}-{SPAN}-01"}}, GOOD, None),
        ({}, None, None),
        ({}, f"00-{'0' * 32}-{SPAN}-01", None),
        ({"trace_id": "mine"}, None, "mine"),
    ],
)
def test_a_pushed_job_is_part_of_the_trace_unless_it_has_its_own(
    api: Api, own: dict[str, Any], header: str | None, expected: str | None
) -> None:
    assert api.trace_of(api.push(JOB | {"dlpool": own}, header)["id"]) == expected


def test_a_job_without_fields_of_ours_and_each_of_a_batch_get_it(api: Api) -> None:
    assert api.trace_of(api.push(JOB)["id"]) == TRACE
    jobs = [JOB, JOB | {"dlpool": {"trace_id": "mine"}}, {"url": "ftp://wrong", "save_path": "a"}, JOB]
    results = api.push({"jobs": jobs})["results"]
    assert [api.trace_of(one["id"]) for one in results if "id" in one] == [TRACE, "mine", TRACE]
    shown = requests.get(f"{api.server.root}/api/v1/jobs/{results[0]['id']}", timeout=10).json()
    assert shown["trace_id"] == TRACE


def test_a_defect_that_shows_in_a_request_has_its_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from falcon.testing import TestClient

    from dlpool.config import PathSettings, Settings, UploadSettings
    from dlpool.web.app import create_app

    def broken(*_: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(AccessMiddleware, "process_resource", broken)
    paths = PathSettings(state_dir=str(tmp_path / "state"), log_dir=str(tmp_path / "log"))
    upload = UploadSettings(upload_dir=str(tmp_path / "u"), merged_dir=str(tmp_path / "m"))
    client = TestClient(create_app(Settings(paths=paths, upload=upload)))
    assert client.simulate_get("/go-uploader/tasks", headers={"traceparent": GOOD}).status_code == 500
    lines = (tmp_path / "log" / "web" / "dlpool.log").read_text().splitlines()
    broke = [one for one in map(json.loads, lines) if one["event.action"] == "request_internal_error"]
    assert [one["trace.id"] for one in broke] == [TRACE]
