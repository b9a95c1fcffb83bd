"""The regular expressions of the package, as they stand in its sources, each with the methods that it is used by."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.processes import ROOT

_FUNCTIONS = ("compile", "match", "fullmatch", "search", "findall", "finditer", "sub", "subn", "split")
# Where a function takes flags by position.
_FLAGS_AT = {"compile": 1, "match": 2, "fullmatch": 2, "search": 2, "findall": 2, "finditer": 2}


@dataclass(frozen=True)
class Found:
    """A pattern; ``pattern`` is None where it cannot be told without running the function that it is in."""

    place: str
    pattern: str | bytes | None
    flags: int
    how: frozenset[str]


class _Names(Mapping[str, Any]):
    """The names of a module; those of its functions' variables are some digit."""

    def __init__(self, module: Any) -> None:
        self._known = vars(module)

    def __getitem__(self, name: str) -> Any:
        return self._known.get(name, getattr(__builtins__, name, 8) if name != "re" else re)

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)


def patterns(path: Path) -> Iterator[Found]:
    """Yield the patterns of a module."""
    text = path.read_text(encoding="utf-8")
    if "import re\n" not in text:
        return
    tree = ast.parse(text)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and _is_of_re(node.func)]
    if not calls:
        return
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    names = _Names(import_module(name))
    for call in calls:
        assert isinstance(call.func, ast.Attribute)
        how = _uses(tree, call) if call.func.attr == "compile" else frozenset({call.func.attr})
        given = dict(enumerate(call.args)) | {one.arg: one.value for one in call.keywords}
        flags = given.get("flags") or given.get(_FLAGS_AT.get(call.func.attr))
        pattern = _value(call.args[0], names)
        place = f"{name}:{call.lineno}"
        known = pattern if isinstance(pattern, str | bytes) else None
        yield Found(place, known, int(_value(flags, names)) if flags is not None else 0, how)


def _is_of_re(node: ast.expr) -> bool:
    return (
        isinstance(node, ast.Attribute)
        and node.attr in _FUNCTIONS
        and isinstance(node.value, ast.Name)
        and node.value.id == "re"
    )


def _value(node: ast.expr, names: Mapping[str, Any]) -> Any:
    code = compile(ast.Expression(node), "<pattern>", "eval")
    return eval(code, {}, names)  # of our own sources


def _uses(tree: ast.AST, call: ast.Call) -> frozenset[str]:
    """The methods of a compiled pattern that its module calls; all of them where it is handed to others."""
    target = next((one.targets[0] for one in ast.walk(tree) if isinstance(one, ast.Assign) and one.value is call), None)
    if not isinstance(target, ast.Name):
        return frozenset({"search", "fullmatch"})
    methods: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == target.id:
            methods.add(node.attr)
    uses = sum(isinstance(one, ast.Name) and one.id == target.id and one is not target for one in ast.walk(tree))
    attributes = sum(
        isinstance(one, ast.Attribute) and isinstance(one.value, ast.Name) and one.value.id == target.id
        for one in ast.walk(tree)
    )
    return frozenset(methods) if methods and uses == attributes else frozenset({"search", "fullmatch"})
