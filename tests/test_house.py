"""The house: imports run only downwards, modules and functions fit in a look, and no library is where it should not."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.picture import module_graph
from tests.backtracking import fault
from tests.patterns import patterns
from tests.processes import ROOT

PACKAGE = ROOT / "dlpool"
MODULES = sorted(PACKAGE.rglob("*.py"))

# A room may import itself and those below it. Rooms on one floor do not know each other.
FLOORS = [
    {"__main__", "__init__"},
    {"cli"},
    {"web", "service"},
    {"engine", "upload", "jobs", "observe", "storage"},
    {"transfer"},
    {"scan"},
    {"config"},
    {"filelock", "request_heads"},
    {"lock_files"},
    {"affinity", "freespace", "threads", "cancel"},
    {"disk", "filenames"},
    {"disk_errors"},
    {"errors", "jsontext", "syscalls", "usertext"},
    {"kinds", "redaction", "version"},
    {"dataclass"},
]
ONLY_IN = {
    "requests": {f"transfer/http/{name}.py" for name in ("requests_adapter", "tls", "unusual_urls")},
    "urllib3": {
        f"transfer/http/{name}.py" for name in ("pools", "requests_adapter", "tls", "unusual_urls", "urllib3_adapter")
    },
    "rich": {"cli/bars.py", "cli/tables.py", "cli/top.py"},
    "prometheus_client": {"observe/metrics.py", "web/exposition.py"},
    "opentelemetry": {"observe/spans.py"},
    "falcon": {
        f"web/{name}.py"
        for name in (
            "app",
            "auditing",
            "dashboard",
            "error_handlers",
            "files",
            "middleware",
            "jobs_api",
            "monitoring",
            "wiring",
            "tus",
            "uploads",
        )
    },
    "gunicorn": {"web/gunicorn_adapter.py"},
    "jwt": {"web/tokens.py"},
    "puremagic": {"storage/content_types.py"},
    "cryptography": {"web/public_keys.py"},
    "multipart": {"web/forms.py"},
    "jsonschema": {"web/validation.py"},
}
FORBIDDEN = {"asyncio", "gevent"}
MAX_MODULE_LINES = 450
MAX_FUNCTION_LINES = 50
MAX_NESTING = 3


def relative(module: Path) -> str:
    return str(module.relative_to(PACKAGE))


def room(module: Path) -> str:
    return module.relative_to(PACKAGE).parts[0].removesuffix(".py")


def floor(name: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if name in rooms)


def imports(module: Path) -> Iterator[str]:
    """Every module that is imported anywhere in ``module``, dotted."""
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            yield node.module or ""


def functions(module: Path) -> Iterator[ast.FunctionDef]:
    yield from (node for node in ast.walk(ast.parse(module.read_text())) if isinstance(node, ast.FunctionDef))


def nesting(node: ast.AST) -> int:
    """The deepest nesting of blocks below ``node``; an elif is no deeper than its if."""
    deepest = 0
    for child in ast.iter_child_nodes(node):
        is_elif = isinstance(node, ast.If) and isinstance(child, ast.If) and child in node.orelse
        is_block = isinstance(child, ast.If | ast.For | ast.While | ast.With | ast.Try) and not is_elif
        deepest = max(deepest, nesting(child) + is_block)
    return deepest


@pytest.mark.parametrize("module", MODULES, ids=relative)
def test_imports_run_only_downwards(module: Path) -> None:
    for name in imports(module):
        if name.startswith("dlpool."):
            other = name.split(".")[1]
            assert other == room(module) or floor(other) > floor(room(module)), f"{relative(module)} imports {name}"


@pytest.mark.parametrize("module", MODULES, ids=relative)
def test_only_one_module_selects_the_upload_backend(module: Path) -> None:
    """Another backend can be put beside ``storage/disk/``: nothing else imports from inside of it."""
    is_inside = relative(module).startswith("storage/disk/")
    inner = {name for name in imports(module) if name.startswith("dlpool.storage.disk")}
    assert is_inside or relative(module) == "storage/__init__.py" or not inner


@pytest.mark.parametrize("module", MODULES, ids=relative)
def test_transfer_does_not_import_storage(module: Path) -> None:
    assert room(module) != "transfer" or not any(name.startswith("dlpool.storage") for name in imports(module))


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Return the modules that are in a circle of imports or lead into one; none if the graph has no circle."""
    left = dict(graph)
    while leaves := [name for name, imported in left.items() if not imported & left.keys()]:
        for name in leaves:
            del left[name]
    while roots := left.keys() - {one for imported in left.values() for one in imported}:
        for name in roots:
            del left[name]
    return sorted(left)


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert circle(module_graph(PACKAGE)) == []


def test_a_circle_of_imports_would_be_seen() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}) == ["b", "c"]
    assert circle({"a": {"b"}, "b": {"c"}, "c": set()}) == []


@pytest.mark.parametrize("module", MODULES, ids=relative)
def test_libraries_stay_in_their_modules(module: Path) -> None:
    for name in imports(module):
        top = name.split(".")[0]
        assert top not in FORBIDDEN
        assert relative(module) in ONLY_IN.get(top, {relative(module)}), f"{relative(module)} imports {top}"


@pytest.mark.parametrize("module", MODULES, ids=relative)
def test_dataclasses_are_made_by_the_decorator_that_starts_fast(module: Path) -> None:
    text = module.read_text()
    is_other = relative(module) == "dataclass.py" or "slots=True" in text
    assert is_other or not re.search(r"^from dataclasses import .*\bdataclass\b", text, re.MULTILINE)


@pytest.mark.parametrize("module", MODULES, ids=relative)
def test_modules_and_functions_fit_in_a_look(module: Path) -> None:
    assert len(module.read_text().splitlines()) <= MAX_MODULE_LINES
    for function in functions(module):
        length = (function.end_lineno or 0) - function.lineno + 1
        assert length <= MAX_FUNCTION_LINES, f"{relative(module)}: {function.name} has {length} lines"
        assert nesting(function) <= MAX_NESTING, f"{relative(module)}: {function.name} is nested {nesting(function)}"


@pytest.mark.parametrize("module", MODULES, ids=relative)
def test_no_module_shadows_the_standard_library(module: Path) -> None:
    assert module.stem in ("__init__", "__main__") or module.stem not in sys.stdlib_module_names


@pytest.mark.parametrize("module", MODULES, ids=relative)
def test_public_names_say_what_they_are(module: Path) -> None:
    tree = ast.parse(module.read_text())
    assert ast.get_docstring(tree), f"{relative(module)} has no docstring"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{relative(module)}: {node.name} has no docstring"


@pytest.mark.parametrize("module", MODULES, ids=relative)
def test_no_pattern_needs_more_than_linear_time(module: Path) -> None:
    for found in patterns(module):
        assert found.pattern is not None, f"{found.place}: write the pattern where it is used, or compile it at the top"
        for how in sorted(found.how):
            problem = fault(found.pattern, found.flags, how)
            assert problem is None, f"{found.place}: {how} of {found.pattern!r}: {problem}"


@pytest.mark.parametrize(
    ("pattern", "how"),
    [
        (r"(a+)+b", "match"),
        (r"(a*)*b", "match"),
        (r"(?:a|b+)*c", "match"),
        (r"(a|b|ab)*c", "match"),
        (r"a*a*b", "match"),
        (r"[ \t]*([^\r\n]*?)[ \t]*\r?\n", "match"),
        (r".*x.*y", "match"),
        (r"\s+$", "search"),
        (r"[0-9]+(?:\.[0-9]+)?s", "findall"),
        (r"\d{1,200}\d+x", "fullmatch"),
        (r"^\s*a|(?=(b+)+c)d", "match"),
        (r"(?i)[a-z]*A*1", "match"),
    ],
)
def test_the_lint_finds_patterns_that_backtrack(pattern: str, how: str) -> None:
    assert fault(pattern, 0, how) is not None


@pytest.mark.parametrize(
    ("pattern", "how"),
    [
        (r"[0-9]+(?:\.[0-9]+)?s", "match"),
        (r":[0-9]*$", "search"),
        (r"://(\S*)", "findall"),
        (r'"(?:[^"\\]|\\.)*"', "match"),
        (r"(/[a-z]+)+", "fullmatch"),
        (r"(ab|a)*c", "match"),
        (r"(?m)^[a-z]+:[^\n]*\n", "findall"),
        (r"[a-z]*A*1", "match"),
    ],
)
def test_the_lint_lets_linear_patterns_pass(pattern: str, how: str) -> None:
    assert fault(pattern, 0, how) is None
