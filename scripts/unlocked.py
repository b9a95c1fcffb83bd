"""Print the names of the installed distributions that the lock files do not have: an earlier lock file had them."""

from __future__ import annotations

import re
from importlib.metadata import distributions
from pathlib import Path

KEPT = {"dlpool", "pip"}


def unlocked(lock: str, installed: set[str]) -> list[str]:
    """Return those of the ``installed`` names that ``lock``, the text of lock files, has no version of."""
    locked = {_normal(line.split("==")[0]) for line in lock.splitlines() if "==" in line}
    return sorted(name for name in installed if _normal(name) not in locked | KEPT)


def _normal(name: str) -> str:
    return re.sub("[-_.]+", "-", name).lower()


if __name__ == "__main__":
    files = ("requirements.txt", "requirements-build.txt")
    text = "".join(Path(__file__).with_name(name).read_text(encoding="utf-8") for name in files)
    print("\n".join(unlocked(text, {distribution.metadata["Name"] for distribution in distributions()})))
