"""What hosts are spared, on a real fleet: jobs at once, their starts, and the time that a host asks for."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dlpool.config import LimitSettings, Settings
from dlpool.jobs.host_slots import HostLimit, HostSlots, SlotReply
from dlpool.jobs.job_admin import JobAdmin
from dlpool.jobs.keys import QueueKeys
from dlpool.jobs.queue_views import QueueStats, QueueViews
from dlpool.jobs.transitions import Transitions
from dlpool.service.host_limits import HostLimits
from tests.conftest import wait_until
from tests.fleet import Client, Supervisor, fleet
from tests.origin import Connection, File, Origin, Request
from tests.redis_server import RedisServer

SMALL = File(b"x" * 1000)
LATE_S = 30.0


class Crowd:
    """An origin's handler that counts how many are with it at once; each stays for a while."""

    def __init__(self, stay_s: float = 0.05) -> None:
        self.stay_s = stay_s
        self.most = 0
        self.came: list[float] = []
        self._lock = threading.Lock()
        self._present = 0

    def __call__(self, request: Request, connection: Connection) -> None:
        with self._lock:
            self.came.append(time.monotonic())
            self._present += 1
            self.most = max(self.most, self._present)
        time.sleep(self.stay_s)
        with self._lock:
            self._present -= 1
        SMALL(request, connection)


class Door:
    """An origin's handler that answers no request before it is open. A context, at whose end it is open."""

    def __init__(self) -> None:
        self.open = threading.Event()

    def __enter__(self) -> Door:
        return self

    def __exit__(self, *_: object) -> None:
        self.open.set()

    def __call__(self, request: Request, connection: Connection) -> None:
        self.open.wait(LATE_S)
        SMALL(request, connection)


class Fleet:
    """Clients of a fleet, and what they see."""

    def __init__(self, folder: Path, server: RedisServer) -> None:
        self.folder = folder
        self.server = server
        self.connection: Any = server.client()
        self.client = Client(self.connection)

    @contextmanager
    def of_two(self, **settings: Any) -> Iterator[list[Supervisor]]:
        settings.setdefault("supervisor", {}).setdefault("max_concurrent_downloads", 6)
        with fleet(self.folder, self.server.url, "one", "two", **settings) as nodes:
            yield nodes

    def of_one(self, **settings: Any) -> Supervisor:
        return Supervisor(self.folder / "one", self.server.url, settings)

    def push(self, origin: Origin, count: int) -> list[str]:
        urls = [f"{origin.url}/{number}" for number in range(count)]
        for number, url in enumerate(urls):
            self.client.push(url, f"{origin.port}-{number}")
        return urls

    def fetch(self, url: str) -> None:
        self.client.push(url, url.rpartition("/")[2])
        self.client.wait_for(url)

    def stats(self) -> QueueStats:
        return QueueViews(self.connection, QueueKeys()).stats()

    def wait_for_throttled(self, count: int) -> None:
        wait_until(lambda: self.stats().throttled == count, LATE_S)

    def calls(self) -> int:
        """How many transitions there were."""
        return int(self.connection.info("commandstats")["cmdstat_evalsha"]["calls"])

    def wait_for_nothing_left(self) -> None:
        """No slot is taken, and no job is throttled."""

        def left() -> list[str]:
            names = [name.decode() for name in self.connection.keys("*")]
            return [
                one for one in names if "throttled" in one or (one.startswith("dlpool:limit:") and "next" not in one)
            ]

        wait_until(lambda: not left(), LATE_S)


@pytest.fixture
def world(tmp_path: Path, redis_server: RedisServer) -> Fleet:
    return Fleet(tmp_path, redis_server)


# --- the slots of a host ---


@pytest.fixture
def slots(redis_server: RedisServer) -> HostSlots:
    return HostSlots(Transitions(redis_server.client(), QueueKeys()))


def take(
    slots: HostSlots, job_id: str, *, lease_s: float = 30.0, is_start_reserved: bool = False, **limit: Any
) -> SlotReply:
    return slots.acquire(HostLimit("h", **limit), job_id, lease_s=lease_s, is_start_reserved=is_start_reserved)


def test_no_more_than_the_limit_have_a_slot(slots: HostSlots) -> None:
    assert [take(slots, name, most=2).wait_s for name in "abc"] == [0, 0, None]
    assert take(slots, "a", most=2).wait_s == 0, "who has one has it still"
    slots.release("h", "a")
    assert [take(slots, name, most=2).wait_s for name in "cd"] == [0, None]


def test_a_slot_of_one_that_died_is_free_after_its_lease_unless_it_was_kept(slots: HostSlots) -> None:
    take(slots, "a", most=2, lease_s=0.3)
    take(slots, "b", most=2, lease_s=0.3)
    slots.renew([("h", "b")], lease_s=30)
    time.sleep(0.4)
    assert take(slots, "c", most=2).wait_s == 0
    assert take(slots, "d", most=2).wait_s is None


def test_starts_are_reserved_one_after_the_other(slots: HostSlots) -> None:
    first, second, third = (take(slots, name, rate=0.02) for name in "abc")
    assert first == SlotReply(0.0)
    assert second.is_start_reserved
    assert third.is_start_reserved
    assert 40 < (second.wait_s or 0) <= 50
    assert 90 < (third.wait_s or 0) <= 100
    assert take(slots, "b", rate=0.02, is_start_reserved=True) == SlotReply(0.0), (
        "a reserved start is not reserved again"
    )


def test_a_start_stays_reserved_while_no_slot_is_free(slots: HostSlots) -> None:
    take(slots, "a", most=1, rate=100.0)
    assert take(slots, "b", most=1, rate=100.0, is_start_reserved=True) == SlotReply(None, is_start_reserved=True)


def test_queues_share_the_slots_of_a_host_but_not_their_ids(redis_server: RedisServer) -> None:
    one, other = (HostSlots(Transitions(redis_server.client(), QueueKeys(group))) for group in (None, "g"))
    assert take(one, "same", most=2).wait_s == take(other, "same", most=2).wait_s == 0
    assert take(other, "more", most=2).wait_s is None


def test_what_a_host_asked_for_is_forgotten_when_its_time_is_over(redis_server: RedisServer) -> None:
    connection: Any = redis_server.client()
    transitions = Transitions(connection, QueueKeys())
    transitions.hold_host("h", 0.6)
    transitions.hold_host("other", 0.2)
    assert 0.3 < connection.pttl(QueueKeys().holds) / 1000 <= 0.6
    wait_until(lambda: not connection.exists(QueueKeys().holds))


# --- which limit is whose ---

HOSTS = {"example.org": LimitSettings(2, None), "example.org:8443": LimitSettings(1, None), "free.org": LimitSettings()}


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://example.org/a", HostLimit("example.org", 2)),
        ("https://EXAMPLE.org:9000/a", HostLimit("example.org", 2)),
        ("https://u:p@example.org:8443/a", HostLimit("example.org:8443", 1)),
        ("http://free.org/a", None),
        ("http://other.org:81/a", HostLimit("other.org", 5, 0.5)),
        ("http://[::1]:81/a", HostLimit("::1", 5, 0.5)),
    ],
)
def test_the_limit_of_a_url_is_that_of_its_host(url: str, expected: HostLimit | None) -> None:
    hosts = HostLimits(Settings(limits=LimitSettings(5, 0.5), hosts=HOSTS), time.monotonic)
    assert hosts.limit(url) == expected


def test_a_hold_is_news_once() -> None:
    now = 0.0
    hosts = HostLimits(Settings(), lambda: now)
    assert hosts.hold("H:81", 10)
    assert not hosts.hold("h:81", 10)
    assert hosts.hold("h:81", 20)
    assert (hosts.hold_remaining_s("http://u@h:81/x"), hosts.hold_remaining_s("http://h/x")) == (20.0, 0.0)
    now = 21.0
    assert hosts.hold_remaining_s("http://h:81/x") == 0.0


# --- a fleet ---


def test_two_nodes_together_ask_a_host_no_more_often_than_allowed(world: Fleet) -> None:
    crowd = Crowd()
    with Origin(crowd) as origin, world.of_two(limits={"max_per_host": 2}):
        world.client.wait_for(*world.push(origin, 40))
        assert crowd.most == 2
        assert len(crowd.came) == 40, "a throttled job sends no request"
        world.wait_for_nothing_left()


def test_jobs_of_other_hosts_do_not_wait_behind_throttled_ones(world: Fleet) -> None:
    limits = {"host:127.0.0.1": {"max_per_host": 1}}
    with Door() as door, Origin(door) as slow, Origin(SMALL, host="127.0.0.2") as quick, world.of_two(**limits):
        urls = world.push(slow, 20)
        world.wait_for_throttled(19)
        assert world.stats().waiting_hosts == {"127.0.0.1": 19}
        world.fetch(f"{quick.url}/quick")
        door.open.set()
        world.client.wait_for(*urls)
        world.wait_for_nothing_left()


def test_beyond_four_times_the_slots_the_head_of_the_list_waits(world: Fleet) -> None:
    settings = {"supervisor": {"max_concurrent_downloads": 2, "workers": 1}, "limits": {"max_per_host": 1}}
    with Door() as door, Origin(door) as origin, world.of_one(**settings):
        urls = world.push(origin, 30)
        wait_until(lambda: world.stats().throttled >= 8, LATE_S)
        calls = world.calls()
        time.sleep(2.0)
        stats = world.stats()
        assert 8 <= stats.throttled <= 8 + 2, "some may be waiting for a slot again when the last ones are taken"
        assert stats.backlog >= 30 - 1 - 8 - 2 - 2
        assert world.calls() - calls < 100, "nothing spins"
        door.open.set()
        world.client.wait_for(*urls)
        world.wait_for_nothing_left()


def test_starts_of_jobs_keep_their_distance_over_two_nodes(world: Fleet) -> None:
    crowd = Crowd(0.0)
    with Origin(crowd) as origin, world.of_two(limits={"rate_per_host": "10/s"}):
        world.client.wait_for(*world.push(origin, 20))
    assert len(crowd.came) == 20
    assert crowd.came[-1] - crowd.came[0] >= 1.7, "twenty starts, a tenth of a second from one to the next"


def test_when_a_host_says_later_no_node_asks_it_and_others_go_on(world: Fleet) -> None:
    asked: list[float] = []

    def busy(request: Request, connection: Connection) -> None:
        asked.append(time.monotonic())
        if len(asked) == 1:
            connection.answer(429, {"Retry-After": "4"}, b"later")
        else:
            SMALL(request, connection)

    with Origin(busy) as origin, Origin(SMALL, host="127.0.0.2") as other, world.of_two() as nodes:
        world.client.push(f"{origin.url}/first", "first")
        wait_until(lambda: all(node.events("host_held") for node in nodes), LATE_S)
        urls = world.push(origin, 20)
        world.wait_for_throttled(20)
        assert set(world.stats().held_hosts) == {origin.url.removeprefix("http://")}
        world.fetch(f"{other.url}/other")
        assert len(asked) == 1, "twenty jobs on two nodes wait, and send no request"
        world.client.wait_for(f"{origin.url}/first", *urls)
        assert asked[1] - asked[0] >= 3.9
        world.wait_for_nothing_left()


def test_the_slot_of_a_killed_supervisor_is_free_after_its_lease(world: Fleet) -> None:
    settings = {"supervisor": {"lease": "2s", "grace": "60s"}, "limits": {"max_per_host": 1}}
    with Door() as door:

        def held(request: Request, connection: Connection) -> None:
            (door if request.path == "/dies" else SMALL)(request, connection)

        with Origin(held) as origin, world.of_two(**settings) as (one, two):
            two.stop()
            world.client.push(f"{origin.url}/dies", "dies")
            wait_until(lambda: len(origin.requests) == 1, LATE_S)
            one.kill()
            two.start()
            world.fetch(f"{origin.url}/next")


def test_operators_move_throttled_jobs_as_any_others(world: Fleet) -> None:
    controls = JobAdmin(world.connection, QueueKeys())
    with Door() as door, Origin(door) as origin, world.of_one(limits={"max_per_host": 1}):
        for number, name in enumerate(["runs", "cancelled", "paused", "stays"]):
            world.client.push(f"{origin.url}/{name}", name, id=name)
            world.wait_for_throttled(number)
        assert controls.execute("cancel", "cancelled", message="the job was cancelled") == "OK"
        assert controls.execute("pause", "paused") == "OK"
        assert world.stats().throttled == 1
        door.open.set()
        world.client.wait_for(*(f"{origin.url}/{name}" for name in ("runs", "stays")))
        assert controls.execute("resume", "paused") == "OK"
        world.client.wait_for(f"{origin.url}/paused")
        world.wait_for_nothing_left()
