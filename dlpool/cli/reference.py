"""The contents of the files that are generated from the declared settings."""

from __future__ import annotations

from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from dlpool.cli.setup import PROGRAM, files
from dlpool.config import SECTIONS, option_names
from dlpool.config.sample import bounds, default_ini

MARK = "<!-- What follows is written by scripts/generate. -->\n"
_FETCHED = ("transfer", "network")  # all of their settings are options of dlpool fetch
_HEAD = "| key | value | default | reload | what it is |\n|---|---|---|---|---|\n"


def generated(root: Path) -> dict[Path, str]:
    """Return the texts of the generated files below ``root``, by path.

    In ``docs/configuration.md`` only the part after ``MARK`` is generated.
    """
    document = root / "docs" / "configuration.md"
    found = {
        document: document.read_text(encoding="utf-8").partition(MARK)[0]
        + MARK
        + tables()
    }
    found[root / "etc" / "dlpool.ini"] = default_ini()
    for name, text in files(PROGRAM, None).items():
        if not name.endswith(".ini"):
            found[root / name.replace("etc/systemd/system", "etc/systemd")] = text
    return found


def tables() -> str:
    """Return a table of the settings of each section, in Markdown."""
    return "".join(_table(section, kind) for section, kind in SECTIONS.items())


def _table(section: str, kind: type) -> str:
    summary = " ".join((kind.__doc__ or "").partition(": ")[2].split())
    rows = "".join(_row(section, declared) for declared in fields(kind))
    return f"\n## [{section}]\n\n{summary[:1].upper()}{summary[1:]}\n\n{_HEAD}{rows}"


def _row(section: str, declared: Field[Any]) -> str:
    meta = declared.metadata
    option = f"; `{'`, `'.join(option_names(declared))}`" if section in _FETCHED else ""
    default = f"`{meta['text']}`" if meta["text"] is not None else ""
    default += (
        f"; of the service `{meta['service']}`" if meta["service"] is not None else ""
    )
    cells = (
        f"`{declared.name}`",
        meta["kind"].metavar + bounds(declared, section),
        default,
        "yes" if meta["reload"] else "restart",
        meta["help"] + _others(meta) + option,
    )
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def _others(meta: Any) -> str:
    """Return as text the settings that a setting requires or excludes."""
    needs = f"; needs `{meta['needs']}`" if meta["needs"] else ""
    return needs + (
        f"; instead of `{meta['instead_of']}`" if meta["instead_of"] else ""
    )
