"""The jobs of a run: what is asked for, what is served, and how each must end."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.conftest import sha256

POOL_BYTES = 8 << 20
MAX_BYTES = 4 << 20
KINDS = {
    "good": 55,
    "checksum": 12,
    "no_ranges": 5,
    "versions": 6,
    "twins": 4,
    "wrong_checksum": 5,
    "missing": 6,
    "escape": 2,
    "bad_field": 2,
    "malformed": 3,
}
FAILING = ("wrong_checksum", "missing", "escape", "bad_field", "malformed")
MALFORMED: tuple[Callable[[int], bytes], ...] = (
    lambda number: b"no JSON, number %d" % number,
    lambda number: b'{"save_path": "no url", "number": %d}' % number,
    lambda number: b'{"url": "http://\xff\xfe/%d", "save_path": "x"}' % number,
    lambda number: b'["a", "list", %d]' % number,
    lambda number: b'{"url": ["%d"], "save_path": "x"}' % number,
    lambda number: b'{"url": "http://large/%d", "save_path": "%s"}' % (number, b"x" * 1_200_000),
)


@dataclass(eq=False)
class Job:
    """A job of this run. ``file`` is the number of what is served; twins share it.

    ``push``: "done", "in doubt" (the reply was lost, and a repetition would be another job), or "refused".
    """

    number: int
    kind: str
    file: int
    size: int
    url: str
    path: str
    id: str | None = None
    raw: bytes = b""
    push: str = "refused"

    @property
    def name(self) -> str:
        """What people call it."""
        return f"{self.kind} {self.id or self.url or self.raw[:60]!r}"

    @property
    def wanted(self) -> str:
        """How it must end."""
        return "failed" if self.kind in FAILING else "succeeded"


class Jobs:
    """All jobs of a run, by number. Made by one thread; others read."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(f"{seed}: jobs")
        self._pool = self._chance.randbytes(POOL_BYTES)
        self.origin = ""
        self.made: dict[int, Job] = {}

    def make(self) -> list[Job]:
        """The next job, or two that are the same."""
        kind = self._chance.choices(list(KINDS), list(KINDS.values()))[0]
        if kind == "malformed":
            number = len(self.made)
            text = self._chance.choice(MALFORMED)(number)
            self.made[number] = Job(number, kind, number, 0, "", "", raw=text)
            return [self.made[number]]
        first = self._job(kind, len(self.made))
        return [first, self._job(kind, first.file, first.size)] if kind == "twins" else [first]

    def versions(self, job: Job) -> list[str]:
        """The digests of what may be in its file."""
        return [sha256(self.content(job, version)) for version in ((0, 1) if job.kind == "versions" else (0,))]

    def content(self, job: Job, version: int = 0) -> bytes:
        """What is served for it."""
        start = (job.file * 7919 + version * 1_000_003) % (POOL_BYTES - MAX_BYTES)
        return self._pool[start : start + job.size]

    def of_path(self, path: str) -> Job:
        """The job whose URL has this path."""
        return self.made[int(path.rpartition("/")[2])]

    def _job(self, kind: str, file: int, size: int | None = None) -> Job:
        number = len(self.made)
        size = self._size() if size is None else size
        path = f"../out of the folder/{file}" if kind == "escape" else f"{file % 7}/{file}.bin"
        job = Job(number, kind, file, size, f"{self.origin}/{kind}/{file}", path)
        own = self._own(job)
        job.id = own.get("id")
        job.raw = json.dumps({"url": job.url, "save_path": path, **({"dlpool": own} if own else {})}).encode()
        self.made[number] = job
        return job

    def _own(self, job: Job) -> dict[str, Any]:
        """dlpool's own fields; some jobs have none at all."""
        fields: dict[str, Any] = {
            "checksum": {"checksum": f"sha256:{sha256(self.content(job))}"},
            "wrong_checksum": {"checksum": f"sha256:{'0' * 64}"},
            "bad_field": {"max_attempts": "many"},
            "twins": {"dedupe": True},
        }
        fields = fields.get(job.kind, {})
        if not fields and self._chance.random() < 0.2:
            return {}
        own: dict[str, Any] = {"id": f"job-{job.number}", **fields}
        if self._chance.random() < 0.3:
            own["priority"] = self._chance.choice(["high", "normal", "low"])
        if self._chance.random() < 0.1:
            own["not_before"] = time.time() + self._chance.uniform(0.5, 4)
        return own

    def _size(self) -> int:
        low, high = self._chance.choices(
            [(0, 0), (1, 1), (2, 32_000), (64_000, 512_000), (1 << 20, MAX_BYTES)], [5, 4, 68, 18, 5]
        )[0]
        return self._chance.randint(low, high)
