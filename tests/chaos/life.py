"""The life of one job by its events: it ends once, and once more for each time that it was retried. Pure."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.chaos.operator import IN_DOUBT
from tests.chaos.witness import ENDS, Seen


@dataclass
class Life:
    """What was seen of a job: its ``ends`` in turn, and ``strays``, which came after an end that was not retried."""

    ends: list[Seen] = field(default_factory=list)
    retries: int = 0
    strays: list[Seen] = field(default_factory=list)
    is_over: bool = False

    @classmethod
    def of(cls, events: Sequence[Seen]) -> Life:
        """Follow the events of a job."""
        life = cls()
        for seen in events:
            if life.is_over and is_retry(seen):
                life.retries += 1
            elif life.is_over:
                life.strays.append(seen)
            if seen.event in ENDS:
                life.ends.append(seen)
            life.is_over = seen.event in ENDS
        return life

    def problem(self, wanted: str, said: Counter[tuple[str, str]]) -> str | None:
        """What is wrong with it. ``said``: what an operator was answered about the job."""
        if not self.is_over or self.strays:
            return f"it has {len(self.ends)} ends; after an end came {self.strays or 'another life'}"
        outcomes = Counter(outcome_of(end) for end in self.ends)
        certain, possible = said["cancel", "OK"], said["cancel", "ASKED"] + said["cancel", IN_DOUBT]
        if not certain <= outcomes["cancelled"] <= certain + possible:
            return f"it was cancelled {outcomes['cancelled']} times, the operator was told {dict(said)}"
        if self.retries > said["retry", "OK"] + said["retry", IN_DOUBT]:
            return f"it was retried {self.retries} times, the operator was told {dict(said)}"
        wrong = outcomes.keys() - {wanted, "cancelled", "poison"}
        return f"it has {' and '.join(sorted(wrong))}, wanted was {wanted}" if wrong else None


def is_retry(seen: Seen) -> bool:
    """Whether an operator had the job retried; a retry by its supervisor says why."""
    return seen.event == "job_requeued" and seen.fields.get("outcome") == "retry" and "note" not in seen.fields


def outcome_of(end: Seen) -> str:
    """succeeded, failed, cancelled, or poison."""
    outcome = end.event.removeprefix("job_")
    note = json.loads(end.fields.get("note") or "{}")
    return "poison" if outcome == "failed" and note.get("label") == "poison" else outcome
