"""``dlpool upload``: uploads files to a dlpool-web."""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

from dlpool import threads
from dlpool.cli.foreground import DRAW_S, STOP_S, EventPrinter, Interruption
from dlpool.cli.progress import Display, make_display
from dlpool.cli.upload_credentials import access_headers
from dlpool.cli.upload_options import SETTINGS, load_upload_settings
from dlpool.cli.upload_report import UploadReport
from dlpool.config.layers import EffectiveSettings
from dlpool.engine.batch import BatchProgress
from dlpool.errors import Cancelled, DlpoolError, InternalError, NoThread, UsageError
from dlpool.threads import raise_open_file_limit
from dlpool.transfer.http.client import HttpClient
from dlpool.transfer.http.limits import HostHolds, NetworkMonitor
from dlpool.upload.api_client import UploadApiClient
from dlpool.upload.capabilities import MAX_CONNECTIONS
from dlpool.upload.upload import FileUpload
from dlpool.upload.values import FileUploadRequest, UploadResult


def run(arguments: argparse.Namespace) -> int:
    """Upload the files and return the exit code.

    Raises UsageError, LocalFault, ConfigurationError.
    """
    if len(arguments.files) > 1 and arguments.name is not None:
        raise UsageError("--name is for one file")
    effective = load_upload_settings(arguments)
    headers, network = access_headers(arguments), effective.settings.network
    if arguments.token_file is not None:
        network = replace(network, netrc=False)  # the token has precedence
    raise_open_file_limit()
    connections = arguments.connections or MAX_CONNECTIONS
    client = HttpClient(
        network,
        connections + 1,
        HostHolds(time.monotonic),
        NetworkMonitor(time.monotonic),
    )
    client.check()
    server = UploadApiClient(client, arguments.url, headers)
    display = make_display(arguments.progress, quiet=arguments.quiet)
    uploads = UploadRun(arguments, effective, client, server, display)
    try:
        for path in arguments.files:
            uploads.upload(Path(path))
    finally:
        display.close()
    return uploads.end()


class UploadRun:
    """Uploads the files of one command in turn. Only the main thread uses it."""

    def __init__(
        self,
        arguments: argparse.Namespace,
        effective: EffectiveSettings,
        client: HttpClient,
        server: UploadApiClient,
        display: Display,
    ) -> None:
        self._arguments = arguments
        self._effective = effective
        self._user_settings = {
            name
            for section, name in effective.values
            if section == "transfer" and name in SETTINGS[section]
        }
        self._client = client
        self._server = server
        self._display = display
        self._events = EventPrinter(is_wanted=arguments.verbose)
        self._interruption = Interruption()
        self._report = UploadReport(
            arguments.url, arguments.files, display, quiet=arguments.quiet
        )

    def upload(self, path: Path) -> None:
        """Upload a file and report the result; do nothing after SIGINT or SIGTERM."""
        if self._interruption.signal is not None:
            return
        arguments = self._arguments
        try:
            request = FileUploadRequest(
                path,
                arguments.connections,
                arguments.chunk_size,
                arguments.name,
                arguments.path,
            )
            upload = FileUpload(
                request,
                self._server,
                self._client,
                self._effective.settings.transfer,
                self._events.note,
                self._user_settings,
            )
            attempt = UploadThread(upload)
            self._watch(attempt)
            result = attempt.result
        except DlpoolError as error:
            result = error
        self._report.add(path, result)

    def end(self) -> int:
        """Print the results, and return the exit code."""
        return self._report.end(self._interruption.signal, as_json=self._arguments.json)

    def _watch(self, attempt: UploadThread) -> None:
        """Run the upload on its thread, and show its progress until it ends.

        The first SIGINT or SIGTERM cancels the upload. After the signal this method
        waits at most five seconds (``STOP_S``).
        """
        try:
            attempt.thread.start()
        except NoThread:
            self._interruption.interrupt()
            attempt.run()
        deadline, report = float("inf"), self._report
        while attempt.thread.is_alive() and time.monotonic() < deadline:
            attempt.thread.join(DRAW_S)
            if self._interruption.signal is not None and deadline == float("inf"):
                deadline = time.monotonic() + STOP_S
                attempt.upload.cancel()
            self._events.print_events(self._display)
            moment = attempt.upload.progress()
            self._display.update(
                BatchProgress(
                    {report.ended: moment}, report.done, report.failed, report.size
                )
            )


class UploadThread:
    """An upload and its thread.

    Until the upload has ended, ``result`` is a Cancelled error.
    """

    def __init__(self, upload: FileUpload) -> None:
        self.upload = upload
        self.result: UploadResult | DlpoolError = Cancelled("the upload was cancelled")
        self.thread = threads.DaemonThread(self.run, "dlpool-run")

    def run(self) -> None:
        """Upload the file and keep the result.

        If no thread can be started, the main thread calls this method itself.
        """
        try:
            self.result = self.upload.run()
        except DlpoolError as error:
            self.result = error
        except Exception as error:  # noqa: BLE001 - top of a thread
            self.result = InternalError.of(error)
