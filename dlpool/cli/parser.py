"""The argument parser and the exit codes that the three programs share.

Each class in ``dlpool.errors`` has its exit code. Imports no third-party library.
"""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import suppress
from typing import Any, NoReturn

EXIT_CODES = """\
exit codes:
  0 success                   8 server failed or refused  15 remote keeps changing
  1 unclassified              9 no space                  20 Redis unreachable
  2 usage                    10 not found (404, 410)      21 no such job
  3 local file I/O, port     11 checksum mismatch         75 try again later
  4 network, DNS, timeout    12 refused by policy         78 configuration
  5 TLS                      13 target exists, or locked 130 interrupted: run again
  6 401, 403, 407            14 some of many failed      143 terminated: run again
  7 HTTP violated            16 infected (quarantine)
"""


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """A formatter of help texts, as wide as the terminal.

    argparse itself would import the large module ``shutil`` to get this width.
    """

    def __init__(
        self,
        prog: str,
        indent_increment: int = 2,
        max_help_position: int = 24,
        width: int | None = None,
    ) -> None:
        width = width or _terminal_width() - 2
        super().__init__(prog, indent_increment, max_help_position, width)


def _terminal_width() -> int:
    """Return the width of the terminal, as ``shutil.get_terminal_size`` does."""
    with suppress(KeyError, ValueError):
        if (columns := int(os.environ["COLUMNS"])) > 0:
            return columns
    if sys.__stdout__ is not None:
        with suppress(ValueError, OSError):  # it is closed, or no terminal
            return os.get_terminal_size(sys.__stdout__.fileno()).columns or 80
    return 80


class Parser(argparse.ArgumentParser):
    """A parser that reports errors in one sentence.

    Accepts options between positional arguments.
    """

    _is_intermixing = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse options between positional arguments, as in ``URL --option 1 PATH``.

        Calls ``parse_known_intermixed_args``, which calls ``parse_known_args`` again.
        ``parse_known_intermixed_args`` supports neither subcommands nor ``--``: in
        these cases the base class parses the arguments.
        """
        if self._is_intermixing or self._subparsers is not None or "--" in (args or ()):
            return super().parse_known_args(args, namespace)
        self._is_intermixing = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._is_intermixing = False

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"dlpool: {message} (see {self.prog} --help)\n")
