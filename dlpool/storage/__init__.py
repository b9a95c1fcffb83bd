"""Uploads that the server keeps: chunks become a task, and a task becomes a file.

Read in this order: ``backend.py`` (the interfaces), ``upload_requests.py`` and
``values.py`` (arguments and results), ``states.py`` (the state machine of a task),
``errors.py`` (codes), then ``disk/``, the implementation on a file system.
``open_backend`` below selects the implementation. Another implementation (in an object
store, for example) is a package beside ``disk/`` that implements ``UploadBackend`` and
``Locker``. ``names.py``, ``content_types.py`` and ``executables.py`` decide which names
and types of files are accepted.

Nothing here knows HTTP. Requests run in the request threads of the worker processes of
``dlpool-web``. The sweep runs in the janitor thread of one of these processes.
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
    """Return the upload backend for ``settings``. The backend opens no file until it is
    used.

    ``listener`` is called with each change of an upload; it must neither block nor
    raise. ``on_unsynced`` is called once for each file system that cannot sync a
    folder. ``guard`` scans each merged file before it is published (None: no scan), and
    ``report_scan`` is called with the result.
    """
    # A process loads only the backend that it uses.
    from dlpool.storage.disk.backend import DiskBackend
    from dlpool.storage.disk.scanning import UploadScanner

    return DiskBackend(
        settings, listener, on_unsynced, UploadScanner(guard, report_scan)
    )
