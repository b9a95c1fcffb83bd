"""Probes of dlpool-web are answered whoever else is there: silent, dripping, or with all threads at work."""

from __future__ import annotations

import json
import resource
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.conftest import wait_until
from tests.processes import ROOT, run
from tests.web import RawClient, WebServer

RAW = "Content-Type: application/octet-stream"
UPLOAD = "/go-uploader/upload_chunk"
PROBES = ("/livez", "/readyz", "/go-uploader/livez", "/go-uploader/readyz", "/go-uploader/health", "/readyz/?verbose")
PATIENT = {"head_timeout": "10m", "body_timeout": "10m", "body_rate": 0, "processes": 1, "threads": 4}
SILENT = 2000


@pytest.fixture(scope="module", autouse=True)
def many_files() -> None:
    """As many connections as the tests need."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebServer]:
    """One process that waits for its clients for as long as they like."""
    with WebServer(tmp_path_factory.mktemp("web"), {"web": PATIENT}) as server:
        yield server


def is_open(sock: socket.socket) -> bool:
    """Whether the server has neither said anything nor closed it."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return not poll.poll(0)


def check_probes(root: str) -> None:
    for path in PROBES:
        for method in ("GET", "HEAD"):
            said = requests.request(method, root + path, timeout=20)
            assert said.status_code == 200, (path, said.text)


# --- what they say ---


def test_what_probes_say(server: WebServer) -> None:
    for root in (server.root, server.url):
        live, ready = (requests.get(f"{root}/{name}?verbose", timeout=20) for name in ("livez", "readyz"))
        assert (live.status_code, live.text) == (200, "ok\n")
        assert ready.text == "[+]disk_space ok\n[+]upload_dir ok\n[+]merged_dir ok\nok\n"
        assert live.headers["Content-Type"].startswith("text/plain")
    assert requests.post(f"{server.root}/livez", timeout=20).status_code == 405
    ended = run("health", "--address", f"127.0.0.1:{server.port}")
    assert (ended.code, ended.out.splitlines()[-1]) == (0, "ok")


def test_probes_need_no_key_and_say_what_is_wrong(tmp_path: Path) -> None:
    settings: Any = {
        "upload": {"disk_warn": 0.0, "disk_refuse": 0.0},
        "web": {**PATIENT, "auth": "on", "secret_key": "k" * 32},
    }
    with WebServer(tmp_path, settings) as server:
        assert requests.get(f"{server.root}/tasks", timeout=20).status_code == 401
        assert requests.get(f"{server.root}/livez", timeout=20).text == "ok\n"
        said = requests.get(f"{server.root}/readyz", timeout=20)
        assert (said.status_code, said.text) == (503, "[-]disk_space failed: not enough free space\nnot ok\n")


# --- who does not keep them waiting ---


def test_probes_are_answered_beside_dripping_bodies_silent_connections_and_half_heads(server: WebServer) -> None:
    with ExitStack() as stack:
        bodies = [stack.enter_context(RawClient(server.port)) for _ in range(64)]
        for number, client in enumerate(bodies):
            client.post(f"{UPLOAD}?file_id=d{number}&chunk_index=0", RAW, "Content-Length: 100000", body=b"x")
        idle = stack.enter_context(requests.Session())
        assert idle.get(f"{server.root}/livez", timeout=20).ok
        silent = []
        for number in range(SILENT):
            client = stack.enter_context(RawClient(server.port))
            silent.append(client)
            if number % 4 == 0:
                client.say("GET /livez HTTP/1.1\r\nHo")
            if number % 400 == 0:
                check_probes(server.root)
                for body in bodies:
                    if is_open(body.sock):
                        body.say(b"x")
        check_probes(server.root)
        assert idle.get(f"{server.root}/livez", timeout=20).ok  # on another connection, if its own was dropped
        is_kept = [is_open(client.sock) for client in silent]
        first = is_kept.index(True)
        assert SILENT // 4 < first < SILENT
        assert all(is_kept[first:]), "others than the oldest were dropped"
        silent[-1].say("GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n" if (SILENT - 1) % 4 else "st: h\r\n\r\n")
        assert silent[-1].sock.recv(17).startswith(b"HTTP/1.1 200 OK")


def test_probes_are_answered_while_no_thread_and_no_place_is_left(tmp_path: Path) -> None:
    """A server whose other requests wait for a file; under a limit of open files, so that its places are few."""
    release, serving = tmp_path / "release", tmp_path / "serving"
    serving.mkdir()
    script = f"""
import os, socket, sys, time, uuid
from pathlib import Path
from dlpool.config import LoggingSettings, WebSettings
from dlpool.observe.log import Log
from dlpool.observe.processors import LogOrigin
from dlpool.web.gunicorn_adapter import GunicornServer
def app(environ, start_response):
    if not environ["PATH_INFO"].endswith("z"):
        Path({str(serving)!r}, uuid.uuid4().hex).touch()
        while not os.path.exists({str(release)!r}):
            time.sleep(0.01)
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
listener = socket.create_server(("127.0.0.1", 0))
listener.set_inheritable(True)
print(listener.getsockname()[1], flush=True)
log = Log(Path({str(tmp_path / "log")!r}), LoggingSettings(), LogOrigin("test", "n", version="0"))
GunicornServer(listener.detach(), WebSettings(threads=4), log, 1, lambda: (app, lambda *_: None)).run()
"""
    command = ["prlimit", "--nofile=80:80", sys.executable, "-c", script]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        with ExitStack() as stack:
            asked = [stack.enter_context(RawClient(port)).post("/work", method="GET") for _ in range(40)]
            wait_until(lambda: len(list(serving.iterdir())) == 4)
            for _ in range(20):
                for path in ("/livez", "/readyz"):
                    assert requests.get(f"http://127.0.0.1:{port}{path}", timeout=20).text == "ok"
            refused = [client for client in asked if not is_open(client.sock)]
            assert 8 < len(refused) < 36
            for client in refused:
                head, _, said = client.sock.recv(65536).partition(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 503 ") and b"\r\nRetry-After: 1" in head
                assert json.loads(said)["code"] == "busy"
            release.touch()
            for client in asked:
                if client not in refused:
                    assert client.sock.recv(12) == b"HTTP/1.1 200"
        process.terminate()
        assert process.wait(40) == 0
    finally:
        process.kill()
        process.wait()


# --- heads, however they come ---


@pytest.mark.parametrize("step", [1, 2, 7])
def test_heads_that_drip_are_read(step: int, server: WebServer) -> None:
    head = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX-Long: yes\r\n\r\n"
    with RawClient(server.port) as client:
        client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(2):  # the second one on a kept connection
            for begin in range(0, len(head), step):
                client.say(head[begin : begin + step])
            with client.sock.makefile("rb") as answer:
                assert answer.readline() == b"HTTP/1.1 200 OK\r\n"
                while answer.readline() != b"ok\n":
                    pass


def test_a_head_may_be_cut_at_each_byte(server: WebServer) -> None:
    head = b"\r\nGET /go-uploader/health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with ExitStack() as stack:
        clients = [stack.enter_context(RawClient(server.port)) for _ in range(1, len(head))]
        for cut, client in enumerate(clients, 1):
            client.say(head[:cut])
        check_probes(server.root)
        for cut, client in enumerate(clients, 1):
            client.say(head[cut:])
        assert {client.answer()[0] for client in clients} == {200}


@pytest.mark.parametrize("step", [1_000_000, 50, 3])
def test_probes_among_uploads_on_one_connection_are_answered_in_order(step: int, server: WebServer) -> None:
    probe = b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    sent = b""
    for index in range(5):
        framing = f"Host: localhost\r\n{RAW}\r\nContent-Length: 6\r\n\r\n"
        sent += f"POST {UPLOAD}?file_id=p&chunk_index={index} HTTP/1.1\r\n{framing}GET / ".encode() + probe
    got = b""
    with RawClient(server.port) as client:
        for begin in range(0, len(sent), step):
            client.say(sent[begin : begin + step])
        while got.count(b"HTTP/1.1 200 OK") < 10 or not got.endswith(b"ok\n"):
            more = client.sock.recv(65536)
            assert more, got
            got += more
    kinds = ["upload" if b'"status":"ok"' in answer else "probe" for answer in got.split(b"HTTP/1.1 200 OK")[1:]]
    assert kinds == ["upload", "probe"] * 5
    assert requests.delete(f"{server.url}/tasks/p", timeout=20).status_code == 200


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /" + b"a" * 9000, 414),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 40_000, 431),
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 8000, 431),
        (b"GET / HTTP/1.1\n", 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\n", 400),
        (b"\r\n\r\n", 400),
    ],
)
def test_what_cannot_become_a_request_is_refused_before_its_end(head: bytes, status: int, server: WebServer) -> None:
    with RawClient(server.port) as client:
        client.say(head)
        answered, said = client.answer()
    assert (answered, said["code"]) == (status, "bad_request")


def test_the_end_does_not_wait_for_who_says_nothing(tmp_path: Path) -> None:
    with WebServer(tmp_path, {"web": PATIENT}) as server, ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(RawClient(server.port))
        assert requests.get(f"{server.root}/livez", timeout=20).ok
        assert server.stop() == 0
        assert not server.events("gunicorn_error"), server.said()
