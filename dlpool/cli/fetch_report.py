"""The report of a run of ``dlpool fetch``: lines, a summary, JSON, the exit code."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from dlpool.cli.console import reporting_result, show_lines
from dlpool.cli.progress import Display
from dlpool.cli.units import size_text
from dlpool.engine.batch import BatchProgress, BatchResult, ListUnreadable
from dlpool.errors import DlpoolError
from dlpool.transfer.http.urls import display_url
from dlpool.transfer.job import TransferResult

SOME_FAILED = 14


class FetchReport:
    """Collects the results of a run. Only the main thread uses it.

    With ``keeps`` it keeps all results, for the JSON output; otherwise it keeps only
    the values from which the exit code follows. ``signal`` is the number of the signal
    that interrupted the run; None if there was no signal.
    """

    def __init__(
        self, display: Display, *, is_list: bool, quiet: bool, keeps: bool
    ) -> None:
        self.signal: int | None = None
        self._display = display
        self._is_list = is_list
        self._quiet = quiet
        self._keeps = keeps
        self._objects: list[dict[str, Any]] = []
        self._done = self._failed = self._cancelled = 0
        self._error: DlpoolError | None = None
        self._is_list_unreadable = False

    def add(self, results: Iterable[BatchResult]) -> None:
        """Print each result and count it."""
        for result in results:
            is_cancelled = (
                result.error is not None and result.error.label == "cancelled"
            )
            self._done += result.error is None
            self._cancelled += is_cancelled
            is_failure = result.error is not None and not result.is_duplicate
            self._failed += is_failure and not is_cancelled
            self._error = self._error or (result.error if is_failure else None)
            self._is_list_unreadable |= isinstance(result.error, ListUnreadable)
            if self._keeps:
                self._objects.append(as_json(result))
            self._say(result, is_cancelled=is_cancelled)

    def end(self, progress: BatchProgress, seconds: float) -> int:
        """Print the end of the report, and return the exit code.

        ``progress`` is the final progress, ``seconds`` the duration of the run.
        """
        code = self._exit_code()
        if not self._quiet and self.signal is not None and code == 128 + self.signal:
            self._display.print_line(
                "dlpool: interrupted; run the same command again to resume"
            )
        elif not self._quiet and self._is_list:
            self._display.print_line(self._summary(progress, seconds))
        if self._keeps:
            single = (
                {**self._objects[0], "exit_code": code}
                if self._objects
                else {"exit_code": code}
            )
            with reporting_result():
                show_lines(
                    [
                        json.dumps(
                            self._as_json(code, progress, seconds)
                            if self._is_list
                            else single
                        )
                    ]
                )
        return code

    def _summary(self, progress: BatchProgress, seconds: float) -> str:
        total = self._done + self._failed + progress.earlier
        earlier = f", {progress.earlier} in earlier runs" if progress.earlier else ""
        size, speed = (
            size_text(progress.completed_bytes),
            size_text(_speed(progress, seconds)),
        )
        return (
            f"{self._done + progress.earlier} of {total} files done{earlier}, "
            f"{self._failed} failed: "
            f"{size} in {seconds:.1f} s ({speed}/s)"
        )

    def _as_json(
        self, code: int, progress: BatchProgress, seconds: float
    ) -> dict[str, Any]:
        return {
            "exit_code": code,
            "done": self._done,
            "failed": self._failed,
            "earlier": progress.earlier,
            "size": progress.completed_bytes,
            "seconds": round(seconds, 3),
            "bytes_per_second": round(_speed(progress, seconds)),
            "files": self._objects,
        }

    def _exit_code(self) -> int:
        if self.signal is not None and (
            self._cancelled or self._is_list or self._done + self._failed == 0
        ):
            return 128 + self.signal
        if self._error is None:
            return 0
        if self._is_list_unreadable:
            return ListUnreadable.exit_code
        return SOME_FAILED if self._is_list else self._error.exit_code

    def _say(self, result: BatchResult, *, is_cancelled: bool) -> None:
        if result.is_duplicate:
            if not self._quiet:
                self._display.print_line(f"{result.error}")
        elif result.outcome is not None and not self._quiet:
            self._display.print_line(success_text(result.outcome))
        elif result.error is not None and not is_cancelled:
            where = f"{display_url(result.item.url)}: " if result.item.url else ""
            self._display.print_line(f"dlpool: {where}{result.error}")


def _speed(progress: BatchProgress, seconds: float) -> float:
    return progress.completed_bytes / seconds if seconds > 0 else 0.0


def success_text(outcome: TransferResult) -> str:
    """Describe the result of a successful download in one line."""
    if outcome.is_skipped:
        return f"{outcome.path}: already exists, skipped"
    resumed = (
        f", resumed from {size_text(outcome.resumed_from)}"
        if outcome.resumed_from
        else ""
    )
    verified = (
        f", {outcome.checksum.partition(':')[0]} verified" if outcome.checksum else ""
    )
    speed = size_text(
        outcome.received / outcome.seconds if outcome.seconds > 0 else 0.0
    )
    took = f"{size_text(outcome.size)} in {outcome.seconds:.1f} s ({speed}/s)"
    return f"{outcome.path}: {took}{resumed}{verified}"


def as_json(result: BatchResult) -> dict[str, Any]:
    """Return a result as JSON values; secrets in the URL are left out."""
    error, outcome, job = result.error, result.outcome, result.item.job
    status = (
        "done"
        if error is None
        else "interrupted"
        if error.label == "cancelled"
        else "failed"
    )
    if result.is_duplicate or (outcome is not None and outcome.is_skipped):
        status = "skipped"
    return {
        "status": status,
        "url": display_url(result.item.url),
        "line": result.item.line or None,
        "path": str(job.target) if job else None,
        **(outcome.as_json() if outcome else {}),
        "error": None
        if error is None
        else {
            "label": error.label,
            "message": str(error),
            "exit_code": error.exit_code,
        },
    }
