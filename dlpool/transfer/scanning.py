"""Scan a complete download for malware before it is published."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dlpool.config import TransferSettings
from dlpool.disk_errors import translated
from dlpool.errors import NotScanned
from dlpool.transfer.context import DownloadPlan, TransferContext
from dlpool.transfer.http.urls import display_url

if TYPE_CHECKING:
    from dlpool.scan.guard import Guard

_NO_SCANNER = "the file cannot be checked for malware: set clamd or command in [scan]"


def check_configured(settings: TransferSettings, guard: Guard | None) -> None:
    """Raise NotScanned if the settings require a scan and no scanner is configured."""
    if settings.scan and guard is None:
        raise NotScanned(_NO_SCANNER)


def scan_output(context: TransferContext, plan: DownloadPlan) -> None:
    """Scan the part file; raise an error if it must not be published.

    The caller holds the lock of the part file. Raises Infected, NotScanned or
    ScannerAway, LocalFault if the file cannot be read, or the error that cancelled the
    download.
    """
    from dlpool.scan.quarantine import ScanFinding  # only scanned downloads need it

    guard, target, job = context.guard, plan.target, context.job
    assert guard is not None, "check_configured was called before the first request"
    finding = ScanFinding(
        "", "download", display_url(job.url), str(target.path), job.owner, job.id
    )

    def report(outcome: str, /, **fields: object) -> None:
        path = str(target.path)
        if outcome == "clean":
            context.notify("file_scanned", path=path)
        elif outcome == "infected":
            context.notify("file_infected", path=path, **fields)
        else:
            context.notify("file_unscanned", path=path, verdict=outcome, **fields)

    scanned = target.scanned_file()
    with translated(f"check {scanned.path} for malware"):
        guard.check(
            scanned,
            finding,
            check_abort=context.scope.raise_if_cancelled,
            before_quarantine=target.discard,
            report=report,
        )
