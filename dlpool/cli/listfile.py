"""Reads a list from a file, a pipe or standard input."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dlpool.errors import LocalFault

Read = Callable[[int], bytes]


def shown_list(name: str) -> str:
    """Return the name that messages use for the list ``name``."""
    return "standard input" if name == "-" else name


@contextmanager
def open_list(name: str) -> Iterator[Read]:
    """Open a list and yield a function that reads at most ``size`` bytes of the list.

    The name ``-`` means standard input. Opening and reading raise LocalFault.
    """
    shown = shown_list(name)

    def read(size: int) -> bytes:
        try:
            return os.read(descriptor, size)
        except OSError as error:
            raise LocalFault(
                f"cannot read the list {shown}: {error.strerror}"
            ) from error

    try:
        descriptor = 0 if name == "-" else os.open(name, os.O_RDONLY | os.O_CLOEXEC)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise LocalFault(
            f"cannot read the list {shown}: {getattr(error, 'strerror', error)}"
        ) from error
    try:
        yield read
    finally:
        if descriptor != 0:
            os.close(descriptor)
