"""Draws the packages of dlpool from their imports, as text for docs/internals.md."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path

BEGIN, END = "<!-- scripts/generate draws this picture. -->\n", "<!-- End of the picture. -->\n"
WIDTH = 100


def with_picture(root: Path) -> dict[Path, str]:
    """Return ``docs/internals.md`` of the project in ``root`` with the picture of today's imports, by its path."""
    path = root / "docs" / "internals.md"
    before, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    return {path: f"{before}{BEGIN}\n```text\n{picture(root / 'dlpool')}```\n\n{END}{rest.partition(END)[2]}"}


def picture(package: Path) -> str:
    """Return the packages in ``package``, a line each, those that import others above them.

    A blank line separates levels: packages of one level do not import each other. Sub-packages stand below theirs, in
    the order of their imports.
    """
    graph = _below(module_graph(package), package.name)
    text = ""
    for level in _levels(_by_first_part(graph)):
        rooms = [name for name in level if (package / name).is_dir()]
        modules = [f"{name}.py" for name in level if name not in rooms]
        for name in rooms:
            text += _line(name + "/", _summary(package / name)) + _inside(package / name, graph)
        if modules:
            text += textwrap.fill(" ".join(modules), WIDTH) + "\n"
        text += "\n"
    return text.rstrip() + "\n"


def _inside(folder: Path, graph: Mapping[str, set[str]]) -> str:
    """Return the lines of the sub-packages of ``folder``."""
    text = ""
    for level in _levels(_by_first_part(_below(graph, folder.name))):
        for name in level:
            if (folder / name).is_dir():
                text += _line(f"    {name}/", _summary(folder / name))
    return text


def _line(name: str, summary: str) -> str:
    return textwrap.fill(summary, WIDTH, initial_indent=f"{name:16}", subsequent_indent=" " * 16) + "\n"


def _summary(folder: Path) -> str:
    """Return the first sentence of the package's docstring."""
    text = " ".join((ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or "").split())
    return re.split(r"(?<=\.) ", text)[0].replace("``", "").rstrip(".")


def module_graph(package: Path) -> dict[str, set[str]]:
    """Return the modules of ``package`` that each of them imports, by their dotted names.

    Imports in functions and for type checkers count.
    """
    names = {path: _dotted(package, path) for path in package.rglob("*.py")}
    known = set(names.values())
    graph: dict[str, set[str]] = {name: set() for name in known}
    for path, name in names.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                graph[name] |= {alias.name for alias in node.names} & known
            elif isinstance(node, ast.ImportFrom):
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                graph[name] |= inner & known if inner <= known else {*inner, node.module or ""} & known
    return graph


def _dotted(package: Path, path: Path) -> str:
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _below(graph: Mapping[str, set[str]], package: str) -> dict[str, set[str]]:
    """Return the graph of the modules in ``package``, by their names below it."""
    prefix = f"{package}."
    return {
        name.removeprefix(prefix): {one.removeprefix(prefix) for one in used if one.startswith(prefix)}
        for name, used in graph.items()
        if name.startswith(prefix) and name != f"{prefix}__main__"
    }


def _by_first_part(graph: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Return the graph of the first parts of the names."""
    found: dict[str, set[str]] = {}
    for name, used in graph.items():
        found.setdefault(name.partition(".")[0], set()).update(one.partition(".")[0] for one in used)
    return {name: used - {name} for name, used in found.items()}


def _levels(graph: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Return the names in levels, the highest first: all that a name uses is on lower levels, as far as there are no
    circles."""
    heights: dict[str, int] = {}

    def height(name: str, path: tuple[str, ...] = ()) -> int:
        if name not in heights:
            below = [height(one, (*path, name)) for one in graph[name] if one not in (*path, name)]
            heights[name] = 1 + max(below, default=-1)
        return heights[name]

    for name in graph:
        height(name)
    tall = max(heights.values(), default=0)
    return [sorted(name for name in graph if heights[name] == at) for at in range(tall, -1, -1)]
