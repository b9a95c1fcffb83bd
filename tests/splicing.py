"""Bodies that are spliced although they are small or slow, and what of them was."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from dlpool.transfer import body_copy, pipe, worker
from dlpool.transfer.body_copy import BodyCopy
from dlpool.transfer.http.source import Reply
from dlpool.transfer.target.protocol import RangeWriter


@dataclass
class Copying:
    """How bodies are copied, and how many bytes were written from a pipe."""

    is_spliced: bool
    spliced: int = 0


def splice_all(monkeypatch: pytest.MonkeyPatch) -> Copying:
    """Splice what may be spliced from the second block of each body on, of whatever size it is."""
    copying = Copying(is_spliced=True)

    class Eager(BodyCopy):
        def receive(self, reply: Reply, most: int) -> int:
            self._is_fast = True
            return super().receive(reply, most)

        def write(self, writer: RangeWriter, position: int, size: int) -> None:
            super().write(writer, position, size)
            copying.spliced += size * (self._is_in_pipe and self._may_splice)

    monkeypatch.setattr(body_copy, "LEAST_SPLICE", 1)
    monkeypatch.setattr(worker, "BodyCopy", Eager)
    return copying


def copy_all(monkeypatch: pytest.MonkeyPatch) -> Copying:
    """Splice nothing."""
    monkeypatch.setattr(body_copy, "LEAST_SPLICE", pipe.CAPACITY + 1)
    return Copying(is_spliced=False)
