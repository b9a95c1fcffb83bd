"""What is wrong with the settings, where that was said, and in which order people want
to hear of it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ConfigProblem:
    """A sentence for people. ``origin``: where the cause was said, as far as it is
    known (``FILE:LINE`` of a file); ``settings``: which ones are concerned, by
    (section, name).
    """

    text: str
    origin: str = ""
    settings: tuple[tuple[str, str], ...] = ()

    def concerns(self, settings: Iterable[tuple[str, str]]) -> bool:
        """Whether it is about one of them."""
        return not set(self.settings).isdisjoint(settings)


def concerned(problems: Iterable[ConfigProblem]) -> set[tuple[str, str]]:
    """All settings that something is wrong with."""
    return {one for problem in problems for one in problem.settings}


def sort_problems(
    problems: Iterable[ConfigProblem], files: Sequence[str]
) -> list[ConfigProblem]:
    """Those of the files as they are read, by their lines; then those of other places,
    then those of none."""

    def place(problem: ConfigProblem) -> tuple[int, int]:
        file, _, line = problem.origin.rpartition(":")
        if file in files and line.isdigit():
            return files.index(file), int(line)
        if problem.origin in files:
            return files.index(problem.origin), 0
        return len(files) + (not problem.origin), 0

    return sorted(problems, key=place)
