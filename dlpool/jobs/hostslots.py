"""The slots of origin hosts, which all supervisors of a Redis share: how many jobs ask a host at once, and how soon."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dlpool.jobs.keys import limit_keys
from dlpool.jobs.transitions import Transitions


@dataclass(frozen=True)
class HostLimit:
    """What a host is spared: ``most`` jobs at once, ``rate`` starts of jobs a second; None is no limit."""

    host: str
    most: int | None = None
    rate: float | None = None


@dataclass(frozen=True)
class Place:
    """The answer to a take. ``wait_s``: 0, it has a slot; None, all are taken; else its start is ``is_paid`` then."""

    wait_s: float | None
    is_paid: bool = False


class HostSlots:
    """Thread-safe, as ``transitions`` is. A slot is of a job, whoever runs it. Each method raises QueueError."""

    def __init__(self, transitions: Transitions) -> None:
        self._transitions = transitions
        self._group = transitions.keys.intake

    def take(self, limit: HostLimit, job_id: str, *, lease_s: float, is_paid: bool) -> Place:
        """A slot for a job, for ``lease_s`` if it is not kept. ``is_paid``: its start was reserved before."""
        apart_ms = 1000 / limit.rate if limit.rate else 0
        wait_ms, paid = self._run("take", limit.host, job_id, lease_s, limit.most or 0, apart_ms, int(is_paid))
        return Place(None if wait_ms < 0 else wait_ms / 1000, bool(paid))

    def keep(self, held: Iterable[tuple[str, str]], *, lease_s: float) -> None:
        """Renew the slots of jobs: pairs of host and id."""
        for host, job_id in held:
            self._run("keep", host, job_id, lease_s)

    def free(self, host: str, job_id: str) -> None:
        """Give a slot back."""
        self._run("free", host, job_id, 0)

    def _run(self, verb: str, host: str, job_id: str, lease_s: float, *more: float) -> list[int]:
        ticket = f"{self._group} {job_id}"
        most, apart_ms, paid = more or (0, 0, 0)
        arguments = [self._transitions.keys.prefix, verb, ticket, round(lease_s * 1000), most, apart_ms, paid]
        reply: list[int] = self._transitions.run_many("host_slot", [(limit_keys(host), arguments)])[0]
        return reply
