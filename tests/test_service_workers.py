"""Workers die in every way, idle or busy: no job is lost, none is done twice, and none takes the others with it."""

from __future__ import annotations

import os
import signal
from collections import Counter
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import make_data, wait_until
from tests.fleet import Client, Supervisor
from tests.held import (
    LATE_S,
    HeldFile,
    check_folder,
    committed,
    events_of,
    fetched_again,
    of_path,
    runs,
    wait_for_commit,
    wait_for_run,
)
from tests.origin import Connection, File, Origin, Request
from tests.redis_server import RedisServer

DATA = make_data(1024 * 1024)
TWO: dict[str, Any] = {"workers": 2, "max_concurrent_downloads": 2}


@pytest.fixture
def client(redis_server: RedisServer) -> Client:
    return Client(redis_server.client())


def supervisor(folder: Path, server: RedisServer, **settings: Any) -> Supervisor:
    """A supervisor with these settings of its section."""
    return Supervisor(folder / "node", server.url, {"supervisor": settings})


# --- killed ---


def test_a_worker_killed_while_idle_is_replaced_and_jobs_go_on(
    redis_server: RedisServer, client: Client, tmp_path: Path
) -> None:
    with Origin(File(DATA)) as origin, supervisor(tmp_path, redis_server, **TWO) as service:
        before = {worker.pid for worker in service.workers()}
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        client.push(f"{origin.url}/a", "a", id="a")
        client.wait_for(f"{origin.url}/a")
        wait_until(lambda: len({one.pid for one in service.workers()} - before) == 2, LATE_S)
        assert client.ends("a") == 1
        assert service.stop() == 0, service.said()
        check_folder(service.out, DATA, "a")


def test_row_a_worker_killed_in_mid_job_loses_nothing_committed_and_disturbs_nobody(
    redis_server: RedisServer, client: Client, tmp_path: Path
) -> None:
    with (
        HeldFile(DATA) as file,
        Origin(file) as origin,
        supervisor(tmp_path, redis_server, **TWO) as service,
    ):
        for name in "ab":
            client.push(f"{origin.url}/{name}", name, id=name)
        wait_for_commit(service.out / "a", service.out / "b")
        kept, asked = committed(service.out / "a"), len(of_path(origin, "/a"))
        os.kill(wait_for_run(service, "a"), signal.SIGKILL)
        wait_for_run(service, "a", 2)
        file.gate.set()
        client.wait_for(f"{origin.url}/a", f"{origin.url}/b")
        again = of_path(origin, "/a")[asked:]
        assert again, "the second run asked for nothing"
        assert fetched_again(again, kept) == []
        assert [event for _, event in events_of(client, "a")] == [
            "job_started",
            "job_requeued",
            "job_started",
            "job_succeeded",
        ]
        assert [event for _, event in events_of(client, "b")] == ["job_started", "job_succeeded"]
        assert len(runs(service, "b")) == 1
        check_folder(service.out, DATA, "a", "b")


def test_a_worker_killed_just_after_its_outcome_leaves_one_record_and_no_second_download(
    redis_server: RedisServer, client: Client, tmp_path: Path
) -> None:
    with HeldFile(DATA) as file, Origin(file) as origin, supervisor(tmp_path, redis_server, **TWO) as service:
        client.push(f"{origin.url}/a", "a", id="a")
        pid = wait_for_run(service, "a")
        service.signal(signal.SIGSTOP)  # nobody hears the outcome yet
        file.gate.set()
        wait_until((service.out / "a").exists, LATE_S)
        asked = len(origin.requests)
        os.kill(pid, signal.SIGKILL)
        service.signal(signal.SIGCONT)
        client.wait_for(f"{origin.url}/a")
        wait_until(lambda: bool(service.events("worker_died")), LATE_S)
        assert service.stop() == 0, service.said()
        assert client.ends("a") == 1
        assert len(origin.requests) == asked
        check_folder(service.out, DATA, "a")


# --- hung, aborted ---


def test_a_stopped_worker_is_killed_with_its_stacks_logged_and_its_jobs_go_on(
    redis_server: RedisServer, client: Client, tmp_path: Path
) -> None:
    with (
        HeldFile(DATA) as file,
        Origin(file) as origin,
        supervisor(tmp_path, redis_server, worker_timeout="4s", max_crashes=9, **TWO) as service,
    ):
        client.push(f"{origin.url}/a", "a", id="a")
        pid = wait_for_run(service, "a")
        os.kill(pid, signal.SIGSTOP)
        wait_for_run(service, "a", 2)
        file.gate.set()
        client.wait_for(f"{origin.url}/a")
        died = next(record for record in service.events("worker_died") if record["dlpool.worker_pid"] == pid)
        assert "silent for 4 s" in died["dlpool.exit_reason"]
        assert "most recent call first" in died["dlpool.stacks"]
        assert client.ends("a") == 1
        check_folder(service.out, DATA, "a")


def test_an_aborted_worker_and_a_segfault_leave_their_stacks_in_the_log_and_the_job_goes_on(
    redis_server: RedisServer, client: Client, tmp_path: Path
) -> None:
    with HeldFile(DATA) as file, Origin(file) as origin, supervisor(tmp_path, redis_server, **TWO) as service:
        client.push(f"{origin.url}/a", "a", id="a")
        for number, fault in enumerate((signal.SIGABRT, signal.SIGSEGV), start=1):
            os.kill(wait_for_run(service, "a", number), fault)
        wait_for_run(service, "a", 3)
        file.gate.set()
        client.wait_for(f"{origin.url}/a")
        died = service.events("worker_died")
        assert [name in record["dlpool.exit_reason"] for name, record in zip(("SIGABRT", "SIGSEGV"), died, strict=True)]
        assert all("most recent call first" in record["dlpool.stacks"] for record in died)
        assert client.ends("a") == 1
        assert service.stop() == 0, service.said()
        assert list(service.state_dir.glob("stacks-*")) == []
        check_folder(service.out, DATA, "a")


# --- poison ---


class Poison(File):
    """Kills whoever asks for /poison; ``killed`` are their pids."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data, block=64 * 1024, pause_s=0.02)
        self.killed: list[int] = []

    def __call__(self, request: Request, connection: Connection) -> None:
        if request.path != "/poison":
            super().__call__(request, connection)
            return
        port = int(request.headers["host"].rpartition(":")[2])
        for one in psutil.net_connections("tcp4"):
            ends = one.laddr and one.raddr and (one.laddr[1], one.raddr[1])  # others may have one of these ports, too
            if one.pid and ends == (connection.peer_port, port):
                self.killed.append(one.pid)
                os.kill(one.pid, signal.SIGKILL)
        connection.hang_up()


def test_a_poison_job_among_seven_good_ones_fails_alone_with_its_reason(
    redis_server: RedisServer, client: Client, tmp_path: Path
) -> None:
    names = [f"good{number}" for number in range(7)]
    with (
        Origin(poison := Poison(DATA)) as origin,
        supervisor(tmp_path, redis_server, workers=2, max_concurrent_downloads=8) as service,
    ):
        for name in ["poison", *names]:
            client.push(f"{origin.url}/{name}", name, id=name)
        record = client.wait_for_failure(f"{origin.url}/poison")
        client.wait_for(*(f"{origin.url}/{name}" for name in names))
        assert "running in 3 workers that died" in record["error_message"]
        assert "SIGKILL" in record["error_message"]
        assert len(set(poison.killed)) == 3
        assert [client.ends(name) for name in ["poison", *names]] == [1] * 8
        assert client.redis.hlen(client.keys.failed) == 1
        deaths = {record["dlpool.worker_pid"]: record["dlpool.running"] for record in service.events("worker_died")}
        assert deaths[poison.killed[-1]] == 1  # by then it was a suspect, and alone
        assert service.stop() == 0, service.said()
        check_folder(service.out, DATA, *names)


# --- memory, recycling ---


def test_workers_above_a_memory_limit_are_replaced_or_killed_and_no_job_is_lost(
    redis_server: RedisServer, client: Client, tmp_path: Path
) -> None:
    """A reload brings a limit below what every worker uses, and the next one takes it back."""
    usual: dict[str, Any] = {"workers": 1, "max_concurrent_downloads": 2, "max_crashes": 50}

    def reload(**limits: str) -> None:
        before = len(service.events("configuration_reloaded"))
        service.configure(redis_server.url, {"supervisor": {**usual, **limits}})
        service.signal(signal.SIGHUP)
        wait_until(lambda: len(service.events("configuration_reloaded")) > before, LATE_S)

    with HeldFile(DATA) as file, Origin(file) as origin, supervisor(tmp_path, redis_server, **usual) as service:
        client.push(f"{origin.url}/a", "a", id="a")
        first = wait_for_run(service, "a")
        reload(worker_memory_soft="1M")
        wait_until(lambda: len(service.workers()) > 1, LATE_S)  # the replacement beside the one that has a job yet
        reload()
        client.push(f"{origin.url}/b", "b", id="b")
        assert wait_for_run(service, "b") != first
        assert runs(service, "a") == [first]
        reload(worker_memory_soft="2M", worker_memory_hard="2M")
        wait_for_run(service, "a", 2)
        wait_for_run(service, "b", 2)
        reload()
        file.gate.set()
        client.wait_for(f"{origin.url}/a", f"{origin.url}/b")
        retired, died = service.events("worker_retired"), service.events("worker_died")
        assert "worker_memory_soft" in retired[0]["dlpool.reason"]
        assert "worker_memory_hard" in died[0]["dlpool.exit_reason"]
        assert [client.ends(name) for name in "ab"] == [1, 1]
        assert service.stop() == 0, service.said()
        check_folder(service.out, DATA, "a", "b")


def test_workers_are_replaced_after_their_share_of_jobs_and_all_thirty_end_once(
    redis_server: RedisServer, client: Client, tmp_path: Path
) -> None:
    names = [f"f{number}" for number in range(30)]
    with (
        Origin(File(DATA)) as origin,
        supervisor(tmp_path, redis_server, workers=2, max_concurrent_downloads=4, max_jobs_per_worker=5) as service,
    ):
        for name in names:
            client.push(f"{origin.url}/{name}", name, id=name)
        client.wait_for(*(f"{origin.url}/{name}" for name in names))
        assert [client.ends(name) for name in names] == [1] * 30
        aboard = Counter(pid for name in names for pid in runs(service, name))
        assert max(aboard.values()) <= 5
        wait_until(lambda: len(service.events("worker_retired")) >= 5)  # the last two may have had fewer than five
        assert service.events("worker_died") == []
        assert {record["dlpool.attempt"] for record in service.events("job_succeeded")} == {1}
        assert service.stop() == 0, service.said()
        check_folder(service.out, DATA, *names)


# --- starts that fail ---

BROKEN = """
import os
if b"--multiprocessing-fork" in open("/proc/self/cmdline", "rb").read() and os.path.exists({marker!r}):
    import fcntl
    def flock(*_):
        raise PermissionError(13, "Permission denied")
    fcntl.flock = flock
"""


@pytest.fixture
def breakage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """While this file exists no worker can lock anything, as under a security policy that is too strict."""
    marker, folder = tmp_path / "broken", tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(BROKEN.format(marker=str(marker)))
    monkeypatch.setenv("PYTHONPATH", str(folder))
    marker.touch()
    return marker


def test_a_first_start_that_never_succeeds_ends_the_service_with_its_reason(
    redis_server: RedisServer, breakage: Path, tmp_path: Path
) -> None:
    service = supervisor(tmp_path, redis_server, **TWO)
    try:
        assert service.start(is_ready=False).wait() > 0
        said = service.errors.read_text().splitlines()[-1]
        assert "no worker could be started" in said
        assert "Permission denied" in said
        assert 3 <= len(service.events("worker_died")) <= 4
        assert "Permission denied" in service.events("service_failed")[0]["error.message"]
    finally:
        service.__exit__(None, None, None)


def test_later_starts_that_fail_are_tried_again_more_and_more_slowly_until_one_succeeds(
    redis_server: RedisServer, client: Client, breakage: Path, tmp_path: Path
) -> None:
    breakage.unlink()
    with Origin(File(DATA)) as origin, supervisor(tmp_path, redis_server, workers=1) as service:
        breakage.touch()
        os.kill(service.workers()[0].pid, signal.SIGKILL)
        wait_until(lambda: len(service.events("worker_died")) >= 5, LATE_S)
        died = [
            datetime.fromisoformat(record["@timestamp"].replace("Z", "+00:00")).timestamp()
            for record in service.events("worker_died")
        ]
        gaps = [after - before for before, after in pairwise(died)]
        assert gaps[2] > 0.35
        assert gaps[3] > 0.75
        breakage.unlink()
        client.push(f"{origin.url}/a", "a", id="a")
        client.wait_for(f"{origin.url}/a")
        assert client.ends("a") == 1
