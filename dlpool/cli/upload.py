"""``dlpool upload``: files to a dlpool-web, from a shell."""

from __future__ import annotations

import argparse
import json
import threading
import time
from pathlib import Path
from typing import Any

from dlpool.cli.items import parse_header
from dlpool.cli.options import given_options
from dlpool.cli.progress import Display, display, size_text
from dlpool.cli.report import SOME_FAILED
from dlpool.cli.running import DRAW_S, STOP_S, Events, Interruption
from dlpool.cli.upload_options import SETTINGS
from dlpool.config import Settings
from dlpool.config.layers import effective
from dlpool.engine.batch import View
from dlpool.errors import Cancelled, DlpoolError, InternalError, LocalFault, UsageError
from dlpool.transfer.client import Client
from dlpool.transfer.files import allow_open_files
from dlpool.transfer.limits import HostGate, NetworkWatch
from dlpool.transfer.urls import check_header, shown_url
from dlpool.upload.server import Server
from dlpool.upload.upload import Outcome, Upload, Wish


def run(arguments: argparse.Namespace) -> int:
    """Upload what the arguments say; returns the exit code. Raises UsageError, LocalFault or ConfigurationError."""
    if len(arguments.files) > 1 and arguments.name is not None:
        raise UsageError("--name is for one file")
    settings = _settings(arguments)
    allow_open_files()
    gate, watch = HostGate(time.monotonic), NetworkWatch(time.monotonic)
    client = Client(settings.network, arguments.connections + 1, gate, watch)
    client.check()
    server = Server(client, arguments.url, _headers(arguments))
    shown = display(arguments.progress, quiet=arguments.quiet)
    uploads = Run(arguments, settings, client, server, shown)
    try:
        for path in arguments.files:
            uploads.upload(Path(path))
    finally:
        shown.close()
    return uploads.end()


class Run:
    """The uploads of one command, one after the other. Used by the main thread."""

    def __init__(
        self, arguments: argparse.Namespace, settings: Settings, client: Client, server: Server, shown: Display
    ) -> None:
        self._arguments = arguments
        self._settings = settings
        self._client = client
        self._server = server
        self._shown = shown
        self._events = Events(is_wanted=arguments.verbose)
        self._interruption = Interruption()
        self._results: list[dict[str, Any]] = []
        self._errors: list[DlpoolError] = []
        self._size = 0

    def upload(self, path: Path) -> None:
        """Upload a file, unless a signal has come, and tell how it ended."""
        if self._interruption.signal is not None:
            return
        arguments = self._arguments
        try:
            wish = Wish(path, arguments.connections, arguments.chunk_size, arguments.name, arguments.path)
            attempt = Attempt(Upload(wish, self._server, self._client, self._settings.transfer, self._events.note))
            self._watch(attempt)
            result = attempt.result
        except DlpoolError as error:
            result = error
        self._say(path, result)

    def end(self) -> int:
        """Print the JSON, and return the exit code."""
        code, results = self._exit_code(), self._results
        if self._interruption.signal is not None and code > 128 and not self._arguments.quiet:
            self._shown.say("dlpool: interrupted; run the same command again to go on")
        if self._arguments.json and len(self._arguments.files) == 1:
            print(json.dumps({**(results[0] if results else {}), "exit_code": code}))
        elif self._arguments.json:
            failed = len(self._errors)
            print(json.dumps({"exit_code": code, "done": len(results) - failed, "failed": failed, "files": results}))
        return code

    def _watch(self, attempt: Attempt) -> None:
        """Draw until it has ended; pass an interruption on, and wait no longer than a moment then."""
        attempt.thread.start()
        deadline = float("inf")
        number, done, failed = len(self._results), len(self._results) - len(self._errors), len(self._errors)
        try:
            while attempt.thread.is_alive() and time.monotonic() < deadline:
                attempt.thread.join(DRAW_S)
                if self._interruption.signal is not None and deadline == float("inf"):
                    deadline = time.monotonic() + STOP_S
                    attempt.upload.cancel()
                self._events.say(self._shown)
                self._shown.update(View({number: attempt.upload.moment()}, done, failed, self._size))
        except BrokenPipeError:  # nobody hears us any more: end as if interrupted
            attempt.upload.cancel()
            attempt.thread.join(STOP_S)
            raise

    def _say(self, path: Path, result: Outcome | DlpoolError) -> None:
        self._results.append(as_json(path, self._arguments.url, result))
        if isinstance(result, DlpoolError):
            self._errors.append(result)
            if result.label != "cancelled":
                self._shown.say(f"dlpool: {path}: {result}")
            return
        self._size += result.size
        if not self._arguments.quiet:
            self._shown.say(success_text(result))

    def _exit_code(self) -> int:
        if self._interruption.signal is not None and len(self._results) - len(self._errors) < len(
            self._arguments.files
        ):
            return 128 + self._interruption.signal
        if not self._errors:
            return 0
        return SOME_FAILED if len(self._arguments.files) > 1 else self._errors[0].exit_code


class Attempt:
    """An upload on a thread of its own. ``result`` is cancelled until it has another end."""

    def __init__(self, upload: Upload) -> None:
        self.upload = upload
        self.result: Outcome | DlpoolError = Cancelled("the upload was cancelled")
        self.thread = threading.Thread(target=self._run, name="dlpool-run", daemon=True)

    def _run(self) -> None:
        try:
            self.result = self.upload.run()
        except DlpoolError as error:
            self.result = error
        except Exception as error:  # noqa: BLE001 - top of a thread
            self.result = InternalError.of(error)


def success_text(outcome: Outcome) -> str:
    """A sent file in one line."""
    speed = size_text(outcome.sent / outcome.seconds if outcome.seconds > 0 else 0.0)
    resumed = f", resumed from {size_text(outcome.resumed_from)}" if outcome.resumed_from else ""
    took = f"{size_text(outcome.size)} in {outcome.seconds:.1f} s ({speed}/s)"
    return f"{outcome.file}: {took}{resumed}, md5 verified: {outcome.location}"


def as_json(path: Path, url: str, result: Outcome | DlpoolError) -> dict[str, Any]:
    """How an upload ended, for programs; the URL without its secrets."""
    if isinstance(result, Outcome):
        return {"status": "done", "url": shown_url(url), **result.as_json(), "error": None}
    status = "interrupted" if result.label == "cancelled" else "failed"
    error = {"label": result.label, "message": str(result), "exit_code": result.exit_code}
    return {"status": status, "url": shown_url(url), "file": str(path), "error": error}


def _settings(arguments: argparse.Namespace) -> Settings:
    options = [one for section, names in SETTINGS.items() for one in given_options(arguments, section, names)]
    return effective(arguments.config, options).settings


def _headers(arguments: argparse.Namespace) -> dict[str, str]:
    headers = dict(parse_header(text) for text in arguments.header)
    if arguments.token_file is not None:
        headers["Authorization"] = f"Bearer {_secret(arguments.token_file)}"
    if arguments.secret_key_file is not None:
        headers["X-Secret-Key"] = _secret(arguments.secret_key_file)
    return headers


def _secret(path: str) -> str:
    """What a file holds, less space around it. The message of an error has nothing of it."""
    try:
        secret = Path(path).read_text(encoding="utf-8").strip()
        check_header("secret", secret)
    except OSError as error:
        raise LocalFault(f"cannot read {path}: {error.strerror}") from error
    except (UnicodeDecodeError, UsageError) as error:
        raise UsageError(f"{path} holds characters that no header can have") from error
    if not secret:
        raise UsageError(f"{path} is empty: it should hold a secret")
    return secret
