"""The slots of origin hosts, shared by all supervisors that use one Redis. They limit
how many jobs contact a host at once, and how many jobs start there per second."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

from dlpool.dataclass import dataclass
from dlpool.errors import QueueError
from dlpool.jobs.connection import cluster_of, translated
from dlpool.jobs.keys import host_slot_keys
from dlpool.jobs.transitions import Transitions


@dataclass(frozen=True)
class HostLimit:
    """The limits of a host. ``most``: number of jobs at once; ``rate``: starts of jobs
    per second. None means no limit."""

    host: str
    most: int | None = None
    rate: float | None = None


@dataclass(frozen=True)
class SlotReply:
    """The reply to ``acquire``.

    ``wait_s``: 0 if the job has a slot, None if no slot is free or Redis gave no
    answer, else the seconds until the job may start. ``is_start_reserved``: Redis has
    reserved a start at the host for the job. ``problem``: the reason why Redis gave no
    answer; None if Redis answered.
    """

    wait_s: float | None
    is_start_reserved: bool = False
    problem: str | None = None


class HostSlots:
    """The slots of origin hosts for the jobs of one queue. No method raises QueueError.

    Thread-safe, because ``Transitions`` is.

    In a Cluster the keys of a host may be on another node than the queue. While that
    node is away, no job gets a slot of the host, and the slots of running jobs expire
    at the end of their leases. The queue itself continues to work.
    """

    def __init__(self, transitions: Transitions) -> None:
        self._transitions = transitions
        self._group = transitions.keys.intake
        self._cluster = cluster_of(transitions.client)

    def acquire(
        self, limit: HostLimit, job_id: str, *, lease_s: float, is_start_reserved: bool
    ) -> SlotReply:
        """Acquire a slot for a job. The slot expires after ``lease_s`` seconds if it is
        not renewed. ``is_start_reserved``: an earlier call has reserved a start for the
        job."""
        apart_ms = 1000 / limit.rate if limit.rate else 0
        more = (limit.most or 0, apart_ms, int(is_start_reserved))
        try:
            reply = self._run("acquire", limit.host, [job_id], lease_s, *more)
        except QueueError as error:
            return SlotReply(None, is_start_reserved, str(error))
        wait_ms, reserved = reply[0]
        return SlotReply(None if wait_ms < 0 else wait_ms / 1000, bool(reserved))

    def renew(self, held: Iterable[tuple[str, str]], *, lease_s: float) -> None:
        """Renew the slots of jobs. ``held``: pairs of host and job id. Makes one round
        trip per host, because the Cluster nodes of some hosts may be away."""
        of_hosts: dict[str, list[str]] = {}
        for host, job_id in held:
            of_hosts.setdefault(host, []).append(job_id)
        for host, job_ids in of_hosts.items():
            with suppress(QueueError):
                self._run("renew", host, job_ids, lease_s)

    def release(self, host: str, job_id: str) -> None:
        """Release the slot of a job."""
        with suppress(QueueError):
            self._run("release", host, [job_id], 0)

    def _run(
        self,
        action: str,
        host: str,
        job_ids: Sequence[str],
        lease_s: float,
        *more: float,
    ) -> list[Any]:
        keys, lease_ms = host_slot_keys(host), round(lease_s * 1000)
        # the stored clock of these keys must outlive the slots, like the time of the
        # next start
        prefix = f"{keys[1]}:"
        calls = [
            (
                keys,
                [
                    prefix,
                    action,
                    f"{self._group} {one}",
                    lease_ms,
                    *(more or (0, 0, 0)),
                ],
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
