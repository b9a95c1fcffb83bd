"""The report of a run of ``dlpool upload``: a line per file, JSON, the exit code."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dlpool.cli.console import reporting_result, show_lines
from dlpool.cli.fetch_report import SOME_FAILED
from dlpool.cli.progress import Display
from dlpool.cli.units import size_text
from dlpool.errors import DlpoolError
from dlpool.transfer.http.urls import display_url
from dlpool.upload.values import UploadResult

STATES = ("done", "failed", "interrupted", "not_begun")


class UploadReport:
    """Collects the results of a run. Only the main thread uses it.

    ``size`` is the total size of the uploaded files in bytes.
    """

    def __init__(
        self, url: str, files: Sequence[str], display: Display, *, quiet: bool
    ) -> None:
        self.size = 0
        self._url = display_url(url)
        self._files = files
        self._display = display
        self._quiet = quiet
        self._results: list[dict[str, Any]] = []
        self._counts: Counter[str] = Counter()
        self._error: DlpoolError | None = None

    @property
    def ended(self) -> int:
        """The number of files that have a result."""
        return len(self._results)

    @property
    def done(self) -> int:
        """The number of uploaded files."""
        return self._counts["done"]

    @property
    def failed(self) -> int:
        """The number of failed files."""
        return self._counts["failed"]

    def add(self, path: Path, result: UploadResult | DlpoolError) -> None:
        """Print the result of a file and count it."""
        state = state_of(result)
        self._counts[state] += 1
        self._results.append(as_json(path, self._url, state, result))
        if isinstance(result, UploadResult):
            self.size += result.size
            if not self._quiet:
                self._display.print_line(success_text(result))
            return
        self._error = self._error or result
        if state == "failed":
            self._display.print_line(f"dlpool: {path}: {result}")

    def end(self, signal: int | None, *, as_json: bool) -> int:
        """Print the JSON if ``as_json``, and return the exit code.

        ``signal`` is the number of the signal that interrupted the run, or None.
        """
        code = self._exit_code(signal)
        not_begun = self._files[self.ended :]
        self._counts["not_begun"] += len(not_begun)
        if signal is not None and code > 128 and not self._quiet:
            left = f"; files not started: {len(not_begun)}" if not_begun else ""
            self._display.print_line(
                f"dlpool: interrupted; run the same command again to resume{left}"
            )
        if not as_json:
            return code
        files = [
            *self._results,
            *(
                {"status": "not_begun", "url": self._url, "file": file, "error": None}
                for file in not_begun
            ),
        ]
        report = {
            "exit_code": code,
            **{state: self._counts[state] for state in STATES},
            "files": files,
        }
        with reporting_result():
            show_lines(
                [
                    json.dumps(
                        report
                        if len(self._files) > 1
                        else {**files[0], "exit_code": code}
                    )
                ]
            )
        return code

    def _exit_code(self, signal: int | None) -> int:
        if signal is not None and self.done < len(self._files):
            return 128 + signal
        if self._error is None:
            return 0
        return SOME_FAILED if len(self._files) > 1 else self._error.exit_code


def state_of(result: UploadResult | DlpoolError) -> str:
    """Return the state of a file: ``done``, ``interrupted`` or ``failed``."""
    if isinstance(result, UploadResult):
        return "done"
    return "interrupted" if result.label == "cancelled" else "failed"


def success_text(outcome: UploadResult) -> str:
    """Describe the result of a successful upload in one line."""
    speed = size_text(outcome.sent / outcome.seconds if outcome.seconds > 0 else 0.0)
    resumed = (
        f", resumed from {size_text(outcome.resumed_from)}"
        if outcome.resumed_from
        else ""
    )
    digest = "md5" if outcome.md5 else "sha256"
    took = f"{size_text(outcome.size)} in {outcome.seconds:.1f} s ({speed}/s)"
    return f"{outcome.file}: {took}{resumed}, {digest} verified: {outcome.location}"


def as_json(
    path: Path, url: str, state: str, result: UploadResult | DlpoolError
) -> dict[str, Any]:
    """Return a result as JSON values."""
    if isinstance(result, UploadResult):
        return {"status": state, "url": url, **result.as_json(), "error": None}
    error = {
        "label": result.label,
        "message": str(result),
        "exit_code": result.exit_code,
    }
    return {"status": state, "url": url, "file": str(path), "error": error}
