"""The names of all Redis keys.

The hash tag of dlpool's own keys is the name of the intake list, so that all these keys
are in one slot of a Cluster.
"""

from __future__ import annotations

import re

from dlpool.dataclass import dataclass

INTAKE = "go_download_urls"
FAILED = "go_download_failed_tasks"
PRIORITIES = ("high", "normal", "low")
# limited: jobs that were throttled and come before all others
READY = (*PRIORITIES, "limited")
SUCCESS_TTL_S = 86_400


@dataclass(frozen=True)
class QueueKeys:
    """The keys of one queue. ``group``: name of a separate queue on the same Redis;
    None: the default queue."""

    group: str | None = None

    # --- keys that clients know ---

    @property
    def intake(self) -> str:
        """List of jobs as clients push them."""
        return f"{self.group}:{INTAKE}" if self.group else INTAKE

    @property
    def failed(self) -> str:
        """Hash of failure records by URL."""
        return f"{self.group}:{FAILED}" if self.group else FAILED

    def success(self, url: str) -> str:
        """String: the success record of a URL."""
        return f"success:{self.group}:{url}" if self.group else f"success:{url}"

    # --- jobs ---

    @property
    def prefix(self) -> str:
        """The prefix of dlpool's own keys."""
        return f"dlpool:{{{self.intake}}}:"

    def job(self, job_id: str) -> str:
        """Hash of one job."""
        return f"{self.prefix}job:{job_id}"

    def inbox(self, sid: str) -> str:
        """List of raw jobs that a supervisor has reserved and not yet claimed."""
        return f"{self.prefix}inbox:{sid}"

    def ready(self, priority: str) -> str:
        """List of ids of jobs that may run, taken from the right."""
        return f"{self.prefix}ready:{priority}"

    @property
    def stale(self) -> str:
        """Hash: for each ready list, the number of its entries whose jobs were moved or
        stopped."""
        return f"{self.prefix}stale"

    @property
    def delayed(self) -> str:
        """Sorted set of ids of delayed jobs by the time (ms) at which they may run."""
        return f"{self.prefix}delayed"

    @property
    def throttled(self) -> str:
        """Sorted set of ids of jobs that wait for their host, by the time (ms) of the
        next try."""
        return f"{self.prefix}throttled"

    @property
    def paused(self) -> str:
        """Sorted set of ids of paused jobs by the time (ms) of the pause."""
        return f"{self.prefix}paused"

    @property
    def leases(self) -> str:
        """Sorted set of ids of running jobs by the time (ms) at which their lease
        expires."""
        return f"{self.prefix}leases"

    def held_by(self, sid: str) -> str:
        """Set of ids of the jobs that a supervisor holds."""
        return f"{self.prefix}held:{sid}"

    @property
    def done(self) -> str:
        """Sorted set of ids of succeeded jobs by the time (ms) of their end."""
        return f"{self.prefix}done"

    @property
    def dead(self) -> str:
        """Sorted set of ids of failed jobs by the time (ms) of their end."""
        return f"{self.prefix}dead"

    @property
    def cancelled(self) -> str:
        """Sorted set of ids of cancelled jobs by the time (ms) of their end."""
        return f"{self.prefix}cancelled"

    @property
    def outbox(self) -> str:
        """Hash: records that clients cannot see yet, by lease. Used only in a
        Cluster."""
        return f"{self.prefix}outbox"

    # --- supervisors and nodes ---

    @property
    def supervisors(self) -> str:
        """Sorted set of supervisors by the time (ms) at which their registration
        expires."""
        return f"{self.prefix}supervisors"

    def supervisor(self, sid: str) -> str:
        """String: status of a supervisor (JSON)."""
        return f"{self.prefix}supervisor:{sid}"

    def mail(self, sid: str) -> str:
        """List of messages to a supervisor."""
        return f"{self.prefix}mail:{sid}"

    @property
    def wake(self) -> str:
        """List of at most one token. The token wakes a supervisor that waits for jobs,
        because lists other than the intake list may have jobs that can run."""
        return f"{self.prefix}wake"

    @property
    def drained(self) -> str:
        """Set of ids of nodes that get no new jobs."""
        return f"{self.prefix}drained"

    @property
    def halted(self) -> str:
        """String: the time (ms) at which the queue was paused. While the key exists, no
        new jobs start."""
        return f"{self.prefix}halted"

    @property
    def holds(self) -> str:
        """Sorted set of hosts by the time (ms) until which they must not be
        contacted."""
        return f"{self.prefix}holds"

    # --- figures and streams ---

    def stats(self, day: int) -> str:
        """Hash: counters of a day. ``day``: days since 1970-01-01, in UTC."""
        return f"{self.prefix}stats:{day}"

    @property
    def history(self) -> str:
        """Stream: samples of the queue's figures, one every ten seconds, kept for a
        day."""
        return f"{self.prefix}history"

    @property
    def events(self) -> str:
        """Stream: changes of jobs and uploads, for other programs."""
        return f"{self.prefix}events"

    @property
    def audit(self) -> str:
        """Stream: audit events."""
        return f"{self.prefix}audit"

    @property
    def clock(self) -> str:
        """Hash: the last stored queue time (``seen``) and its lead over the clock of
        Redis (``ahead``), in ms."""
        return f"{self.prefix}clock"

    @property
    def status_turn(self) -> str:
        """String: time (ms) until which the web page does not ask the supervisors again
        for their status."""
        return f"{self.prefix}status_turn"

    @property
    def sample_turn(self) -> str:
        """String: time (ms) until which no further sample is added to the history."""
        return f"{self.prefix}sample_turn"

    def key_types(self, day: int) -> dict[str, str]:
        """Return the Redis type of each key that exists once per queue, by key.

        Keys of single jobs, hosts and supervisors, and of the records that clients
        read, are not included. ``day``: the day of the counters, as in ``stats``.
        """
        zsets = (
            "delayed",
            "leases",
            "supervisors",
            "done",
            "dead",
            "cancelled",
            "paused",
            "throttled",
            "holds",
        )
        large = ("large:done", "large:dead", "large:cancelled", "failures")
        strings = (
            "fence",
            "last_recovery",
            "recovery_turn",
            "sample_turn",
            "status_turn",
            "halted",
        )
        own = {
            **dict.fromkeys((*zsets, *large), "zset"),
            **dict.fromkeys(strings, "string"),
            **{f"ready:{priority}": "list" for priority in READY},
            **dict.fromkeys(
                ("stale", "clock", "outbox", f"stats:{day}", "bytes", "failures:bytes"),
                "hash",
            ),
            **dict.fromkeys(("events", "history", "audit"), "stream"),
            "wake": "list",
            "drained": "set",
        }
        return {self.intake: "list"} | {
            self.prefix + name: kind for name, kind in own.items()
        }


def node_of(sid: str) -> str | None:
    """Return the node id in a supervisor id, which is a node id, a hyphen and eight
    hexadecimal digits. Return None if ``sid`` has another form."""
    match = re.fullmatch(r"(.+)-[0-9a-f]{8}", sid)
    return match[1] if match else None


def host_slot_keys(host: str) -> list[str]:
    """Return the two keys of an origin host: its slots, and the time of its next start.
    All queues on the same Redis share these keys."""
    return [f"dlpool:limit:{{{host}}}", f"dlpool:limit:{{{host}}}:next"]
