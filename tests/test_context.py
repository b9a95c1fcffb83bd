"""What the parts of one download are given: limits, the host, and the wait that a server asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest

from dlpool import errors
from dlpool.transfer.context import DownloadPlan, TransferContext, host_of
from dlpool.transfer.http.answer import ByteRange
from dlpool.transfer.http.exchange import ExchangeStats
from dlpool.transfer.http.limits import HostHolds
from dlpool.transfer.http.remote_resource import RemoteResource
from dlpool.transfer.job import Checksum
from dlpool.transfer.scheduler import ChunkScheduler
from tests.conftest import FAST
from tests.contexts import context_of
from tests.fakes import Events

MAX_S = 5.0  # the longest Retry-After that is waited for
DIGEST = "a" * 64


def now() -> float:
    return 100.0


def context(events: Events | None = None, checksum: Checksum | None = None, **settings: Any) -> TransferContext:
    chosen = replace(FAST, max_retry_after=MAX_S, **settings)
    told = Events() if events is None else events
    return context_of(ChunkScheduler(now), now, told, chosen, url="http://H.test:8080/f", checksum=checksum)


@dataclass
class Reply:
    """A reply that only has a status and headers."""

    status: int
    headers: dict[str, str]
    url: str = "http://Mirror.test:81/f?x=1"


@pytest.mark.parametrize(
    ("retry_after", "held_s"), [("1", 1.0), ("5", 5.0), ("6", 0.0), ("0", 0.0), ("soon", 0.0), (None, 0.0)]
)
@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_wait_that_a_server_asks_for_holds_back_all_requests_to_it(
    status: int, retry_after: str | None, held_s: float
) -> None:
    made, held = context(), []
    made.client.host_holds = HostHolds(now, lambda host, seconds: held.append((host, seconds)))
    reply: Any = Reply(status, {} if retry_after is None else {"Retry-After": retry_after})
    with pytest.raises(errors.ServerTrouble):
        made.judge(reply, ByteRange(0, 10))
    assert held == ([("mirror.test:81", held_s)] if held_s else [])


def test_an_answer_is_of_the_host_that_sent_it() -> None:
    reply: Any = Reply(206, {"Content-Range": "bytes 0-9/100"})
    answer = context().judge(reply, ByteRange(0, 10))
    assert (answer.resource.host, answer.resource.size, host_of(reply)) == ("mirror.test:81", 100, "mirror.test:81")


@pytest.mark.parametrize(
    ("connections", "admitted", "expected"), [(8, None, 8), (8, 3, 3), (2, 3, 2), ("auto", None, 4), ("auto", 1, 4)]
)
def test_how_many_connections_a_download_begins_with(
    connections: int | str, admitted: int | None, expected: int
) -> None:
    made = context(connections=connections)
    if admitted is not None:
        made.client.host_connections.record_limit("h.test:8080", admitted)
    assert (made.initial_connections(), made.is_adaptive) == (expected, connections == "auto")
    assert made.host == "h.test:8080"


def test_no_more_connections_are_tried_than_the_settings_allow() -> None:
    assert context(connections="auto", max_connections=2).initial_connections() == 2


def test_each_limit_of_the_machine_is_told_once_per_process() -> None:
    events = Events()
    made = context(events)
    for reason, number in (("too_many_files", 3), ("too_many_files", 2), ("no_threads", 1)):
        made.report_limit(reason, number)
    replace(made).report_limit("no_threads", 7)
    assert events == [
        ("connections_limited", {"connections": 3, "reason": "too_many_files"}),
        ("connections_limited", {"connections": 1, "reason": "no_threads"}),
    ]


OWN, SERVERS = Checksum("sha256", DIGEST), ("md5", "b" * 32)


@pytest.mark.parametrize(
    ("own", "digest", "verify", "expected"),
    [
        (None, None, True, None),
        (OWN, None, True, OWN),
        (OWN, SERVERS, True, OWN),
        (None, SERVERS, True, Checksum(*SERVERS)),
        (OWN, SERVERS, False, None),
    ],
)
def test_which_checksum_is_verified(
    own: Checksum | None, digest: tuple[str, str] | None, verify: bool, expected: Checksum | None
) -> None:
    assert context(checksum=own, verify=verify).expected_checksum(RemoteResource(10, digest=digest)) == expected


@pytest.mark.parametrize(("size", "resumed", "missing"), [(100, 30, 70), (100, 0, 100), (None, 0, 0)])
def test_what_a_plan_still_misses(size: int | None, resumed: int, missing: int) -> None:
    place: Any = None
    assert DownloadPlan(RemoteResource(size), place, True, resumed).missing_bytes == missing


def test_the_waits_of_a_request_end_with_the_download() -> None:
    made = context()
    exchange = made.new_exchange(ExchangeStats(5, 1.0))
    assert (exchange.stats(), exchange.clock) == (ExchangeStats(5, 1.0), now)
    made.scheduler.scope.cancel(errors.Cancelled("cancelled"))
    with pytest.raises(errors.Cancelled):
        exchange.sleep(60.0)
