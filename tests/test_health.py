"""Test probes: their answers, and that no client can block the supervisor."""

from __future__ import annotations

import json
import select
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from dlpool import __version__
from dlpool.cli.health import Unhealthy, request_health
from dlpool.config import LoggingSettings, MetricsSettings, PathSettings, parse_setting
from dlpool.observe.health import SILENCE_S, Health, HealthCheck, format_checks
from dlpool.observe.http_server import MAX_CONNECTIONS, MAX_SLOW, MonitoringServer, ProbeResponse
from dlpool.observe.log import Log
from dlpool.observe.processors import LogOrigin
from dlpool.request_heads import MAX_HEAD
from dlpool.service.monitor.monitor import written_folders
from tests.conftest import free_port, wait_until
from tests.disks import needs_root, tmpfs
from tests.fleet import Client
from tests.metrics import PATIENCE_S, Watched, get
from tests.origin import File, Origin
from tests.processes import run
from tests.redis_server import RedisServer

GOOD = b"GET /good HTTP/1.1\r\nHost: h\r\n\r\n"


def broken(_: object) -> ProbeResponse:
    raise LookupError("a defect")


def large(_: object) -> ProbeResponse:
    return ProbeResponse(bytes(20_000_000))


PAGES = {"/good": lambda _: ProbeResponse(b"good\n"), "/broken": broken, "/metrics": large}


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    log = Log(tmp_path / "log", LoggingSettings(), LogOrigin("test", "n", version="0"))
    yield log
    log.close()


@pytest.fixture
def listener(log: Log) -> Iterator[MonitoringServer]:
    """Return a server at a free port."""
    one = MonitoringServer(f"127.0.0.1:{free_port()}", PAGES, log.logger("metrics"))
    thread = threading.Thread(target=one.serve)
    thread.start()
    wait_until(lambda: get(port_of(one), "/good") == (200, "good\n"))
    yield one
    one.stop()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()


def port_of(listener: MonitoringServer) -> int:
    return int(listener.address.rpartition(":")[2])


def connect(listener: MonitoringServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port_of(listener)), timeout=PATIENCE_S)


def said(sock: socket.socket) -> bytes:
    """Return all bytes received until the connection is closed or reset."""
    found = b""
    with suppress(ConnectionError):
        while part := sock.recv(65536):
            found += part
    return found


# --- the listener ---


@pytest.mark.parametrize(
    ("method", "path", "status", "body"),
    [
        ("GET", "/good?x=1", 200, "good\n"),
        ("HEAD", "/good", 200, ""),
        ("GET", "/", 404, "no such path; available are /broken /good /metrics\n"),
        ("GET", "/broken", 0, ""),
    ],
)
def test_what_is_answered(listener: MonitoringServer, method: str, path: str, status: int, body: str) -> None:
    assert get(port_of(listener), path, method) == (status, body)


def test_a_defect_of_a_page_is_logged_and_ends_nothing(listener: MonitoringServer, log: Log) -> None:
    assert get(port_of(listener), "/broken") == (0, "")
    wait_until(lambda: "a defect" in log.path.read_text())
    assert get(port_of(listener), "/good")[0] == 200


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"POST /good HTTP/1.1\r\n\r\n", b"501"),
        (b"NONSENSE\r\n\r\n", b"400"),
        (b"GET /else\r\n\r\n", b"404"),
        (b"HEAD /else HTTP/1.1\r\n\r\n", b"404"),
        (b"GET /good HTTP/1.1\r\n\r\n", b"200"),
        (b"GET /good HTTP/9.9\r\n\r\n", b"505"),
        (b"\x16\x03\x01\r\n\r\n", b"400"),
    ],
)
def test_what_is_answered_has_a_head_that_forbids_guessing(
    listener: MonitoringServer, request_bytes: bytes, status: bytes
) -> None:
    with connect(listener) as sock:
        sock.sendall(request_bytes)
        head = said(sock).partition(b"\r\n\r\n")[0]
        assert status in head.split(b"\r\n")[0] and b"X-Content-Type-Options: nosniff" in head


def test_a_request_that_is_too_long_is_not_read_to_its_end(listener: MonitoringServer) -> None:
    with connect(listener) as sock:
        sock.sendall(b"GET /good HTTP/1.1\r\nX: " + b"x" * (MAX_HEAD + 1))
        assert said(sock) == b""


def test_the_oldest_connection_that_has_not_asked_makes_room(
    listener: MonitoringServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some connections send nothing, some a part of a request; each new one replaces the oldest."""
    monkeypatch.setattr("dlpool.observe.http_server.REQUEST_S", 600.0)
    with ExitStack() as stack:
        held = [stack.enter_context(connect(listener)) for _ in range(MAX_CONNECTIONS)]
        for sock in held[::2]:
            sock.sendall(GOOD[:-1])
        for oldest, following in pairwise(held[:5]):
            with connect(listener) as late:
                assert said(oldest) == b""
                late.sendall(GOOD)
                assert said(late).endswith(b"good\n")
            assert select.select([following], [], [], 0)[0] == []
            held.append(stack.enter_context(connect(listener)))
        held[MAX_CONNECTIONS - 2].sendall(GOOD[-1:])
        assert said(held[MAX_CONNECTIONS - 2]).endswith(b"good\n")


@pytest.mark.parametrize("cut", range(1, len(GOOD), 3))
def test_a_request_may_come_in_parts(cut: int, listener: MonitoringServer) -> None:
    with connect(listener) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(GOOD[:cut])
        sock.sendall(GOOD[cut:])
        assert said(sock).endswith(b"good\n")


def test_who_drips_a_request_does_not_last(listener: MonitoringServer) -> None:
    """Each pause is short; only their sum exceeds the limit."""
    with connect(listener) as slow:

        def is_ended() -> bool:
            with suppress(BlockingIOError):
                try:
                    slow.send(b"G")
                    return slow.recv(1, socket.MSG_DONTWAIT) == b""
                except ConnectionError:
                    return True
            return False

        wait_until(is_ended, PATIENCE_S)


def test_whoever_takes_large_answers_slowly_probes_are_answered(listener: MonitoringServer) -> None:
    with ExitStack() as stack:
        for _ in range(MAX_SLOW):
            stack.enter_context(connect(listener)).sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        wait_until(lambda: get(port_of(listener), "/metrics") == (503, "too many requests at once, try again\n"))
        assert get(port_of(listener), "/good") == (200, "good\n")
    wait_until(lambda: get(port_of(listener), "/metrics")[0] == 200, PATIENCE_S)


def test_another_address_is_taken_while_it_runs(listener: MonitoringServer) -> None:
    before, after = port_of(listener), free_port()
    listener.address = f"127.0.0.1:{after}"
    wait_until(lambda: get(after, "/good")[0] == 200)
    assert get(before, "/good") == (0, "")
    listener.address = ""
    wait_until(lambda: get(after, "/good") == (0, ""))


def test_it_listens_at_an_ipv6_address_and_at_every_one(listener: MonitoringServer) -> None:
    port = free_port()

    def answers() -> bool:
        with suppress(Unhealthy):
            return request_health(listener.address, "/good") == (200, "good\n")
        return False

    for address in (f"[::1]:{port}", f":{port}"):
        listener.address = address
        wait_until(answers, PATIENCE_S)


# --- what probes say ---


def test_a_main_loop_that_stands_still_is_told_by_livez() -> None:
    now = [100.0]
    health = Health(lambda: now[0])
    health.update([HealthCheck("redis", "gone")])
    assert format_checks([health.liveness()], is_verbose=False) == (True, "ok\n")
    assert format_checks(health.readiness(), is_verbose=False) == (False, "[-]redis failed: gone\nnot ok\n")
    assert format_checks(health.readiness(), is_verbose=True) == (False, "[+]loop ok\n[-]redis failed: gone\nnot ok\n")
    now[0] += SILENCE_S + 1
    assert format_checks([health.liveness()], is_verbose=False)[0] is False
    health.update([HealthCheck("redis")])
    assert format_checks(health.readiness(), is_verbose=True) == (True, "[+]loop ok\n[+]redis ok\nok\n")


@pytest.mark.parametrize("text", ["", "127.0.0.1:9108", ":9108", "[::1]:9108", "localhost:1", "0.0.0.0:65535"])
def test_addresses(text: str) -> None:
    declared = MetricsSettings.__dataclass_fields__["listen"]
    assert parse_setting(declared, text) == text


@pytest.mark.parametrize("text", ["9108", "127.0.0.1", "host:0", "host:65536", "::1:9108", "a b:1", "http://h:1"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        parse_setting(MetricsSettings.__dataclass_fields__["listen"], text)


def test_all_folders_that_are_written_to_are_watched() -> None:
    assert written_folders(PathSettings(download_dir="/d", allowed_roots="/x:/d:", state_dir="/s", log_dir="/s")) == [
        "/d",
        "/s",
        "/x",
    ]


# --- a supervisor ---


def test_a_port_in_use_is_a_warning_and_another_one_comes_by_reload(redis_server: RedisServer, tmp_path: Path) -> None:
    client = Client(redis_server.client())
    with socket.create_server(("127.0.0.1", 0)) as other, Origin(File(b"data")) as origin:
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        with Watched(tmp_path, redis_server.url, {"metrics": {"listen": taken}}) as service:
            client.push(f"{origin.url}/f", "f")
            client.wait_for(f"{origin.url}/f")
            [warned] = service.events("metrics_bind_failed")
            assert warned["log.level"] == "warning"
            service.configure(redis_server.url, {"metrics": {"listen": f"127.0.0.1:{service.port}"}})
            service.signal(signal.SIGHUP)
            wait_until(lambda: service.get("/readyz")[0] == 200, PATIENCE_S)
            assert len(service.events("metrics_bind_failed")) == 1
            status, text = service.get("/version")
            assert (status, json.loads(text)["version"]) == (200, __version__)


@needs_root
def test_a_full_disk_is_told_and_what_the_log_lost_is_counted(redis_server: RedisServer, tmp_path: Path) -> None:
    client = Client(redis_server.client())
    with tmpfs(tmp_path / "disk", "4m") as disk, Origin(File(b"x" * 300_000)) as origin:
        places = {"download_dir": disk / "out", "log_dir": disk / "log"}
        settings: dict[str, dict[str, Any]] = {"paths": places, "supervisor": {"fault_delay": "500ms"}}
        service = Watched(tmp_path / "node", redis_server.url, settings)
        service.log_file = disk / "log" / "dlpool.log"
        with service:
            wait_until(lambda: service.get("/readyz")[0] == 200, PATIENCE_S)
            for path, size in (disk / "ballast", 4096), (service.log_file, 1):  # the log's last page, too
                with suppress(OSError), path.open("ab", buffering=0) as ballast:
                    while ballast.write(b" " * size) == size:
                        pass
            client.push(f"{origin.url}/f", "f")
            wait_until(lambda: "[-]disk failed: full or broken" in service.get("/readyz")[1], PATIENCE_S)
            wait_until(lambda: service.value("dlpool_log_dropped_records_total") > 0, PATIENCE_S)
            assert service.value("dlpool_node_fault") == 1
            assert service.get("/livez")[0] == 200
            (disk / "ballast").unlink()
            client.wait_for(f"{origin.url}/f")
            wait_until(lambda: service.get("/readyz") == (200, "ok\n"), PATIENCE_S)


def test_dlpool_health_says_by_its_exit_code_how_the_supervisor_is(redis_server: RedisServer, tmp_path: Path) -> None:
    with Watched(tmp_path, redis_server.url) as service:
        ended = run("health", "-c", service.ini)
        assert (ended.code, ended.err) == (0, "")
        assert ended.out.splitlines() == [
            "[+]loop ok",
            "[+]redis ok",
            "[+]workers ok",
            "[+]disk ok",
            "[+]space ok",
            "[+]accepting ok",
            "ok",
        ]
        ended = run("health", "--live", "-q", "--address", f"127.0.0.1:{service.port}")
        assert (ended.code, ended.out, ended.err) == (0, "", "")
        assert service.stop() == 0
        ended = run("health", "-c", service.ini)
        assert ended.code == 1
        assert ended.err == f"dlpool: no supervisor answers at 127.0.0.1:{service.port}: Connection refused\n"


def test_dlpool_health_of_a_service_that_is_not_ready_or_no_service(tmp_path: Path) -> None:
    service = Watched(tmp_path, f"redis://127.0.0.1:{free_port()}")
    try:
        service.start(is_ready=False)
        wait_until(lambda: "[+]workers ok" in service.get("/readyz?verbose")[1], PATIENCE_S)
        ended = run("health", "-c", service.ini)
        assert ended.code == 1
        assert "[-]redis failed: " in ended.out
        assert ended.err == f"dlpool: the supervisor at 127.0.0.1:{service.port} is not ready\n"
        assert run("health", "--live", "-c", service.ini).code == 0
    finally:
        service.kill()
    with Origin(File(b"no supervisor")) as other:
        ended = run("health", "--address", f"127.0.0.1:{other.port}", "-q")
        assert ended.code == 1
        assert ended.err == f"dlpool: what answers at 127.0.0.1:{other.port} is no supervisor: it says 200\n"


def test_dlpool_health_needs_an_address(tmp_path: Path) -> None:
    (tmp_path / "x.ini").write_text("[metrics]\nlisten =\n")
    ended = run("health", "-c", tmp_path / "x.ini")
    assert ended.code == 78
    assert "[metrics] listen is empty" in ended.err
    assert run("health", "--address", "nowhere").code == 2
