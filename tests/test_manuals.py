"""Man pages and completions: what is shipped is made out of the parsers, and its readers take it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from dlpool.cli.main import build_parser
from scripts.manuals import SHELLS, manuals
from tests.processes import ROOT

SHARE = ROOT / "share"
PROGRAMS = ("dlpool", "dlpool-supervisor", "dlpool-web")
COMMANDS = re.findall(r"^    ([a-z]+) ", build_parser().format_help(), re.MULTILINE)


def said(program: str, *arguments: object, **options: str) -> str:
    """What a program says, errors too; it must succeed."""
    assert shutil.which(program), f"{program} is not installed: scripts/test installs it"
    ended = subprocess.run(
        [program, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "LC_ALL": "C.UTF-8", **options},
    )
    assert ended.returncode == 0, ended.stdout
    return ended.stdout


def completion(shell: str, program: str) -> Path:
    return ROOT / SHELLS[shell].format(program)


def test_share_matches_the_parsers() -> None:
    wanted = manuals(ROOT)
    assert {path for path in SHARE.rglob("*") if path.is_file()} == set(wanted)
    for path, text in wanted.items():
        assert path.read_text() == text, f"{path.relative_to(ROOT)} is old: run scripts/generate"


def test_each_command_has_a_manual_page_without_mandoc_warnings() -> None:
    pages = {path.stem: path for path in (SHARE / "man" / "man1").glob("*.1")}
    assert set(pages) == {*PROGRAMS, *(f"dlpool-{name}" for name in COMMANDS)}
    assert said("mandoc", "-T", "lint", "-W", "warning", *pages.values()) == ""
    shown = said("mandoc", "-T", "ascii", "-O", "width=200", pages["dlpool-fetch"])
    text = re.sub(".\b", "", shown)
    assert "--limit-rate SIZE\n" in text and "dlpool-fetch - download one URL" in text
    assert "\n         0 success   " in text, "the table of exit codes is not as it was written"


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_reads_its_completion(shell: str, program: str) -> None:
    assert said(shell, "-n", completion(shell, program)) == ""


BASH = """\
source "$FILE"
[[ $(complete -p dlpool) == *" -F "* ]] || exit 1
function=$(complete -p dlpool | sed 's/.*-F \\([^ ]*\\) .*/\\1/')
COMP_WORDS=($WORDS "$LAST"); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMP_LINE="$WORDS $LAST"; COMP_POINT=${#COMP_LINE}
"$function" dlpool "$LAST"
printf '%s\\n' "${COMPREPLY[@]}"
"""
FISH = 'source $FILE; complete --do-complete "$WORDS $LAST"'


@pytest.mark.parametrize("shell", ["bash", "fish"])
@pytest.mark.parametrize(
    ("words", "last", "wanted"),
    [
        ("dlpool", "pro", {"promote"}),
        ("dlpool fetch", "--min", {"--min-split-size"}),
        ("dlpool fetch --if-exists", "re", {"rename"}),
        ("dlpool nodes", "dr", {"drain"}),
    ],
)
def test_a_word_is_completed(shell: str, words: str, last: str, wanted: set[str], tmp_path: Path) -> None:
    given = {"FILE": str(completion(shell, "dlpool")), "WORDS": words, "LAST": last, "HOME": str(tmp_path)}
    lines = said(shell, "-c", BASH if shell == "bash" else FISH, **given).splitlines()
    assert {line.split("\t")[0].strip() for line in lines} == wanted


def test_zsh_loads_the_completion_as_a_function(tmp_path: Path) -> None:
    script = "fpath=($FOLDER $fpath); autoload -Uz compinit; compinit -D -u; print $_comps[dlpool]; autoload +X _dlpool"
    given = {"FOLDER": str(completion("zsh", "dlpool").parent), "HOME": str(tmp_path)}
    assert said("zsh", "-f", "-c", script, **given) == "_dlpool\n"
