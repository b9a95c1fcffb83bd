"""The program ``dlpool-web``: its options and its start."""

from __future__ import annotations

import argparse
import os
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlpool.cli.console import run_program
from dlpool.cli.options import apply_umask, load_settings, print_warnings
from dlpool.cli.parser import EXIT_CODES, HelpFormatter, Parser
from dlpool.config import Settings
from dlpool.config.go_config import is_json
from dlpool.config.ini import text_of_file
from dlpool.config.owned_paths import check_owned_paths
from dlpool.disk import make_folders
from dlpool.disk_errors import translated
from dlpool.errors import ConfigurationError, LocalFault
from dlpool.threads import raise_open_file_limit
from dlpool.version import __version__

if TYPE_CHECKING:
    from dlpool.observe.log import Log
    from dlpool.web.auth import Authenticator

PROGRAM = "dlpool-web"
GO_CONFIG = "config.json"  # read by the Go upload server from its working directory
_MISSING = "dlpool-web needs more libraries: pip install 'dlpool[web]' ({} is missing)"


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the program's options."""
    parser = Parser(
        prog="dlpool-web",
        description="Serves uploads, the job API and the dashboard over HTTP until it "
        "is stopped.",
        epilog=EXIT_CODES,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"dlpool {__version__}")
    parser.add_argument(
        "-c",
        "--config",
        metavar="FILE",
        help="INI file with the settings, or the config.json of the Go upload server",
    )
    return parser


def application() -> Any:
    """Return the WSGI application, for a server other than dlpool-web.

    The server must use threads. Each of its worker processes must call this function
    itself (gunicorn: without ``--preload``). The environment variable ``DLPOOL_INI``
    names the INI file. Raises DlpoolError.
    """
    from dlpool.web.app import create_app

    settings = load_settings(os.environ.get("DLPOOL_INI"), program=PROGRAM).settings
    apply_umask(settings)
    _make_folders(settings)
    return create_app(settings)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the server and return the exit code. The user never sees a traceback."""

    def run() -> int:
        arguments = build_parser().parse_args(argv)
        settings = load_settings(arguments.config, program=PROGRAM).settings
        apply_umask(settings)
        if arguments.config is None:
            print_warnings(_unread_hint(), PROGRAM)
        return _serve(settings)

    return run_program(PROGRAM, run)


def _unread_hint() -> list[str]:
    """Return a hint if the working directory has a ``config.json`` that is not read."""
    try:
        is_there = is_json(text_of_file(GO_CONFIG))
    except ConfigurationError:
        return []
    return (
        [f"{GO_CONFIG} in this folder is not read: dlpool-web -c {GO_CONFIG} does"]
        if is_there
        else []
    )


def _leave_deleted_folder(settings: Settings) -> None:
    """Change to / if the working directory has been deleted.

    gunicorn needs an existing working directory. Raises LocalFault if a configured path
    is relative to the deleted directory.
    """
    try:
        Path.cwd()
    except FileNotFoundError:
        used = {
            "upload_dir": settings.upload.upload_dir,
            "merged_dir": settings.upload.merged_dir,
            "state_dir": settings.paths.state_dir,
            "log_dir": settings.paths.log_dir,
        }
        relative = [
            f"{name} = {path}"
            for name, path in used.items()
            if not Path(path).is_absolute()
        ]
        if relative:
            raise LocalFault(
                f"the working directory has been deleted, and {relative[0]} is "
                f"relative to it: change to another one"
            ) from None
        os.chdir("/")


def _serve(settings: Settings) -> int:
    _leave_deleted_folder(settings)
    try:
        from dlpool.web.app import make_app
        from dlpool.web.auth import Authenticator
        from dlpool.web.capacity import fit_to_limits
        from dlpool.web.gunicorn_adapter import GunicornServer
        from dlpool.web.wiring import WebServices, open_log
    except ImportError as error:
        raise ConfigurationError(_MISSING.format(error.name)) from error
    keys = Authenticator(settings.web)
    check_owned_paths(settings)
    raise_open_file_limit()
    settings, capacity = fit_to_limits(settings)
    _make_folders(settings)
    log = open_log(settings)
    for note in capacity.notes:
        log.logger("web").warning("web_limited", reason=note)
        print_warnings([note], PROGRAM)
    listener = _listener(settings)
    host, port = listener.getsockname()[:2]
    log.logger("web").info("web_started", listen=f"{_host_text(host)}:{port}")
    address = f"http://{_host_text(host)}:{port}{settings.web.prefix}"
    # Flushed, as otherwise each forked process would print the buffer again.
    print(f"{PROGRAM}: {address}; the log is {log.path}", file=sys.stderr, flush=True)

    def load() -> tuple[Any, Callable[[int, str, str, str], None]]:
        parts = WebServices(settings, _reload_keys(settings, keys, log))
        return make_app(parts), parts.count_rejected

    server = GunicornServer(
        listener.detach(), settings.web, log, capacity.processes, load
    )
    server.run()  # ends with sys.exit
    return 0


def _reload_keys(
    settings: Settings, previous: Authenticator, log: Log
) -> Authenticator:
    """Read the keys again for a new worker; return ``previous`` if they are invalid.

    Invalid keys raise no error: otherwise a typing error in a key file would stop the
    service when a worker is replaced.
    """
    try:
        return type(previous)(settings.web)
    except ConfigurationError as error:
        log.logger("web").warning("keys_refused", reason=str(error))
        return previous


def _listener(settings: Settings) -> socket.socket:
    """Return the socket on which all workers accept connections. Raises LocalFault."""
    host, port = settings.web.bind, settings.upload.port
    with translated(f"listen at {_host_text(host)}:{port}"):
        found = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        listener = socket.create_server(
            found[0][4][:2], family=found[0][0], backlog=2048
        )
    listener.set_inheritable(True)
    return listener


def _make_folders(settings: Settings) -> None:
    """Create the folders of uploads and of merged files. Raises LocalFault."""
    for name in (settings.upload.upload_dir, settings.upload.merged_dir):
        with translated(f"create the folder {name}"):
            make_folders(Path(name).absolute(), sync=False)


def _host_text(host: str) -> str:
    return f"[{host}]" if ":" in host else host


if __name__ == "__main__":
    sys.exit(main())
