"""The command line: ``dlpool COMMAND``. Imports no library before it knows what to
do."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from dlpool import __version__
from dlpool.cli.admin_commands import add_admin_commands
from dlpool.cli.console import run_program
from dlpool.cli.control_commands import add_control_commands
from dlpool.cli.options import add_fetch, join_negative_values
from dlpool.cli.queue_commands import add_queue_commands
from dlpool.cli.upload_options import add_upload

EXIT_CODES = """\
exit codes:
  0 done                      8 server failed or refused  15 remote keeps changing
  1 unclassified              9 no space                  20 Redis unreachable
  2 usage                    10 not found (404, 410)      21 no such job
  3 local file I/O, port     11 checksum mismatch         75 try again later
  4 network, DNS, timeout    12 refused by policy         78 configuration
  5 TLS                      13 target exists, or locked 130 interrupted: run it again to go on
  6 401, 403, 407            14 some of many failed      143 terminated: run it again to go on
  7 server broke HTTP        16 infected (quarantine)
"""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one sentence, not a page of usage, and whose options
    may stand between arguments."""

    _is_mixing = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's, which cannot tell ``URL --option 1 PATH``: it takes PATH for
        one too many.

        It has another method that can, which calls this one. That is not for parsers
        that have commands below them, and forgets what ``--`` means.
        """
        if self._is_mixing or self._subparsers is not None or "--" in (args or ()):
            return super().parse_known_args(args, namespace)
        self._is_mixing = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._is_mixing = False

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"dlpool: {message} (see {self.prog} --help)\n")


class _CommandsFormatter(argparse.RawDescriptionHelpFormatter):
    """Leaves room for the names of commands: argparse does not count that they are
    indented once more."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._action_max_length = 14


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; each sets ``run``, which takes the arguments and
    returns the exit code."""
    parser = Parser(
        prog="dlpool",
        description="Turns URLs into files: over several connections, resumable, "
        "exact.",
        epilog=EXIT_CODES,
        formatter_class=_CommandsFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"dlpool {__version__}")
    commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", required=True, parser_class=Parser
    )
    add_fetch(commands, _fetch, EXIT_CODES)
    add_upload(commands, _upload, EXIT_CODES)
    add_queue_commands(commands, EXIT_CODES)
    add_control_commands(commands, EXIT_CODES)
    add_admin_commands(commands, EXIT_CODES)
    return parser


def _fetch(arguments: argparse.Namespace) -> int:
    from dlpool.cli.fetch import run

    return run(arguments)


def _upload(arguments: argparse.Namespace) -> int:
    from dlpool.cli.upload import run

    return run(arguments)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code. No traceback reaches the user."""

    def run() -> int:
        arguments = build_parser().parse_args(
            join_negative_values(sys.argv[1:] if argv is None else argv)
        )
        code: int = arguments.run(arguments)
        return code

    return run_program("dlpool", run)
