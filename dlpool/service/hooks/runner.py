"""The operator's commands that run when a job has ended: a few at a time, on threads,
in nobody's way.

At most once: who dies between the record of a job and its hook takes the hook along. A
hook that runs when its supervisor is killed goes on by itself: it has all of its input,
and half of its work would be worth less than all.
"""

from __future__ import annotations

import os
import shlex
import shutil
import threading
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from dlpool import jsontext
from dlpool.config import HookSettings
from dlpool.errors import ConfigurationError
from dlpool.jobs.transitions import FinishRequest
from dlpool.observe.log import Logger
from dlpool.service.hooks import process
from dlpool.service.inflight import InFlightJob

MAX_WAITING = 1000
STOP_S = 5.0  # for hooks, when the supervisor ends
REPORT_S = 10.0  # between two lines about dropped ones
ENVIRONMENT = (
    "PATH",
    "HOME",
    "USER",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "TZ",
)  # what a hook gets of ours
OUTCOMES = {"success": "success", "failed": "failure"}


def check_hooks(settings: HookSettings) -> None:
    """See that the programs of the hooks are there. Raises ConfigurationError."""
    problems = [
        f"[hooks] {name}: there is no program {shlex.split(command)[0]!r} that can be "
        f"run"
        for name, command in (
            ("on_success", settings.on_success),
            ("on_failure", settings.on_failure),
        )
        if command is not None and shutil.which(shlex.split(command)[0]) is None
    ]
    if problems:
        raise ConfigurationError("\n".join(problems))


def command_environment() -> dict[str, str]:
    """What a command of the operator's gets of our environment."""
    return {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}


@dataclass(frozen=True)
class HookCall:
    """A hook that is to run. ``given``: its standard input."""

    command: str
    job_id: str
    trace_id: str
    outcome: str
    given: bytes

    def words(self) -> list[str]:
        """The command line, its program by its whole path."""
        program, *arguments = shlex.split(self.command)
        return [str(Path(shutil.which(program) or program).absolute()), *arguments]

    def environment(self) -> dict[str, str]:
        """What the command finds in its environment: nothing that may be secret."""
        return command_environment() | {
            "DLPOOL_JOB_ID": self.job_id,
            "DLPOOL_OUTCOME": self.outcome,
        }


class HookRunner:
    """``ended`` and ``stop`` by the main thread; ``settings`` may be replaced at any
    time.

    A thread lives as long as there is something to run. The lock guards the line, the
    number of threads, and that of dropped hooks.
    """

    def __init__(self, settings: HookSettings, node_id: str, log: Logger) -> None:
        self.settings = settings
        self._node_id = node_id
        self._log = log
        self._lock = threading.Condition()
        self._line: deque[HookCall] = deque()
        self._threads = 0
        self._dropped = 0  # since the last line about them
        self._reported = float("-inf")
        self._stop_at = float("inf")

    def __repr__(self) -> str:
        return (
            f"<Hooks {self._threads} of {self.settings.max_running} running, "
            f"{len(self._line)} waiting>"
        )

    def schedule(self, held: InFlightJob, ending: FinishRequest) -> None:
        """Redis knows how a job ended: run the command for that, if there is one. Never
        waits, never raises."""
        outcome = OUTCOMES.get(ending.disposition)
        if outcome is None:
            return
        command = (
            self.settings.on_success
            if outcome == "success"
            else self.settings.on_failure
        )
        if command is None:
            return
        given = hook_payload(held, ending, outcome, self._node_id)
        self._add(HookCall(command, held.lease.job_id, held.trace_id, outcome, given))

    def stop(self) -> None:
        """Give hooks ``STOP_S`` more, then end those that run and drop the others.
        Returns when that is done."""
        with self._lock:
            self._stop_at = time.monotonic() + STOP_S
            self._lock.wait_for(
                lambda: self._threads == 0, STOP_S + process.END_S + 1.0
            )
            self._dropped += len(self._line)
            self._line.clear()
        self._report(now=True)

    def _add(self, call: HookCall) -> None:
        with self._lock:
            has_place = len(self._line) < MAX_WAITING
            if has_place:
                self._line.append(call)
            else:
                self._dropped += 1
            is_wanted = self._threads < self.settings.max_running
            self._threads += is_wanted
        if is_wanted:
            self._start_thread()
        if not has_place:
            self._report()

    def _start_thread(self) -> None:
        try:
            threading.Thread(target=self._serve, name="hook", daemon=True).start()
        except (
            RuntimeError
        ) as error:  # no more threads: the next one may start, and takes what waits
            self._log.warning("hook_not_started", error=error)
            with self._lock:
                self._threads -= 1

    def _serve(self) -> None:
        while (call := self._next()) is not None:
            try:
                self._run(call)
            except Exception as error:  # noqa: BLE001 - top of a thread
                self._log.warning(
                    "hook_failed",
                    job_id=call.job_id,
                    trace_id=call.trace_id,
                    reason="a defect",
                    error=error,
                )

    def _next(self) -> HookCall | None:
        """What to run now; None ends the thread."""
        with self._lock:
            is_wanted = (
                self._threads <= self.settings.max_running
                and time.monotonic() < self._stop_at
            )
            if self._line and is_wanted:
                return self._line.popleft()
            self._threads -= 1
            self._lock.notify_all()
            return None

    def _run(self, call: HookCall) -> None:
        timeout_s = self.settings.timeout
        began = time.monotonic()

        def must_end() -> str:
            now = time.monotonic()
            if now - began >= timeout_s:
                return f"it took longer than {timeout_s:g} s"
            return "the supervisor ends" if now >= self._stop_at else ""

        result = process.run_command(
            call.words(), call.given, call.environment(), must_end
        )
        about = {
            "job_id": call.job_id,
            "trace_id": call.trace_id,
            "command": shlex.split(call.command)[0],
            "seconds": round(time.monotonic() - began, 3),
        }
        if result.failure:
            self._log.warning(
                "hook_failed", reason=result.failure, stderr=result.stderr, **about
            )
        else:
            self._log.debug("hook_done", **about)

    def _report(self, *, now: bool = False) -> None:
        """Say how many were dropped, now and then."""
        with self._lock:
            is_due = self._dropped > 0 and (
                now or time.monotonic() - self._reported >= REPORT_S
            )
            count = self._dropped if is_due else 0
            if is_due:
                self._dropped, self._reported = 0, time.monotonic()
        if count:
            self._log.warning("hooks_dropped", dropped=count)


def hook_payload(
    held: InFlightJob, ending: FinishRequest, outcome: str, node_id: str
) -> bytes:
    """The job as a hook reads it. The URL is as it was pushed; headers are left out."""
    job, note = held.job, ending.note
    url = (
        job.url
        if job is not None
        else ending.record.field
        if ending.record is not None
        else None
    )
    return (
        jsontext.dumps(
            {
                "id": held.lease.job_id,
                "outcome": outcome,
                "url": url,
                "save_path": job.save_path if job is not None else None,
                "path": note.get("path") or held.path,
                "size": note.get("size"),
                "seconds": note.get("seconds"),
                "label": note.get("label"),
                "message": note.get("message"),
                "attempt": held.claimed.attempts,
                "trace_id": held.trace_id,
                "user_id": job.user_id if job is not None else None,
                "node": node_id,
            }
        )
        + b"\n"
    )
