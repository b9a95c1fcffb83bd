"""Faults of a Redis that is a master with a replica: the two change roles, in order or because one dies."""

from __future__ import annotations

import random

from tests.chaos.backends import Watched
from tests.chaos.faults import Struck, fault
from tests.chaos.stage import Stage


@fault(weight=5, only="sentinel")
def master_steps_down(stage: Stage, chance: random.Random) -> Struck | None:
    """SENTINEL FAILOVER, when the replica has all."""
    backend, is_told = _still(stage), chance.random() < 0.6
    if backend is None or not backend.step_down(is_told=is_told):
        return None
    return Struck(f"which it hears {'at once' if is_told else 'late'}", 0.5, backend.settle, "redis")


@fault(weight=5, only="sentinel")
def master_killed(stage: Stage, chance: random.Random) -> Struck | None:
    """SIGKILL, when the replica has all; it comes back as a replica."""
    backend = _still(stage)
    if backend is None:
        return None
    backend.die()
    seconds = chance.uniform(0, 8)
    return Struck(f"away for {seconds:.1f} s or more", seconds, backend.settle, "redis")


@fault(weight=3, only="sentinel")
def replica_killed(stage: Stage, chance: random.Random) -> Struck | None:
    """SIGKILL; nobody else should notice."""
    if "redis" in stage.held or not isinstance(stage.backend, Watched):
        return None
    seconds = chance.uniform(0, 3)
    return Struck(f"for {seconds:.1f} s", seconds, stage.backend.kill_replica(), "redis")


def _still(stage: Stage) -> Watched | None:
    """The Redis of the stage, held still for a failover."""
    if "redis" in stage.held or not isinstance(stage.backend, Watched):
        return None
    return stage.backend if stage.backend.hold_still() else None
