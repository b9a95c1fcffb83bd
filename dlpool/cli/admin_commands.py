"""Declares the commands that set up and check a machine.

Imports no third-party library until a command runs.
"""

from __future__ import annotations

import argparse

from dlpool.cli.queue_options import add_output_options

_CONFIG = """\
check: check the settings that dlpool-supervisor would use with these options on this
machine (exit 78 if they are invalid). show: print all settings, without secrets. Later
sources override earlier ones: defaults, the INI file, conf.d beside it, systemd
credentials, the environment (DLPOOL_SECTION_KEY), options.
convert: write the config.json of the Go upload server as an INI file with the same
settings.
"""
_SETUP = """\
Print the systemd unit of the service, or install it below DIR (/ for this machine),
with its user, its folders and an INI file. Existing files with other contents are kept
and reported (exit 13).
"""

_DOCTOR = """\
Test what dlpool-supervisor would use with these options on this machine: settings,
Redis, folders, file system, open files, clocks. Run it as the user of the service. With
a URL it also tests the server: ranges, validators, connections, speed, and how dlpool
would download the URL. With --folder it tests only what a download to that folder
needs. Prints a line for each check (ok, warning or failed) with advice. Exits with 1 if
a check failed, with 78 if the settings did. It creates and removes a temporary folder
in the target folder, and changes nothing else.
"""
_QUARANTINE = """\
List, show, release or delete the files that a scanner found infected. release moves
files to their targets, or one file to PATH (--to), and never replaces another file. Run
it on the machine of the service, as a user who may read its quarantine_dir. Releases
and deletions are logged with the name of the user.
"""


def declare_config(parser: argparse.ArgumentParser) -> None:
    """Declare ``dlpool config``."""
    from dlpool.cli.supervisor import add_service_options

    parser.description = _CONFIG
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
        "--origin",
        action="store_true",
        help="with show: also print the source of each setting",
    )
    add_service_options(parser)
    add_output_options(
        parser, "print one JSON object; with show, one per setting and line"
    )


def declare_doctor(parser: argparse.ArgumentParser) -> None:
    """Declare ``dlpool doctor``."""
    from dlpool.cli.supervisor import add_service_options

    parser.description = _DOCTOR
    parser.add_argument(
        "url", metavar="URL", nargs="?", help="http or https: also test its server"
    )
    parser.add_argument(
        "--folder",
        metavar="DIR",
        help="check the file system of DIR, not Redis or the configured folders",
    )
    add_service_options(parser)
    add_output_options(parser, "print one JSON object")


def declare_setup(parser: argparse.ArgumentParser) -> None:
    """Declare ``dlpool setup``."""
    parser.description = _SETUP
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--print-unit", action="store_true", help="print the unit and change nothing"
    )
    what.add_argument("--install", metavar="DIR", help="write the files below DIR")
    parser.add_argument(
        "--instance",
        metavar="NAME",
        type=_instance,
        help="with --install: a separate instance, dlpool-supervisor@NAME, with "
        "/etc/dlpool/NAME.ini; with --print-unit: its unit",
    )
    parser.add_argument(
        "--network-allow",
        metavar="NETWORK,...",
        type=_networks,
        help="with --install: private networks that jobs may connect to, such as "
        "10.0.0.0/8 (default: asked on a terminal)",
    )


def declare_quarantine(parser: argparse.ArgumentParser) -> None:
    """Declare ``dlpool quarantine``."""
    parser.description = _QUARANTINE
    verbs = ("list", "show", "release", "delete")
    parser.add_argument(
        "action", metavar="|".join(verbs), nargs="?", default="list", choices=verbs
    )
    parser.add_argument("ids", metavar="ID", nargs="*", help="the id that list prints")
    parser.add_argument("--all", action="store_true", help="with delete: all files")
    parser.add_argument(
        "--to", metavar="PATH", help="with release of one file: its new path"
    )
    parser.add_argument(
        "-c", "--config", metavar="FILE", help="the INI file of the service"
    )
    add_output_options(parser, "print one JSON object per line")


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
