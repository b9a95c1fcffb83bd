"""Writes docs/api.md out of the docstrings of what ``dlpool`` exports."""

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

Made by `scripts/api_doc.py` out of the docstrings; runnable programs are in [examples](examples). All of it works in
one process, on threads, without Redis. Sizes are in bytes, times in seconds. What fails raises a subclass of
`dlpool.errors.DlpoolError`, whose message is one sentence; each error has a stable `label`.

A program that ends while downloads are pending or running waits for them, as with `concurrent.futures`; paused
ones are not waited for. Ctrl-C ends that wait: fetched bytes are kept, and one warning reports how many had not ended.
The engine samples speeds and remaining times while downloads run, also if the program does not read them.
"""
ORDER = ("DownloadEngine", "DownloadTask", "download_many", "BatchSummary", "DownloadQueue", "DownloadStats")
INTERNAL = {
    "adopt",
    "begin",
    "run",
    "end_run",
    "abandon",
    "permit",
    "hear",
    "of",
    "moment",
    "figures",
    "waits",
    "waits_no_more",
    "pull",
    "leave",
    "learn_target",
    "work_here",
    "is_over",
    "job",
    "label",
}


def render() -> str:
    """The whole text."""
    parts = [HEAD]
    for name in ORDER:
        thing = getattr(dlpool, name)
        parts.append(f"## `{name}`\n")
        parts += _class(thing) if inspect.isclass(thing) else [_entry(name, thing)]
    return "\n".join(parts)


def _class(kind: type) -> list[str]:
    made = vars(kind)["__init__"]
    lines = [f"```python\n{kind.__name__}{_signature(made)}\n```\n", _text(kind)]
    if made.__doc__:
        lines.append(_text(made))
    for name, member in vars(kind).items():
        if name.startswith("_") or name in INTERNAL:
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
