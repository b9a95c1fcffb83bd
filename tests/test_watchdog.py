"""Test the watchdog: the service manager gets no ping while a thread hangs."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dlpool.service.node.systemd import SystemdNotifier
from dlpool.service.node.watchdog import ThreadLiveness, Watchdog
from tests.conftest import wait_until
from tests.fakes import Clock, Lines
from tests.fleet import Client, Supervisor
from tests.manager import Manager
from tests.origin import File, Origin
from tests.proxy import Proxy
from tests.redis_server import RedisServer

WATCHDOG_S = 2.0


class Member:
    """A thread that marks itself alive on request."""

    def __init__(self, name: str, pulse: ThreadLiveness) -> None:
        self._pulse = pulse
        self._turns: list[threading.Event] = []
        self._wanted = threading.Condition()
        self.is_ending = False
        self.thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self.thread.start()

    def sign(self) -> None:
        self._ask()

    def end(self) -> None:
        self.is_ending = True
        self._ask()
        self.thread.join()

    def _ask(self) -> None:
        done = threading.Event()
        with self._wanted:
            self._turns.append(done)
            self._wanted.notify()
        assert done.wait(10)

    def _serve(self) -> None:
        while not self.is_ending:
            with self._wanted:
                self._wanted.wait_for(lambda: self._turns)
                done = self._turns.pop()
            self._pulse.mark_alive()
            done.set()


class Team:
    """Two threads, their watchdog, and the messages to the service manager."""

    def __init__(self, address: str) -> None:
        self.clock = Clock()
        self.manager = Manager(address)
        pulse = ThreadLiveness(self.clock)
        self.one, self.other = Member("one", pulse), Member("other", pulse)
        self.lines = Lines()
        logger: Any = self.lines
        environment = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": str(round(WATCHDOG_S * 1_000_000))}
        threads = [self.one.thread, self.other.thread]
        self.service_manager = SystemdNotifier(environment)
        self.watchdog = Watchdog(self.service_manager, pulse, threads, logger, self.clock)

    def pings(self) -> int:
        """Return the number of pings; a message sent afterwards shows that all have arrived."""
        last = {"STATUS": f"after {len(self.manager.heard)}"}
        self.service_manager.status(last["STATUS"])
        wait_until(lambda: last in self.manager.heard)
        return self.manager.names().count("WATCHDOG")

    def later(self, seconds: float) -> None:
        self.clock.now += seconds
        self.watchdog.check()


@pytest.fixture
def team(tmp_path: Path) -> Iterator[Team]:
    team = Team(f"@dlpool-team-{os.getpid()}-{time.monotonic_ns()}")
    yield team
    team.one.end()
    team.other.end()


def test_the_manager_is_pinged_twice_in_its_time_while_all_go_round(team: Team) -> None:
    for _ in range(8):
        team.one.sign()
        team.other.sign()
        team.later(WATCHDOG_S / 4)
    assert team.pings() == 4
    assert team.lines.kept == []


def test_a_thread_that_hangs_is_not_made_up_for_by_another(team: Team) -> None:
    team.later(WATCHDOG_S / 2)
    before = team.pings()
    for _ in range(10):
        team.other.sign()
        team.watchdog.check()
        team.later(WATCHDOG_S / 2)
    assert team.pings() == before + 1  # while it was not silent for longer than the limit
    [line] = team.lines.kept
    assert (line.level, line.event, line.fields["thread"]) == ("critical", "thread_hung", "one")
    assert "wait_for" in line.fields["stacks"]


def test_the_manager_is_pinged_again_when_the_thread_goes_on(team: Team) -> None:
    for _ in range(3):
        team.later(WATCHDOG_S)
    before = team.pings()
    team.one.sign()
    team.later(WATCHDOG_S / 2)
    assert team.pings() == before
    team.other.sign()
    team.later(WATCHDOG_S / 2)
    assert team.pings() == before + 1


def test_a_pause_of_the_whole_process_is_no_hung_thread(team: Team) -> None:
    team.later(10 * WATCHDOG_S)
    team.one.sign()
    team.other.sign()
    team.later(0.1)
    assert team.lines.kept == []


def test_without_a_manager_that_watches_a_hung_thread_is_logged_all_the_same(tmp_path: Path) -> None:
    clock, lines = Clock(), Lines()
    pulse = ThreadLiveness(clock)
    member = Member("one", pulse)
    logger: Any = lines
    watchdog = Watchdog(SystemdNotifier({}), pulse, [member.thread], logger, clock)
    for _ in range(3):
        clock.now += 50.0
        watchdog.check()
    member.end()
    assert lines.events == ["thread_hung"]


def test_no_ping_while_a_thread_of_the_service_waits_for_a_reply_that_never_ends(tmp_path: Path) -> None:
    """Each byte arrives in time, so that no time limit of the connection ends the wait."""
    address = f"@dlpool-hang-{os.getpid()}-{time.monotonic_ns()}"
    manager = Manager(address)

    def pings() -> int:
        return manager.names().count("WATCHDOG")

    with (
        pytest.MonkeyPatch.context() as patch,
        RedisServer(tmp_path / "redis") as server,
        Proxy(server.socket) as proxy,
    ):
        patch.setenv("NOTIFY_SOCKET", address)
        patch.setenv("WATCHDOG_USEC", str(round(WATCHDOG_S * 1_000_000)))
        with Supervisor(tmp_path / "node", proxy.url) as service, Origin(File(b"x")) as origin:
            wait_until(lambda: pings() >= 2)
            proxy.trickle_next(b"BLPOP")
            wait_until(lambda: bool(service.events("thread_hung")))
            line, before = service.events("thread_hung")[0], pings()
            assert line["dlpool.thread"] == "heartbeat"
            assert "_read_mail" in line["dlpool.stacks"]
            client = Client(server.client())
            for number in range(3):  # the others work on
                client.push(f"{origin.url}/{number}", f"{number}")
            client.wait_for(*(f"{origin.url}/{number}" for number in range(3)))
            until = time.monotonic() + WATCHDOG_S
            wait_until(lambda: time.monotonic() > until)
            assert pings() == before
            proxy.drop()
            wait_until(lambda: pings() > before)
            assert service.stop() == 0, service.said()
