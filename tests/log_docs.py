"""The tables of ``docs/logging.md`` as values."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tests.processes import ROOT

TEXT = (ROOT / "docs" / "logging.md").read_text()
JOB = {"dlpool.job.id", "trace.id", "dlpool.attempt", "url.full", "url.domain", "file.path", "user.id"}
ERROR = {"error.type", "error.code", "error.message", "error.stack_trace"}


@dataclass(frozen=True)
class Event:
    """A row of the table of events."""

    levels: set[str]
    fields: set[str]


def _rows(title: str) -> list[list[str]]:
    section = TEXT.partition(f"## {title}\n")[2].partition("\n## ")[0]
    table = [line for line in section.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table]


def _names(cell: str) -> set[str]:
    return set(re.findall(r"`([^`]+)`", cell))


BASE = {row[0].strip("`"): row[1] for row in _rows("Fields of each line")}
FIELDS = BASE | {row[0].strip("`"): row[1] for row in _rows("Further fields")}
EVENTS = {
    row[0].strip("`"): Event(
        set(row[1].split(", ")),
        _names(row[3]) | (JOB if "*job*" in row[3] else set()) | (ERROR if "*error*" in row[3] else set()),
    )
    for row in _rows("Events")
}
