"""The command line ``dlpool COMMAND``.

Commands import third-party libraries only when they run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dlpool import __version__
from dlpool.cli.admin_commands import add_admin_commands
from dlpool.cli.console import run_program
from dlpool.cli.control_commands import add_control_commands
from dlpool.cli.options import add_fetch, join_negative_values
from dlpool.cli.parser import EXIT_CODES, Parser
from dlpool.cli.queue_commands import add_queue_commands
from dlpool.cli.upload_options import add_upload


class _CommandsFormatter(argparse.RawDescriptionHelpFormatter):
    """A help formatter with a wide column for the names of commands.

    argparse ignores the indentation of these names when it computes the width.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._action_max_length = 14


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands.

    The parsed arguments have an attribute ``run``: the function that executes the
    command. This function takes the arguments and returns the exit code.
    """
    parser = Parser(
        prog="dlpool",
        description="Downloads URLs to files: over several connections, resumable, "
        "verified.",
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
    """Run a command and return its exit code. The user never sees a traceback."""

    def run() -> int:
        arguments = build_parser().parse_args(
            join_negative_values(sys.argv[1:] if argv is None else argv)
        )
        code: int = arguments.run(arguments)
        return code

    return run_program("dlpool", run)


def single_file_main() -> int:
    """Run ``dlpool``, or ``dlpool-supervisor`` if the executable has that name.

    This is the entry point of the single-file executable. Returns the exit code.
    """
    if not Path(sys.argv[0]).name.startswith("dlpool-supervisor"):
        return main()
    from dlpool.cli.supervisor import main as supervisor

    return supervisor()
