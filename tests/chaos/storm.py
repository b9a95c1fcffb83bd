"""The fault that is a person."""

from __future__ import annotations

import random

from tests.chaos.faults import Struck, fault
from tests.chaos.stage import Stage


@fault(weight=6)
def control_storm(stage: Stage, chance: random.Random) -> Struck | None:
    """An operator pauses, resumes, retries, promotes and cancels jobs at random, and stops queue and nodes."""
    if "operator" in stage.held:
        return None
    seconds = chance.choice([chance.uniform(0.3, 1), chance.uniform(1, 5)])
    stage.operator.begin(seconds)
    return Struck(f"for {seconds:.1f} s", seconds, stage.operator.calm, "operator")
