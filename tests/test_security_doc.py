"""Each row of docs/security.md names the tests that hold it, and they are there."""

from __future__ import annotations

import ast
import re

import pytest

from tests.processes import ROOT

DOCUMENT = ROOT / "docs" / "security.md"
UNTESTED = {"root and the service's user on the host"}  # the limit of what a program can promise
REFERENCE = re.compile(r"`([a-z_0-9]+): ([a-z_0-9]+|\*)`")


def rows() -> list[tuple[str, str]]:
    """What each row says, and its last column."""
    found = []
    for line in DOCUMENT.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if cells and cells[-1] != "checked by" and not set(line) <= set("|-"):
            found.append((cells[0], cells[-1]))
    return found


@pytest.mark.parametrize(("claim", "references"), [pytest.param(*row, id=row[0][:60]) for row in rows()])
def test_each_row_names_tests_that_exist(claim: str, references: str) -> None:
    named = REFERENCE.findall(references)
    assert bool(named) != (claim in UNTESTED), references
    assert references.count("`") == 2 * len(named), "another form of reference"
    for module, name in named:
        path = ROOT / "tests" / f"test_{module}.py"
        assert path.exists(), module
        tests = {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}
        assert name == "*" or f"test_{name}" in tests, f"{module}: {name}"


def test_there_are_rows() -> None:
    assert len(rows()) > 30
