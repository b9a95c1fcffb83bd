"""Liveness and readiness of a service, as probes and people see them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from dlpool.dataclass import dataclass

# the main loop turns every second; after this time without a turn it counts as stuck
SILENCE_S = 30.0


@dataclass(frozen=True)
class HealthCheck:
    """The result of one check. ``problem`` is the reason why the check failed, empty if
    it succeeded."""

    name: str
    problem: str = ""

    def __str__(self) -> str:
        return (
            f"[-]{self.name} failed: {self.problem}"
            if self.problem
            else f"[+]{self.name} ok"
        )


class Health:
    """The health of a service. The main loop calls ``update``; any thread may call the
    other methods."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._updated_at = clock()
        self._checks: tuple[HealthCheck, ...] = (
            HealthCheck("started", "the service is starting"),
        )

    def __repr__(self) -> str:
        return f"<Health {'; '.join(map(str, self._checks))}>"

    def update(self, checks: Sequence[HealthCheck]) -> None:
        """Record that the main loop has completed a turn, and the results of its
        checks."""
        self._checks = tuple(checks)
        self._updated_at = self._clock()

    def liveness(self) -> HealthCheck:
        """Return a check that fails when the main loop is stuck. Liveness does not
        depend on Redis or disks, because a restart would not repair them."""
        silent_s = self._clock() - self._updated_at
        return HealthCheck(
            "loop",
            f"it has not turned for {silent_s:.0f} s" if silent_s > SILENCE_S else "",
        )

    def readiness(self) -> tuple[HealthCheck, ...]:
        """Return all checks that must succeed before the service takes jobs."""
        return (self.liveness(), *self._checks)


def format_checks(
    checks: Sequence[HealthCheck], *, is_verbose: bool
) -> tuple[bool, str]:
    """Return whether all checks succeeded, and a text with a line for each check.
    Without ``is_verbose``, only failed checks have a line."""
    is_good = not any(check.problem for check in checks)
    shown = [str(check) for check in checks if is_verbose or check.problem]
    return is_good, "\n".join([*shown, "ok" if is_good else "not ok"]) + "\n"
