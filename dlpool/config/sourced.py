"""Values of settings with their sources, and problems of settings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from dlpool.dataclass import dataclass

HOST = "host:"  # prefix of sections with [limits] of one host
GROUP = "group:"  # prefix of sections with [transfer] of one group


@dataclass(frozen=True)
class SourcedValue:
    """The value that one source gives to a setting.

    ``section`` may be ``host:NAME`` or ``group:NAME``. ``text`` is the value as
    written, ``value`` the parsed one. ``origin`` names the source in messages
    (``FILE:LINE`` of a file).
    """

    section: str
    name: str
    text: str
    origin: str
    value: Any = None


@dataclass(frozen=True)
class ConfigProblem:
    """A sentence about a problem in the settings.

    ``origin`` is the source of the wrong value (``FILE:LINE`` of a file); "" if it is
    unknown. ``settings`` are the settings that the problem concerns, by (section,
    name).
    """

    text: str
    origin: str = ""
    settings: tuple[tuple[str, str], ...] = ()

    def concerns(self, settings: Iterable[tuple[str, str]]) -> bool:
        """Return whether the problem concerns one of ``settings``."""
        return not set(self.settings).isdisjoint(settings)


def concerned(problems: Iterable[ConfigProblem]) -> set[tuple[str, str]]:
    """Return all settings that the problems concern."""
    return {one for problem in problems for one in problem.settings}


def sort_problems(
    problems: Iterable[ConfigProblem], files: Sequence[str]
) -> list[ConfigProblem]:
    """Return the problems sorted by their sources.

    First come the problems of ``files``, in the order of files and lines; then the
    problems of other sources; last the problems without a source.
    """

    def position(problem: ConfigProblem) -> tuple[int, int]:
        file, _, line = problem.origin.rpartition(":")
        if file in files and line.isdigit():
            return files.index(file), int(line)
        if problem.origin in files:
            return files.index(problem.origin), 0
        return len(files) + (not problem.origin), 0

    return sorted(problems, key=position)
