"""Running dlpool as a person would: in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT_S = 60


@dataclass(frozen=True)
class Ended:
    """A finished process."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.out)
        return value


class Logged:
    """A program that writes a JSON log and its standard error to files."""

    log_file: Path
    errors: Path
    ini: Path

    def write_ini(self, *layers: dict[str, dict[str, Any]]) -> None:
        """Write the INI file; of each section a later layer goes over an earlier one."""
        lines = []
        for section in sorted({name for layer in layers for name in layer}):
            merged = {key: value for layer in layers for key, value in layer.get(section, {}).items()}
            lines += [f"[{section}]", *(f"{key} = {value}" for key, value in merged.items())]
        self.ini.write_text("\n".join(lines) + "\n")

    def records(self) -> list[dict[str, Any]]:
        """The lines of its log."""
        if not self.log_file.exists():
            return []
        return [json.loads(line) for line in self.log_file.read_text().splitlines() if line.endswith("}")]

    def events(self, name: str) -> list[dict[str, Any]]:
        """The lines of its log with that event."""
        return [record for record in self.records() if record["event.action"] == name]

    def said(self) -> str:
        """What it wrote to standard error, and the end of its log."""
        log = self.log_file.read_text()[-3000:] if self.log_file.exists() else ""
        return self.errors.read_text() + log


def start(*arguments: object, module: str = "dlpool", **options: Any) -> subprocess.Popen[str]:
    """Start ``python -m MODULE ARGUMENTS``; the caller waits for it or kills it."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL, **options}
    return subprocess.Popen(command, text=True, cwd=options.pop("cwd", ROOT), **options)


def finish(process: subprocess.Popen[str], timeout_s: float = TIMEOUT_S) -> Ended:
    """Wait for the end; a process that does not end is killed and the test fails."""
    try:
        out, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    assert "Traceback" not in err, err
    return Ended(process.returncode, out, err)


def run(*arguments: object, module: str = "dlpool", **options: Any) -> Ended:
    """Run ``dlpool ARGUMENTS`` to its end."""
    return finish(start(*arguments, module=module, **options))
