"""Opens the upload backend.

Only this module selects an implementation of the interfaces in ``backend.py``.
"""

from __future__ import annotations

from dlpool.config import UploadSettings
from dlpool.disk import OnUnsynced
from dlpool.scan.guard import Guard, ReportScan, ignore_report
from dlpool.storage.backend import UploadBackend
from dlpool.storage.values import UploadEventListener, ignore_event


def open_backend(
    settings: UploadSettings,
    listener: UploadEventListener = ignore_event,
    *,
    on_unsynced: OnUnsynced | None = None,
    guard: Guard | None = None,
    report_scan: ReportScan = ignore_report,
) -> UploadBackend:
    """Return the backend of the settings. It touches no file until it is used.

    ``listener`` is called with each change of an upload; it must neither block nor
    raise. ``on_unsynced`` is called once for each file system that cannot sync a
    folder. ``guard`` scans each merged file before it is published, and ``report_scan``
    is called with the result.
    """
    # A process loads only the backend that it uses.
    from dlpool.storage.disk.backend import DiskBackend
    from dlpool.storage.disk.scanning import UploadScanner

    return DiskBackend(
        settings, listener, on_unsynced, UploadScanner(guard, report_scan)
    )
