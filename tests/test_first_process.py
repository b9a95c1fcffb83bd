"""The supervisor as process 1 of a container: it reaps what hooks leave, and takes nobody's exit code."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.conftest import wait_until
from tests.disks import needs_root
from tests.fleet import Client, Supervisor
from tests.origin import File, Origin
from tests.processes import ROOT
from tests.redis_server import RedisServer

ORPHANS = 5
# Each hook leaves processes behind that end after it: process 1 inherits them.
HOOK = f"for n in $(seq {ORPHANS}); do (sleep 0.2; :) & done; exit $1"
NAMESPACE = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")


@contextmanager
def first_process(*command: str, log: Path) -> Iterator[psutil.Process]:
    """Run a command as process 1 of a new PID namespace; yields that process as it is seen from here."""
    with log.open("wb") as errors:
        outer = subprocess.Popen([*NAMESPACE, *command], stdin=subprocess.DEVNULL, stderr=errors, cwd=ROOT)
    try:
        wait_until(lambda: psutil.Process(outer.pid).children() != [])
        yield psutil.Process(outer.pid).children()[0]
    finally:
        outer.kill()
        outer.wait()


def supervisor_of(first: psutil.Process) -> psutil.Process:
    wait_until(lambda: len(first.children()) > 0)
    return first.children()[0]


def zombies(first: psutil.Process) -> list[psutil.Process]:
    found = []
    for one in first.children(recursive=True):
        try:
            found += [one] if one.status() == psutil.STATUS_ZOMBIE else []
        except psutil.NoSuchProcess:
            continue
    return found


@needs_root
def test_orphans_of_hooks_are_reaped_and_exit_codes_are_received(tmp_path: Path, redis_server: RedisServer) -> None:
    client = Client(redis_server.client())
    hooks = {
        "on_success": f"/bin/sh -c {shlex.quote(HOOK)} hook 0",
        "on_failure": f"/bin/sh -c {shlex.quote(HOOK)} hook 7",
    }
    node = Supervisor(tmp_path, redis_server.url, {"hooks": hooks})
    command = (sys.executable, "-m", "dlpool.cli.supervisor", "-c", str(node.ini))
    with Origin(File(b"x")) as origin, first_process(*command, log=node.errors) as first:
        wait_until(lambda: node.events("service_ready") != [], 40)
        for number in range(4):
            client.push(f"{origin.url}/{number}", f"{number}")
        client.wait_for(*(f"{origin.url}/{number}" for number in range(4)))
        client.push("http://127.0.0.1:1/x y", "../outside")
        wait_until(lambda: len(node.events("hook_failed")) == 1)
        [failed] = node.events("hook_failed")
        assert "exit code 7" in json.dumps(failed)
        supervisor = supervisor_of(first)
        workers = [one for one in supervisor.children() if "spawn_main" in " ".join(one.cmdline())]
        workers[0].kill()
        wait_until(lambda: len(node.events("worker_died")) == 1)
        assert "SIGKILL" in node.events("worker_died")[0]["dlpool.exit_reason"]
        wait_until(lambda: not [one for one in first.children() if one.pid != supervisor.pid])
        wait_until(lambda: zombies(first) == [])
        first.send_signal(signal.SIGTERM)
        wait_until(lambda: node.events("service_stopped") != [])
        wait_until(lambda: not first.is_running())


PROBE = """
import os, signal, sys, time
from dlpool.cli.container_init import fork_if_init
fork_if_init()
if sys.argv[1] == "exit":
    sys.exit(int(sys.argv[2]))
if sys.argv[1] == "die":
    os.kill(os.getpid(), int(sys.argv[2]))
    time.sleep(60)
number = int(sys.argv[2])
signal.pthread_sigmask(signal.SIG_BLOCK, {number})
print("ready", os.getpid(), flush=True)
print(signal.sigwait({number}), flush=True)
"""


def probe(*arguments: object) -> list[str]:
    return [*NAMESPACE, sys.executable, "-c", PROBE, *map(str, arguments)]


@needs_root
@pytest.mark.parametrize(
    ("how", "number", "code"),
    [("exit", 0, 0), ("exit", 78, 78), ("die", signal.SIGKILL, 137), ("die", signal.SIGSEGV, 139)],
)
def test_the_first_process_exits_as_its_child_does(how: str, number: int, code: int) -> None:
    assert subprocess.run(probe(how, int(number)), cwd=ROOT, timeout=60, check=False).returncode == code


@needs_root
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2])
def test_signals_reach_the_child(number: signal.Signals) -> None:
    with subprocess.Popen(probe("wait", int(number)), cwd=ROOT, stdout=subprocess.PIPE, text=True) as outer:
        assert outer.stdout is not None
        try:
            assert outer.stdout.readline() == "ready 2\n"
            psutil.Process(outer.pid).children()[0].send_signal(number)
            assert outer.stdout.readline() == f"{int(number)}\n"
            assert outer.wait(30) == 0
        finally:
            outer.kill()


def test_any_other_process_stays_one() -> None:
    code = (
        "import os; from dlpool.cli.container_init import fork_if_init;"
        "before = os.getpid(); fork_if_init(); print(before == os.getpid())"
    )
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert said.stdout == "True\n"
    assert os.getpid() != 1
