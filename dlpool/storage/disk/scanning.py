"""Check merged files for malware, and translate what the guard raises into a
``UploadError``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dlpool.errors import Infected, NotScanned, ScannerAway
from dlpool.scan.guard import Guard, ReportScan, ignore_report
from dlpool.scan.quarantine import ScanFinding
from dlpool.scan.scannedfile import ScannedFile
from dlpool.storage.errors import UploadError


@dataclass(frozen=True)
class ScannedUpload:
    """Whose file it is, and the path that it is to get."""

    file_id: str
    owner: str | None
    target: str


class InfectedUpload(UploadError):
    """The file is malware: it is in quarantine or removed, and its chunks are of no
    use."""


@dataclass(frozen=True)
class UploadScanner:
    """``guard``: None if no scanner is configured. Thread-safe."""

    guard: Guard | None = None
    tell: ReportScan = ignore_report

    def check(self, suspect: ScannedFile, upload: ScannedUpload) -> None:
        """Return if the file may be published. Raises Refusal (422, 413, 503), OSError
        if it cannot be read."""
        if self.guard is None:
            return
        finding = ScanFinding("", "upload", upload.file_id, upload.target, upload.owner)

        def tell(outcome: str, /, **fields: object) -> None:
            self.tell(
                outcome,
                upload=upload.file_id,
                user_id=upload.owner,
                path=upload.target,
                **fields,
            )

        try:
            self.guard.check(suspect, finding, report=tell)
        except Infected as error:
            extra: dict[str, Any] = {"signature": error.signature}
            extra |= (
                {} if error.quarantine is None else {"quarantine": error.quarantine}
            )
            raise InfectedUpload(422, error.label, str(error), **extra) from error
        except NotScanned as error:
            raise UploadError(413, error.label, str(error)) from error
        except ScannerAway as error:
            headers = {"Retry-After": f"{error.retry_after_s:.0f}"}
            raise UploadError(
                503, error.label, f"{error}: merge again later", headers=headers
            ) from error


NO_SCANNER = UploadScanner()
