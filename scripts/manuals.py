"""Makes the man pages and the completions of the shells out of the parsers of the command lines."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import shtab
from argparse_manpage.manpage import Manpage  # type: ignore[import-untyped]

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from dlpool import __version__  # noqa: E402
from dlpool.cli import main, supervisor, web  # noqa: E402

DATE = "2026-11-22"  # of the pages, as man shows it: that of the last change of the command line
SHELLS = {
    "bash": "share/bash-completion/completions/{}",
    "zsh": "share/zsh/site-functions/_{}",
    "fish": "share/fish/vendor_completions.d/{}.fish",
}
FILES = {"FILE", "PATH", "DIR"}
_WORDS = re.compile(r"[a-z-]+(\|[a-z-]+)+")


def manuals(root: Path) -> dict[Path, str]:
    """What the files below ``share`` of the project in ``root`` should hold."""
    found = {}
    for build in (main.build_parser, supervisor.build_parser, web.build_parser):
        for shell, place in SHELLS.items():
            parser = build()
            _explain_values(parser)
            found[root / place.format(parser.prog)] = shtab.complete(parser, shell).rstrip() + "\n"
        parser = build()
        summary = re.split(r"[:.]", str(parser.description))[0]
        for page, text in _pages(parser, summary):
            found[root / "share" / "man" / "man1" / f"{page}.1"] = text
    return found


def _explain_values(parser: argparse.ArgumentParser) -> None:
    """Tell which values are files, and which are words of a list, from how the help calls them."""
    for action in parser._actions:
        if action.metavar in FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        elif action.choices is None and _WORDS.fullmatch(str(action.metavar)):
            action.choices = str(action.metavar).split("|")
    for summary, command in _commands(parser).values():
        command.description = summary  # the completions show it beside the name
        _explain_values(command)


def _commands(parser: argparse.ArgumentParser) -> dict[str, tuple[str, argparse.ArgumentParser]]:
    """The parsers of the commands by their names, each with its line of help."""
    found = next((action for action in parser._actions if isinstance(action, argparse._SubParsersAction)), None)
    return {one.dest: (str(one.help), found.choices[one.dest]) for one in found._choices_actions} if found else {}


def _pages(parser: argparse.ArgumentParser, summary: str) -> Iterator[tuple[str, str]]:
    """The pages of a program: its own, and one for each command, which ``man dlpool COMMAND`` finds."""
    sections = {}
    if commands := _commands(parser):
        listed = (f".TP\n\\fBdlpool\\-{name}\\fR(1)\n{text}" for name, (text, _) in commands.items())
        sections["COMMANDS"] = "\n".join(listed)
    for text, command in commands.values():
        yield from _pages(command, text)
    page = parser.prog.replace(" ", "-")
    yield page, _page(parser, page, summary, sections)


def _page(parser: argparse.ArgumentParser, page: str, summary: str, sections: dict[str, str]) -> str:
    """One page. The epilog of a parser is titles that end in a colon, with lines below that stay as they are."""
    usage = parser.format_usage().partition(":")[2].split()
    for group in parser._action_groups:  # what has a section of its own here
        group._group_actions = [one for one in group._group_actions if not isinstance(one, argparse._SubParsersAction)]
    for title, lines in re.findall(r"^(\S.*):\n((?:  .*\n)+)", parser.epilog or "", re.MULTILINE):
        sections[title.upper()] = ".nf\n" + _escaped(lines.rstrip()) + "\n.fi"
    if page != "dlpool":
        sections["SEE ALSO"] = "\\fBdlpool\\fR(1)"
    data: dict[str, Any] = {"project_name": "dlpool", "version": __version__, "manual_title": "dlpool", "date": DATE}
    made = Manpage(parser, data)
    made.prog, made.description, made.synopsis = page, summary, []
    parser.epilog = None
    made.add_section(
        "synopsis", "=", ".B " + _escaped(parser.prog) + "\n" + _escaped(" ".join(usage[len(parser.prog.split()) :]))
    )
    for title, text in sections.items():
        made.add_section(title, "=", text)
    text = str(made).replace(DATE.replace("-", "\\-"), DATE)  # mandoc reads no escapes there
    text = re.sub(r"\n\s*\n(?=\.)", "\n", text)  # macros make a space of their own
    return re.sub(r"\n\s*\n", "\n.PP\n", text)


def _escaped(text: str) -> str:
    """See man(7): a backslash, a minus that is to be copied, and a control character at a line's begin."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return re.sub(r"^([.'])", r"\\&\1", escaped, flags=re.MULTILINE)


if __name__ == "__main__":
    for path, text in manuals(ROOT).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
