"""Decide what a scan leads to: nothing, the quarantine, or a refusal because the file
could not be checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from dlpool.config import ScanSettings
from dlpool.disk import fault_of
from dlpool.errors import Infected, NotScanned, ScannerAway
from dlpool.scan.clamd import ClamdScanner
from dlpool.scan.command import CommandScanner
from dlpool.scan.deadline import ScanDeadline, never_abort
from dlpool.scan.quarantine import Quarantine, ScanFinding
from dlpool.scan.result import CLEAN, INFECTED, TOO_LARGE, ScanResult
from dlpool.scan.scannedfile import ScannedFile

RETRY_S = 30.0  # after which a scanner that was away is tried again, at the earliest
OUTCOMES = ("clean", "infected", "passed", "refused")


class Scanner(Protocol):
    """Something that checks a file."""

    def scan(self, suspect: ScannedFile, deadline: ScanDeadline) -> ScanResult:
        """Return what it finds. Raises what ``deadline`` raises, OSError if the file
        cannot be read."""


class ReportScan(Protocol):
    """Called once for each scan, with one of OUTCOMES and fields for the log. Neither
    blocks nor raises."""

    def __call__(self, outcome: str, /, **fields: object) -> object:
        """Count and log it."""


def ignore_report(_outcome: str, /, **_fields: object) -> None:
    """Ignore it."""


@dataclass(frozen=True)
class Guard:
    """Checks files as ``[scan]`` says. Thread-safe: nothing is shared between two
    scans."""

    settings: ScanSettings
    scanner: Scanner

    def check(
        self,
        suspect: ScannedFile,
        finding: ScanFinding,
        *,
        check_abort: Callable[[], None] = never_abort,
        before_quarantine: Callable[[], None] = never_abort,
        report: ReportScan = ignore_report,
    ) -> None:
        """Return if the file may get its name. It takes up to ``timeout`` seconds, and
        holds no lock.

        ``finding`` says where the file comes from, without a signature. ``check`` is
        called several times a second and raises what ends the scan; ``before_move`` is
        called before an infected file loses its temporary name.

        Raises Infected, and then the file has no name outside the quarantine;
        NotScanned or ScannerAway if it could not be checked and ``on_unavailable`` is
        ``refuse``; OSError if it cannot be read.
        """
        verdict = self._verdict(suspect, check_abort)
        if verdict.outcome == CLEAN:
            report("clean")
        elif verdict.outcome == INFECTED:
            before_quarantine()
            raise self._infected(
                suspect, replace(finding, signature=verdict.detail), report
            )
        elif self.settings.on_unavailable == "pass":
            report("passed", reason=verdict.detail)
        else:
            report("refused", reason=verdict.detail)
            raise _unchecked(verdict)

    def _verdict(self, suspect: ScannedFile, check: Callable[[], None]) -> ScanResult:
        most = self.settings.max_size
        if suspect.size > most:
            return ScanResult(
                TOO_LARGE,
                f"it has {suspect.size} bytes, more than max_size of [scan] ({most})",
            )
        return self.scanner.scan(suspect, ScanDeadline(self.settings.timeout, check))

    def _infected(
        self, suspect: ScannedFile, finding: ScanFinding, tell: ReportScan
    ) -> Infected:
        """Move the file to the quarantine, or remove it if that fails."""
        text = f"the file is infected: {finding.signature}"
        quarantine = Quarantine(
            Path(self.settings.quarantine_dir), self.settings.quarantine_size
        )
        try:
            item = quarantine.add(suspect, finding)
        except OSError as error:
            suspect.remove()
            reason = fault_of(error).reason
            tell("infected", signature=finding.signature, reason=reason)
            text = (
                f"{text}; it was removed, as it could not be moved to quarantine: "
                f"{reason}"
            )
            return Infected(text, finding.signature)
        tell(
            "infected",
            signature=finding.signature,
            quarantine=item.id,
            sha256=item.sha256,
            size=item.size,
        )
        return Infected(
            f"{text}; it is in quarantine as {item.id}", finding.signature, item.id
        )


def open_guard(settings: ScanSettings) -> Guard | None:
    """Return the guard of a process; None where no scanner is configured."""
    if settings.clamd is not None:
        return Guard(settings, ClamdScanner(settings.clamd))
    if settings.command is not None:
        return Guard(settings, CommandScanner(settings.command))
    return None


def _unchecked(verdict: ScanResult) -> NotScanned | ScannerAway:
    if verdict.outcome == TOO_LARGE:
        return NotScanned(f"the file was not checked for malware: {verdict.detail}")
    text = (
        f"the file was not checked for malware: the scanner is not available, "
        f"{verdict.detail}"
    )
    return ScannerAway(text, retry_after_s=RETRY_S)
