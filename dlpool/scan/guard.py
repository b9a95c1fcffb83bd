"""The guard, which scans a file and then accepts, quarantines or refuses it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from dlpool.config import ScanSettings
from dlpool.dataclass import dataclass
from dlpool.disk_errors import fault_of
from dlpool.errors import Infected, NotScanned, ScannerAway
from dlpool.scan.clamd import ClamdScanner
from dlpool.scan.command import CommandScanner
from dlpool.scan.deadline import ScanDeadline, never_abort
from dlpool.scan.quarantine import Quarantine, ScanFinding
from dlpool.scan.result import CLEAN, INFECTED, TOO_LARGE, ScanResult
from dlpool.scan.scannedfile import ScannedFile

RETRY_S = 30.0  # least delay before an unavailable scanner is tried again
OUTCOMES = ("clean", "infected", "passed", "refused")


class Scanner(Protocol):
    """A malware scanner."""

    def scan(self, file: ScannedFile, deadline: ScanDeadline) -> ScanResult:
        """Return the result of a scan.

        Raises OSError, and what ``deadline.check_abort`` raises.
        """


class ReportScan(Protocol):
    """A callback that counts and logs each scan. It neither blocks nor raises.

    ``outcome`` is one of ``OUTCOMES``, ``fields`` are fields of the log record.
    """

    def __call__(self, outcome: str, /, **fields: object) -> object:
        """Count and log one scan."""


def ignore_report(_outcome: str, /, **_fields: object) -> None:
    """Ignore the outcome of a scan."""


@dataclass(frozen=True)
class Guard:
    """The scan of files, as the section ``[scan]`` configures it. Thread-safe: scans
    share nothing."""

    settings: ScanSettings
    scanner: Scanner

    def check(
        self,
        file: ScannedFile,
        finding: ScanFinding,
        *,
        check_abort: Callable[[], None] = never_abort,
        before_quarantine: Callable[[], None] = never_abort,
        report: ReportScan = ignore_report,
    ) -> None:
        """Scan a file; return if it may be published.

        ``finding`` describes where the file comes from; this method adds the signature.
        ``check_abort`` is called several times a second and raises to abort the scan.
        ``before_quarantine`` is called before an infected file loses its temporary
        name. This method holds no lock; the scan takes up to ``timeout`` seconds.

        Raises Infected for malware, after the file was moved into quarantine or
        removed. Raises NotScanned or ScannerAway if the file could not be scanned and
        ``on_unavailable`` is ``refuse``. Raises OSError if the file cannot be read.
        """
        result = self._scan(file, check_abort)
        if result.outcome == CLEAN:
            report("clean")
        elif result.outcome == INFECTED:
            before_quarantine()
            raise self._infected(
                file, replace(finding, signature=result.detail), report
            )
        elif self.settings.on_unavailable == "pass":
            report("passed", reason=result.detail)
        else:
            report("refused", reason=result.detail)
            raise _not_scanned(result)

    def _scan(self, file: ScannedFile, check_abort: Callable[[], None]) -> ScanResult:
        max_size = self.settings.max_size
        if file.size > max_size:
            return ScanResult(
                TOO_LARGE,
                f"it has {file.size} bytes, more than max_size of [scan] ({max_size})",
            )
        return self.scanner.scan(file, ScanDeadline(self.settings.timeout, check_abort))

    def _infected(
        self, file: ScannedFile, finding: ScanFinding, report: ReportScan
    ) -> Infected:
        """Quarantine the file; if that fails, remove it. Return the error to raise."""
        text = f"the file is infected: {finding.signature}"
        quarantine = Quarantine(
            Path(self.settings.quarantine_dir), self.settings.quarantine_size
        )
        try:
            item = quarantine.add(file, finding)
        except OSError as error:
            file.remove()
            reason = fault_of(error).reason
            report("infected", signature=finding.signature, reason=reason)
            text = (
                f"{text}; it was removed, as it could not be moved to quarantine: "
                f"{reason}"
            )
            return Infected(text, finding.signature)
        report(
            "infected",
            signature=finding.signature,
            quarantine=item.id,
            sha256=item.sha256,
            size=item.size,
        )
        return Infected(
            f"{text}; it is in quarantine as {item.id}", finding.signature, item.id
        )


def make_guard(settings: ScanSettings) -> Guard:
    """Return a guard with the configured scanner. A scanner must be configured."""
    if settings.clamd is not None:
        return Guard(settings, ClamdScanner(settings.clamd))
    assert settings.command is not None
    return Guard(settings, CommandScanner(settings.command))


def _not_scanned(result: ScanResult) -> NotScanned | ScannerAway:
    if result.outcome == TOO_LARGE:
        return NotScanned(f"the file was not checked for malware: {result.detail}")
    text = (
        "the file was not checked for malware: the scanner is not available, "
        f"{result.detail}"
    )
    return ScannerAway(text, retry_after_s=RETRY_S)
