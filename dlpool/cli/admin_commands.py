"""Declares the commands that set up and check a machine.

Imports no third-party library before one of them runs.
"""

from __future__ import annotations

import argparse
from typing import Any

from dlpool.cli.queue_commands import add_command
from dlpool.cli.queue_options import add_output_options

_CONFIG = """\
Check the settings that dlpool-supervisor would have with these options, here and now, and exit with 78 if it would
refuse them; or show them all, without secrets. A later place goes over an earlier one: defaults, the INI file, conf.d
beside it, systemd's credentials, the environment (DLPOOL_SECTION_KEY), options.
convert writes the config.json of the Go upload server as an INI file with the same settings.
"""
_SETUP = """\
Print the systemd unit of the service, or write it below DIR (/ for this machine), with the user and the folders that
it needs and an INI file. Files that are there and say something else are kept, each with a sentence (exit 13).
"""

_DOCTOR = """\
Try out what dlpool-supervisor would live on with these options, here and now: settings, Redis, folders, file system,
open files, clocks. Run it as the user of the service. With a URL also its server: ranges, validators, connections,
speed, and what dlpool would do with it. With --folder only what a download to that folder depends on. A line for each
check: ok, warning, failed, and what to do about it. Exits with 1 if one failed, with 78 if it was the settings. A
temporary folder is made where files would go, and removed; nothing else is changed.
"""
_QUARANTINE = """\
Show the files that a scanner found infected, and decide what becomes of them. list shows all, show what is known of
one; release gives files the names that they were to get, or one of them PATH (--to), never in place of another file;
delete removes them. Run it on the machine of the service, as a user who may read quarantine_dir of its [scan]. What
is released or deleted is written to the log, with the name of the user.
"""


def add_admin_commands(commands: Any, exit_codes: str) -> None:
    """Declare ``dlpool config``, ``doctor``, ``setup`` and ``quarantine``."""
    from dlpool.cli.supervisor import add_service_options

    add_quarantine(commands, exit_codes)
    parser = add_command(
        commands, "config", "check or show the settings", _CONFIG, exit_codes, _config
    )
    parser.add_argument(
        "action", metavar="check|show|convert", choices=("check", "show", "convert")
    )
    parser.add_argument(
        "file",
        metavar="FILE",
        nargs="?",
        help="with convert: the config.json of the Go upload server",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="with convert: write the INI file there (default: standard output)",
    )
    parser.add_argument(
        "--origin", action="store_true", help="with show: also say where each was said"
    )
    add_service_options(parser)
    add_output_options(parser, "print one JSON object, of show a line for each setting")
    parser = add_command(
        commands,
        "doctor",
        "try out what the service lives on",
        _DOCTOR,
        exit_codes,
        _doctor,
    )
    parser.add_argument(
        "url", metavar="URL", nargs="?", help="http or https: also try out its server"
    )
    parser.add_argument(
        "--folder",
        metavar="DIR",
        help="check the file system of DIR, not Redis or the configured folders",
    )
    add_service_options(parser)
    add_output_options(parser, "print one JSON object")
    parser = add_command(
        commands, "setup", "install the service for systemd", _SETUP, exit_codes, _setup
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--print-unit", action="store_true", help="print the unit, and change nothing"
    )
    what.add_argument("--install", metavar="DIR", help="write the files below DIR")
    parser.add_argument(
        "--instance",
        metavar="NAME",
        type=_instance,
        help="with --install: an instance of its own, "
        "dlpool-supervisor@NAME, with /etc/dlpool/NAME.ini; with --print-unit: its "
        "unit",
    )
    parser.add_argument(
        "--network-allow",
        metavar="NETWORK,...",
        type=_networks,
        help="with --install: private networks that jobs may connect to, as 10.0.0.0/8 "
        "(default: asked on a terminal)",
    )


def add_quarantine(commands: Any, exit_codes: str) -> None:
    """Declare ``dlpool quarantine``."""
    summary = "list, release or delete infected files"
    parser = add_command(
        commands, "quarantine", summary, _QUARANTINE, exit_codes, _quarantine
    )
    verbs = ("list", "show", "release", "delete")
    parser.add_argument(
        "action", metavar="|".join(verbs), nargs="?", default="list", choices=verbs
    )
    parser.add_argument("ids", metavar="ID", nargs="*", help="as the list shows them")
    parser.add_argument("--all", action="store_true", help="with delete: all files")
    parser.add_argument(
        "--to", metavar="PATH", help="with release of one file: the name that it gets"
    )
    parser.add_argument(
        "-c", "--config", metavar="FILE", help="the INI file of the service"
    )
    add_output_options(parser, "print one JSON object a line")


def _instance(text: str) -> str:
    from dlpool.kinds import parse_name

    try:
        return parse_name(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is {error}") from error


def _networks(text: str) -> str:
    from dlpool.config.web import NETWORKS

    try:
        return str(NETWORKS.parse(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is {error}") from error


def _config(arguments: argparse.Namespace) -> int:
    from dlpool.cli.configuration import run

    return run(arguments)


def _doctor(arguments: argparse.Namespace) -> int:
    from dlpool.cli.doctor import run

    return run(arguments)


def _quarantine(arguments: argparse.Namespace) -> int:
    from dlpool.cli.quarantine import run

    return run(arguments)


def _setup(arguments: argparse.Namespace) -> int:
    from dlpool.cli.setup import run

    return run(arguments)
