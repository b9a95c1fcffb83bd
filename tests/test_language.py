"""The language of the project: words that a reader of the field would have to learn are in none of its texts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes import ROOT

TEXTS = {".py", ".lua", ".md", ".ini", ".html", ".js", ".css", ".service", ".yml", ".yaml", ".json", ".1"}
FOLDERS = ("dlpool", "docs", "etc", "share")
PHRASES = (
    r"so many",
    r"so long as",
    r"so much",
    r"whoever",
    r"anew",
    r"nobody",
    r"somebody",
    r"who asks",
    r"what has come",
    r"there is no\b[^.]*\bany more",
    r"(?<!there.)is no file",
    r"goes on by itself",
)


def texts() -> Iterator[Path]:
    yield ROOT / "README.md"
    yield ROOT / "CONTRIBUTING.md"
    for folder in FOLDERS:
        yield from (path for path in sorted((ROOT / folder).rglob("*")) if path.suffix in TEXTS)


@pytest.mark.parametrize("phrase", PHRASES)
def test_texts_use_plain_technical_english(phrase: str) -> None:
    pattern = re.compile(rf"\b{phrase}\b".replace(" ", r"\s+"), re.IGNORECASE)
    found = []
    for path in texts():
        text = re.sub(r"\n\s*(?:#|--|//|\*)? *", "\n", path.read_text(encoding="utf-8"))
        found += [f"{path.relative_to(ROOT)}: {match[0]!r}" for match in pattern.finditer(text)]
    assert found == []
