"""Reads from the source what the code can log: events, their levels, and the fields of each call."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator

from dlpool.kinds import LEVELS
from dlpool.service.worker import job_run
from tests.processes import ROOT

PACKAGE = ROOT / "dlpool"
NOT_LOGGED = {"body_complete", "range_fetched"}  # which run.py keeps for itself


def _texts(node: ast.expr) -> set[str]:
    """Return the texts that an expression can have: a constant, or a choice of two."""
    if isinstance(node, ast.Constant):
        return {str(node.value)}
    if isinstance(node, ast.IfExp):
        return _texts(node.body) | _texts(node.orelse)
    return set()


def _calls() -> Iterator[tuple[str, ast.Call, ast.FunctionDef]]:
    """Yield each call in the package: its last name, the call, and the function that contains it.

    Engine and upload client have no log, because they pass events to the program; ``disk`` has none either.
    """
    silent = {module for folder in ("engine", "upload") for module in (PACKAGE / folder).rglob("*.py")}
    silent.add(PACKAGE / "disk.py")
    for module in sorted(set(PACKAGE.rglob("*.py")) - silent):
        for function in (node for node in ast.walk(ast.parse(module.read_text())) if isinstance(node, ast.FunctionDef)):
            for node in ast.walk(function):
                if isinstance(node, ast.Call) and node.args:
                    name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                    yield name, node, function


def logged() -> tuple[dict[str, set[str]], dict[str, set[str]], list[str]]:
    """Return levels and named fields of each event, and the calls whose event is not a constant."""
    levels: dict[str, set[str]] = defaultdict(set)
    fields: dict[str, set[str]] = defaultdict(set)
    unknown = []
    for name, call, function in _calls():
        if name not in {*LEVELS, "notify", "_notify", "ServerWarning"} or function.name == "_note":
            continue
        events = _texts(call.args[0])
        if not events and function.name != "_check_server":  # it logs a ServerWarning
            unknown.append(f"{function.name}: {ast.unparse(call)}")
        for event in events - NOT_LOGGED:
            transfer_level = job_run._LEVELS.get(event, "info")
            levels[event].add({"ServerWarning": "warning"}.get(name, transfer_level if "notify" in name else name))
            fields[event] |= {keyword.arg for keyword in call.keywords if keyword.arg}
    return levels, fields, unknown
