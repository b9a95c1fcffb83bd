"""Which running transfers give their slots to jobs that wait. Pure.

A transfer that yields is checkpointed and goes back to the queue, behind what waits.
Each time it has twice as long before it may yield again: so it comes to its end, also
if its origin sends it from the beginning each time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

HOST_SHARE, FAR_BELOW, SLOW = "host_share", "far_below", "slow"  # reasons
SHARE_S = 2.0  # a transfer of a host with more than its part has so long at least
FAR = 10  # times slower than the median is far below it
LEAST_PEERS = 3  # below which a median says nothing
SOON = (
    0.5  # of the time before it may yield: a transfer that ends so soon is left alone
)
LIMITED = (
    0.5  # of a limit of ours: a transfer that reaches that is not slow, it is limited
)
MOST_DOUBLINGS = 30


@dataclass(frozen=True)
class RunningTransfer:
    """A transfer: ``rate`` in bytes/s, smoothed; ``age_s`` since it got its slot;
    ``left`` in bytes, None if unknown.

    ``yields``: how often it has yielded. ``cap``: the bytes/s that our own limits leave
    to it. ``is_kept``: what it has fetched is of use to its next run. ``is_moving``: it
    waits for its host, and not for our disk or a scanner.
    """

    lease_id: str
    host: str
    rate: float
    age_s: float
    remaining: int | None = None
    yields: int = 0
    rate_limit: float | None = None
    is_resumable: bool = True
    is_moving: bool = True


@dataclass(frozen=True)
class YieldRules:
    """``after_s``: how long a transfer has at least; ``least``: bytes/s, below which it
    is slow whatever others have.

    ``part``: how many slots one host gets while jobs of others wait; ``slow_part``: how
    many the ``slow`` hosts get together.
    """

    after_s: float
    least: float
    part: int
    slow: Collection[str] = ()
    slow_part: int = 0


@dataclass(frozen=True)
class YieldDecision:
    """A transfer that is to yield, and why: host_share, far_below or slow."""

    lease_id: str
    reason: str


def min_runtime_s(first_s: float, yields: int) -> float:
    """How long a transfer has before it may yield: twice as long each time."""
    return first_s * 2.0 ** min(yields, MOST_DOUBLINGS)


def choose_yields(
    running: Sequence[RunningTransfer],
    waiting: Mapping[str, int],
    rules: YieldRules,
    *,
    recent: Sequence[float] = (),
    pending: int = 0,
) -> list[YieldDecision]:
    """The transfers that yield now, where no slot is free: never more than there are
    jobs that wait.

    ``waiting``: jobs by host; a slot is for one of another host, or for any if its
    transfer is far below others of its own host. ``recent``: rates of transfers that
    ended lately. ``pending``: transfers that were told so before, and are not among
    ``running``.
    """
    total = sum(waiting.values())
    wanted: list[
        tuple[YieldDecision, int]
    ] = []  # with the number of jobs for which it would be
    for one, reason in _over(running, rules):
        wanted.append(
            (YieldDecision(one.lease_id, reason), total - waiting.get(one.host, 0))
        )
    for one, reason, is_for_own in _slow(running, rules, recent):
        wanted.append(
            (
                YieldDecision(one.lease_id, reason),
                total - (0 if is_for_own else waiting.get(one.host, 0)),
            )
        )
    result: dict[str, YieldDecision] = {}
    for candidate, most in wanted:
        if candidate.lease_id not in result and len(result) + pending < most:
            result[candidate.lease_id] = candidate
    return list(result.values())


def is_fast_enough(
    one: RunningTransfer,
    running: Sequence[RunningTransfer],
    rules: YieldRules,
    recent: Sequence[float] = (),
) -> bool:
    """Whether a transfer is neither below the fixed rate nor far below what is
    usual."""
    usual = _usual([*(other.rate for other in running), *recent])
    return one.rate >= max(rules.least, usual / FAR)


def may_yield(
    running: Sequence[RunningTransfer],
    rules: YieldRules,
    *,
    recent: Sequence[float] = (),
) -> bool:
    """Whether any transfer would yield, if enough jobs waited."""
    return bool(choose_yields(running, {"": len(running) + 1}, rules, recent=recent))


def _over(
    running: Sequence[RunningTransfer], rules: YieldRules
) -> list[tuple[RunningTransfer, str]]:
    """The slowest transfers of hosts, and of all slow hosts, with more than their part,
    as many as are too many."""
    counts = Counter(one.host for one in running)
    slow = sum(one.host in rules.slow for one in running)
    found: list[tuple[RunningTransfer, str]] = []
    for one in sorted(running, key=lambda one: (one.rate, one.lease_id)):
        is_slow = one.host in rules.slow and slow > rules.slow_part
        if not (is_slow or counts[one.host] > rules.part):
            continue
        if one.is_resumable and _has_had(one, min(SHARE_S, rules.after_s), rules):
            counts[one.host] -= 1
            slow -= one.host in rules.slow
            found.append((one, SLOW if is_slow else HOST_SHARE))
    return found


def _slow(
    running: Sequence[RunningTransfer], rules: YieldRules, recent: Sequence[float]
) -> list[tuple[RunningTransfer, str, bool]]:
    """Slow transfers: those of the host with most slots first, of them the slowest; and
    whether any job may follow."""
    counts = Counter(one.host for one in running)
    usual = _usual([*(one.rate for one in running), *recent])
    found = []
    for one in sorted(
        running, key=lambda one: (-counts[one.host], one.rate, one.lease_id)
    ):
        if not _has_had(one, rules.after_s, rules) or (
            one.rate_limit is not None and one.rate >= one.rate_limit * LIMITED
        ):
            continue
        own = _usual([other.rate for other in running if other.host == one.host])
        if one.rate * FAR < own:
            found.append((one, FAR_BELOW, True))
        elif one.rate * FAR < usual:
            found.append((one, FAR_BELOW, False))
        elif one.rate < rules.least:
            found.append((one, SLOW, False))
    return found


def _usual(rates: Sequence[float]) -> float:
    """The median, or 0 where there are too few."""
    return median(rates) if len(rates) >= LEAST_PEERS else 0.0


def _has_had(one: RunningTransfer, first_s: float, rules: YieldRules) -> bool:
    """Whether a transfer has had its time, and needs more than a little."""
    if not one.is_moving or one.age_s < min_runtime_s(first_s, one.yields):
        return False
    return one.remaining is None or one.remaining > one.rate * rules.after_s * SOON
