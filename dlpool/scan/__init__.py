"""The scan of complete files for malware before they are published.

Read in this order: ``guard`` (what a scan result leads to), ``clamd`` and ``command``
(the two scanners), ``result`` (what a scanner found), ``scannedfile`` (the file under
scan), ``deadline`` (time limit and abort), ``quarantine`` (where infected files are
kept). A scan runs on the thread that publishes the file. For a download, this thread is
in a worker process or an engine; for an upload, in a web worker. ``dlpool quarantine``
uses only ``quarantine``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dlpool.config import ScanSettings
    from dlpool.scan.guard import Guard


def open_guard(settings: ScanSettings) -> Guard | None:
    """Return the guard of this process; None if no scanner is configured."""
    if settings.clamd is None and settings.command is None:
        return None
    # Most downloads are not scanned: they start faster without the scanners.
    from dlpool.scan.guard import make_guard

    return make_guard(settings)
