"""The operator's hooks, which run when a job has ended: a few at a time, in threads.

Each hook runs at most once: if the supervisor is killed after a job was recorded and
before its hook started, the hook does not run. A running hook is not killed with its
supervisor, because it has all of its input and can complete.
"""

from __future__ import annotations

import os
import shlex
import shutil
import threading
import time
from collections import deque
from pathlib import Path

from dlpool import jsontext
from dlpool.config import HookSettings
from dlpool.dataclass import dataclass
from dlpool.errors import ConfigurationError
from dlpool.jobs.states import Disposition
from dlpool.jobs.transitions import FinishRequest
from dlpool.observe.log import Logger
from dlpool.service.hooks.process import TERMINATE_S, run_command
from dlpool.service.inflight import InFlightJob

MAX_WAITING = 1000
STOP_S = 5.0  # for running hooks, when the supervisor stops
REPORT_S = 10.0  # between two log lines about dropped hooks
# passed on to commands
ENVIRONMENT = "PATH", "HOME", "USER", "LANG", "LC_ALL", "LC_CTYPE", "TZ"
OUTCOMES = {Disposition.SUCCEED: "success", Disposition.FAIL: "failure"}


def check_hooks(settings: HookSettings) -> None:
    """Raise ConfigurationError if the program of a hook cannot be found."""
    problems = [
        f"[hooks] {name}: cannot find executable program {shlex.split(command)[0]!r}"
        for name, command in (
            ("on_success", settings.on_success),
            ("on_failure", settings.on_failure),
        )
        if command is not None and shutil.which(shlex.split(command)[0]) is None
    ]
    if problems:
        raise ConfigurationError("\n".join(problems))


def command_environment() -> dict[str, str]:
    """Return the environment variables of this process that the operator's commands
    inherit."""
    return {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}


@dataclass(frozen=True)
class HookCall:
    """A hook that is to run; ``stdin`` is its standard input."""

    command: str
    job_id: str
    trace_id: str
    outcome: str
    stdin: bytes

    def words(self) -> list[str]:
        """Return the command line, with the absolute path of its program."""
        program, *arguments = shlex.split(self.command)
        return [str(Path(shutil.which(program) or program).absolute()), *arguments]

    def environment(self) -> dict[str, str]:
        """Return the environment of the command, without secrets."""
        return command_environment() | {
            "DLPOOL_JOB_ID": self.job_id,
            "DLPOOL_OUTCOME": self.outcome,
        }


class HookRunner:
    """The runner of hooks. Its threads exit when no hook waits. The main thread calls
    ``schedule`` and ``stop``.

    A hook is dropped if too many hooks wait. ``settings`` may be replaced at any time.
    The lock guards the waiting hooks, the number of threads and the number of dropped
    hooks.
    """

    def __init__(self, settings: HookSettings, node_id: str, log: Logger) -> None:
        self.settings = settings
        self._node_id = node_id
        self._log = log
        self._lock = threading.Condition()
        self._waiting: deque[HookCall] = deque()
        self._threads = 0
        self._dropped = 0  # since the last log line about them
        self._reported = float("-inf")
        self._stop_at = float("inf")

    def __repr__(self) -> str:
        return (
            f"<HookRunner {self._threads} of {self.settings.max_running} running, "
            f"{len(self._waiting)} waiting>"
        )

    def schedule(self, job: InFlightJob, request: FinishRequest) -> None:
        """Schedule the hook for a recorded result, if the settings name a hook for it.

        Does not wait and does not raise.
        """
        outcome = OUTCOMES.get(request.disposition)
        if outcome is None:
            return
        command = (
            self.settings.on_success
            if outcome == "success"
            else self.settings.on_failure
        )
        if command is None:
            return
        stdin = hook_payload(job, request, outcome, self._node_id)
        self._add(HookCall(command, job.lease.job_id, job.trace_id, outcome, stdin))

    def stop(self) -> None:
        """Let hooks run for up to ``STOP_S`` seconds; then stop running hooks and drop
        waiting hooks."""
        with self._lock:
            self._stop_at = time.monotonic() + STOP_S
            self._lock.wait_for(lambda: self._threads == 0, STOP_S + TERMINATE_S + 1.0)
            self._dropped += len(self._waiting)
            self._waiting.clear()
        self._report(now=True)

    def _add(self, call: HookCall) -> None:
        with self._lock:
            is_accepted = len(self._waiting) < MAX_WAITING
            if is_accepted:
                self._waiting.append(call)
            else:
                self._dropped += 1
            needs_thread = self._threads < self.settings.max_running
            self._threads += needs_thread
        if needs_thread:
            self._start_thread()
        if not is_accepted:
            self._report()

    def _start_thread(self) -> None:
        try:
            threading.Thread(target=self._serve, name="hook", daemon=True).start()
        except RuntimeError as error:
            # no more threads: a later one runs the waiting hooks
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
        """Return the next waiting hook; None if the calling thread shall exit."""
        with self._lock:
            may_run = (
                self._threads <= self.settings.max_running
                and time.monotonic() < self._stop_at
            )
            if self._waiting and may_run:
                return self._waiting.popleft()
            self._threads -= 1
            self._lock.notify_all()
            return None

    def _run(self, call: HookCall) -> None:
        timeout_s = self.settings.timeout
        started_at = time.monotonic()

        def stop_reason() -> str:
            now = time.monotonic()
            if now - started_at >= timeout_s:
                return f"it took longer than {timeout_s:g} s"
            return "the supervisor stops" if now >= self._stop_at else ""

        result = run_command(call.words(), call.stdin, call.environment(), stop_reason)
        about = {
            "job_id": call.job_id,
            "trace_id": call.trace_id,
            "command": shlex.split(call.command)[0],
            "seconds": round(time.monotonic() - started_at, 3),
        }
        if result.failure:
            self._log.warning(
                "hook_failed", reason=result.failure, stderr=result.stderr, **about
            )
        else:
            self._log.debug("hook_succeeded", **about)

    def _report(self, *, now: bool = False) -> None:
        """Log how many hooks were dropped since the last report.

        Without ``now``, log at most once in ``REPORT_S`` seconds.
        """
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
    job: InFlightJob, request: FinishRequest, outcome: str, node_id: str
) -> bytes:
    """Return the JSON that a hook reads about its job. The URL is as the client pushed
    it; headers are left out."""
    pushed, note = job.job, request.note
    url = (
        pushed.url
        if pushed is not None
        else request.record.field
        if request.record is not None
        else None
    )
    return (
        jsontext.dumps(
            {
                "id": job.lease.job_id,
                "outcome": outcome,
                "url": url,
                "save_path": pushed.save_path if pushed is not None else None,
                "path": note.get("path") or job.path,
                "size": note.get("size"),
                "seconds": note.get("seconds"),
                "label": note.get("label"),
                "message": note.get("message"),
                "attempt": job.claimed.attempts,
                "trace_id": job.trace_id,
                "user_id": pushed.user_id if pushed is not None else None,
                "node": node_id,
            }
        )
        + b"\n"
    )
