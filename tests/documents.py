"""README and the other documents, and the shell commands in them."""

from __future__ import annotations

import re
from pathlib import Path

from tests.processes import ROOT

DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
ELSEWHERE = {"operations.md", "containers.md"}  # for machines that a test cannot be; test_operations, test_containers
TEXT = "\n".join(path.read_text() for path in DOCUMENTS)


def blocks(path: Path) -> list[str]:
    """The shell blocks of a document."""
    return re.findall(r"```sh\n(.*?)```", path.read_text(), re.DOTALL)


def commands(prefix: str) -> list[str]:
    """The commands of all documents that a test runs and that begin with ``prefix``, less their comments."""
    found = [block for path in DOCUMENTS if path.name not in ELSEWHERE for block in blocks(path)]
    lines = [line.split(" #")[0].strip() for block in found for line in block.splitlines()]
    return list(dict.fromkeys(line for line in lines if line.startswith(prefix)))
