"""The outbox of a Cluster: what is written, what waits, what is dropped. Its nodes are databases of one Redis here."""

from __future__ import annotations

import json
from typing import Any

import pytest
import redis
from redis import exceptions as errors
from redis.backoff import NoBackoff
from redis.retry import Retry

from dlpool.errors import QueueAway
from dlpool.jobs import outbox
from dlpool.jobs.client_records import ClientRecord
from dlpool.jobs.connection import translated
from dlpool.jobs.keys import SUCCESS_TTL_S, QueueKeys
from dlpool.jobs.outbox import BATCH, LATE_S, Delivery, Outbox, encode_entry
from dlpool.jobs.queue_clock import QueueTime
from tests.redis_server import RedisServer

KEYS = QueueKeys()
NOW_MS = 1_800_000_000_000


class Nodes:
    """Which client has the slot of a key, by the key's first letter; the others are this one's own."""

    def __init__(self, server: RedisServer) -> None:
        self.own: Any = server.client()
        self.nodes: dict[str, Any] = {name: server.client(db=number) for number, name in enumerate("abc", 1)}
        self.asked: list[str] = []
        self.forgotten = 0
        self.is_unknown = False
        self.outbox = Outbox(self.own, KEYS, self)  # type: ignore[arg-type]

    def client_for(self, key: str) -> Any:
        self.asked.append(key)
        if self.is_unknown:
            raise errors.ClusterDownError("no node has it")
        return self.nodes.get(key[0], self.own)

    def invalidate(self) -> None:
        self.forgotten += 1

    def put(self, lease: str, record: ClientRecord, age_s: float = 0.0) -> None:
        """Put a record into the outbox, ``age_s`` seconds ago."""
        self.own.hset(KEYS.outbox, lease, b"%d %b" % (NOW_MS - age_s * 1000, encode_entry(record)))

    def waiting(self) -> list[str]:
        return sorted(lease.decode() for lease in self.own.hkeys(KEYS.outbox))

    def lose(self, name: str) -> None:
        """Let a node be away."""
        self.nodes[name] = redis.Redis(unix_socket_path=f"/nowhere/{name}.sock", retry=Retry(NoBackoff(), 0))


@pytest.fixture
def nodes(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Nodes:
    monkeypatch.setattr(outbox, "queue_time", lambda _client, _keys: QueueTime(NOW_MS, 0))
    return Nodes(redis_server)


def string(key: str, at: str = "2026-01-01T00:00:00Z") -> ClientRecord:
    return ClientRecord(key, json.dumps({"url": "u", "finished_at": at}).encode())


def field(key: str, at: str = "2026-01-01T00:00:00Z") -> ClientRecord:
    return ClientRecord(key, json.dumps({"failed_at": at, "task_data": "\n"}).encode(), "http://h")


def test_records_are_delivered_to_their_nodes(nodes: Nodes) -> None:
    records = {"1": string("a1"), "2": string("b2"), "3": field("c3"), "4": string("a4")}
    for lease, record in records.items():
        nodes.put(lease, record)
    assert nodes.outbox.deliver(["1", "3", "none"]) == Delivery(2, 0)
    assert nodes.waiting() == ["2", "4"]
    assert nodes.nodes["a"].get("a1") == records["1"].value
    assert SUCCESS_TTL_S - 60 < nodes.nodes["a"].ttl("a1") <= SUCCESS_TTL_S
    assert nodes.nodes["c"].hgetall("c3") == {b"http://h": records["3"].value}
    assert (nodes.own.exists("a1", "c3"), nodes.asked, nodes.forgotten) == (0, ["a1", "c3"], 0)
    nodes.outbox.drop(["2"])
    assert nodes.waiting() == ["4"]


def test_nothing_to_deliver_calls_no_node() -> None:
    away: Any = redis.Redis(unix_socket_path="/nowhere.sock", retry=Retry(NoBackoff(), 0))
    lost = Outbox(away, KEYS, None)  # type: ignore[arg-type]
    assert lost.deliver([]) == Delivery(0, 0, "", ())
    lost.drop([])
    for use in (lambda: lost.deliver(["1"]), lambda: lost.drop(["1"]), lost.replay):
        with pytest.raises(QueueAway):
            use()


@pytest.mark.parametrize(("age_s", "written"), [(0, 0), (LATE_S - 1, 0), (LATE_S, 1), (LATE_S + 1, 1)])
def test_only_records_that_lie_there_for_long_are_replayed(nodes: Nodes, age_s: float, written: int) -> None:
    nodes.put("1", string("a"), age_s)
    assert nodes.outbox.replay() == Delivery(written, 0)
    assert nodes.waiting() == [] if written else ["1"]


@pytest.mark.parametrize(("left_s", "is_there"), [(-5, False), (0, False), (5, True), (100, True)])
def test_a_late_record_lives_no_longer_than_it_would_have_lived(nodes: Nodes, left_s: int, is_there: bool) -> None:
    nodes.put("1", string("a"), SUCCESS_TTL_S - left_s)
    nodes.put("2", field("b"), SUCCESS_TTL_S - left_s)
    assert nodes.outbox.replay() == Delivery(2, 0)
    assert nodes.waiting() == []
    assert bool(nodes.nodes["a"].exists("a")) is is_there
    assert not is_there or left_s - 4 < nodes.nodes["a"].ttl("a") <= left_s
    assert nodes.nodes["b"].hlen("b") == 1


SEEN = {
    "older": ('{"finished_at":"2025-12-31T23:59:59Z"}', True),
    "as new": ('{"finished_at":"2026-01-01T00:00:00Z"}', False),
    "newer": ('{"failed_at":"2026-01-01T00:00:01Z"}', False),
    "both": ('{"finished_at":"2026-01-01T00:00:01Z","failed_at":"2025"}', False),
    "nothing": ("{}", True),
    "no object": ("[]", True),
    "no JSON": ("x", True),
}


@pytest.mark.parametrize("seen", SEEN)
@pytest.mark.parametrize("record", [string("a"), field("a")], ids=["string", "field"])
@pytest.mark.parametrize("is_late", [True, False])
def test_a_late_record_replaces_only_an_older_one(nodes: Nodes, record: ClientRecord, seen: str, is_late: bool) -> None:
    text, is_replaced = SEEN[seen]
    node = nodes.nodes["a"]
    node.set("a", text) if record.field is None else node.hset("a", record.field, text)
    nodes.put("1", record, 100)
    delivery = nodes.outbox.replay() if is_late else nodes.outbox.deliver(["1"])
    assert (delivery, nodes.waiting()) == (Delivery(1, 0), [])
    found = node.get("a") if record.field is None else node.hget("a", record.field)
    assert found == (record.value if is_replaced or not is_late else text.encode())


def test_a_node_that_is_away_keeps_only_its_own_records_waiting(nodes: Nodes) -> None:
    nodes.lose("a")
    nodes.lose("b")
    leases = ["1", "2", "3", "4", "5"]
    for lease, key in zip(leases, ("a1", "c2", "a3", "b4", "c5"), strict=True):
        nodes.put(lease, string(key))
    delivery = nodes.outbox.deliver(leases)
    assert (delivery.written, delivery.waiting, delivery.refused) == (2, 3, ())
    said = delivery.reason.split("; ")
    assert len(said) == 2 and "/nowhere/a.sock" in said[0] and "/nowhere/b.sock" in said[1]
    assert (nodes.waiting(), nodes.forgotten) == (["1", "3", "4"], 2), "a node that is away is tried once"


def test_while_no_node_is_known_all_waits(nodes: Nodes) -> None:
    nodes.is_unknown = True
    for lease in ("1", "2", "3"):
        nodes.put(lease, string("a"))
    delivery = nodes.outbox.deliver(["1", "2", "3"])
    assert (delivery.written, delivery.waiting) == (0, 3)
    assert "no node has it" in delivery.reason
    assert (nodes.asked, nodes.forgotten, nodes.waiting()) == (["a"], 1, ["1", "2", "3"])


def test_a_record_that_a_node_never_takes_is_named_and_dropped(nodes: Nodes) -> None:
    nodes.nodes["a"].set("a", "no hash")
    nodes.put("1", field("a"))
    nodes.put("2", string("b"))
    delivery = nodes.outbox.deliver(["1", "2"])
    assert (delivery.written, delivery.waiting, delivery.reason) == (1, 0, "")
    [(lease, why)] = delivery.refused
    assert lease == "1" and "WRONGTYPE" in why
    assert (nodes.waiting(), nodes.forgotten) == ([], 0)


def test_a_record_keeps_its_bytes_and_many_are_replayed_in_turns(nodes: Nodes) -> None:
    value = b'{"failed_at":"2026-01-01T00:00:00Z", "x": "\n \xc3\xbc"}'
    for number in range(BATCH + 3):
        nodes.put(f"{number}", ClientRecord("c", value, f"http://h/ {number}"), 100)
    assert [nodes.outbox.replay().written for _ in range(3)] == [BATCH, 3, 0]
    found = nodes.nodes["c"].hgetall("c")
    assert len(found) == BATCH + 3 and set(found.values()) == {value}
    with translated(nodes.own):
        assert not nodes.own.exists(KEYS.outbox)
