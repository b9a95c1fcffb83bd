"""What ``dlpool upload`` says on a standard error that may be anything."""

from __future__ import annotations

from dlpool.cli.progress import Display
from dlpool.cli.tables import clean
from dlpool.engine.batch import View


class Tolerant:
    """A Display that is no reason for an upload to end: where nobody hears it any more, it is silent.

    What is said has no control characters: names and servers' sentences must not write on the terminal what they like.
    """

    def __init__(self, shown: Display) -> None:
        self._shown: Display | None = shown

    def update(self, view: View) -> None:
        try:
            if self._shown is not None:
                self._shown.update(view)
        except OSError:
            self._shown = None

    def say(self, text: str) -> None:
        try:
            if self._shown is not None:
                self._shown.say(clean(text))
        except OSError:
            self._shown = None

    def close(self) -> None:
        try:
            if self._shown is not None:
                self._shown.close()
        except OSError:
            self._shown = None
