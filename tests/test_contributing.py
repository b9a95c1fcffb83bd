"""The recipes of CONTRIBUTING.md, applied to a copy of the project, do what they say."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dlpool.errors import UsageError
from dlpool.transfer.http.urls import split_credentials
from tests.processes import ROOT
from tests.redis_server import RedisServer

TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
TIMEOUT_S = 60


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the package and of what scripts/generate writes."""
    for name in ("dlpool", "docs", "etc", "share", "scripts"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def recipe_text(recipe: str) -> str:
    """The text of a recipe."""
    return next(one for one in re.split(r"^### ", TEXT, flags=re.MULTILINE) if one.startswith(f"{recipe}\n"))


def block(recipe: str, language: str = "python") -> str:
    """The code of a recipe."""
    found = re.findall(rf"^```{language}\n(.*?)^```", recipe_text(recipe), re.MULTILINE | re.DOTALL)
    assert len(found) == 1, f"one block of {language} in {recipe!r}"
    return str(found[0])


def insert(path: Path, after: str, code: str) -> None:
    """Put ``code`` behind the docstring or the line that ends with ``after``."""
    text = path.read_text(encoding="utf-8")
    place = text.index(after) + len(after)
    path.write_text(text[:place] + "\n" + code + text[place:], encoding="utf-8")


def python(folder: Path, *arguments: str) -> str:
    """Run Python on the copy and return what it prints."""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    ended = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def behind_docstring(path: Path, head: str) -> str:
    """The text from ``head`` (a class or function) to the end of its docstring or of its own line."""
    text = path.read_text(encoding="utf-8")
    match = re.search(rf'{re.escape(head)}[^\n]*:\n(?:\s+""".*?"""\n)?', text, re.DOTALL)
    assert match is not None, head
    return match[0].rstrip("\n")


def test_a_setting(copy: Path) -> None:
    path = copy / "dlpool" / "config" / "sections.py"
    insert(path, behind_docstring(path, "class SupervisorSettings"), block("A setting"))
    text = python(copy, "-c", "from dlpool.config.sample import default_ini; print(default_ini())")
    assert "# exit after this time without a job" in text
    (copy / "test.ini").write_text("[supervisor]\nidle_exit = 90s\n")
    lines = python(copy, "-m", "dlpool", "config", "show", "-c", "test.ini", "--json").splitlines()
    rows = [row for row in map(json.loads, lines) if row["key"] == "idle_exit"]
    assert rows == [{"section": "supervisor", "key": "idle_exit", "value": 90.0, "origin": "test.ini:2"}]


def test_an_error(copy: Path) -> None:
    path = copy / "dlpool" / "errors.py"
    path.write_text(path.read_text(encoding="utf-8") + "\n\n" + block("An error"), encoding="utf-8")
    code = "from dlpool.errors import QuotaExhausted as Q; print(Q('no more').label, Q.exit_code, Q('no more'))"
    assert python(copy, "-c", code) == "quota_exhausted 8 no more\n"


def test_a_transition(copy: Path, redis_server: RedisServer) -> None:
    (copy / "dlpool" / "jobs" / "lua" / "set_label.lua").write_text(block("A transition", "lua"), encoding="utf-8")
    path = copy / "dlpool" / "jobs" / "transitions.py"
    insert(copy / "dlpool" / "jobs" / "scripts.py", "SCRIPTS = (", '    "set_label",')
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("    def push(", block("A transition") + "\n    def push(", 1), encoding="utf-8")
    program = copy / "try.py"
    program.write_text(
        "import redis\n"
        "from dlpool.jobs.keys import QueueKeys\n"
        "from dlpool.jobs.transitions import Transitions\n"
        f"client = redis.Redis(unix_socket_path={str(redis_server.socket)!r})\n"
        "transitions = Transitions(client, QueueKeys())\n"
        "key = transitions.keys.job('known')\n"
        "client.hset(key, 'state', 'ready')\n"
        "print(transitions.set_label('known', 'x'), transitions.set_label('other', 'x'), client.hget(key, 'label'))\n",
        encoding="utf-8",
    )
    assert python(copy, str(program)) == "True False b'x'\n"


def test_a_metric(copy: Path) -> None:
    path = copy / "dlpool" / "observe" / "metrics.py"
    insert(path, behind_docstring(path, "def _declare_node"), block("A metric"))
    program = (
        "from dlpool.observe.metrics import Metrics\n"
        "metrics = Metrics([1.0])\n"
        "metrics.idle_seconds.inc(3)\n"
        "print(metrics.exposition('')[0].decode())\n"
    )
    assert "dlpool_idle_seconds_total 3.0" in python(copy, "-c", program)


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:dlpool|docs|tests|scripts)/[\w/.]+)`", TEXT))))
def test_what_the_recipes_name_exists(path: str) -> None:
    assert (ROOT / path).exists() or "NAME" in path


def test_a_url_scheme_is_decided_where_the_recipe_says() -> None:
    with pytest.raises(UsageError, match="not an http or https URL"):
        split_credentials("ftp://example.org/file")
    assert "`split_credentials`" in recipe_text("A URL scheme")
