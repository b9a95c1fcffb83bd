"""Write docs/api.md from the docstrings of the public names of ``dlpool``."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import dlpool  # noqa: E402

HEAD = """\
# The Python API

From the docstrings, by `scripts/api_doc.py`. [Examples](examples). Sizes are bytes, times seconds. Errors are
subclasses of `dlpool.errors.DlpoolError` with a stable `label`.

An exiting program waits for pending and running downloads, not for paused ones. Ctrl-C ends the wait; fetched bytes
are kept.
"""
ORDER = ("DownloadEngine", "DownloadTask", "download_many", "BatchSummary", "DownloadQueue", "DownloadStats")


def render() -> str:
    """Return the text of the page."""
    parts = [HEAD]
    for name in ORDER:
        thing = getattr(dlpool, name)
        parts.append(f"## `{name}`\n")
        parts += _class(thing) if inspect.isclass(thing) else [_entry(name, thing)]
    return "\n".join(parts)


def _class(kind: type) -> list[str]:
    made = vars(kind)["__init__"]
    lines = [f"```python\n{kind.__name__}{_signature(made)}\n```\n", _text(kind)]
    for name, member in vars(kind).items():
        if name.startswith("_"):
            continue
        if isinstance(member, property):
            kind_of = inspect.signature(member.fget).return_annotation if member.fget else ""
            lines.append(f"**`{name}`**: `{kind_of}`. {_text(member)}")
        elif inspect.isfunction(member):
            lines.append(_entry(name, member))
    return lines


def _entry(name: str, function: Any) -> str:
    return f"**`{name}{_signature(function)}`**\n\n{_text(function)}"


def _signature(function: Any) -> str:
    signature = inspect.signature(function)
    parameters = [one for one in signature.parameters.values() if one.name != "self"]
    text = re.sub(r"<function (\w+) at \w+>", r"\1", str(signature.replace(parameters=parameters)))
    return text.replace("'", "").replace(" -> None", "")


def _text(thing: Any) -> str:
    return (inspect.getdoc(thing) or "").replace("``", "`") + "\n"


if __name__ == "__main__":
    (ROOT / "docs" / "api.md").write_text(render())
