"""Check merged files for malware, and translate what the guard raises into a ``Refusal``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dlpool.errors import Infected, NotScanned, ScannerAway
from dlpool.scan.guard import Guard, Tell, tell_nobody
from dlpool.scan.quarantine import Finding
from dlpool.scan.suspect import Suspect
from dlpool.web.refusal import Refusal


@dataclass(frozen=True)
class Upload:
    """Whose file it is, and the path that it is to get."""

    file_id: str
    owner: str | None
    target: str


class InfectedUpload(Refusal):
    """The file is malware: it is in quarantine or removed, and its chunks are of no use."""


@dataclass(frozen=True)
class Screening:
    """``guard``: None if no scanner is configured. Thread-safe."""

    guard: Guard | None = None
    tell: Tell = tell_nobody

    def check(self, suspect: Suspect, upload: Upload) -> None:
        """Return if the file may be published. Raises Refusal (422, 413, 503), OSError if it cannot be read."""
        if self.guard is None:
            return
        finding = Finding("", "upload", upload.file_id, upload.target, upload.owner)

        def tell(outcome: str, /, **fields: object) -> None:
            self.tell(outcome, upload=upload.file_id, user_id=upload.owner, path=upload.target, **fields)

        try:
            self.guard.check(suspect, finding, tell=tell)
        except Infected as error:
            extra: dict[str, Any] = {"signature": error.signature}
            extra |= {} if error.quarantine is None else {"quarantine": error.quarantine}
            raise InfectedUpload(422, error.label, str(error), **extra) from error
        except NotScanned as error:
            raise Refusal(413, error.label, str(error)) from error
        except ScannerAway as error:
            headers = {"Retry-After": f"{error.retry_after_s:.0f}"}
            raise Refusal(503, error.label, f"{error}: merge again later", headers=headers) from error


UNSCREENED = Screening()
