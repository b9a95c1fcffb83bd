"""Scans merged files for malware.

Errors of the scan guard become ``UploadError``.
"""

from __future__ import annotations

from typing import Any

from dlpool.dataclass import dataclass
from dlpool.errors import Infected, NotScanned, ScannerAway
from dlpool.scan.guard import Guard, ReportScan, ignore_report
from dlpool.scan.quarantine import ScanFinding
from dlpool.scan.scannedfile import ScannedFile
from dlpool.storage.errors import UploadError


@dataclass(frozen=True)
class ScannedUpload:
    """The upload of a file, and the path at which the file will be published."""

    file_id: str
    owner: str | None
    target: str


class InfectedUpload(UploadError):
    """The error for a merged file that is malware.

    The file has been quarantined or removed, and its chunks are useless.
    """


@dataclass(frozen=True)
class UploadScanner:
    """Scans merged files with ``guard``. Thread-safe.

    ``guard``: None if no scanner is configured; every file may then be published.
    ``report`` is called with the result of each scan.
    """

    guard: Guard | None = None
    report: ReportScan = ignore_report

    def check(self, file: ScannedFile, upload: ScannedUpload) -> None:
        """Raise UploadError unless the file may be published.

        The UploadError has the code infected, not_scanned or scanner_away. Raises
        OSError if the file cannot be read.
        """
        if self.guard is None:
            return
        finding = ScanFinding("", "upload", upload.file_id, upload.target, upload.owner)

        def report(outcome: str, /, **fields: object) -> None:
            self.report(
                outcome,
                upload=upload.file_id,
                user_id=upload.owner,
                path=upload.target,
                **fields,
            )

        try:
            self.guard.check(file, finding, report=report)
        except Infected as error:
            details: dict[str, Any] = {"signature": error.signature}
            details |= (
                {} if error.quarantine is None else {"quarantine": error.quarantine}
            )
            raise InfectedUpload("infected", str(error), **details) from error
        except NotScanned as error:
            raise UploadError("not_scanned", str(error)) from error
        except ScannerAway as error:
            retry_after_s = round(error.retry_after_s or 0)
            raise UploadError(
                "scanner_away",
                f"{error}: merge again later",
                retry_after_s=retry_after_s,
            ) from error


NO_SCANNER = UploadScanner()
