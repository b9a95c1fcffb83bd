"""The options ``-H`` and ``--header-file`` of all commands; ``headers`` reads what they
name."""

from __future__ import annotations

from typing import Any


def add_header_options(group: Any, where: str = "") -> None:
    """Declare the options; ``where``: to whom the fields are sent."""
    group.add_argument(
        "-H",
        "--header",
        metavar="'NAME: VALUE'",
        action="append",
        default=[],
        help=f"add a header{where}; @FILE: those of a file; may be repeated",
    )
    group.add_argument(
        "--header-file",
        metavar="FILE",
        dest="header",
        action="append",
        type="@{}".format,
        help="add the headers of a file, - for standard input: on each line NAME: "
        "VALUE; other users "
        "of the machine can read what stands on a command line, not in a file",
    )
