"""Whether a service lives, and whether it can do its work: what probes and people are
told."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

SILENCE_S = (
    30.0  # of the main loop, after which it is taken for stuck; it turns every second
)


@dataclass(frozen=True)
class HealthCheck:
    """One condition of being ready; ``problem`` says why it does not hold, empty if it
    does."""

    name: str
    problem: str = ""

    def __str__(self) -> str:
        return (
            f"[-]{self.name} failed: {self.problem}"
            if self.problem
            else f"[+]{self.name} ok"
        )


class Health:
    """``beat`` by the main loop, all else by any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._beat_at = clock()
        self._checks: tuple[HealthCheck, ...] = (
            HealthCheck("started", "the service is starting"),
        )

    def __repr__(self) -> str:
        return f"<Health {'; '.join(map(str, self._checks))}>"

    def update(self, checks: Sequence[HealthCheck]) -> None:
        """The main loop has turned, and found this."""
        self._checks = tuple(checks)
        self._beat_at = self._clock()

    def liveness(self) -> HealthCheck:
        """Whether the process does anything at all. What else is away (Redis, a disk)
        does not matter: a restart would not bring it back."""
        silent_s = self._clock() - self._beat_at
        return HealthCheck(
            "loop",
            f"it has not turned for {silent_s:.0f} s" if silent_s > SILENCE_S else "",
        )

    def readiness(self) -> tuple[HealthCheck, ...]:
        """All conditions of taking jobs."""
        return (self.liveness(), *self._checks)


def format_checks(
    checks: Sequence[HealthCheck], *, is_verbose: bool
) -> tuple[bool, str]:
    """Whether all hold, and a line each; without ``is_verbose`` only of those that do
    not."""
    is_good = not any(check.problem for check in checks)
    shown = [str(check) for check in checks if is_verbose or check.problem]
    return is_good, "\n".join([*shown, "ok" if is_good else "not ok"]) + "\n"
