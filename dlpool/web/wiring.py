"""Creates the services that the resources of a process share (composition root)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import falcon

from dlpool.config import Settings
from dlpool.observe.log import Log
from dlpool.observe.log_limiter import LogLimiter
from dlpool.observe.processors import LogOrigin
from dlpool.scan import open_guard
from dlpool.storage import open_backend
from dlpool.storage.values import UploadEvent
from dlpool.web import auditing
from dlpool.web.auth import Authenticator
from dlpool.web.body import RequestBody
from dlpool.web.client_limits import ClientLimits
from dlpool.web.counters import SharedCounters
from dlpool.web.errors import HttpError
from dlpool.web.event_publisher import open_event_publisher

LOG_FOLDER = "web"  # below log_dir: the supervisor rotates its own log files

MAX_LOGGED = 20  # log records per minute and kind for rejected unauthenticated requests


def open_log(settings: Settings) -> Log:
    """Open the log of dlpool-web. Raises LocalFault."""
    return Log(
        Path(settings.paths.log_dir) / LOG_FOLDER,
        settings.logging,
        LogOrigin("dlpool-web", settings.supervisor.node_id or "web"),
    )


class WebServices:
    """The services of one process. ``keys``: the authenticator; None creates one from
    the settings.

    Raises ConfigurationError, LocalFault.
    """

    def __init__(self, settings: Settings, keys: Authenticator | None = None) -> None:
        self.settings = settings
        self.authenticator = keys or Authenticator(settings.web)
        self.log_file = open_log(settings)
        self.log = self.log_file.logger("web")
        self.authenticator.set_listeners(self._log_bad_key, self._log_fetched_keys)
        self.folder = Path(settings.paths.state_dir).absolute() / "web"
        self.client_limits = ClientLimits(self.folder, settings.web)
        self.counters = SharedCounters(self.folder)
        self._unreadable, self._refused = LogLimiter(1), LogLimiter(MAX_LOGGED)
        self.event_publisher = open_event_publisher(settings, self.counters, self.log)
        self.audit = auditing.open_audit(
            settings, self.counters, self.log_file.logger("audit")
        )
        self.backend = open_backend(
            settings.upload,
            self._publish,
            on_unsynced=self._log_unsynced,
            guard=open_guard(settings.scan),
            report_scan=self._count_scan,
        )

    def _publish(self, event: UploadEvent) -> None:
        """Publish and audit a change of an upload."""
        self.event_publisher(event)
        self.audit.record_upload_event(event)

    def _log_bad_key(self, problem: str) -> None:
        """Log an invalid line of ``keys_file``, or why the file cannot be read."""
        self.log.warning("keys_refused", reason=problem)

    def _log_fetched_keys(self, failure: str | None, count: int) -> None:
        """Log that the key set of ``jwks_url`` was fetched, or why it could not be
        fetched."""
        if failure is None:
            self.log.info("jwks_fetched", count=count)
        else:
            self.log.warning("jwks_failed", reason=failure)

    def _log_unsynced(self, folder: str, error: OSError) -> None:
        """Log that a file system cannot sync folders. A power failure may then lose
        names of files, but corrupts no file."""
        self.log.warning(
            "folder_not_synced", folder=folder, reason=error.strerror or str(error)
        )

    def _count_scan(self, outcome: str, /, **fields: object) -> None:
        """Count the result of a malware scan; log it unless the file is clean."""
        self.counters.add(f"scan {outcome}")
        if outcome == "infected":
            self.log.warning("file_infected", **fields)
        elif outcome != "clean":
            self.log.warning("file_unscanned", verdict=outcome, **fields)

    def count_rejected(self, status: int, label: str, client: str, reason: str) -> None:
        """Count a request that the worker rejected before the application was called.

        Of the invalid requests, logs a limited number.
        """
        self.counters.count_request(0.0, label)
        if status < 500 and self._unreadable.allow((status, label)):
            self.log.info(
                "request_unreadable",
                status=status,
                label=label,
                client=client,
                reason=reason,
            )

    def admits_log_line(self, status: int, label: str) -> bool:
        """Return whether a rejected unauthenticated request gets its own log record."""
        return self._refused.allow((status, label))

    def log_summaries(self, *, now: bool = False) -> None:
        """Log how many rejected requests got no log record of their own, and write the
        summary of audit events.

        Writes the numbers about once a minute, or at once if ``now``.
        """
        self.audit.summarise(now=now)
        for summary in (self._unreadable, self._refused):
            for key, count in summary.pop_counts(now=now):
                status, label = cast("tuple[int, str]", key)
                self.log.info(
                    "requests_refused", status=status, label=label, count=count
                )

    @contextmanager
    def open_body(
        self, req: falcon.Request, limit: int, what: str = "the request"
    ) -> Iterator[RequestBody]:
        """Open a request's body, of at most ``limit`` bytes, and hold a body slot for
        it.

        ``what`` names the body in errors. Raises HttpError (400, 413, 429, 501, 503).
        """
        coding = req.get_header("Transfer-Encoding")
        if coding and req.get_header("Content-Length"):
            raise HttpError(
                400,
                "bad_request",
                "a request cannot have both Content-Length and Transfer-Encoding",
            )
        if coding and coding.strip().lower() != "chunked":
            raise HttpError(
                501,
                "unsupported_coding",
                f"Transfer-Encoding {coding[:40]!r} is not supported: only chunked",
            )
        body = RequestBody(req.stream, req.content_length, limit, what)
        with self.client_limits.body_slot(req.context.client) as slot:
            body.use_slot(slot)
            yield body
