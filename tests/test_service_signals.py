"""What signals do to the service, and what it tells the service manager."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from dlpool.transfer.target.state import SavedState
from tests.conftest import make_data, wait_until
from tests.desk import DATA, Desk, Gate, desk_of, running
from tests.fleet import Client, Supervisor
from tests.manager import Manager
from tests.origin import File, Origin
from tests.redis_server import RedisServer

Service = tuple[Supervisor, Client]
BIG = make_data(2_000_000)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running(tmp_path_factory.mktemp("shared"), supervisor={"max_concurrent_downloads": 4}) as both:
        yield both


@pytest.fixture
def desk(shared: Service) -> Iterator[Desk]:
    """The INI is as it was, and used, when the test has ended."""
    service, _ = shared
    before = service.ini.read_text()
    with desk_of(*shared) as one:
        yield one
    if service.ini.read_text() != before:
        service.ini.write_text(before)
        reload(service, "configuration_reloaded")


def reload(service: Supervisor, event: str) -> None:
    """SIGHUP, and wait for what the log says of it."""
    count = len(service.events(event))
    service.signal(signal.SIGHUP)
    wait_until(lambda: len(service.events(event)) > count)


def change(service: Supervisor, section: str, *lines: str) -> None:
    """Put lines into a section of the INI."""
    text = service.ini.read_text()
    for line in lines:
        text = re.sub(rf"^{line.split(' ')[0]} = .*\n", "", text, flags=re.MULTILINE)
    if f"[{section}]" not in text:
        text += f"[{section}]\n"
    service.ini.write_text(text.replace(f"[{section}]", "\n".join([f"[{section}]", *lines])))


def end(service: Supervisor, *signals: signal.Signals) -> int:
    """Send signals, wait for the end, and see that no process is left. Returns the exit code."""
    family = service.family()
    for number in signals:
        service.signal(number)
    code = service.wait()
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in family))
    return code


# --- the end ---


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_running_jobs_may_finish_and_no_other_is_begun(number: signal.Signals, tmp_path: Path) -> None:
    settings = {"max_concurrent_downloads": 2, "drain_timeout": "60s"}
    with running(tmp_path, supervisor=settings) as both, desk_of(*both) as desk:
        gate = Gate()
        desk.serve(gate)
        urls = [desk.push(name) for name in range(6)]
        wait_until(lambda: gate.waiting == 2)
        threading.Thread(target=open_at_drain, args=(desk.service, gate)).start()
        assert end(desk.service, number) == 0, desk.service.said()
        desk.client.wait_for(*urls[:2], timeout_s=1)
        assert gate.waiting == 2
        assert desk.waiting() == 4
        assert desk.client.leftovers() == []


def open_at_drain(service: Supervisor, gate: Gate) -> None:
    wait_until(lambda: bool(service.events("drain_started")))
    gate.open()


@pytest.mark.parametrize("how", ["too short a drain", "SIGTERM twice", "SIGINT twice"])
def test_jobs_that_may_not_finish_go_back_to_the_front_with_their_bytes(how: str, tmp_path: Path) -> None:
    settings = {"max_concurrent_downloads": 1, "drain_timeout": "100ms" if "drain" in how else "1h"}
    with running(tmp_path, supervisor=settings) as both, desk_of(*both) as desk:
        slow = File(BIG, block=16 * 1024, pause_s=0.05)
        desk.serve(slow)
        desk.push("big", id="big")
        desk.push("later", id="later")
        meta = desk.folder / "big.part.meta"
        wait_until(lambda: slow.sent > 300_000)
        number = signal.SIGINT if "INT" in how else signal.SIGTERM
        if "twice" in how:
            desk.service.signal(number)
            wait_until(lambda: bool(desk.service.events("drain_started")))
        assert end(desk.service, number) == 0, desk.service.said()
        keys, redis = desk.client.keys, desk.client.redis
        assert redis.lrange(keys.ready("normal"), -1, -1) == [b"big"]
        assert redis.hmget(keys.job("big"), "state", "attempts") == [b"queued", b"0"]
        assert desk.client.leftovers() == [keys.ready("normal").encode()]
        saved = SavedState.from_json(meta.read_bytes())
        kept = saved.size - sum(span.end - span.start for span in saved.missing_spans)
        assert kept > 0
        slow.pause_s = 0.0
        desk.service.start()
        desk.client.wait_for(desk.url("big"), desk.url("later"))
        (line,) = (one for one in desk.lines("big") if one["event.action"] == "job_succeeded")
        assert line["dlpool.resumed_from"] >= kept
        assert line["dlpool.attempt"] == 1
        assert (desk.folder / "big").read_bytes() == BIG


def test_the_service_ends_while_redis_is_away_and_loses_nothing(tmp_path: Path) -> None:
    with RedisServer(tmp_path / "redis", appendonly=True) as server:
        settings = {"supervisor": {"max_concurrent_downloads": 2, "drain_timeout": "500ms"}}
        with Supervisor(tmp_path / "node", server.url, settings) as service, Origin(File(DATA)) as origin:
            desk = Desk(service, Client(server.client()), origin)
            gate = Gate()
            desk.serve(gate)
            urls = [desk.push(name) for name in range(5)]
            wait_until(lambda: gate.waiting == 2)
            server.stop()
            wait_until(lambda: bool(service.events("redis_unavailable")))
            assert end(service, signal.SIGTERM) == 0, service.said()
            gate.open()
            server.start()
            service.start()
            desk.client = Client(server.client())
            desk.client.wait_for(*urls)
            assert end(service, signal.SIGTERM) == 0
            assert desk.client.leftovers() == []


def test_reload_and_end_together_are_both_obeyed(tmp_path: Path) -> None:
    with running(tmp_path, supervisor={"drain_timeout": "60s"}) as both, desk_of(*both) as desk:
        urls = [desk.push(name) for name in range(30)]
        signals = (signal.SIGHUP, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
        assert end(desk.service, *signals) == 0, desk.service.said()
        done = sum(desk.client.success(url) is not None for url in urls)
        assert done + desk.waiting() + desk.client.redis.llen(desk.client.keys.ready("normal")) == 30
        assert [key for key in desk.client.leftovers() if b":ready:" not in key] == []
        assert len(desk.service.errors.read_text().splitlines()) == 4


@pytest.mark.parametrize("moment", ["lock", "started"])
def test_the_service_may_be_ended_while_it_starts(moment: str, tmp_path: Path) -> None:
    with RedisServer(tmp_path / "redis") as server:
        service = Supervisor(tmp_path / "node", server.url)
        try:
            service.start(is_ready=False)
            reached: Callable[[], bool] = (
                (service.state_dir / "node_id").exists
                if moment == "lock"
                else lambda: bool(service.events("service_started"))
            )
            wait_until(reached)
            assert end(service, signal.SIGTERM) in (0, -signal.SIGTERM), service.said()
            assert Client(server.client()).leftovers() == []
            said = service.errors.read_text().splitlines()
            assert all(line.startswith("dlpool-supervisor: ") for line in said) and len(said) <= 4
        finally:
            service.kill()


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2])
def test_other_signals_do_not_end_a_service_that_starts(number: signal.Signals, tmp_path: Path) -> None:
    with RedisServer(tmp_path / "redis") as server:
        service = Supervisor(tmp_path / "node", server.url)
        service.start(is_ready=False)
        wait_until(lambda: holder(service) == service.pid)
        service.signal(number)
        try:
            wait_until(lambda: bool(service.events("service_ready") and service.events("signal_received")))
            assert service.stop() == 0
        finally:
            service.kill()


def holder(service: Supervisor) -> int:
    """The pid in the lock file of the state folder."""
    lock = service.state_dir / "lock"
    return int(lock.read_text() or 0) if lock.exists() else 0


# --- reload ---


def test_a_reload_reaches_jobs_to_come(desk: Desk) -> None:
    change(desk.service, "transfer", "max_file_size = 10")
    reload(desk.service, "configuration_reloaded")
    desk.push("a")
    assert "max_file_size is 10" in desk.client.wait_for_failure(desk.url("a"))["error_message"]


def test_a_reload_changes_the_level_of_the_log_in_all_processes(desk: Desk) -> None:
    change(desk.service, "logging", "level = debug")
    reload(desk.service, "configuration_reloaded")
    desk.push(id=desk.name)
    desk.client.wait_for(desk.url())
    wait_until(lambda: any(line["log.level"] == "debug" for line in desk.lines(desk.name)))


def test_a_broken_ini_changes_nothing_and_each_problem_is_logged(desk: Desk) -> None:
    change(desk.service, "transfer", "max_file_size = 10", "retries = many", "colour = red")
    reload(desk.service, "reload_refused")
    wait_until(lambda: len(desk.service.events("reload_refused")) >= 2)
    reasons = " ".join(line["dlpool.reason"] for line in desk.service.events("reload_refused"))
    assert "[transfer] retries = many: it is not a whole number" in reasons
    assert "[transfer] colour: there is no such key" in reasons
    desk.push()
    desk.client.wait_for(desk.url())


def test_an_ini_that_is_gone_changes_nothing(desk: Desk) -> None:
    text = desk.service.ini.read_text()
    desk.service.ini.unlink()
    try:
        reload(desk.service, "reload_refused")
    finally:
        desk.service.ini.write_text(text)
    assert "cannot read" in desk.service.events("reload_refused")[-1]["dlpool.reason"]


def test_what_needs_a_restart_is_said(desk: Desk) -> None:
    change(desk.service, "supervisor", "max_concurrent_downloads = 7")
    reload(desk.service, "reload_incomplete")
    reason = desk.service.events("reload_incomplete")[-1]["dlpool.reason"]
    assert reason == "[supervisor] max_concurrent_downloads takes effect at the next start"


def test_a_reload_reads_conf_d_and_keeps_the_environment(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DLPOOL_TRANSFER_IF_EXISTS", "fail")
        with running(tmp_path) as both, desk_of(*both) as desk:
            service = desk.service
            more = service.ini.parent / "conf.d" / "more.ini"
            more.parent.mkdir()
            more.write_text("[transfer]\nmax_file_size = 10\nconnections = many\n")
            reload(service, "reload_refused")
            reason = f"{more}:3: [transfer] connections = many: it is neither a whole number nor auto"
            assert [line["dlpool.reason"] for line in service.events("reload_refused")] == [reason]
            more.write_text("[transfer]\nmax_file_size = 10\nif_exists = overwrite\n[supervisor]\nlease = 40s\n")
            reload(service, "configuration_reloaded")
            waits = [line["dlpool.reason"] for line in service.events("reload_incomplete")]
            assert waits == ["[supervisor] lease takes effect at the next start"]
            desk.push("new")
            assert "max_file_size is 10" in desk.client.wait_for_failure(desk.url("new"))["error_message"]
            desk.folder.mkdir(exist_ok=True)
            (desk.folder / "old").touch()
            desk.push("old")
            assert "exists" in desk.client.wait_for_failure(desk.url("old"))["error_message"]


def test_reloads_under_load_lose_nothing(desk: Desk) -> None:
    desk.serve(File(DATA, block=4, pause_s=0.01))
    names = [f"{desk.name}-{number}" for number in range(60)]
    for name in names:
        desk.push(name, id=name)
    for _ in range(5):
        reload(desk.service, "configuration_reloaded")
    wait_until(lambda: all(desk.client.ends(name) == 1 for name in names), 60)
    desk.client.wait_for(*(desk.url(name) for name in names))
    assert len(desk.origin.requests) == 60


# --- the log ---


def test_a_log_that_was_moved_is_opened_anew(desk: Desk) -> None:
    moved = desk.service.log_file.with_name("moved.log")
    desk.service.log_file.rename(moved)
    desk.service.signal(signal.SIGUSR1)
    desk.push(id=desk.name)
    desk.client.wait_for(desk.url())
    wait_until(lambda: "job_succeeded" in {line["event.action"] for line in desk.lines(desk.name)})
    moved.unlink()


def test_the_state_can_be_dumped_into_the_log(desk: Desk) -> None:
    gate = Gate()
    desk.serve(gate)
    desk.push(id=desk.name)
    wait_until(lambda: gate.waiting == 1)
    desk.service.signal(signal.SIGUSR2)
    wait_until(lambda: bool(desk.service.events("state_dumped")))
    gate.open()
    dump = desk.service.events("state_dumped")[-1]
    assert "Supervisor" in dump["dlpool.supervisor"]
    assert len(dump["dlpool.workers"]) == len(desk.service.workers())
    assert desk.name in json.dumps(dump["dlpool.in_flight"])
    desk.client.wait_for(desk.url())


# --- the service manager ---


@pytest.fixture(scope="module", params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Manager]:
    """One life of the service, with a reload before its end has begun and one after, as its manager heard it."""
    folder = tmp_path_factory.mktemp("manager")
    address = str(folder / "s") if request.param == "path" else f"@dlpool-test-{os.getpid()}-{time.monotonic_ns()}"
    manager = Manager(address)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NOTIFY_SOCKET", address)
        patch.setenv("WATCHDOG_USEC", "2000000")
        with running(folder) as both, desk_of(*both) as desk:
            service, gate = desk.service, Gate()
            wait_until(lambda: "WATCHDOG" in manager.names())
            reload(service, "configuration_reloaded")
            desk.serve(gate)
            desk.push()
            wait_until(lambda: gate.waiting == 1)
            service.signal(signal.SIGTERM)
            wait_until(lambda: "STOPPING" in manager.names())
            reload(service, "configuration_reloaded")
            gate.open()
            service.wait()
    yield manager


def test_the_manager_hears_when_the_service_is_ready(manager: Manager) -> None:
    assert "READY" in manager.names()
    assert manager.names().index("READY") < manager.names().index("RELOADING")


def test_the_manager_hears_the_status(manager: Manager) -> None:
    states = [message["STATUS"] for message in manager.heard if "STATUS" in message]
    assert any(state.startswith("working: 0 jobs") for state in states)


def test_the_manager_hears_the_watchdog(manager: Manager) -> None:
    assert {"WATCHDOG": "1"} in manager.heard


def test_the_manager_hears_a_reload_with_its_time_and_its_end(manager: Manager) -> None:
    at = next(number for number, message in enumerate(manager.heard) if "RELOADING" in message)
    assert manager.heard[at]["RELOADING"] == "1"
    assert 0 < int(manager.heard[at]["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
    assert {"READY": "1"} in manager.heard[at + 1 :]


def test_the_manager_hears_nothing_of_reloads_once_the_service_ends(manager: Manager) -> None:
    names = manager.names()
    after = names[names.index("STOPPING") :]
    assert not {"READY", "RELOADING"} & set(after)


def test_the_manager_hears_that_a_start_and_an_end_may_take_longer(manager: Manager) -> None:
    names = manager.names()
    at = [number for number, name in enumerate(names) if name == "EXTEND_TIMEOUT_USEC"]
    assert any(number < names.index("READY") for number in at)
    assert any(number > names.index("STOPPING") for number in at)


def test_standard_error_says_once_that_redis_is_waited_for_and_that_it_is_ready(tmp_path: Path) -> None:
    redis = RedisServer(tmp_path / "redis", appendonly=True)
    with redis as server, Supervisor(tmp_path / "service", server.url) as service:
        assert service.errors.read_text().endswith("\ndlpool-supervisor: ready\n")
        redis.stop()
        wait_until(lambda: service.events("redis_unavailable") != [])
        redis.start()
        wait_until(lambda: service.events("redis_available") != [])
        assert service.stop() == 0
        ready, waits = service.errors.read_text().splitlines()[-2:]
    assert ready == "dlpool-supervisor: ready"
    assert waits.startswith("dlpool-supervisor: ")
    assert waits.endswith("; waiting until Redis can be used")
