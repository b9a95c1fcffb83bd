"""What the service manager is told: real datagrams at a real socket, and none where nobody asked for them."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dlpool.service.node.systemd import SystemdNotifier

OTHER = str(os.getpid() + 1)


@pytest.fixture(params=["file", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """A service manager's socket, and its name in the environment."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        if request.param == "file":
            name = f"{tmp_path}/notify"
            sock.bind(name)
        else:
            name = f"@dlpool-test-{secrets.token_hex(8)}"
            sock.bind("\0" + name[1:])
        sock.setblocking(False)
        yield sock, name


def heard(sock: socket.socket) -> list[str]:
    said = []
    while True:
        try:
            said.append(sock.recv(4096).decode())
        except BlockingIOError:
            return said


@pytest.mark.parametrize(
    ("tell", "said"),
    [
        (lambda one: one.ready(), "READY=1"),
        (lambda one: one.extend_timeout(1.5), "EXTEND_TIMEOUT_USEC=1500000"),
        (lambda one: one.stopping(2), "STOPPING=1\nEXTEND_TIMEOUT_USEC=2000000"),
        (lambda one: one.reloading(77), "RELOADING=1\nMONOTONIC_USEC=77"),
        (lambda one: one.watchdog(), "WATCHDOG=1"),
        (lambda one: one.status("12 jobs"), "STATUS=12 jobs"),
    ],
)
def test_each_message_is_one_datagram(
    tell: Callable[[SystemdNotifier], None], said: str, manager: tuple[socket.socket, str]
) -> None:
    sock, name = manager
    tell(SystemdNotifier({"NOTIFY_SOCKET": name}))
    assert heard(sock) == [said]


def test_a_status_is_told_when_it_changes(manager: tuple[socket.socket, str]) -> None:
    sock, name = manager
    one = SystemdNotifier({"NOTIFY_SOCKET": name})
    for text in ("", "a", "a", "b", "a", ""):
        one.status(text)
    assert heard(sock) == ["STATUS=a", "STATUS=b", "STATUS=a", "STATUS="]


def test_the_environment_of_the_process_is_used(
    manager: tuple[socket.socket, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sock, name = manager
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    monkeypatch.setenv("WATCHDOG_USEC", "8000000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    one = SystemdNotifier()
    one.ready()
    assert heard(sock) == ["READY=1"] and one.watchdog_s == 4.0


@pytest.mark.parametrize("address", ["", "/nowhere/notify", "@dlpool-nobody-listens-here", "x" * 300])
def test_nobody_who_listens_is_no_failure(address: str) -> None:
    one = SystemdNotifier({"NOTIFY_SOCKET": address} if address else {})
    for _ in range(2):
        one.ready()
        one.watchdog()


def test_a_manager_that_does_not_read_is_not_waited_for(manager: tuple[socket.socket, str]) -> None:
    sock, name = manager
    one = SystemdNotifier({"NOTIFY_SOCKET": name})
    for _ in range(5000):  # more than its queue holds: a send that blocks would hang here
        one.watchdog()
    assert 0 < len(heard(sock)) < 5000


def test_no_socket_is_made_where_there_is_no_manager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dlpool.service.node.systemd.socket.socket", lambda *_: pytest.fail("a socket was made"))
    SystemdNotifier({}).ready()


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": OTHER}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": ""}, None),
    ],
)
def test_signs_of_life_come_twice_in_the_time_that_is_allowed(given: dict[str, str], seconds: float | None) -> None:
    assert SystemdNotifier(given).watchdog_s == seconds
