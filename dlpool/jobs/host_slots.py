"""The slots of origin hosts, which all supervisors of a Redis share: how many jobs ask
a host at once, and how soon."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from dlpool.errors import QueueError
from dlpool.jobs.connection import cluster_of, translated
from dlpool.jobs.keys import host_slot_keys
from dlpool.jobs.transitions import Transitions


@dataclass(frozen=True)
class HostLimit:
    """What a host is spared: ``most`` jobs at once, ``rate`` starts of jobs a second;
    None is no limit."""

    host: str
    most: int | None = None
    rate: float | None = None


@dataclass(frozen=True)
class SlotReply:
    """The answer to a take. ``wait_s``: 0, it has a slot; None, all are taken; else its
    start is ``is_paid`` then.

    ``problem``: why that is not known.
    """

    wait_s: float | None
    is_start_reserved: bool = False
    problem: str | None = None


class HostSlots:
    """Thread-safe, as ``transitions`` is. A slot is of a job, whoever runs it.

    Nothing here raises. In a Cluster a host's keys are on another node than the
    queue's, which goes on without it: then nobody gets a slot, and slots that are not
    kept or given back end with their leases.
    """

    def __init__(self, transitions: Transitions) -> None:
        self._transitions = transitions
        self._group = transitions.keys.intake
        self._cluster = cluster_of(transitions.client)

    def acquire(
        self, limit: HostLimit, job_id: str, *, lease_s: float, is_start_reserved: bool
    ) -> SlotReply:
        """A slot for a job, for ``lease_s`` if it is not kept. ``is_paid``: its start
        is reserved."""
        apart_ms = 1000 / limit.rate if limit.rate else 0
        try:
            reply = self._run(
                "take",
                limit.host,
                [job_id],
                lease_s,
                limit.most or 0,
                apart_ms,
                int(is_start_reserved),
            )
        except QueueError as error:
            return SlotReply(None, is_start_reserved, str(error))
        wait_ms, paid = reply[0]
        return SlotReply(None if wait_ms < 0 else wait_ms / 1000, bool(paid))

    def renew(self, held: Iterable[tuple[str, str]], *, lease_s: float) -> None:
        """Renew the slots of jobs: pairs of host and id; one round trip a host, whose
        node may be away by itself."""
        of_hosts: dict[str, list[str]] = {}
        for host, job_id in held:
            of_hosts.setdefault(host, []).append(job_id)
        for host, job_ids in of_hosts.items():
            with suppress(QueueError):
                self._run("keep", host, job_ids, lease_s)

    def release(self, host: str, job_id: str) -> None:
        """Give a slot back."""
        with suppress(QueueError):
            self._run("free", host, [job_id], 0)

    def _run(
        self, verb: str, host: str, job_ids: Sequence[str], lease_s: float, *more: float
    ) -> list[Any]:
        keys, lease_ms = host_slot_keys(host), round(lease_s * 1000)
        # the clock of these keys outlives the slots, like the time of the next start
        prefix = f"{keys[1]}:"
        calls = [
            (
                keys,
                [prefix, verb, f"{self._group} {one}", lease_ms, *(more or (0, 0, 0))],
            )
            for one in job_ids
        ]
        try:
            with translated(self._transitions.client):
                client = self._cluster.client_for(keys[0]) if self._cluster else None
            return self._transitions.run_script("host_slot", calls, client)
        except QueueError:
            if self._cluster:
                self._cluster.invalidate()
            raise
