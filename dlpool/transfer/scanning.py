"""Scan a complete download for malware before it is published."""

from __future__ import annotations

from dlpool.config import TransferSettings
from dlpool.disk import translated
from dlpool.errors import NotScanned
from dlpool.scan.guard import Guard
from dlpool.scan.quarantine import ScanFinding
from dlpool.transfer.context import DownloadPlan, TransferContext
from dlpool.transfer.http.urls import display_url

_NO_SCANNER = "the file cannot be checked for malware: set clamd or command in [scan]"


def check_configured(settings: TransferSettings, guard: Guard | None) -> None:
    """Raise NotScanned if ``scan`` is set and no scanner is configured."""
    if settings.scan and guard is None:
        raise NotScanned(_NO_SCANNER)


def scan_output(context: TransferContext, plan: DownloadPlan) -> None:
    """Scan the part file, which stays locked meanwhile; return if it may be published.

    Raises Infected, NotScanned, ScannerAway, LocalFault if the file cannot be read, or
    the error that stopped the download.
    """
    guard, output, job = context.guard, plan.output, context.job
    assert guard is not None, "check_configured was called before the first request"
    finding = ScanFinding(
        "", "download", display_url(job.url), str(output.target), job.owner, job.id
    )

    def report(verdict: str, /, **fields: object) -> None:
        path = str(output.target)
        if verdict == "clean":
            context.notify("file_scanned", path=path)
        elif verdict == "infected":
            context.notify("file_infected", path=path, **fields)
        else:
            context.notify("file_unscanned", path=path, verdict=verdict, **fields)

    with translated(f"check {output.part.path} for malware"):
        guard.check(
            output.part.as_scanned_file(),
            finding,
            check_abort=context.scope.raise_if_cancelled,
            before_quarantine=output.discard,
            report=report,
        )
