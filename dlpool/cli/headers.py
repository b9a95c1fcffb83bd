"""Reads the headers of ``-H`` and ``--header-file``."""

from __future__ import annotations

import argparse
import io
import os
from collections.abc import Iterator

from dlpool.cli.items import parse_header
from dlpool.errors import LocalFault, UsageError
from dlpool.usertext import NotText, read_lines

MAX_FILE = 64 * 1024  # bytes; no server accepts that many


def read_headers(arguments: argparse.Namespace) -> dict[str, str]:
    """Return the headers of ``-H`` and ``--header-file``, in their order.

    If a name is given twice, the last value is used. Replaces the name of each file in
    ``arguments.header`` by the lines of the file; a second call does not read the file
    again. Error messages about a file contain line numbers, but no text of the file.
    Raises UsageError, LocalFault.
    """
    lists = getattr(arguments, "input_file", None)
    if lists == "-" and "@-" in arguments.header:
        raise UsageError("standard input cannot be both the list and the headers")
    found = []
    for text in arguments.header:
        found += (
            list(_of_file(text[1:])) if text.startswith("@") else [parse_header(text)]
        )
    # Replaces files by their lines, as standard input can be read only once.
    arguments.header = [f"{name}: {value}" for name, value in found]
    return dict(found)


def _of_file(name: str) -> Iterator[tuple[str, str]]:
    shown = "standard input" if name == "-" else name
    read = io.BytesIO(_content(name, shown)).read
    try:
        for number, line in enumerate(read_lines(read), 1):
            if line.strip():
                yield _field(line, f"{shown}, line {number}")
    except NotText as error:
        raise UsageError(f"cannot read the headers in {shown}: {error}") from error


def _field(line: str, where: str) -> tuple[str, str]:
    try:
        return parse_header(line)
    except UsageError as error:
        raise UsageError(
            f"{where}: not a header of the form 'Name: value' that may be given"
        ) from error


def _content(name: str, shown: str) -> bytes:
    """Return the content of a file; the name ``-`` means standard input.

    ``shown`` is the name in messages. Raises LocalFault for a file that cannot be read,
    UsageError for a file of more than 64 KiB.
    """
    parts, size = [], 0
    try:
        descriptor = 0 if name == "-" else os.open(name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            while size <= MAX_FILE and (data := os.read(descriptor, MAX_FILE)):
                parts.append(data)
                size += len(data)
        finally:
            if descriptor != 0:
                os.close(descriptor)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise LocalFault(
            f"cannot read the headers in {shown}: {getattr(error, 'strerror', error)}"
        ) from error
    if size > MAX_FILE:
        raise UsageError(
            f"{shown} is longer than {MAX_FILE} bytes: it should contain headers, one "
            f"per line"
        )
    return b"".join(parts)
