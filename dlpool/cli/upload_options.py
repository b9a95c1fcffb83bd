"""Declares ``dlpool upload`` and its options."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from dlpool.cli.options import (
    add_header_options,
    add_output_options,
    add_setting,
    load_settings,
    sourced_options,
)
from dlpool.config import SECTIONS
from dlpool.config.layers import EffectiveSettings
from dlpool.kinds import AUTO, parse_count, parse_size

# The settings that uploads share with downloads.
SETTINGS = {
    "transfer": (
        "retries",
        "retry_delay",
        "retry_max_delay",
        "max_retry_after",
        "network_wait",
        "limit_rate",
    ),
    "network": (
        "connect_timeout",
        "read_timeout",
        "proxy",
        "cacert",
        "cert",
        "key",
        "insecure",
        "user_agent",
        "netrc",
        "network",
    ),
}
LEAST_CHUNK = 64 * 1024  # bytes
_EXAMPLES = """\
examples:
  dlpool upload model.bin http://host:18101/go-uploader
  dlpool upload model.bin https://host/go-uploader --path models --token-file token

"""


def declare_upload(parser: argparse.ArgumentParser) -> None:
    """Declare ``dlpool upload``."""
    parser.description = (
        "Upload each FILE to the dlpool-web whose upload API is at URL. Resumes "
        "earlier uploads."
    )
    parser.epilog = f"{_EXAMPLES}{parser.epilog}"
    parser.add_argument("files", metavar="FILE", nargs="+", help="the files to upload")
    parser.add_argument(
        "url",
        metavar="URL",
        help="http or https, such as http://host:18101/go-uploader",
    )
    _add_own_options(parser.add_argument_group("the upload"))
    for section, names in SETTINGS.items():
        group = parser.add_argument_group(section)
        for declared in fields(SECTIONS[section]):
            if declared.name in names:
                add_setting(group, declared)
    add_output_options(parser.add_argument_group("output"))


def load_upload_settings(arguments: argparse.Namespace) -> EffectiveSettings:
    """Return the effective settings and their sources. Raises ConfigurationError."""
    options = [
        one
        for section, names in SETTINGS.items()
        for one in sourced_options(arguments, section, names)
    ]
    return load_settings(arguments.config, options, is_quiet=arguments.quiet)


def _add_own_options(group: Any) -> None:
    group.add_argument(
        "-c",
        "--connections",
        metavar="N",
        type=_connections,
        default=None,
        help="number of chunks sent at once (default: as the server advises, else 4)",
    )
    group.add_argument(
        "--chunk-size",
        metavar="auto|SIZE",
        type=_chunk_size,
        default=None,
        help="bytes of a chunk (default: auto, which is 8M or the limit of the "
        "server; small and very large files differ)",
    )
    group.add_argument(
        "--name",
        metavar="NAME",
        help="name of the file at the server (default: that of FILE)",
    )
    group.add_argument(
        "--path",
        metavar="FOLDER",
        help="folder of the file, below the folder of the server (default: none)",
    )
    group.add_argument(
        "--token-file",
        metavar="FILE",
        help="a file with a bearer token",
    )
    group.add_argument(
        "--secret-key-file",
        metavar="FILE",
        help="a file with the secret key of the server, instead of a token",
    )
    add_header_options(group)
    group.add_argument(
        "--config",
        metavar="FILE",
        help="an INI file whose [transfer] and [network] are the defaults",
    )


def _connections(text: str) -> int:
    return _checked(text, parse_count, 1, 64, "64")


def _chunk_size(text: str) -> int | None:
    return (
        None if text == AUTO else _checked(text, parse_size, LEAST_CHUNK, 1 << 30, "1G")
    )


def _checked(
    text: str, parse: Callable[[str], int], low: int, high: int, shown: str
) -> int:
    try:
        value = parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is {error}") from error
    if value < low:
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is below {low}")
    if value > high:
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is above {shown}")
    return value
