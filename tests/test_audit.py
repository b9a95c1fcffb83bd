"""Who changed what: every way to change something leaves an audit event, in the log and in a capped stream of Redis."""

from __future__ import annotations

import argparse
import getpass
import json
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import falcon
import jwt
import pytest
import requests
from falcon import inspect

from dlpool.cli.audit_recorder import ACTIONS as COMMANDS
from dlpool.cli.audit_recorder import READS, action_of, author
from dlpool.cli.main import build_parser, main
from dlpool.config import LoggingSettings, RedisSettings, Settings, UploadSettings, WebSettings
from dlpool.config.sections import PathSettings
from dlpool.jobs.audit_events import ACTIONS, KINDS, AuditActor, AuditChange, event_fields
from dlpool.jobs.audit_stream import AuditFilter, AuditReader, AuditWriter
from dlpool.jobs.job_admin import JobAdmin
from dlpool.jobs.keys import QueueKeys
from dlpool.jobs.pushed_job import PushedJob, compose_job
from dlpool.jobs.transitions import Transitions
from dlpool.observe.log import Log
from dlpool.observe.processors import LogOrigin
from dlpool.scan.quarantine import Quarantine
from dlpool.storage.values import UploadEvent
from dlpool.web.app import create_app
from dlpool.web.auditing import CHANGING, REFUSALS, AuditLog, change_of, start_request
from dlpool.web.counters import SharedCounters
from dlpool.web.operations import BASE, OPERATIONS
from tests.conftest import wait_until
from tests.processes import finish, start
from tests.redis_server import RedisServer
from tests.test_quarantine import put
from tests.web import WebServer

KEY, SECRET = "k" * 32, "s" * 32
URL = "https://example.org/a.bin"
TUS = {"Tus-Resumable": "1.0.0"}
Seen = tuple[str, str, str]  # action, object, result


def trail(redis: RedisServer, **wanted: Any) -> list[dict[str, Any]]:
    """What the stream says, without ids and times."""
    with redis.client() as client:
        found = [one.as_json() for one in AuditReader(client, QueueKeys()).last(10_000, AuditFilter(**wanted))]
    return [{name: value for name, value in one.items() if name not in ("id", "at")} for one in found]


def failed_job(redis: RedisServer, job_id: str, url: str) -> None:
    """A job that was cancelled: it has a failure record."""
    with redis.client() as client:
        transitions = Transitions(client, QueueKeys())
        assert transitions.push([(PushedJob.parse(compose_job(url, job_id)), job_id)]) == ["OK"]
        JobAdmin(client, QueueKeys()).execute("cancel", job_id, priority="", message="cancelled", at=time.time())


def seen(redis: RedisServer, **wanted: Any) -> list[Seen]:
    return [(one["action"], one.get("object", ""), one["result"]) for one in trail(redis, **wanted)]


# --- nothing can be forgotten ---


def test_each_changing_method_of_each_route_has_an_action(tmp_path: Path) -> None:
    paths = PathSettings(state_dir=str(tmp_path / "s"), log_dir=str(tmp_path / "l"), download_dir=str(tmp_path / "d"))
    upload = UploadSettings(upload_dir=str(tmp_path / "u"), merged_dir=str(tmp_path / "m"))
    app = create_app(Settings(paths=paths, upload=upload, web=WebSettings(prefix="/p")))
    found = {}
    for route in inspect.inspect_routes(app):
        place: Any = app._router.find(re.sub(r"\{[^}]*\}", "x", route.path))
        resource, _, params, _ = place
        for method in CHANGING:
            if hasattr(resource, f"on_{method.lower()}"):
                action, _ = change_of(resource, method, params)
                assert action in ACTIONS, f"{method} {route.path}"
                found[f"{method} {route.path}"] = action
    assert len(found) >= len([one for one in OPERATIONS if one.action]) + 7
    assert {one.action for one in OPERATIONS if one.method == "GET"} == {""}


def commands() -> Iterator[argparse.Namespace]:
    """Each command, and each of its actions."""
    [subparsers] = [one for one in build_parser()._actions if isinstance(one, argparse._SubParsersAction)]
    for name, parser in subparsers.choices.items():
        assert parser.get_default("command") == name
        actions = [one.choices for one in parser._actions if one.dest == "action" and not one.option_strings]
        for action in actions[0] if actions else [None]:
            yield argparse.Namespace(command=name, action=action)


def test_each_command_has_an_action_or_changes_nothing() -> None:
    found = {action_of(arguments) for arguments in commands()}  # raises for one that was forgotten
    assert found == set(COMMANDS.values())
    assert found - {READS} <= set(ACTIONS)


def test_the_documents_name_each_action() -> None:
    text = (Path(__file__).parents[1] / "docs" / "operations.md").read_text()
    named = set(re.findall(r"`([a-z]+\.[a-z]+)`", text.partition("## Who changed what")[2].partition("\n## ")[0]))
    assert named == set(ACTIONS)


# --- over HTTP ---


@dataclass(frozen=True)
class Site:
    server: WebServer
    redis: RedisServer

    def ask(self, method: str, path: str, who: str = "ann", **options: Any) -> requests.Response:
        token = jwt.encode({"sub": who, "exp": int(time.time()) + 600}, KEY, algorithm="HS256")
        given = {"X-Secret-Key": SECRET} if who == "secret" else {"Authorization": f"Bearer {token}"} if who else {}
        headers = {**given, **options.pop("headers", {})}
        return requests.request(method, self.server.root + path, headers=headers, timeout=20, **options)

    def wait_for(self, expected: Sequence[Seen]) -> None:
        with suppress(AssertionError):
            wait_until(lambda: len(seen(self.redis)) >= len(expected), 5.0)
        assert seen(self.redis) == list(expected)


@pytest.fixture(scope="module")
def _site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    with RedisServer(folder / "redis") as redis:
        web = {"jwt_key": KEY, "secret_key": SECRET, "request_rate": "100000/s", "request_burst": 100000}
        settings: Any = {"redis": {"url": redis.url, "audit_events": 1000}, "web": web}
        with WebServer(folder / "web", settings) as server:
            yield Site(server, redis)


@pytest.fixture
def site(_site: Site) -> Site:
    """The server, whose Redis is empty."""
    with _site.redis.client() as client:
        client.flushall()
    return _site


JOB = {"url": f"{URL}?token=hunter2", "save_path": "a.bin"}
NO_OWNER = "0" * 32
REQUESTS: list[tuple[str, str, Any, list[Seen]]] = [
    ("POST", "/jobs", {**JOB, "dlpool": {"id": "j1"}}, [("job.push", "j1", "done")]),
    ("POST", "/jobs", {**JOB, "dlpool": {"id": "j1"}}, [("job.push", "j1", "unchanged")]),
    (
        "POST",
        "/jobs",
        {"jobs": [{**JOB, "dlpool": {"id": "j2"}}, {"url": "x"}]},
        [("job.push", "j2", "done"), ("job.push", "", "usage")],
    ),
    ("POST", "/jobs", {"url": 3}, [("job.push", "", "usage")]),
    *[("POST", f"/jobs/j1/{verb}", {}, [(f"job.{verb}", "j1", "done")]) for verb in ("pause", "resume", "promote")],
    *[("POST", f"/jobs/j1/{verb}", {}, [(f"job.{verb}", "j1", "done")]) for verb in ("cancel", "retry")],
    *[(verb, "/jobs/j1/priority", {"priority": "low"}, [("job.priority", "j1", "done")]) for verb in ("PUT", "POST")],
    ("POST", "/jobs/nobody/cancel", {}, [("job.cancel", "nobody", "no_such_job")]),
    (
        "POST",
        "/jobs/batch",
        {"verb": "cancel", "ids": ["j2", "j3"]},
        [("job.cancel", "j2", "done"), ("job.cancel", "j3", "no_such_job")],
    ),
    ("POST", "/jobs/batch", {"verb": "remove", "ids": ["j2"]}, [("job.remove", "j2", "done")]),
    ("POST", "/jobs/batch", {"verb": "explode"}, [("job.control", "", "usage")]),
    ("POST", "/queue/pause", {}, [("queue.pause", "", "done")]),
    ("POST", "/queue/pause", {}, [("queue.pause", "", "not_possible")]),
    ("POST", "/queue/resume", {}, [("queue.resume", "", "done")]),
    *[("POST", f"/nodes/n/{verb}", {}, [(f"node.{verb}", "n", "no_such_node")]) for verb in ("drain", "resume")],
    ("POST", "/nodes/n/forget", {}, [("node.forget", "n", "no_such_node")]),
    ("POST", f"/failures/{NO_OWNER}/retry", {}, [("failure.retry", NO_OWNER, "no_such_job")]),
    ("POST", "/failures/OLD/remove", {}, [("failure.remove", "OLD", "done")]),
]


def test_each_operation_of_the_job_api_is_an_event(site: Site) -> None:
    failed_job(site.redis, "j4", "https://example.org/four")
    [record] = [one["id"] for one in site.ask("GET", f"{BASE}/failures").json()["failures"]]
    done: list[Seen] = []
    for method, path, body, expected in REQUESTS:
        site.ask(method, BASE + path.replace("OLD", record), json=body)
        done += [(action, name.replace("OLD", record), result) for action, name, result in expected]
        site.wait_for(done)
    assert {action for action, _, _ in done} - {"job.remove"} == {one.action for one in OPERATIONS if one.action}
    events = trail(site.redis)
    assert {(one["actor"], one["address"]) for one in events} == {("token ann", "127.0.0.1")}
    assert "hunter2" not in json.dumps(events)
    logged = site.server.events("audit")[-len(done) :]
    said = [(one["dlpool.action"], one.get("dlpool.object", ""), one["dlpool.result"]) for one in logged]
    assert sorted(said) == sorted(done)
    assert {one["client.address"] for one in logged} == {"127.0.0.1"}


def test_the_course_of_an_upload_is_told_but_not_its_bytes(site: Site) -> None:
    done: list[Seen] = []

    def change(method: str, path: str, *expected: Seen, who: str = "ann", **options: Any) -> requests.Response:
        answer = site.ask(method, path, who, **options)
        done.extend(expected)
        site.wait_for(done)
        return answer

    prefix, octets = "/go-uploader", {"Content-Type": "application/octet-stream"}
    chunk = f"{prefix}/upload_chunk?file_id=u1&total_chunks=2&file_size=6&chunk_index="
    change("POST", chunk + "0", ("upload.begin", "u1", "done"), data=b"abc", headers=octets)
    change("POST", chunk + "0", data=b"abc", headers=octets)
    for verb in ("pause", "resume"):
        change("POST", f"{prefix}/tasks/u1/{verb}", (f"upload.{verb}", "u1", "done"))
    merge = {"file_id": "u1", "filename": "u1.bin", "total_chunks": 2}
    answer = change("POST", f"{prefix}/merge_chunks", ("upload.merge", "u1", "chunks_missing"), json=merge)
    assert answer.json()["code"] == "chunks_missing"
    change("POST", chunk + "1", data=b"def", headers=octets)
    change("POST", f"{prefix}/merge_chunks", ("upload.merge", "u1", "done"), json=merge)
    change("POST", f"{prefix}/merge_chunks", json=merge)  # the same once more
    change("DELETE", f"{prefix}/tasks/u1", ("upload.delete", "u1", "done"), who="secret")
    change("DELETE", f"{prefix}/tasks/u1", ("upload.delete", "u1", "no_such_task"))
    change(
        "POST",
        f"{prefix}/tasks/batch",
        ("upload.delete", "u9", "no_such_task"),
        json={"action": "delete", "ids": ["u9"]},
    )
    change("POST", f"{prefix}/tasks/batch", ("upload.control", "", "bad_field"), json={"action": 3, "ids": []})
    change("POST", f"{prefix}/tasks/cleanup", json={})
    change("POST", f"{prefix}/tasks/cleanup", ("upload.cleanup", "", "bad_field"), json={"x": "1"})
    created = site.ask("POST", "/files", headers={**TUS, "Upload-Length": "3"}).headers["Location"]
    upload = created.rpartition("/")[2]
    change("HEAD", created, ("upload.begin", upload, "done"), headers=TUS)
    body = {**TUS, "Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}
    change("PATCH", created, ("upload.merge", upload, "done"), data=b"abc", headers=body)
    change("POST", created, ("upload.delete", upload, "done"), headers={**TUS, "X-HTTP-Method-Override": "DELETE"})
    change("POST", "/files", ("upload.begin", "", "bad_version"), headers={"Upload-Length": "3"})
    assert {one["actor"] for one in trail(site.redis)} == {"token ann", "secret"}


def test_attempts_that_are_refused_are_told_and_their_number_is_bounded(site: Site) -> None:
    for number in range(3 * REFUSALS):
        assert site.ask("POST", f"{BASE}/jobs/j{number}/cancel", who="", json={}).status_code == 401
    assert site.ask("GET", f"{BASE}/jobs", who="").status_code == 401
    foreign = {"Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site"}
    assert site.ask("POST", f"{BASE}/queue/pause", json={}, headers=foreign).status_code == 403
    wait_until(lambda: bool(seen(site.redis, action="queue.pause")))
    found = trail(site.redis, action="job.cancel")
    processes = len(site.server.workers())
    assert REFUSALS <= len(found) <= REFUSALS * processes
    assert {(one["actor"], one["result"], one["label"]) for one in found} == {("anonymous", "refused", "unauthorized")}
    [paused] = trail(site.redis, action="queue.pause")
    assert (paused["result"], paused["label"]) == ("refused", "foreign_origin")


def test_without_redis_changes_are_made_and_told_by_the_log(tmp_path: Path) -> None:
    settings: Any = {"redis": {"url": "redis://127.0.0.1:1"}, "web": {"processes": 1}}
    with WebServer(tmp_path, settings) as server:
        query = "file_id=u1&chunk_index=0&total_chunks=1&file_size=3"
        headers = {"Content-Type": "application/octet-stream"}
        answer = requests.post(f"{server.url}/upload_chunk?{query}", data=b"abc", headers=headers, timeout=20)
        assert answer.status_code == 200
        for name in ("merged", "again"):
            body = {"file_id": "u1", "filename": name, "total_chunks": 1}
            assert requests.post(f"{server.url}/merge_chunks", json=body, timeout=20).status_code in (200, 409)
        lost = 'dlpool_web_audit_events_total{outcome="lost"} 3'
        wait_until(lambda: lost in requests.get(f"{server.url}/metrics", timeout=20).text)
        told = [(one["dlpool.action"], one["dlpool.actor"]) for one in server.events("audit")]
        assert told[:2] == [("upload.begin", "anonymous"), ("upload.merge", "anonymous")]
        assert len(server.events("audit_events_lost")) == 1


class Kept:
    """Stands for Redis: keeps what comes."""

    def __init__(self) -> None:
        self.entries: list[Mapping[str, str]] = []

    def add(self, entries: Sequence[Mapping[str, str]]) -> None:
        self.entries += entries


def test_what_the_service_does_by_itself_and_what_was_left_out_are_told(tmp_path: Path) -> None:
    """A merge of a process that was killed is ended by a look at it; of refused attempts the rest is one event."""
    log = Log(tmp_path / "log", LoggingSettings(), LogOrigin("dlpool-web", "n", version="1"))
    kept = Kept()
    audit = AuditLog(cast("Any", kept), SharedCounters(tmp_path / "figures"), log.logger("audit"))
    for method in ("GET", "POST"):
        caller = SimpleNamespace(actor="token ann")
        context = SimpleNamespace(principal=caller, address="10.0.0.1", trace_id=None, is_admitted=False)
        req = cast("Any", SimpleNamespace(method=method, context=context))
        start_request(req)
        audit.record_upload_event(UploadEvent("upload_completed", f"by {method}", "chunked", None, "f", 3))
        audit.finish_request(req, 200, "")
        for _ in range(REFUSALS + 7 if method == "POST" else 0):
            req.context.change = AuditChange("job.cancel", "j1")
            req.context.changes = []
            audit.finish_request(req, 403, "insufficient_scope")
    audit.record_upload_event(UploadEvent("upload_expired", "u1", "chunked", None, "f", 3))
    audit.summarise(now=True)
    audit.close()
    told = [(one.get("actor"), one.get("object"), one["result"], one.get("count")) for one in kept.entries]
    assert told[:2] == [("service", "by GET", "done", None), ("token ann", "by POST", "done", None)]
    assert told[2:-1] == [("token ann", "j1", "refused", None)] * REFUSALS
    assert told[-1] == (None, None, "refused", "7")


# --- by commands ---

Case = tuple[str, list[Seen], int]


def cases(folder: Path) -> list[Case]:
    """Commands, what they leave in the stream, and their exit codes; each goes on where the one before ended."""
    listed = folder / "jobs.txt"
    listed.write_text(
        f"{URL} one\n{URL} two\nftp://x y\n" + '{"url": "https://e.org/", "save_path": "x", "dlpool": {"id": "l1"}}\n'
    )
    record = "failure record of f1"
    return [
        (f"push {URL} a --id j1", [("job.push", "j1", "done")], 0),
        (f"push {URL} a --id j1", [("job.push", "j1", "unchanged")], 0),
        ("pause j1", [("job.pause", "j1", "done")], 0),
        ("resume j1", [("job.resume", "j1", "done")], 0),
        ("promote j1", [("job.promote", "j1", "done")], 0),
        ("priority j1 low", [("job.priority", "j1", "done")], 0),
        ("cancel j1 none", [("job.cancel", "j1", "done"), ("job.cancel", "none", "no_such_job")], 14),
        ("cancel none", [("job.cancel", "none", "no_such_job")], 21),
        ("retry j1", [("job.retry", "j1", "done")], 0),
        (f"push -i {listed}", [("job.push", "*", "done")], 14),
        ("queue pause", [("queue.pause", "", "done")], 0),
        ("queue pause", [("queue.pause", "", "unchanged")], 0),
        ("queue resume", [("queue.resume", "", "done")], 0),
        ("nodes drain n1", [("node.drain", "", "no_such_node")], 1),
        ("nodes resume n1", [("node.resume", "", "no_such_node")], 1),
        ("nodes forget n1", [("node.forget", "", "no_such_node")], 1),
        ("failed retry https://example.org/f1", [("failure.retry", record, "done")], 0),
        ("failed purge https://example.org/f1", [("failure.remove", record, "not_possible")], 1),
        ("purge --done", [("job.forget", "done", "unchanged")], 0),
        ("purge --dead", [("job.forget", "dead", "done")], 0),
        ("quarantine release FIRST", [("quarantine.release", "FIRST", "done")], 0),
        ("quarantine delete SECOND", [("quarantine.delete", "SECOND", "done")], 0),
        *[
            (command, [], 0)
            for command in (
                "jobs",
                "job j1",
                "events",
                "stats",
                "top",
                "failed",
                "nodes",
                "audit",
                "queue stats",
                "quarantine list",
            )
        ],
    ]


@pytest.fixture
def dlpool(redis_server: RedisServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """Run a command on the Redis of the test, beside the log of a service; returns the lines that it prints."""
    ini = tmp_path / "dlpool.ini"
    ini.write_text(
        f"[redis]\nurl = {redis_server.url}\naudit_events = 100\n[paths]\nlog_dir = {tmp_path}/log\n"
        f"[scan]\nquarantine_dir = {tmp_path}/q\n"
    )

    def run(*words: str, code: int = 0) -> list[str]:
        assert main([*words, "-c", str(ini)]) == code, capsys.readouterr().err
        return capsys.readouterr().out.splitlines()

    return run


def test_each_command_that_changes_something_leaves_events(
    dlpool: Callable[..., list[str]], redis_server: RedisServer, tmp_path: Path
) -> None:
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "dlpool.log").touch()
    quarantine = Quarantine(tmp_path / "q", 1 << 30)
    names = {"FIRST": put(tmp_path, quarantine).id, "SECOND": put(tmp_path, quarantine).id}
    failed_job(redis_server, "f1", "https://example.org/f1")
    done: list[Seen] = []
    ran = set()
    for command, expected, code in cases(tmp_path):
        for short, item_id in names.items():
            command = command.replace(short, item_id)
        dlpool(*command.split(), code=code)
        left = seen(redis_server)[len(done) :]
        done += left
        assert [(one[0], one[2]) for one in left] == [(one[0], one[2]) for one in expected], command
        for (_, name, _), (_, wanted, _) in zip(left, expected, strict=True):
            assert wanted in (name, "*") or wanted.startswith("failure") or names.get(wanted) == name, command
        ran |= {one[0] for one in left}
    assert ran == set(COMMANDS.values()) - {READS}
    found = trail(redis_server)
    assert {(one["actor"], one["address"]) for one in found} == {(author().actor, "local")}
    assert author().actor.startswith(f"user {getpass.getuser()}@{socket.gethostname()}")
    assert [one["count"] for one in found if "count" in one] == [3]
    log = [json.loads(line) for line in (tmp_path / "log" / "dlpool.log").read_text().splitlines()]
    audited = [one for one in log if one["event.action"] == "audit"]
    assert [(one["dlpool.action"], one.get("dlpool.object", ""), one["dlpool.result"]) for one in audited] == done


def test_a_command_makes_no_log_where_no_service_is(dlpool: Callable[..., list[str]], tmp_path: Path) -> None:
    dlpool("push", URL, "a")
    assert not (tmp_path / "log").exists()


def test_events_are_chosen_and_shown_without_control_characters(
    dlpool: Callable[..., list[str]], redis_server: RedisServer
) -> None:
    with redis_server.client() as client:
        writer = AuditWriter(client, QueueKeys(), 1000)
        made = [
            ("job.push", "j1", "token ann"),
            ("job.cancel", "j1", "secret"),
            ("queue.pause", "", "bob\x1b[2J"),
            ("node.drain", "n\u202e1", "token ann"),
            ("job.push", "j2", "secret"),
        ]
        writer.add(
            [event_fields(AuditChange(action, name), AuditActor(actor, "10.0.0.1")) for action, name, actor in made]
        )

    def shown(*words: str) -> list[tuple[str, str]]:
        found = [json.loads(line) for line in dlpool("audit", "--json", *words)]
        return [(one["action"], one.get("object", "")) for one in found]

    assert shown("--action", "job") == [("job.push", "j1"), ("job.cancel", "j1"), ("job.push", "j2")]
    assert shown("--action", "job.push", "-n", "1") == [("job.push", "j2")]
    assert shown("--actor", "secret", "--object", "j1") == [("job.cancel", "j1")]
    assert len(shown("--since", "1h")) == len(shown("--since", "2020-01-01T00:00:00Z")) == 5
    assert shown("--since", "2100-01-01T00:00:00Z") == []
    lines = dlpool("audit")
    assert lines[0].split("\t") == ["TIME", "ACTION", "RESULT", "OBJECT", "ACTOR", "ADDRESS"]
    assert len(lines) == 6 and all(line.isprintable() for line in "".join(lines).split("\t"))
    dlpool("audit", "--since", "yesterday", code=2)


def test_the_stream_is_capped_and_its_pages_are_put_together(redis_server: RedisServer) -> None:
    with redis_server.client() as client:
        writer = AuditWriter(client, QueueKeys(), 1000)
        for start_at in range(0, 3000, 500):
            writer.add(
                [event_fields(AuditChange("job.push", f"j{start_at + n}"), AuditActor("a", "b")) for n in range(500)]
            )
        kept: Any = client.xlen(QueueKeys().audit)
        assert 1000 <= kept <= 1200
        found = AuditReader(client, QueueKeys()).last(900, AuditFilter())
    assert [one.fields["object"] for one in found] == [f"j{number}" for number in range(2100, 3000)]


def test_events_are_followed(redis_server: RedisServer) -> None:
    with redis_server.client() as client:
        writer = AuditWriter(client, QueueKeys(), 1000)
        writer.add([event_fields(AuditChange("job.push", "old"), AuditActor("a", "b"))])
        process = start("audit", "--follow", "--json", "--action", "job", "--redis-url", redis_server.url)
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["object"] == "old"
        events = [
            event_fields(AuditChange(action, "new"), AuditActor("a", "b")) for action in ("queue.pause", "job.cancel")
        ]
        writer.add(events)
        assert json.loads(process.stdout.readline())["action"] == "job.cancel"
    process.terminate()
    finish(process)


def test_what_is_no_text_or_too_long_is_written_as_what_can_be() -> None:
    fields = event_fields(AuditChange("job.push", "\udcff" + "x" * 5000), AuditActor("", "local"))
    assert fields["object"].startswith("\\udcff") and len(fields["object"]) < 1100
    assert "actor" not in fields and set(KINDS) == {"job", "failure", "node", "queue", "upload", "quarantine"}
    assert isinstance(RedisSettings().audit_events, int) and falcon.__version__
