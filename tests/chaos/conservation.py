"""The check after a chaos run: each job has ended once, as it must, and nothing else is there."""

from __future__ import annotations

import json
import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import suppress
from functools import cached_property
from typing import Any

import redis

from dlpool.jobs.keys import QueueKeys
from tests.chaos.disk import unclean_states, wrong_files
from tests.chaos.jobs import Job
from tests.chaos.life import Life, outcome_of
from tests.chaos.stage import Stage
from tests.conftest import wait_until
from tests.fleet import Client

KEYS = QueueKeys()
TOLERANCE_BYTES = 2 << 20  # scripts, and buffers that the server keeps for the largest job
SHRINK_S = 15.0
MAX_CRASHES, MAX_TAKEOVERS = 3, 10  # as shipped
LINES = 60  # of the log, about one job
STAYS = ("fence", "last_recovery", "clock", "wake", "recovery_turn")
CLOCK_OF_HOST = re.compile(r"dlpool:limit:\{.*\}:next:clock")  # expires a day after the last start


class Conservation:
    """Compares the jobs as pushed, the witness, Redis and the disk; most of it after all supervisors have ended."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._redis: Any = stage.redis
        self.ends: Counter[str] = Counter()
        self.retries = 0

    @property
    def in_doubt(self) -> int:
        """How many pushes had no reply."""
        return sum(job.push == "in doubt" for job in self._pushed)

    def open_work(self) -> list[str]:
        """What is not done yet."""
        try:
            found = [name for name, size in self._sizes() if size]
        except redis.RedisError as error:
            return [str(error)]
        ended = sum(self._stage.witness.is_over(job.id) for job in self._certain if job.id)
        wanted = sum(bool(job.id) for job in self._certain)
        return found + ([f"{wanted - ended} jobs have not ended"] if ended < wanted else [])

    def violations(self) -> list[str]:
        """All that is wrong, each with what is known of it. It empties Redis."""
        found = [*self._of_jobs(), *self._of_strangers(), *self._of_counters(), *self._of_redis()]
        found += wrong_files(self._stage, self._succeeded, self._doubtful)
        found += unclean_states(self._stage)
        found += [problem for node in self._stage.nodes for problem in [*node.problems, *node_errors(node.journal)]]
        found += self._stage.backend.problems()
        found += [f"process {one.pid} lives: {' '.join(one.cmdline())}" for one in self._stage.ours()]
        return found + list(self._of_memory())

    # --- jobs ---

    @cached_property
    def _pushed(self) -> list[Job]:
        return [job for job in self._stage.jobs.made.values() if job.push != "refused"]

    @cached_property
    def _certain(self) -> list[Job]:
        return [job for job in self._pushed if job.push == "done"]

    @cached_property
    def _hashes(self) -> dict[str, dict[str, str]]:
        """All jobs that Redis remembers, by id."""
        prefix = KEYS.job("")
        names = list(self._redis.scan_iter(match=prefix.replace("{", "\\{") + "*", count=1000))
        pipeline = self._redis.pipeline(transaction=False)
        for name in names:
            pipeline.hgetall(name)
        found = zip(names, pipeline.execute(), strict=True)
        return {
            name.decode().removeprefix(prefix): {
                field.decode(): value.decode(errors="replace") for field, value in fields.items()
            }
            for name, fields in found
        }

    @cached_property
    def _ids(self) -> dict[bytes, list[str]]:
        """The ids of jobs that have none of their own, by what was pushed."""
        found: dict[bytes, list[str]] = defaultdict(list)
        for job_id, fields in self._hashes.items():
            found[fields.get("raw", "").encode()].append(job_id)
        return found

    def _ids_of(self, job: Job) -> list[str]:
        if job.id is not None:
            return [job.id] if job.id in self._hashes or job.id in self._stage.witness.of_job else []
        return self._ids.get(job.raw[: 4096 if len(job.raw) > 1 << 20 else None].decode(errors="replace").encode(), [])

    def _of_jobs(self) -> Iterator[str]:
        self._known: set[str] = set()
        self._succeeded: list[Job] = []
        self._doubtful: list[Job] = []
        for job in self._pushed:
            ids = self._ids_of(job)
            self._known.update(ids)
            if not ids and job.push == "in doubt":
                continue
            problem = self._problem_of(job, ids)
            if problem:
                yield f"{job.name}: {problem}\n" + "\n".join(self._known_of(job, ids))

    def _problem_of(self, job: Job, ids: list[str]) -> str | None:
        if len(ids) != 1:
            return f"it is known under {len(ids)} ids: {ids}"
        life = Life.of(self._stage.witness.of_job.get(ids[0], []))
        self.retries += life.retries
        if problem := life.problem(job.wanted, self._stage.operator.said.get(ids[0], Counter())):
            return problem
        outcome = outcome_of(life.ends[-1])
        self.ends["failed" if outcome == "poison" else outcome] += 1
        self.ends["poison"] += outcome == "poison"
        if outcome == "succeeded":
            self._succeeded.append(job)
        elif job.wanted == "succeeded":
            self._doubtful.append(job)  # its file may have been there already
        if outcome == "poison" and job.kind != "twins" and not self._is_due(ids[0]):
            return f"it was given up too early: {self._hashes.get(ids[0])}"
        return self._problem_of_record(job, outcome)

    def _is_due(self, job_id: str) -> bool:
        """Whether it was aboard of as many deaths as a job may be: then it has failed, and that is right."""
        fields = self._hashes.get(job_id, {})
        return int(fields.get("crashes", 0)) + 1 >= MAX_CRASHES or int(fields.get("takeovers", 0)) > MAX_TAKEOVERS

    def _problem_of_record(self, job: Job, outcome: str) -> str | None:
        """What clients see; a malformed job has no record."""
        if job.kind == "malformed":
            return None
        success, failure = self._redis.get(KEYS.success(job.url)), self._redis.hget(KEYS.failed, job.url)
        if job.kind == "twins" and outcome != "succeeded" and (success or failure) is not None:
            return None  # they share records: the other one may have succeeded, or have been retried
        if (success if outcome == "succeeded" else failure) is None:
            return "it has no record"
        if job.kind != "twins" and success is not None and failure is not None:
            return "it has both records"
        if outcome == "succeeded":
            right = json.loads(success)["file_size"] == job.size
        else:
            right = json.loads(failure)["task_data"] == json.loads(job.raw)
        return None if right else f"its record is wrong: {success or failure!r}"

    def _known_of(self, job: Job, ids: list[str]) -> Iterator[str]:
        """All that helps to find the cause."""
        yield f"  pushed: {job.push}, {job.raw[:300]!r}"
        for job_id in ids or [job.id or ""]:
            yield f"  in Redis: {self._hashes.get(job_id)}"
            for seen in self._stage.witness.of_job.get(job_id, []):
                yield f"  event: {seen}"
            lines = [
                (record["@timestamp"], node.name, json.dumps(record))
                for node in self._stage.nodes
                for record in node.journal.records
                if record.get("dlpool.job.id") == job_id
            ]
            yield from (f"  log of {name}: {text[:500]}" for _, name, text in sorted(lines)[-LINES:])

    def _of_strangers(self) -> Iterator[str]:
        """A job that nobody pushed: one that was taken in twice, perhaps."""
        for job_id in {*self._hashes, *self._stage.witness.of_job} - self._known:
            yield f"job {job_id} is none that was pushed: {self._hashes.get(job_id)}"

    def _of_counters(self) -> Iterator[str]:
        """What is counted in Redis is what was seen."""
        counted: Counter[str] = Counter()
        for name in self._redis.scan_iter(match=KEYS.prefix.replace("{", "\\{") + "stats:*"):
            counted.update({field.decode(): int(value) for field, value in self._redis.hgetall(name).items()})
        for outcome in ("succeeded", "failed", "cancelled"):
            seen = sum(
                one.event == f"job_{outcome}" for events in self._stage.witness.of_job.values() for one in events
            )
            if counted[outcome] != seen:
                yield f"{counted[outcome]} jobs are counted as {outcome}, {seen} were seen"
        if counted["retried"] != self.retries:
            yield f"{counted['retried']} jobs are counted as retried, {self.retries} were seen"

    # --- Redis ---

    def _sizes(self) -> Iterator[tuple[str, int]]:
        """How much waits or runs, by key."""
        yield KEYS.intake, self._redis.llen(KEYS.intake)
        for name in (KEYS.delayed, KEYS.leases, KEYS.paused, KEYS.throttled):
            yield name, self._redis.zcard(name)
        yield KEYS.halted, self._redis.exists(KEYS.halted)
        yield KEYS.drained, self._redis.scard(KEYS.drained)
        sizes = {
            "inbox": self._redis.llen,
            "own": self._redis.scard,
            "throttled": self._redis.zcard,
            "ready": self._redis.llen,
        }
        for kind, size in sizes.items():
            for name in self._redis.scan_iter(match=KEYS.prefix.replace("{", "\\{") + f"{kind}:*"):
                yield name.decode(), size(name)
        for name in self._redis.scan_iter(match="dlpool:limit:*", _type="zset"):
            yield (
                name.decode(),
                self._redis.zcount(name, time.time() * 1000, "+inf"),
            )  # of others the leases have passed

    def _of_redis(self) -> Iterator[str]:
        counted = {name.decode(): int(size) for name, size in self._redis.hgetall(KEYS.prefix + "bytes").items()}
        records = sum(int(size) for size in self._redis.hvals(KEYS.prefix + "failures:bytes"))
        if counted.get("failures", 0) != records or counted.get("waiting", 0):
            yield f"bytes counted: {counted}; nothing waits, and failure records have {records}"
        yield from (f"{name} is not empty: {size}" for name, size in self._sizes() if size)
        yield from (f"key {name.decode()} is left" for name in Client(self._redis).leftovers())
        for job_id, fields in self._hashes.items():
            if fields.get("state") not in ("succeeded", "failed", "cancelled"):
                yield f"job {job_id} is not at its end: {fields}"

    def _of_memory(self) -> Iterator[str]:
        """Without what is remembered, Redis is as empty as it was."""
        remembered = [KEYS.job(job_id) for job_id in self._hashes]
        remembered += [KEYS.success(job.url) for job in self._pushed] + [KEYS.failed, KEYS.done, KEYS.dead, KEYS.events]
        remembered += [KEYS.cancelled, KEYS.history, KEYS.sample_turn]
        remembered += [KEYS.prefix + name for name in ("failures", "failures:bytes", "bytes")]
        remembered += [*self._redis.scan_iter(match=KEYS.prefix.replace("{", "\\{") + "stats:*")]
        for start in range(0, len(remembered), 1000):
            self._redis.delete(*remembered[start : start + 1000])
        rest = {name.decode() for name in self._redis.scan_iter()} - {KEYS.prefix + name for name in STAYS}
        rest = {name for name in rest if not CLOCK_OF_HOST.fullmatch(name)}
        if rest:
            yield f"keys are left: {sorted(rest)[:20]}"
        base = self._stage.base_memory
        with suppress(AssertionError):  # it shrinks its buffers after a while
            wait_until(lambda: self._stage.memory() <= base + TOLERANCE_BYTES, SHRINK_S)
            return
        yield f"Redis uses {self._stage.memory()} bytes, it was {base}: {self._redis.memory_stats()}"


def node_errors(journal: Any) -> Iterator[str]:
    """Lines of a log that no fault excuses: defects of dlpool."""
    journal.read()
    for record in journal.records:
        if record.get("log.level") == "critical" or record.get("error.type") == "InternalError":
            yield f"the log says: {json.dumps(record)[:2000]}"
