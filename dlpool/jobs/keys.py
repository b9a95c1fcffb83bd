"""The names of all Redis keys. dlpool's own carry the intake list as hash tag, and so
share its Cluster slot."""

from __future__ import annotations

import re
from dataclasses import dataclass

INTAKE = "go_download_urls"
FAILED = "go_download_failed_tasks"
PRIORITIES = ("high", "normal", "low")
READY = (*PRIORITIES, "limited")  # the last: was parked, and is before all others now
SUCCESS_TTL_S = 86_400


@dataclass(frozen=True)
class QueueKeys:
    """The keys of one queue; ``group`` is the part that a deployment shares its Redis
    by, or None."""

    group: str | None = None

    @property
    def intake(self) -> str:
        """List: jobs as clients push them."""
        return f"{self.group}:{INTAKE}" if self.group else INTAKE

    @property
    def failed(self) -> str:
        """Hash: failure records by URL, as clients read them."""
        return f"{self.group}:{FAILED}" if self.group else FAILED

    def success(self, url: str) -> str:
        """String: the success record of a URL, as clients read it."""
        return f"success:{self.group}:{url}" if self.group else f"success:{url}"

    @property
    def prefix(self) -> str:
        """What all of dlpool's own keys begin with."""
        return f"dlpool:{{{self.intake}}}:"

    def inbox(self, sid: str) -> str:
        """List: raw jobs that a supervisor has reserved and not yet claimed."""
        return f"{self.prefix}inbox:{sid}"

    def ready(self, priority: str) -> str:
        """List: ids of jobs that may run, taken from the right."""
        return f"{self.prefix}ready:{priority}"

    @property
    def delayed(self) -> str:
        """Sorted set: ids by the time (ms) at which they may run."""
        return f"{self.prefix}delayed"

    @property
    def leases(self) -> str:
        """Sorted set: ids of running jobs by the time (ms) at which their lease
        passes."""
        return f"{self.prefix}leases"

    def held_by(self, sid: str) -> str:
        """Set: ids that a supervisor holds."""
        return f"{self.prefix}own:{sid}"

    def job(self, job_id: str) -> str:
        """Hash: one job."""
        return f"{self.prefix}job:{job_id}"

    @property
    def supervisors(self) -> str:
        """Sorted set: supervisors by the time (ms) at which their registration
        passes."""
        return f"{self.prefix}supervisors"

    def supervisor(self, sid: str) -> str:
        """String: what a supervisor says of itself, JSON."""
        return f"{self.prefix}supervisor:{sid}"

    @property
    def done(self) -> str:
        """Sorted set: ids of succeeded jobs by their end (ms)."""
        return f"{self.prefix}done"

    @property
    def dead(self) -> str:
        """Sorted set: ids of failed jobs by their end (ms)."""
        return f"{self.prefix}dead"

    @property
    def cancelled(self) -> str:
        """Sorted set: ids of cancelled jobs by their end (ms)."""
        return f"{self.prefix}cancelled"

    @property
    def stale(self) -> str:
        """Hash: of each list of ready jobs how many places in it are those of jobs that
        were moved or stopped."""
        return f"{self.prefix}stale"

    def stats(self, day: int) -> str:
        """Hash: counters of a day, counted from 1970-01-01, UTC."""
        return f"{self.prefix}stats:{day}"

    @property
    def events(self) -> str:
        """Stream: what happens to jobs, for other programs."""
        return f"{self.prefix}events"

    @property
    def audit(self) -> str:
        """Stream: who changed what."""
        return f"{self.prefix}audit"

    @property
    def clock(self) -> str:
        """Hash: the last recorded queue time (``seen``), and its lead over the clock
        (``ahead``), in ms."""
        return f"{self.prefix}looked:clock"

    @property
    def outbox(self) -> str:
        """Hash: in a Cluster, records by ticket that clients cannot see yet."""
        return f"{self.prefix}outbox"

    def key_types(self, day: int) -> dict[str, str]:
        """Return the type that each key has that is there once (TYPE of Redis);
        ``day``: of the counters."""
        zsets = (
            "delayed",
            "leases",
            "supervisors",
            "done",
            "dead",
            "cancelled",
            "paused",
            "parked",
            "holds",
        )
        large = ("large:done", "large:dead", "large:cancelled", "failures")
        texts = ("fence", "looked", "recoverer", "sampled", "watched", "halted")
        own = {
            **dict.fromkeys((*zsets, *large), "zset"),
            **dict.fromkeys(texts, "string"),
            **{f"ready:{priority}": "list" for priority in READY},
            **dict.fromkeys(
                (
                    "stale",
                    "looked:clock",
                    "outbox",
                    f"stats:{day}",
                    "bytes",
                    "failures:bytes",
                ),
                "hash",
            ),
            **dict.fromkeys(("events", "history", "audit"), "stream"),
            "wake": "list",
            "drained": "set",
        }
        return {self.intake: "list"} | {
            self.prefix + name: kind for name, kind in own.items()
        }

    def mail(self, sid: str) -> str:
        """List: verbs for a supervisor."""
        return f"{self.prefix}mail:{sid}"

    @property
    def wake(self) -> str:
        """List of one token at most: a job became ready elsewhere than in the
        intake."""
        return f"{self.prefix}wake"

    @property
    def paused(self) -> str:
        """Sorted set: ids of paused jobs by the time (ms) since which they are."""
        return f"{self.prefix}paused"

    @property
    def throttled(self) -> str:
        """Sorted set: ids of jobs that wait until their host may be asked, by the time
        (ms) at which they try again."""
        return f"{self.prefix}parked"

    @property
    def holds(self) -> str:
        """Sorted set: hosts by the time (ms) until which nobody may ask them."""
        return f"{self.prefix}holds"

    @property
    def halted(self) -> str:
        """String: while it is there, nobody gets new jobs; since when, in ms since
        1970."""
        return f"{self.prefix}halted"

    @property
    def watched(self) -> str:
        """String: until when (ms) supervisors are not asked for news again, for the
        status page."""
        return f"{self.prefix}watched"

    @property
    def sampled(self) -> str:
        """String: until when (ms) no further sample is added to the history."""
        return f"{self.prefix}sampled"

    @property
    def history(self) -> str:
        """Stream: figures of a day, one entry each ten seconds."""
        return f"{self.prefix}history"

    @property
    def drained(self) -> str:
        """Set: ids of nodes that get no new jobs."""
        return f"{self.prefix}drained"


def node_of(sid: str) -> str | None:
    """The node of a supervisor: its sid is the node's id, a hyphen and eight digits;
    None for what is no such sid."""
    match = re.fullmatch(r"(.+)-[0-9a-f]{8}", sid)
    return match[1] if match else None


def host_slot_keys(host: str) -> list[str]:
    """Of an origin host, shared by all queues of a Redis: its slots, and when the next
    job may begin there."""
    return [f"dlpool:limit:{{{host}}}", f"dlpool:limit:{{{host}}}:next"]
