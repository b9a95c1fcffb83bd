"""The command line ``dlpool COMMAND``.

Imports only the modules of the command that runs.
"""

from __future__ import annotations

import argparse
import gc
import re
import sys
from collections.abc import Container, Sequence
from typing import Any

from dlpool.cli.commands import COMMANDS, add_command
from dlpool.cli.console import run_program
from dlpool.cli.parser import EXIT_CODES, HelpFormatter, Parser
from dlpool.version import __version__


class _CommandsFormatter(HelpFormatter):
    """A help formatter with a wide column for the names of commands.

    argparse ignores the indentation of these names when it computes the width.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._action_max_length = 14


def build_parser(named: Container[str] = COMMANDS) -> argparse.ArgumentParser:
    """Return the parser of all commands.

    Only the commands in ``named`` have their options; the parser can parse no other
    command. The parsed arguments have an attribute ``run``: the function that executes
    the command. This function takes the arguments and returns the exit code.
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
    for name in COMMANDS:
        add_command(commands, name, with_options=name in named)
    return parser


def join_negative_values(argv: Sequence[str]) -> list[str]:
    """Replace each ``--option -5K`` by ``--option=-5K``, as argparse requires."""
    joined: list[str] = []
    for word in argv:
        if (
            re.match(r"-[0-9.]", word)
            and joined
            and joined[-1].startswith("--")
            and "=" not in joined[-1]
        ):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code. The user never sees a traceback.

    Without ``argv`` runs the command line of the process, and exits with the code.
    """
    words = sys.argv[1:] if argv is None else argv
    if argv is None:
        gc.disable()  # until the modules are imported: they leave no garbage

    def run() -> int:
        arguments = build_parser(words).parse_args(join_negative_values(words))
        code: int = arguments.run(arguments)
        return code

    return run_program("dlpool", run, ends_process=argv is None)


def single_file_main() -> int:
    """Run ``dlpool``, or ``dlpool-supervisor`` if the executable has that name.

    This is the entry point of the single-file executable.
    """
    if not sys.argv[0].rpartition("/")[2].startswith("dlpool-supervisor"):
        return main()
    from dlpool.cli.supervisor import main as supervisor

    return supervisor()
