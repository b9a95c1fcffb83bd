"""What operators do, with a fleet that works: real supervisors, a real Redis, the commands as they are typed."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from dlpool.cli.main import main
from tests.conftest import make_data, wait_until
from tests.fleet import Client, Supervisor, fleet
from tests.held import HeldFile, check_folder, committed, fetched_again, wait_for_commit, wait_for_run
from tests.origin import Connection, File, Origin, Request
from tests.processes import ROOT, Ended, run
from tests.redis_server import RedisServer

DATA = make_data(1024 * 1024)
ONE_SLOT = {"max_concurrent_downloads": 1, "workers": 1}
LATE_S = 20.0
SOON_S = 10.0  # for what takes two seconds at most, on a machine that does other things too

Call = Callable[..., Ended]


@pytest.fixture
def client(redis_server: RedisServer) -> Client:
    return Client(redis_server.client())


@pytest.fixture
def call(redis_server: RedisServer, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run a command in this process."""

    def called(*arguments: str) -> Ended:
        try:
            code = main([*arguments, "--redis-url", redis_server.url])
        except SystemExit as ended:
            code = int(str(ended.code))
        said = capsys.readouterr()
        return Ended(code, said.out, said.err)

    return called


def state(client: Client, job_id: str) -> str | None:
    value: Any = client.redis.hget(client.keys.job(job_id), "state")
    return None if value is None else str(value.decode())


def wait_for_state(client: Client, job_id: str, wanted: str, timeout_s: float = SOON_S) -> None:
    wait_until(lambda: state(client, job_id) == wanted, timeout_s)


@contextmanager
def held_job(
    server: RedisServer, client: Client, folder: Path, **more: Any
) -> Iterator[tuple[HeldFile, Origin, Supervisor]]:
    """A service with one slot, and in it the job "f", of which something is on disk."""
    settings = {"supervisor": ONE_SLOT | more}
    with HeldFile(DATA) as file, Origin(file) as origin, Supervisor(folder, server.url, settings) as service:
        client.push(f"{origin.url}/f", "f", id="f")
        wait_for_run(service, "f")
        wait_for_commit(service.out / "f")
        yield file, origin, service


# --- jobs -------------------------------------------------------------------------------------------------------------


def test_a_running_job_is_cancelled_with_its_record_and_leaves_nothing(
    redis_server: RedisServer, client: Client, call: Call, tmp_path: Path
) -> None:
    with held_job(redis_server, client, tmp_path) as (file, origin, service):
        ended = call("cancel", "f")
        assert (ended.code, ended.out) == (0, "f\trequested: its supervisor acts within two seconds\n")
        assert client.wait_for_failure(f"{origin.url}/f", SOON_S)["error_message"] == "the job was cancelled"
        wait_for_state(client, "f", "cancelled")
        wait_until(lambda: not list(service.out.iterdir()), SOON_S)
        file.gate.set()
        client.push(f"{origin.url}/g", "g", id="g")  # the slot is free
        client.wait_for(f"{origin.url}/g")
        assert client.ends("f") == 0 and len(service.events("job_cancelled")) == 1
        assert call("cancel", "f").err == "dlpool: cannot cancel f: it is cancelled\n"


def test_a_paused_job_keeps_its_bytes_and_gives_its_slot_away(
    redis_server: RedisServer, client: Client, call: Call, tmp_path: Path
) -> None:
    with held_job(redis_server, client, tmp_path) as (file, origin, service):
        assert call("pause", "f").code == 0
        wait_for_state(client, "f", "paused")
        spans = committed(service.out / "f")
        assert spans and call("jobs", "--state", "paused").out.count("\n") == 2
        file.gate.set()
        client.push(f"{origin.url}/g", "g", id="g")
        client.wait_for(f"{origin.url}/g")
        assert state(client, "f") == "paused" and committed(service.out / "f") == spans
        asked = len(origin.requests)
        assert call("resume", "f").out == "f\tdone\n"
        client.wait_for(f"{origin.url}/f")
        assert fetched_again(origin.requests[asked:], spans) == []
        assert client.ends("f") == 1
        check_folder(service.out, DATA, "f", "g")


def test_a_job_that_is_retried_as_soon_as_it_is_cancelled_leaves_nothing_when_it_is_cancelled_again(
    redis_server: RedisServer, client: Client, call: Call, tmp_path: Path
) -> None:
    """What the first run left is removed while the second one has begun already."""
    with held_job(redis_server, client, tmp_path, lease="3s") as (_file, _origin, service):
        call("cancel", "f")
        wait_for_state(client, "f", "cancelled")
        call("retry", "f")
        wait_for_run(service, "f", 2)
        wait_for_commit(service.out / "f")
        time.sleep(1.0)
        call("pause", "f")
        wait_for_state(client, "f", "paused")
        assert call("cancel", "f").out == "f\tdone\n"
        wait_until(lambda: not list(service.out.iterdir()), LATE_S)


def test_a_paused_job_outlives_its_supervisor_and_goes_on_elsewhere(
    redis_server: RedisServer, client: Client, call: Call, tmp_path: Path
) -> None:
    with held_job(redis_server, client, tmp_path) as (file, origin, service):
        call("pause", "f")
        wait_for_state(client, "f", "paused")
        assert service.stop() == 0
        service.start()
        file.gate.set()
        call("resume", "f")
        client.wait_for(f"{origin.url}/f")
        check_folder(service.out, DATA, "f")


def test_a_job_that_is_cancelled_while_its_supervisor_is_gone_ends_when_it_is_back(
    redis_server: RedisServer, client: Client, call: Call, tmp_path: Path
) -> None:
    with HeldFile(DATA) as file, Origin(file) as origin, Supervisor(tmp_path, redis_server.url) as service:
        client.push(f"{origin.url}/f", "f", id="f")
        wait_for_run(service, "f")
        service.kill()
        assert call("cancel", "f").code == 0
        service.start()
        client.wait_for_failure(f"{origin.url}/f")
        wait_for_state(client, "f", "cancelled")
        wait_until(lambda: not list(service.out.iterdir()))


def test_a_failed_job_is_retried(redis_server: RedisServer, client: Client, call: Call, tmp_path: Path) -> None:
    file = File(DATA)
    is_there = False

    def handle(request: Request, connection: Connection) -> None:
        if is_there:
            file(request, connection)
        else:
            connection.answer(404, {}, b"")

    with Origin(handle) as origin, Supervisor(tmp_path, redis_server.url) as service:
        client.push(f"{origin.url}/f", "f", id="f")
        client.wait_for_failure(f"{origin.url}/f")
        is_there = True
        assert call("retry", "f").code == 0
        client.wait_for(f"{origin.url}/f")
        assert client.failure(f"{origin.url}/f") is None
        check_folder(service.out, DATA, "f")


def test_promoted_and_raised_jobs_go_first(
    redis_server: RedisServer, client: Client, call: Call, tmp_path: Path
) -> None:
    with (
        HeldFile(DATA) as file,
        Origin(file) as origin,
        fleet(tmp_path, redis_server.url, "a", supervisor=ONE_SLOT) as (service,),
    ):
        client.push(f"{origin.url}/held", "held", id="held")
        wait_for_run(service, "held")
        for name in "abcd":
            call("push", f"{origin.url}/{name}", name, "--id", name)
        assert call("priority", "a", "low").code == call("priority", "c", "high").code == 0
        assert call("promote", "d").code == 0
        file.gate.set()
        client.wait_for(*(f"{origin.url}/{name}" for name in "abcd"))
        wait_until(lambda: len(service.events("job_succeeded")) == 5)
        order = [record["dlpool.job.id"] for record in service.events("job_succeeded")]
        assert order == ["held", "d", "c", "b", "a"]


def test_of_several_jobs_those_that_cannot_are_named(call: Call, redis_server: RedisServer) -> None:
    for name in ("a", "b"):
        call("push", f"http://127.0.0.1:9/{name}", name, "--id", name)
    ended = call("cancel", "a", "none", "b", "--json")
    assert ended.code == 14
    results = [json.loads(line) for line in ended.out.splitlines()]
    assert [one["result"] for one in results] == ["OK", "NONE", "OK"]
    assert ended.err == "dlpool: no job 'none' is known: it ended long ago, or is still in the intake list\n"
    assert call("resume", "none").code == 21
    assert call("resume", "a").code == 1


def test_commands_without_redis_say_so(tmp_path: Path) -> None:
    for command in (["cancel", "x"], ["failed"], ["queue", "pause"], ["nodes"], ["top"], ["purge", "--done"]):
        ended = run(*command, "--redis-url", f"unix://{tmp_path}/none")
        assert (ended.code, ended.out) == (20, "")
        assert ended.err.count("\n") == 1


# --- the queue, its nodes, its records --------------------------------------------------------------------------------


def test_a_paused_queue_lets_running_jobs_end_and_begins_none(
    redis_server: RedisServer, client: Client, call: Call, tmp_path: Path
) -> None:
    with HeldFile(DATA) as file, Origin(file) as origin, Supervisor(tmp_path, redis_server.url) as service:
        client.push(f"{origin.url}/f", "f", id="f")
        wait_for_run(service, "f")
        assert call("queue", "pause").code == 0
        for number in range(5):
            client.push(f"{origin.url}/{number}", str(number))
        file.gate.set()
        client.wait_for(f"{origin.url}/f")
        time.sleep(1.5)
        stats = json.loads(call("queue", "stats", "--json").out)
        assert (stats["is_halted"], stats["backlog"], stats["running"]) == (True, 5, 0)
        assert "the queue is paused" in call("stats").out
        assert call("queue", "resume").code == 0
        client.wait_for(*(f"{origin.url}/{number}" for number in range(5)))


def test_a_drained_node_ends_its_jobs_and_begins_none_until_it_may(
    redis_server: RedisServer, client: Client, call: Call, tmp_path: Path
) -> None:
    with HeldFile(DATA) as file, Origin(file) as origin, fleet(tmp_path, redis_server.url, "a", "b") as (one, other):
        names = {json.loads(line)["node"]: json.loads(line) for line in call("nodes", "--json").out.splitlines()}
        assert len(names) == 2
        node = next(name for name, told in names.items() if told["pid"] == one.pid)
        assert call("nodes", "drain", node).code == 0
        assert f"{node}\tdrained" in call("nodes").out
        file.gate.set()
        urls = [f"{origin.url}/{number}" for number in range(20)]
        for number, url in enumerate(urls):
            client.push(url, str(number))
        client.wait_for(*urls)
        wait_until(lambda: len(other.events("job_succeeded")) == 20)
        assert one.events("job_started") == []
        assert call("nodes", "resume", node).code == 0
        assert other.stop() == 0
        client.push(f"{origin.url}/last", "last")
        client.wait_for(f"{origin.url}/last")
        wait_until(lambda: len(one.events("job_succeeded")) == 1)
    assert call("nodes", "drain", "nobody").err == "dlpool: no node 'nobody' is known (dlpool nodes lists them)\n"
    assert call("nodes", "drain").code == 2


def test_failure_records_of_another_service_are_listed_retried_and_removed(
    redis_server: RedisServer, client: Client, call: Call, tmp_path: Path
) -> None:
    with Origin(File(DATA)) as origin, Supervisor(tmp_path, redis_server.url) as service:
        for name in "abc":
            task = {"url": f"{origin.url}/{name}", "save_path": name, "retries": 3}
            record = {"failed_at": "2020-01-01T00:00:00Z", "error_message": "it broke", "task_data": task}
            client.redis.hset(client.keys.failed, f"{origin.url}/{name}", json.dumps(record))
        client.redis.hset(client.keys.failed, "http://h/odd", "not JSON")
        listed = [json.loads(line) for line in call("failed", "--json").out.splitlines()]
        assert {one["message"] for one in listed} == {"it broke", ""} and len(listed) == 4
        assert call("failed", "retry", f"{origin.url}/a").code == 0
        client.wait_for(f"{origin.url}/a")
        ended = call("failed", "retry", "--all")
        assert (ended.code, ended.err) == (
            14,
            "dlpool: cannot retry http://h/odd: the record holds no job that could be run\n",
        )
        client.wait_for(f"{origin.url}/b", f"{origin.url}/c")
        check_folder(service.out, DATA, "a", "b", "c")
        assert call("failed", "purge", "http://h/odd").code == 0
        assert client.redis.hlen(client.keys.failed) == 0
        assert call("failed", "purge", "http://h/odd").code == 1
        assert call("failed", "retry").code == 2


def test_a_record_of_a_known_job_is_retried_under_its_id_byte_by_byte(call: Call, client: Client) -> None:
    client.redis.lpush(client.keys.intake, b'{"save_path":"x",  "url":"http://h/x" }')
    record = b'{"task_data":{"save_path":"x",  "url":"http://h/x" },"error_message":"no","failed_at":"t"}'
    client.redis.hset(client.keys.failed, "http://h/x", record)
    assert call("failed", "retry", "http://h/x").code == 0
    first, second = client.redis.lrange(client.keys.intake, 0, -1)
    assert first == second


def test_ended_jobs_are_removed_on_demand(
    redis_server: RedisServer, client: Client, call: Call, tmp_path: Path
) -> None:
    with Origin(File(DATA)) as origin, Supervisor(tmp_path, redis_server.url):
        client.push(f"{origin.url}/f", "f", id="f")
        client.wait_for(f"{origin.url}/f")
        assert call("purge", "--dead").out == "0 jobs are removed\n"
        assert call("purge", "--done").out == "1 jobs are removed\n"
        assert state(client, "f") is None and client.success(f"{origin.url}/f") is not None
    assert call("purge").code == 2


# --- top --------------------------------------------------------------------------------------------------------------


def test_top_shows_nodes_and_running_jobs_as_they_are_now(
    redis_server: RedisServer, client: Client, call: Call, tmp_path: Path
) -> None:
    with HeldFile(DATA) as file, Origin(file) as origin, Supervisor(tmp_path, redis_server.url) as service:
        client.push(f"{origin.url}/f?token=hunter2", "f", id="f")
        wait_for_run(service, "f")
        wait_for_commit(service.out / "f")

        def shown() -> dict[str, Any]:
            found: dict[str, Any] = json.loads(call("top", "--json").out)
            return found

        wait_until(lambda: any(one["progress"] for one in shown()["jobs"]), SOON_S)
        text = call("top").out
        assert "1 running" in text and f"{origin.url}/f" in text and "hunter2" not in text
        screen = watched(redis_server, "1 running")
        assert "NODE" in screen and "#" in screen
        file.gate.set()


def watched(server: RedisServer, wanted: str) -> str:
    """What ``dlpool top`` draws on a terminal until that is seen; ended as a person does it."""
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "dlpool", "top", "--redis-url", server.url],
        stdout=child,
        stderr=child,
        stdin=child,
        cwd=ROOT,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "160", "LINES": "40"},
    )
    os.close(child)
    seen = b""
    try:
        deadline = time.monotonic() + 60
        while wanted.encode() not in seen or seen.count(b"NODE") < 3:
            left = deadline - time.monotonic()
            assert left > 0 and select.select([parent], [], [], left)[0], seen
            seen += os.read(parent, 65536)
        process.send_signal(signal.SIGINT)
        with suppress(OSError):  # EIO: its end
            while select.select([parent], [], [], 20)[0] and (data := os.read(parent, 65536)):
                seen += data
        assert process.wait(20) == 130
    finally:
        process.kill()
        process.wait()
        os.close(parent)
    return seen.decode("utf-8", "replace")
