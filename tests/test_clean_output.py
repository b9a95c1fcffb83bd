"""What others wrote does nothing to a terminal: it is cleaned where commands and the log's console print it."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from dlpool.cli.console import _CleanText, stream_for_rich
from dlpool.cli.tables import clean
from dlpool.observe.log import LogSink, processor_chain
from dlpool.observe.processors import LogOrigin
from dlpool.usertext import escape_unsafe

UNSAFE = [
    *map(chr, [*range(0x20), *range(0x7F, 0xA0)]),
    *"\u061c\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u206a\ufff9\ud800\udcff",
    "\U000e0001",
    "\U000e0041",
]
SAFE = ["a", " ", "é", "Ω", "漢", "\u3000", "\xa0", "👩\u200d🔬", "a\u0301", "שלום", "\\", "'", '"', "%"]


@pytest.mark.parametrize("letter", UNSAFE, ids=ascii)
def test_a_character_that_a_terminal_obeys_is_escaped(letter: str) -> None:
    shown = escape_unsafe(f"a{letter}b")
    assert letter not in shown and shown == f"a{ascii(letter)[1:-1]}b"
    assert clean(f"a{letter}b") == shown


@pytest.mark.parametrize("text", SAFE)
def test_harmless_text_is_printed_unchanged(text: str) -> None:
    assert escape_unsafe(text) == clean(text) == text


def stream() -> tuple[_CleanText, io.BytesIO]:
    raw = io.BytesIO()
    return _CleanText(raw, encoding="utf-8", errors="backslashreplace", write_through=True), raw


@pytest.mark.parametrize("letter", UNSAFE, ids=ascii)
def test_the_standard_streams_escape_control_characters(letter: str) -> None:
    text, raw = stream()
    print(f"one{letter}two", "three", sep="\t", file=text)
    text.writelines([f"{letter}\n", "end"])
    said = raw.getvalue().decode("utf-8", "surrogatepass")
    assert said.endswith("end") and said.count("\n") == (4 if letter == "\n" else 2)
    assert letter in "\n\t" or letter not in said
    assert all(one.isprintable() or one in "\n\t" for one in said)


def test_drawing_reaches_the_terminal() -> None:
    text, raw = stream()
    drawn = stream_for_rich(text)
    drawn.write("\x1b[1mbold\x1b[0m\n")
    drawn.flush()
    assert raw.getvalue() == b"\x1b[1mbold\x1b[0m\n"
    assert not drawn.isatty()
    assert stream_for_rich(sys.stdout) is sys.stdout or isinstance(sys.stdout, _CleanText)


EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202egpj.exe"


@pytest.mark.parametrize(
    "arguments",
    [
        ["fetch", f"ftp://{EVIL}/", "-q"],
        ["fetch", f"--{EVIL}"],
        [EVIL],
        ["fetch", "http://127.0.0.1:1/", "-H", f"{EVIL}: 1"],
        ["fetch", "-i", f"/nowhere/{EVIL}"],
        ["config", "check", "-c", f"/nowhere/{EVIL}"],
        ["push", "-c", f"/nowhere/{EVIL}", "http://a/", "b"],
    ],
    ids=["URL", "option", "command", "header", "list", "INI", "push"],
)
def test_no_command_prints_control_characters_of_others(arguments: list[str], tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8", "HOME": str(tmp_path)}
    ended = subprocess.run(
        [sys.executable, "-m", "dlpool", *arguments],
        capture_output=True,
        timeout=120,
        env=environment,
        cwd=tmp_path,
        check=False,
    )
    said = (ended.stdout + ended.stderr).decode()
    assert ended.returncode != 0 and "x1b" in said
    assert not [one for one in said if not one.isprintable() and one not in "\n\t"]


@pytest.mark.parametrize("letter", UNSAFE, ids=ascii)
@pytest.mark.parametrize("log_format", ["console", "json"])
def test_a_line_of_the_log_has_no_control_characters(letter: str, log_format: str) -> None:
    text: Any = {"event": f"a{letter}b", f"k{letter}": f"v{letter}", "error": f"e{letter}", "path": f"/{letter}"}
    sink = LogSink(None, 0)  # type: ignore[arg-type]
    for process in processor_chain(LogOrigin("s", "n"), lambda: datetime.now(timezone.utc), log_format):
        text = process(sink, "error", text)
    said = bytes(text).decode()
    assert said.endswith("\n") and said[:-1].isprintable()
    assert log_format == "console" or json.loads(said)["message"]
