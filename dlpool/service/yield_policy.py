"""The yield policy: which running transfers yield their slots to waiting jobs. Pure.

A transfer that yields is checkpointed and returns to the queue, behind the jobs that
wait. After each yield it may run twice as long before it yields again. So every
transfer can complete, even if its server cannot resume.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from statistics import median

from dlpool.dataclass import dataclass

HOST_SHARE, FAR_BELOW, SLOW = "host_share", "far_below", "slow"  # reasons
# a transfer of a host above its quota may run at least this long
SHARE_MIN_RUNTIME_S = 2.0
# a transfer that is this many times slower than the median is far below it
FAR_FACTOR = 10
MIN_SAMPLES = 3  # a median of fewer rates is not used
# a transfer does not yield if it will complete within this part of the minimum runtime
NEARLY_DONE = 0.5
LIMITED = 0.5  # a transfer that reaches this part of its own rate limit is not slow
MAX_DOUBLINGS = 30


@dataclass(frozen=True)
class RunningTransfer:
    """A transfer: ``rate`` in bytes/s, smoothed; ``age_s``: seconds since it got its
    slot.

    ``remaining``: bytes, None if unknown. ``yields``: how often it has yielded.
    ``rate_limit``: bytes/s that dlpool's own limits allow, None for no limit.
    ``is_resumable``: the next attempt can continue where this attempt stops.
    ``is_moving``: it is connecting or downloading; False while it waits for the disk or
    a malware scanner.
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
    """When transfers yield.

    ``min_runtime_s``: how long a slow transfer may run before it first yields.
    ``min_rate``: bytes/s below which a transfer is always slow. ``host_quota``: the
    slots that one host gets while jobs of other hosts wait. ``slow_hosts``: hosts with
    a slow transfer that yielded recently. ``slow_quota``: the slots that all
    ``slow_hosts`` get together.
    """

    min_runtime_s: float
    min_rate: float
    host_quota: int
    slow_hosts: Collection[str] = ()
    slow_quota: int = 0


@dataclass(frozen=True)
class YieldDecision:
    """A transfer that yields now, and the reason: host_share, far_below or slow."""

    lease_id: str
    reason: str


def min_runtime_s(first_s: float, yields: int) -> float:
    """Return how many seconds a transfer may run before it yields.

    ``first_s`` seconds the first time, and twice as long after each yield.
    """
    return first_s * 2.0 ** min(yields, MAX_DOUBLINGS)


def choose_yields(
    running: Sequence[RunningTransfer],
    waiting: Mapping[str, int],
    rules: YieldRules,
    *,
    recent: Sequence[float] = (),
    pending: int = 0,
) -> list[YieldDecision]:
    """Return the transfers that yield now, given that no slot is free.

    At most one transfer yields for each waiting job. A transfer yields to jobs of other
    hosts. It yields to jobs of its own host only if it is far slower than the median
    transfer of that host. ``waiting``: number of waiting jobs by host. ``recent``:
    rates in bytes/s of transfers that ended lately. ``pending``: number of transfers
    that are already yielding; ``running`` does not include them.
    """
    total = sum(waiting.values())
    # with the number of jobs that could use the slot
    candidates: list[tuple[YieldDecision, int]] = []
    for one, reason in _above_quota(running, rules):
        candidates.append(
            (YieldDecision(one.lease_id, reason), total - waiting.get(one.host, 0))
        )
    for one, reason, is_for_own_host in _slow(running, rules, recent):
        own = 0 if is_for_own_host else waiting.get(one.host, 0)
        candidates.append((YieldDecision(one.lease_id, reason), total - own))
    chosen: dict[str, YieldDecision] = {}
    for candidate, jobs in candidates:
        if candidate.lease_id not in chosen and len(chosen) + pending < jobs:
            chosen[candidate.lease_id] = candidate
    return list(chosen.values())


def is_fast_enough(
    one: RunningTransfer,
    running: Sequence[RunningTransfer],
    rules: YieldRules,
    recent: Sequence[float] = (),
) -> bool:
    """Return whether a transfer is neither slow nor far below the median rate."""
    usual = _median([*(other.rate for other in running), *recent])
    return one.rate >= max(rules.min_rate, usual / FAR_FACTOR)


def may_yield(
    running: Sequence[RunningTransfer],
    rules: YieldRules,
    *,
    recent: Sequence[float] = (),
) -> bool:
    """Return whether any transfer would yield if enough jobs waited."""
    return bool(choose_yields(running, {"": len(running) + 1}, rules, recent=recent))


def _above_quota(
    running: Sequence[RunningTransfer], rules: YieldRules
) -> list[tuple[RunningTransfer, str]]:
    """Return the slowest transfers of hosts above their quota, with the reason.

    Each host has a quota, and all slow hosts together have another quota.
    """
    counts = Counter(one.host for one in running)
    slow = sum(one.host in rules.slow_hosts for one in running)
    found: list[tuple[RunningTransfer, str]] = []
    for one in sorted(running, key=lambda one: (one.rate, one.lease_id)):
        is_slow = one.host in rules.slow_hosts and slow > rules.slow_quota
        if not (is_slow or counts[one.host] > rules.host_quota):
            continue
        if one.is_resumable and _has_run(
            one, min(SHARE_MIN_RUNTIME_S, rules.min_runtime_s), rules
        ):
            counts[one.host] -= 1
            slow -= one.host in rules.slow_hosts
            found.append((one, SLOW if is_slow else HOST_SHARE))
    return found


def _slow(
    running: Sequence[RunningTransfer], rules: YieldRules, recent: Sequence[float]
) -> list[tuple[RunningTransfer, str, bool]]:
    """Return slow transfers, each with the reason and whether a job of its own host may
    take its slot.

    Transfers of the host with the most slots come first. The transfers of one host are
    sorted by rate, slowest first.
    """
    counts = Counter(one.host for one in running)
    usual = _median([*(one.rate for one in running), *recent])
    found = []
    for one in sorted(
        running, key=lambda one: (-counts[one.host], one.rate, one.lease_id)
    ):
        is_limited = one.rate_limit is not None and one.rate >= one.rate_limit * LIMITED
        if is_limited or not _has_run(one, rules.min_runtime_s, rules):
            continue
        usual_of_host = _median(
            [other.rate for other in running if other.host == one.host]
        )
        if one.rate * FAR_FACTOR < usual_of_host:
            found.append((one, FAR_BELOW, True))
        elif one.rate * FAR_FACTOR < usual:
            found.append((one, FAR_BELOW, False))
        elif one.rate < rules.min_rate:
            found.append((one, SLOW, False))
    return found


def _median(rates: Sequence[float]) -> float:
    """Return the median, or 0 for fewer than ``MIN_SAMPLES`` rates."""
    return median(rates) if len(rates) >= MIN_SAMPLES else 0.0


def _has_run(one: RunningTransfer, first_s: float, rules: YieldRules) -> bool:
    """Return whether a transfer is moving, has run long enough, and is not nearly done.

    ``first_s``: how many seconds it may run before its first yield.
    """
    if not one.is_moving or one.age_s < min_runtime_s(first_s, one.yields):
        return False
    return (
        one.remaining is None
        or one.remaining > one.rate * rules.min_runtime_s * NEARLY_DONE
    )
