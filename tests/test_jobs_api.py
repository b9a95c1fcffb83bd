"""The job API of a real dlpool-web over a real Redis, its OpenAPI document, and what pages of other sites may do."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import requests

from dlpool.errors import UsageError
from dlpool.jobs.keys import QueueKeys
from dlpool.jobs.states import Disposition
from dlpool.jobs.transitions import FinishRequest, Transitions
from dlpool.web.openapi import build_document
from dlpool.web.operations import BASE, OPERATIONS
from dlpool.web.same_origin import is_cross_site, is_rebinding
from dlpool.web.schemas import BATCH, JOB, LIMIT, NAMED
from dlpool.web.validation import parse_body, parse_query, validate
from tests.conftest import wait_until
from tests.processes import ROOT
from tests.redis_server import RedisServer
from tests.web import WebServer

URL = "https://example.org/a.bin"
ALL = {"request_rate": "100000/s", "request_burst": 100000}
PAGE = (ROOT / "docs" / "web-api.md").read_text()


class Api:
    """The API of one server, with a Redis of its own."""

    def __init__(self, server: WebServer, redis: RedisServer) -> None:
        self.server = server
        self.redis = redis
        self.headers: dict[str, str] = {}

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> requests.Response:
        given = {**self.headers, **{name.replace("_", "-"): value for name, value in headers.items()}}
        return requests.request(method, self.server.root + BASE + path, json=body, headers=given, timeout=20)

    def good(self, method: str, path: str, body: Any = None) -> Any:
        """The answer to a request that must succeed."""
        answer = self.ask(method, path, body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def refused(self, status: int, method: str, path: str, body: Any = None, **headers: str) -> str:
        """The code of a refusal, which must be in the one shape."""
        answer = self.ask(method, path, body, **headers)
        assert answer.status_code == status, answer.text
        found = answer.json()
        assert isinstance(found["error"], str) and "\n" not in found["error"]
        return str(found["code"])

    def push(self, save_path: str = "a.bin", **own: Any) -> str:
        return str(self.good("POST", "/jobs", {"url": URL, "save_path": save_path, "dlpool": own})["id"])


@pytest.fixture(scope="module")
def _api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    folder = tmp_path_factory.mktemp("api")
    with RedisServer(folder / "redis") as redis:
        settings: dict[str, dict[str, Any]] = {
            "redis": {"url": redis.url},
            "paths": {"download_dir": folder / "out"},
            "web": ALL,
            "limits": {"max_per_host": 3},
            "host:example.org": {"rate_per_host": "5/s"},
        }
        with WebServer(folder / "web", settings) as server:
            yield Api(server, redis)


@pytest.fixture
def api(_api: Api) -> Api:
    """The server, whose Redis is empty."""
    with _api.redis.client() as client:
        client.flushall()
    return _api


def test_a_job_is_pushed_listed_and_shown(api: Api) -> None:
    job = {"url": f"{URL}?secret=1", "save_path": "models/a.bin", "dlpool": {"priority": "high", "user_id": "me"}}
    pushed = api.good("POST", "/jobs", job)
    assert pushed["result"] == "OK"
    [listed] = api.good("GET", "/jobs?state=queued")["jobs"]
    shown = api.good("GET", f"/jobs/{pushed['id']}")
    assert shown == listed
    assert shown["url"] == URL, "the query may be a secret"
    assert (shown["state"], shown["priority"], shown["user_id"]) == ("queued", "high", "me")
    with api.redis.client() as client:
        assert json.loads(client.hget(QueueKeys().job(pushed["id"]), "raw") or b"") == job


def test_what_push_refuses_is_refused_and_named(api: Api) -> None:
    good: dict[str, Any] = {"url": URL, "save_path": "a"}
    wrongs: list[Any] = [
        {"save_path": "a"},
        {"url": "ftp://x/a", "save_path": "a"},
        {"url": URL, "save_path": ""},
        good | {"more": 1},
        good | {"dlpool": {"prioritty": "high"}},
        good | {"dlpool": {"checksum": "md5:12"}},
        good | {"dlpool": {"headers": {"Range": "bytes=0-"}}},
        [],
        "text",
        {"jobs": []},
        {"jobs": [good] * 501},
    ]
    for wrong in wrongs:
        assert api.refused(400, "POST", "/jobs", wrong) == "usage", wrong
    for path in ("../out-of-it", "/etc/passwd", "a/../../b", "a\nb"):
        assert api.refused(400, "POST", "/jobs", {"url": URL, "save_path": path}) == "policy", path
    assert api.good("GET", "/jobs")["jobs"] == []


def test_of_a_batch_bad_jobs_are_named_and_the_others_queued(api: Api) -> None:
    good = {"url": URL, "save_path": "a", "dlpool": {"id": "one"}}
    jobs = [
        good,
        {**good, "save_path": "../b"},
        {"url": URL},
        {**good, "url": "foo"},
        {**good, "dlpool": {"priority": "x"}},
        good,
    ]
    answers = api.good("POST", "/jobs", {"jobs": jobs})["results"]
    said = [one.get("result") or one["code"] for one in answers]
    assert said == ["OK", "policy", "usage", "usage", "usage", "DUP"]
    assert answers[2]["error"] == "save_path is missing in the job"
    assert len(api.good("GET", "/jobs")["jobs"]) == 1


def test_a_body_that_is_not_json_is_refused(api: Api) -> None:
    for kind, status in (("text/plain", 415), ("application/x-www-form-urlencoded", 415), ("application/json", 400)):
        answer = requests.post(api.server.root + BASE + "/jobs", data="{", headers={"Content-Type": kind}, timeout=20)
        assert answer.status_code == status
    huge = {"url": URL, "save_path": "a", "dlpool": {"user_id": "x" * 5_000_000}}
    assert api.refused(413, "POST", "/jobs", huge) == "too_large"


def test_verbs_change_a_job_or_say_why_not(api: Api) -> None:
    job = api.push()
    for verb, state in (("pause", "paused"), ("resume", "queued"), ("promote", "queued"), ("cancel", "cancelled")):
        assert api.good("POST", f"/jobs/{job}/{verb}", {}) == {"id": job, "result": "OK"}
        assert api.good("GET", f"/jobs/{job}")["state"] == state
    assert api.refused(409, "POST", f"/jobs/{job}/pause", {}) == "not_possible"
    assert api.good("POST", f"/jobs/{job}/retry", {})["result"] == "OK"
    for method, level in (("PUT", "low"), ("POST", "high")):
        api.good(method, f"/jobs/{job}/priority", {"priority": level})
        assert api.good("GET", f"/jobs/{job}")["priority"] == level
    assert api.refused(400, "PUT", f"/jobs/{job}/priority", {"priority": "urgent"}) == "usage"
    for path in ("/jobs/nobody", "/jobs/%00", "/jobs/%ff%fe"):
        assert api.refused(404, "POST", f"{path}/cancel", {}) == "no_such_job"
        assert api.refused(404, "GET", path) == "no_such_job"


def test_failures_are_listed_run_again_and_removed(api: Api) -> None:
    for name in ("one", "two"):
        api.good("POST", "/jobs", {"url": f"{URL}?{name}", "save_path": "a", "dlpool": {"id": name}})
        api.good("POST", f"/jobs/{name}/cancel", {})
    first, second = api.good("GET", "/failures")["failures"]
    assert first["url"] == URL and first["message"] == "the job was cancelled"
    api.good("POST", f"/failures/{first['id']}/retry", {})
    api.good("POST", f"/failures/{second['id']}/remove", {})
    assert api.good("GET", "/failures")["failures"] == []
    assert api.refused(404, "POST", f"/failures/{second['id']}/retry", {}) == "no_such_job"
    assert len(api.good("GET", "/jobs?state=queued")["jobs"]) == 1


def test_queue_nodes_and_limits(api: Api) -> None:
    with api.redis.client() as client:
        Transitions(client, QueueKeys()).heartbeat("s1", [], lease_s=60, info={"node": "n1", "slots": 4, "busy": 1})
    [node] = api.good("GET", "/nodes")["nodes"]
    assert (node["node"], node["is_drained"], node["state"]) == ("n1", False, "working")
    assert api.good("POST", "/nodes/n1/drain", {})["nodes"][0]["state"] == "drained"
    assert api.good("POST", "/nodes/n1/resume", {})["nodes"][0]["state"] == "working"
    assert api.refused(409, "POST", "/nodes/n1/resume", {}) == "not_possible"
    for verb in ("drain", "resume", "forget"):
        assert api.refused(404, "POST", f"/nodes/n2/{verb}", {}) == "no_such_node"
    assert api.refused(409, "POST", "/nodes/n1/forget", {}) == "not_possible"
    assert api.good("POST", "/queue/pause", {}) == api.good("GET", "/queue") == {"is_halted": True}
    assert "already paused" in api.ask("POST", "/queue/pause", {}).json()["error"]
    assert api.good("POST", "/queue/resume", {}) == {"is_halted": False}
    limits = api.good("GET", "/limits")
    assert limits["all"]["max_per_host"] == 3 and limits["hosts"]["example.org"]["rate_per_host"] == 5


def test_an_overview_has_all_that_a_page_shows_and_an_etag(api: Api) -> None:
    with api.redis.client() as client:
        transitions = Transitions(client, QueueKeys())
        transitions.heartbeat("s1", [], lease_s=60, info={"node": "n1"})
        api.push("runs.bin", id="runs")
        claim = transitions.claim("s1", [], 1, lease_s=60, order="fifo")
        assert claim is not None
        api.push("fails.bin", id="fails")
        failing = transitions.claim("s1", None, 1, lease_s=60, order="fifo")
        assert failing is not None
        note = {"label": "not_found", "message": "404"}
        transitions.finish("s1", [FinishRequest(failing.jobs[0].lease, Disposition.FAIL, note=note)])
        api.push("waits.bin", id="waits")
        first = api.ask("GET", "/overview")
        seen = first.json()
        assert [seen[name][0]["id"] for name in ("running", "failed", "listed")] == ["runs", "fails", "waits"]
        assert seen["failed"][0]["note"] == note and seen["today"]["failed"] == 1
        assert client.lrange(QueueKeys().mail("s1"), 0, -1) == [b"status"], "its supervisor is asked for its status"
    again = api.ask("GET", "/overview", If_None_Match=first.headers["ETag"])
    assert (again.status_code, again.content) == (304, b"")
    assert api.good("GET", "/overview?state=succeeded")["listed"] == []
    assert api.good("GET", "/stats")["running"] == 1


def test_an_overview_tells_what_is_lost_halted_and_waiting(api: Api) -> None:
    with api.redis.client() as client:
        transitions, keys = Transitions(client, QueueKeys()), QueueKeys()
        worker = {"pid": 7, "busy": 1, "slots": 2, "memory": 5, "state": "ready"}
        for sid, info in (("n1-00000001", {"workers_info": [worker]}), ("n2-00000002", {}), ("n3-00000003", {})):
            transitions.heartbeat(sid, [], lease_s=60, info={"node": sid[:2], "busy": int(sid[1] == "1"), **info})
        client.zadd(keys.supervisors, {"n3-00000003": (int(client.time()[0]) - 99) * 1000})
        api.push("runs.bin", id="runs")
        assert transitions.claim("n1-00000001", [], 1, lease_s=60, order="fifo")
        for name in ("waits", "off", "halts"):
            api.push(name, id=name)
        api.good("POST", "/jobs/off/cancel", {})
        api.good("POST", "/jobs/halts/pause", {})
        api.good("POST", "/queue/pause", {})
        seen = api.good("GET", "/overview?state=cancelled")
    assert [(one["node"], one["state"]) for one in seen["nodes"]] == [
        ("n1", "working"),
        ("n2", "halted"),
        ("n3", "lost"),
    ]
    assert seen["nodes"][0]["workers_info"] == [worker] and seen["nodes"][2]["seen_at"] < seen["now"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", seen["now"])
    figures = seen["figures"]
    assert [figures[name] for name in ("waiting", "running", "paused", "failed", "cancelled")] == [1, 1, 1, 0, 1]
    assert (seen["running"][0]["node"], seen["listed"][0]["id"], seen["failed"]) == ("n1", "off", [])
    assert seen["is_halted"] and seen["halted_at"][:10] == seen["now"][:10] and seen["list_limits"] == 50
    validate({"components": {"schemas": NAMED}, **NAMED["Overview"]}, seen)
    forgotten = api.good("POST", "/nodes/n3/forget", {})["nodes"]
    assert [one["node"] for one in forgotten] == ["n1", "n2"]


def test_many_jobs_are_steered_at_once_each_with_its_answer(api: Api) -> None:
    for name in ("a", "b"):
        api.push(name, id=name)
    asked = {"verb": "cancel", "ids": ["a", "nobody", "b", "a"]}
    results = api.good("POST", "/jobs/batch", asked)["results"]
    assert [one["id"] for one in results] == asked["ids"]
    assert [one.get("result") or one["code"] for one in results] == ["OK", "no_such_job", "OK", "not_possible"]
    assert api.good("POST", "/jobs/batch", {"verb": "retry", "ids": ["a"]})["results"] == [{"id": "a", "result": "OK"}]
    removed = api.good("POST", "/jobs/batch", {"verb": "remove", "ids": ["a", "b"]})["results"]
    assert [one.get("result") for one in removed] == [None, "OK"], "one of them waits"
    assert {one["id"] for one in api.good("GET", "/jobs")["jobs"]} == {"a"}
    for wrong in (
        {"verb": "pause", "ids": ["a"]},
        {"verb": "retry", "ids": []},
        {"verb": "retry", "ids": ["a b"]},
        {"verb": "retry", "ids": ["a"] * 501},
        {"ids": ["a"]},
    ):
        assert api.refused(400, "POST", "/jobs/batch", wrong) == "usage"


def test_lists_are_read_to_their_end(api: Api) -> None:
    for number in range(5):
        job = {"url": f"{URL}?{number}", "save_path": "a", "dlpool": {"id": f"j{number}"}}
        api.good("POST", "/jobs", job)
        api.good("POST", f"/jobs/j{number}/cancel", {})
    for path, name in (("/jobs?state=cancelled", "jobs"), ("/jobs?limit=2", "jobs"), ("/failures?limit=2", "failures")):
        found: list[Any] = []
        after: str | None = ""
        while after is not None:
            answer = api.good("GET", f"{path}{after}")
            found += answer[name]
            after = None if answer["next"] is None else f"&after={answer['next']}"
        assert len({one["id"] for one in found}) == len(found) == 5, path
    assert "cursor" in api.ask("GET", "/jobs?state=failed&after=queued.1").json()["error"]
    assert api.refused(400, "GET", "/failures?after=%20") == "usage"


def test_the_history_is_told_since_a_moment(api: Api) -> None:
    with api.redis.client() as client:
        for ms in (1000, 2000):
            client.xadd(QueueKeys().history, {"waiting": 1, "running": 2, "rate": 3, "failed": 0}, id=f"{ms}-0")
    assert api.good("GET", "/history") == {"samples": [[1000, 1, 2, 3], [2000, 1, 2, 3]]}
    assert api.good("GET", f"/history?since={10**13}") == {"samples": []}
    assert api.good("GET", "/history?since=1001")["samples"] == [[2000, 1, 2, 3]]


def test_head_is_answered_where_get_is(api: Api) -> None:
    paths = [one.path for one in OPERATIONS if one.method == "GET" and "{" not in one.path]
    assert len(paths) > 7
    for path in ("/", "/static/page.js", *(BASE + path for path in (*paths, "/openapi.json"))):
        got = requests.get(api.server.root + path, timeout=20)
        head = requests.head(api.server.root + path, timeout=20)
        assert (head.status_code, head.content) == (200, b""), path
        assert head.headers["Content-Type"] == got.headers["Content-Type"]
        assert head.headers["Content-Length"] and head.headers["ETag"]
    assert requests.head(f"{api.server.root}{BASE}/jobs/nobody", timeout=20).status_code == 404


def test_while_redis_is_away_it_says_so_and_goes_on_by_itself(api: Api) -> None:
    api.redis.stop()
    try:
        for path in ("/overview", "/jobs", "/stats", "/nodes"):
            answer = api.ask("GET", path)
            assert (answer.status_code, answer.json()["code"]) == (503, "redis")
            assert int(answer.headers["Retry-After"]) > 0
        answer = api.ask("POST", "/jobs", {"url": URL, "save_path": "a", "dlpool": {"id": "mine"}})
        assert answer.status_code == 503 and "it is job mine" in answer.json()["error"]
        assert requests.get(f"{api.server.url}/health", timeout=20).status_code == 200
    finally:
        api.redis.start()
    assert api.push() in {job["id"] for job in api.good("GET", "/jobs")["jobs"]}


def test_a_redis_that_never_answers_keeps_nobody_waiting_for_long(tmp_path: Path) -> None:
    """One request waits for it at a time, and the others are told at once: else each thread would wait, each time."""
    with ExitStack() as stack:
        silent = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=200))
        redis = {"url": f"redis://127.0.0.1:{silent.getsockname()[1]}/0"}
        server = stack.enter_context(
            WebServer(tmp_path, {"redis": redis, "web": {**ALL, "processes": 1, "threads": 8}})
        )
        pool = stack.enter_context(ThreadPoolExecutor(30))
        asked = [pool.submit(requests.get, f"{server.root}{BASE}/stats", timeout=60) for _ in range(300)]
        for number in range(20):
            chunk = {"file_id": "f", "chunk_index": number}
            answer = requests.post(f"{server.url}/upload_chunk", data=chunk, files={"chunk": b"x"}, timeout=60)
            assert answer.status_code == 200, answer.text
        for one in asked:  # one after the other in each thread they would take more than three minutes
            answer = one.result(60)
            assert (answer.status_code, answer.json()["code"]) == (503, "redis")
            assert int(answer.headers["Retry-After"]) > 0


def test_a_page_of_another_site_changes_nothing(api: Api) -> None:
    job = {"url": URL, "save_path": "a"}
    assert api.refused(403, "POST", "/jobs", job, Origin="https://evil.example") == "foreign_origin"
    assert api.refused(403, "POST", "/jobs", job, Sec_Fetch_Site="cross-site") == "foreign_origin"
    form = {"file_id": "x", "chunk_index": "0"}
    answer = requests.post(
        f"{api.server.url}/upload_chunk",
        data=form,
        files={"chunk": b"x"},
        headers={"Origin": "https://evil.example"},
        timeout=20,
    )
    assert answer.status_code == 403
    assert api.good("GET", "/jobs")["jobs"] == []
    assert api.ask("POST", "/jobs", job, Origin=api.server.root, Sec_Fetch_Site="same-origin").status_code == 200


def test_with_a_secret_the_api_is_closed_and_the_page_is_open(tmp_path: Path) -> None:
    settings = {"redis": {"url": "redis://localhost:1"}, "web": {"auth": "on", "secret_key": "s" * 40}}
    with WebServer(tmp_path, settings) as server:
        for path in ("/overview", "/openapi.json"):
            assert requests.get(server.root + BASE + path, timeout=20).status_code == 401
        assert requests.post(server.root + BASE + "/jobs", json={}, timeout=20).status_code == 401
        known = requests.get(f"{server.root}{BASE}/openapi.json", headers={"X-Secret-Key": "s" * 40}, timeout=20)
        assert known.json()["security"] == [{"bearer": []}, {"secret": []}]
        page = requests.get(f"{server.root}/", timeout=20)
        assert page.status_code == 200
        policy = page.headers["Content-Security-Policy"]
        assert "script-src 'self'" in policy and "unsafe" not in policy
        assert requests.get(server.root + "/static/../settings.py", timeout=20).status_code in (401, 404)


@pytest.mark.parametrize(
    ("method", "origin", "fetch_site", "is_refused"),
    [
        ("GET", "https://evil.example", "cross-site", False),
        ("POST", None, None, False),
        ("POST", "http://here:80", None, False),
        ("POST", "http://HERE:80", None, False),
        ("POST", "http://here:81", None, True),
        ("POST", "null", None, True),
        ("POST", "http://[", None, True),
        ("DELETE", "http://here:80", "same-site", True),
        ("PUT", "https://proxy.example", "same-origin", False),
        ("POST", None, "none", False),
    ],
)
def test_who_is_foreign(method: str, origin: str | None, fetch_site: str | None, is_refused: bool) -> None:
    assert is_cross_site(method, "here:80", origin, fetch_site) is is_refused


@pytest.mark.parametrize(
    ("host", "is_refused"),
    [
        (None, False),
        ("", False),
        ("127.0.0.1:18101", False),
        ("[::1]:18101", False),
        ("localhost", False),
        ("LOCALHOST.:80", False),
        ("x.localhost:80", False),
        ("ours.example:80", False),
        ("evil.example", True),
        ("evil.example:18101", True),
        ("127.0.0.1.evil.example", True),
        ("localhost.evil.example", True),
    ],
)
def test_which_names_are_ours(host: str | None, is_refused: bool) -> None:
    assert is_rebinding(host, {"ours.example"}) is is_refused


def test_where_nobody_needs_a_key_only_known_names_are_answered(tmp_path: Path) -> None:
    """Else a page of another site, whose name points to this machine by now, could read and steer all."""
    settings = {"redis": {"url": "redis://localhost:1"}, "web": {"hosts": "ours.example, other.example"}}
    with WebServer(tmp_path, settings) as server:
        for host, path, status in (
            ("evil.example", "/go-uploader/tasks", 403),
            ("evil.example", "/", 403),
            ("ours.example", "/", 200),
            ("other.example:80", "/go-uploader/tasks", 200),
            ("evil.example", "/go-uploader/health", 200),
        ):
            answer = requests.get(server.root + path, headers={"Host": host}, timeout=20)
            assert answer.status_code == status, (host, path)
            assert status != 403 or answer.json()["code"] == "foreign_host"


@pytest.mark.parametrize(
    ("schema", "value", "said"),
    [
        (JOB, {"save_path": "a"}, "url is missing in the body"),
        (JOB, {"url": "ftp://h/a", "save_path": "a"}, "url is not an http or https URL"),
        (JOB, {"url": URL, "save_path": "a", "dlpool": {"id": "a b"}}, "dlpool.id is not 1 to 64 of A-Z a-z 0-9 _ . -"),
        (JOB, {"url": URL, "save_path": "a", "dlpool": {"priority": "x"}}, "priority is neither high, normal, low nor"),
        (JOB, {"url": URL, "save_path": "a", "dlpool": {"not_before": "x"}}, "not_before is neither RFC 3339 nor"),
        (
            JOB,
            {"url": URL, "save_path": "a", "dlpool": {"limit_rate": 5}},
            "limit_rate is not a rate of at least 1024 bytes per second",
        ),
        (
            JOB,
            {"url": URL, "save_path": "a", "dlpool": {"checksum": "x"}},
            "dlpool.checksum is not of the form ALGO:HEX",
        ),
        (
            JOB,
            {"url": URL, "save_path": "a", "dlpool": {"headers": {"a": 1}}},
            "dlpool.headers.a is not of type string",
        ),
        (JOB, {"url": 1, "save_path": "a"}, "url is not of type string"),
        (JOB, {"url": URL, "save_path": "a", "dlpool": {"if_exists": "x"}}, "dlpool.if_exists is none of overwrite"),
        (JOB, {"url": URL, "save_path": "a", "dlpool": {"max_attempts": 0}}, "dlpool.max_attempts is below 1"),
        (BATCH, {"jobs": [{}, 1]}, "jobs[1] is not of type object"),
        (JOB, {"url": URL, "save_path": ""}, "save_path is empty"),
        (BATCH, {"jobs": [], "more": 1}, "the body"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(schema: Any, value: Any, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        validate(schema, value)
    assert said in str(caught.value)


def test_no_refusal_shows_a_regular_expression() -> None:
    def schemas(value: Any) -> Iterator[Any]:
        if isinstance(value, dict):
            yield value
        for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            yield from schemas(one)

    for schema in schemas({"a": JOB, "b": BATCH, "c": NAMED["Control"], "d": [dict(one.query) for one in OPERATIONS]}):
        if "pattern" in schema:
            with pytest.raises(UsageError) as caught:
                validate(schema, "\u00e9 ")
            assert schema["pattern"] not in str(caught.value) and "^" not in str(caught.value)


def test_options_and_bodies_that_have_no_meaning_are_refused() -> None:
    declared = {"limit": LIMIT}
    assert parse_query(declared, {}) == {"limit": 50}
    assert parse_query(declared, {"limit": "7"}) == {"limit": 7}
    for wrong in ({"limit": "0"}, {"limit": "x"}, {"limit": "1.5"}, {"limit": ["1", "2"]}, {"lime": "1"}):
        with pytest.raises(UsageError):
            parse_query(declared, wrong)
    for body in (b"", b"{", b"\xff", b"NaN", b"[" * 100_000):
        with pytest.raises(UsageError):
            parse_body(body)


def test_the_document_names_only_what_it_has() -> None:
    made = build_document(OPERATIONS, "/go-uploader", is_authenticated=False)
    text = json.dumps(made)
    assert set(re.findall(r"#/components/schemas/(\w+)", text)) <= set(NAMED)
    operations = [one for path in made["paths"].values() for one in path.values()]
    names = [one["operationId"] for one in operations]
    assert len(set(names)) == len(names) > len(OPERATIONS) + 20
    linked = {
        link["operationId"] for one in operations for link in one["responses"].get("200", {}).get("links", {}).values()
    }
    assert linked and linked <= set(names)
    for path, methods in made["paths"].items():
        if path.startswith(BASE):
            assert all("400" in one["responses"] for one in methods.values()), path
    assert "429" in made["paths"]["/go-uploader/upload_chunk"]["post"]["responses"]


def test_every_path_of_the_document_is_a_route_with_its_methods(api: Api) -> None:
    for path, methods in api.good("GET", "/openapi.json")["paths"].items():
        asked = requests.options(api.server.root + re.sub("{[a-z_]+}", "x", path), timeout=20)
        assert {method.upper() for method in methods} <= set(re.split(", *", asked.headers["Allow"])), path


def test_every_route_is_in_the_document(api: Api) -> None:
    """But for the page itself."""
    code = (
        "import json; from falcon.inspect import inspect_routes; from dlpool.cli.web import application\n"
        "print(json.dumps([one.path for one in inspect_routes(application())]))"
    )
    environment = {**os.environ, "DLPOOL_INI": str(api.server.ini)}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    routes = {re.sub("{[^}]+}", "{}", path) for path in json.loads(ended.stdout)}
    documented = {re.sub("{[^}]+}", "{}", path) for path in api.good("GET", "/openapi.json")["paths"]}
    page = {path for path in routes if path == "/" or path.startswith("/static/")}
    steps = {f"/go-uploader/tasks/{step}" for step in ("{}/pause", "{}/resume", "batch", "cleanup")}
    assert routes - page - {f"{BASE}/openapi.json"} == documented - steps  # an id may have slashes: one route for all


ST_CONFIG = """\
hooks = "hooks.py"
[generation]
allow-extra-parameters = false
[checks]
negative_data_rejection.expected-statuses = ["4xx", "503"]
missing_required_header.expected-statuses = ["400", "401", "403", "404", "405", "412", "415"]
"""
ST_HOOKS = """\
import schemathesis
schemathesis.serializer.alias("application/offset+octet-stream", "application/octet-stream")
"""


def test_schemathesis_finds_nothing(api: Api, tmp_path: Path) -> None:
    for number in range(3):
        api.push(f"{number}", id=f"known-{number}")
    (tmp_path / "schemathesis.toml").write_text(ST_CONFIG)
    (tmp_path / "hooks.py").write_text(ST_HOOKS)
    # What a schema cannot say (a URL, a date that is none) is refused with 400, which that check takes for an error.
    command = [
        sys.executable,
        "-m",
        "schemathesis.cli",
        "run",
        f"{api.server.root}{BASE}/openapi.json",
        "--seed",
        "7",
        "--phases",
        "coverage,stateful",
        "--max-examples",
        "3",
        "--checks",
        "all",
        "--no-color",
        "--exclude-checks",
        "positive_data_acceptance",
    ]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stdout[-16000:] + ended.stderr[-2000:]
    tested = re.search(r"(\d+) generated, (\d+) passed", ended.stdout)
    assert tested and tested[1] == tested[2] and int(tested[1]) > 1000, ended.stdout[-2000:]
    assert not api.server.events("request_internal_error")


def test_the_curl_commands_of_the_documents_work(api: Api) -> None:
    commands = [line.split(" #")[0] for line in PAGE.splitlines() if line.startswith("curl ") and "/api/v1" in line]
    assert len(commands) >= 3
    job = ""
    for command in commands:
        words = shlex.split(command.replace("http://127.0.0.1:18101", api.server.root).replace("/ID", f"/{job}"))
        ended = subprocess.run([*words, "-sS", "--fail"], capture_output=True, text=True, timeout=30)
        assert ended.returncode == 0, (command, ended.stdout, ended.stderr)
        job = json.loads(ended.stdout).get("id", job)
    wait_until(lambda: api.good("GET", f"/jobs/{job}")["state"] == "paused")
