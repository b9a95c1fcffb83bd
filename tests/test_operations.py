"""docs/operations.md is true: its alerts are those of the rules, and what it says to type and to look at exists."""

from __future__ import annotations

import os
import re
import shlex

import pytest

from dlpool.cli.main import build_parser
from dlpool.cli.sections import SECTIONS
from tests.processes import ROOT

PAGE = (ROOT / "docs" / "operations.md").read_text()
BLOCKS = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
LINES = [line.split(" #")[0].strip() for block in BLOCKS for line in block.splitlines()]
CODE = re.findall(r"`([^`\n]+)`", re.sub(r"```sh\n.*?```", "", PAGE, flags=re.DOTALL))
COMMANDS = sorted({line.partition("-- ")[2] if line.startswith("runuser ") else line for line in [*LINES, *CODE]})
ALERTS = re.findall(r"alert: (\w+)", (ROOT / "etc" / "prometheus" / "dlpool.rules.yml").read_text())
EVENTS = set(re.findall(r"^\| `([a-z_]+)`", (ROOT / "docs" / "logging.md").read_text(), re.MULTILINE))


def test_each_alert_has_its_section_in_the_order_of_the_rules_with_what_to_type() -> None:
    sections = re.findall(r"^### (\w+)\n(.*?)(?=^##)", PAGE, re.MULTILINE | re.DOTALL)
    assert [name for name, _ in sections] == ALERTS
    assert all("```sh\n" in text for _, text in sections)
    assert set(re.findall(r"\bDlpool\w+", PAGE)) == set(ALERTS)


@pytest.mark.parametrize("command", [one for one in COMMANDS if re.match(r"dlpool [a-z]+( |$)", one)])
def test_each_command_of_dlpool_is_one(command: str) -> None:
    bare = shlex.split(command)[1:]
    if bare == ["setup"]:  # named, not to be typed
        bare.append("--print-unit")
    assert callable(build_parser().parse_args(bare).run)


def test_a_command_that_does_not_exist_would_be_seen() -> None:
    assert len([one for one in COMMANDS if one.startswith("dlpool ")]) > 10
    with pytest.raises(SystemExit):
        build_parser().parse_args(["nurse", "-c", "x.ini"])


def test_each_file_and_script_that_it_names_exists() -> None:
    named = set(re.findall(r"(?:tests|etc|scripts)/[\w./-]+\w", re.sub(r"/etc/\S+", "", PAGE)))
    assert len(named) > 20
    for name in named:
        assert (ROOT / name).exists(), name
        assert not name.startswith("scripts/") or os.access(ROOT / name, os.X_OK)


def test_each_event_of_the_log_and_each_setting_that_it_names_exists() -> None:
    settings = {name for kind in SECTIONS.values() for name in kind.__dataclass_fields__}  # type: ignore[attr-defined]
    selected = {name for line in LINES if line.startswith("jq ") for name in re.findall(r'"([a-z]+_[a-z_]+)"', line)}
    spoken = {one for one in CODE if re.fullmatch(r"[a-z]+_[a-z_]+", one)}
    assert selected and selected <= EVENTS
    assert spoken <= EVENTS | settings, spoken - EVENTS - settings
