"""One chaos run: faults at random moments, then calm, then the check that nothing was lost, doubled or left behind."""

from __future__ import annotations

import heapq
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import redis

from dlpool.errors import QueueError
from tests.chaos import failover, storm  # noqa: F401 - their faults are in the table, too
from tests.chaos.backends import NotYet
from tests.chaos.conservation import Conservation
from tests.chaos.disk import leftover_files, unclean_states
from tests.chaos.faults import FAULTS, Fault, Struck
from tests.chaos.stage import Stage

APART_S = (0.1, 1.9)  # two faults
PACES = (0.3, 1.0, 1.0)  # of that; a seed has one
TURN_S = 0.05
READY_S = 60.0
CALM_S = 120.0  # without the end of a job
TIDY_S = 40.0
SWEEPS_S = (7.0, 20.0)  # two sweeps of a supervisor, or more on a busy machine
WARM = 20  # jobs that have ended before the first fault


@dataclass
class Report:
    """What a run was, and what was wrong with it."""

    seed: int
    lines: dict[str, str] = field(default_factory=dict)
    faults: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)


class Chaos:
    """Strikes a stage until its time is over."""

    def __init__(self, stage: Stage, seed: int, say: Callable[[str], None], faults: Sequence[Fault] = FAULTS) -> None:
        self._stage = stage
        self._chance = random.Random(f"{seed}: faults")
        self._pace = self._chance.choice(PACES)
        self._say = say
        self._faults = [one for one in faults if one.only in ("", stage.backend.kind)]
        self._undos: list[tuple[float, int, str, Struck]] = []
        self._number = count()
        self._strike_at = 0.0
        self.struck: Counter[str] = Counter()

    def turn(self) -> None:
        """What is due now."""
        now = time.monotonic()
        for node in self._stage.nodes:
            node.tend(now, self._chance, self._say)
        while self._undos and self._undos[0][0] <= now:
            self._undo()
        if now >= self._strike_at and self._faults:
            self._strike_at = now + self._pace * self._chance.uniform(*APART_S)
            self._strike(now)

    def end(self) -> None:
        """No fault stands any more."""
        self._faults = []
        deadline = time.monotonic() + READY_S
        while self._undos:
            assert time.monotonic() < deadline, "the faults cannot be undone"
            self._undo()
            time.sleep(TURN_S)

    def _strike(self, now: float) -> None:
        fault = self._chance.choices(self._faults, [one.weight for one in self._faults])[0]
        struck = fault.strike(self._stage, self._chance)
        if struck is None:
            return
        self.struck[fault.name] += 1
        self._say(f"{fault.name.replace('_', ' ')}: {struck.what}")
        self._stage.held.add(struck.holds)
        heapq.heappush(self._undos, (now + struck.seconds, next(self._number), fault.name, struck))

    def _undo(self) -> None:
        _, _, name, struck = heapq.heappop(self._undos)
        try:
            struck.undo()
        except (redis.RedisError, QueueError, NotYet):
            heapq.heappush(self._undos, (time.monotonic() + 0.5, next(self._number), name, struck))
        else:
            self._stage.held.discard(struck.holds)


def run(
    folder: Path,
    seed: int,
    seconds: float,
    say: Callable[[str], None],
    faults: Sequence[Fault] = FAULTS,
    kind: str = "",
) -> Report:
    """A run of ``seconds`` of faults; longer in all. ``say`` gets a line for each fault. ``kind``: see Stage."""
    report, began = Report(seed), time.monotonic()

    def timed(text: str) -> None:
        say(f"{time.monotonic() - began:6.1f} s  {text}")

    with ExitStack() as stack:
        stage = Stage(folder, seed, seconds, stack, timed, kind)
        report.lines["stage"] = repr(stage)
        if not stage.has_own_disk:
            report.lines["left out"] = "disk_full, as mounting needs root"
        _wreak(stage, seed, seconds, timed, report, faults)
        check = Conservation(stage)
        over = time.monotonic()
        timed("the faults are over; waiting for calm")
        _wait_for_calm(stage, check)
        report.lines["calm"] = f"after {time.monotonic() - over:.0f} s"
        timed("calm; ending the supervisors")
        _settle(stage)
        report.violations += check.violations()
        report.ends = check.ends
        report.violations += in_vain(report)
        report.lines["jobs"] = f"{len(stage.jobs.made)} made, {check.in_doubt} pushed with a reply that was lost"
        report.lines["operator"] = f"{stage.operator.calls}, {check.retries} ended jobs retried"
        report.lines["starts of supervisors"] = str(sum(node.starts for node in stage.nodes))
        report.lines["duration"] = f"{time.monotonic() - began:.0f} s, {seconds:.0f} s of them with faults"
    return report


def _wreak(
    stage: Stage, seed: int, seconds: float, say: Callable[[str], None], report: Report, faults: Sequence[Fault]
) -> None:
    """All the faults, while jobs are pushed; none is left standing."""
    chaos = Chaos(stage, seed, say, faults)
    for node in stage.nodes:
        node.start()
        assert _wait(lambda node=node: node.is_up, READY_S), node.service.said()  # type: ignore[misc]
    stage.pusher.start()
    assert _wait(lambda: stage.witness.ended >= WARM, READY_S), "no job ends, without any fault"
    say("all supervisors work; the faults begin")
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        chaos.turn()
        time.sleep(TURN_S)
    chaos.end()
    stage.site.calm()
    stage.pusher.stop()
    stage.pusher.finish()
    report.faults = chaos.struck


def _all_stay(stage: Stage) -> bool:
    """Whether all supervisors work; those that have ended are started."""
    for node in stage.nodes:
        node.come_back()
    return all(node.is_staying for node in stage.nodes)


def _settle(stage: Stage) -> None:
    """Let the supervisors tidy up, and end them. One whose journal still names jobs that others ended may try again."""
    for seconds in SWEEPS_S:
        _wait(lambda: _all_stay(stage), READY_S)
        _wait(lambda: not leftover_files(stage.downloads), TIDY_S)
        time.sleep(seconds)
        for node in stage.nodes:
            if node.is_alive:
                node.tell_to_end(time.monotonic())
        for node in stage.nodes:
            node.judge_end()
        if not list(unclean_states(stage)):
            break
    stage.witness.stop()


def _wait_for_calm(stage: Stage, check: Conservation) -> None:
    """Until nothing is open, or no job has ended for so long: a backlog under limits of hosts may take its time."""
    ended, deadline = -1, 0.0
    while not _all_stay(stage) or check.open_work():
        if stage.witness.ended > ended:
            ended, deadline = stage.witness.ended, time.monotonic() + CALM_S
        if time.monotonic() > deadline:
            return
        time.sleep(TURN_S * 4)


def _wait(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether it came true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(TURN_S * 4)
    return True


def in_vain(report: Report) -> list[str]:
    """A run in which nothing has happened proves nothing."""
    said = [] if report.faults else ["no fault was injected"]
    return (
        said if report.ends["succeeded"] and report.ends["failed"] else [*said, "no job has succeeded, or none failed"]
    )
