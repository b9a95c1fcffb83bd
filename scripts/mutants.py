"""Find the places of a module that a mutant may change, and write the changed text. Pure.

Constants of modules, default values, texts, annotations, assertions and ``__repr__`` are left alone: they tune,
describe or guard, and no test of behaviour could tell the difference.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

_COMPARISONS: dict[type[ast.cmpop], str] = {
    ast.Lt: "<=",
    ast.LtE: "<",
    ast.Gt: ">=",
    ast.GtE: ">",
    ast.Eq: "!=",
    ast.NotEq: "==",
    ast.In: "not in",
    ast.NotIn: "in",
    ast.Is: "is not",
    ast.IsNot: "is",
}
_ARITHMETIC: dict[type[ast.operator], str] = {
    ast.Add: "-",
    ast.Sub: "+",
    ast.Mult: "//",
    ast.FloorDiv: "*",
    ast.Div: "*",
    ast.Mod: "*",
}


@dataclass(frozen=True)
class Mutant:
    """One change of one module: the characters from ``start`` to ``end`` become ``replacement``.

    ``module`` is a path relative to the root, ``function`` the qualified name of the outermost function around it.
    """

    module: str
    function: str
    line: int
    start: int
    end: int
    replacement: str

    def applied(self, text: str) -> str:
        """Return the module's changed text."""
        return text[: self.start] + self.replacement + text[self.end :]

    def identity(self, text: str) -> str:
        """Return a description that stays the same while other lines of the module change."""
        begin, finish = text.rfind("\n", 0, self.start) + 1, text.find("\n", self.end)
        finish = len(text) if finish < 0 else finish
        before = " ".join(text[begin:finish].split())
        after = " ".join((text[begin : self.start] + self.replacement + text[self.end : finish]).split())
        return f"{self.module} {self.function}: {before} -> {after}"


def mutants_of(module: str, text: str) -> list[Mutant]:
    """Return all mutants of a module in the order of its text."""
    tree = ast.parse(text)
    finder = _Finder(module, text)
    found = [mutant for name, function in functions_of(tree) for mutant in finder.inside(name, function)]
    return sorted(found, key=lambda mutant: (mutant.start, mutant.end, mutant.replacement))


def functions_of(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.FunctionDef]]:
    """Yield the outermost functions and methods with their qualified names."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef):
            yield prefix + node.name, node
        elif isinstance(node, ast.ClassDef):
            yield from functions_of(node, f"{prefix}{node.name}.")
        elif isinstance(node, ast.If | ast.Try):
            yield from functions_of(node, prefix)


class _Finder:
    """Collects the mutants of one module."""

    def __init__(self, module: str, text: str) -> None:
        self._module = module
        self._text = text
        self._lines = [0]
        for line in text.encode().splitlines(keepends=True):
            self._lines.append(self._lines[-1] + len(line))
        self._bytes = text.encode()

    def inside(self, name: str, function: ast.FunctionDef) -> Iterator[Mutant]:
        """Yield the mutants of a function's body."""
        if function.name == "__repr__":
            return
        for statement in function.body:
            yield from self._statement(name, statement)

    def _statement(self, name: str, statement: ast.stmt) -> Iterator[Mutant]:
        if isinstance(statement, ast.Assert) or _is_text(statement):
            return
        removal = _removal(statement)
        if removal is not None:
            yield self._change(name, statement, statement, removal)
        if isinstance(statement, ast.If | ast.While):
            test = statement.test
            yield self._change(name, test, test, f"not ({self._segment(test)})")
        if isinstance(statement, ast.With) and _is_lock(statement.items):
            first, last = statement.items[0].context_expr, statement.items[-1].context_expr
            yield self._change(name, first, last, "__import__('contextlib').nullcontext()")
        if isinstance(statement, ast.AugAssign) and isinstance(statement.op, ast.Add | ast.Sub):
            sign = "-=" if isinstance(statement.op, ast.Add) else "+="
            yield self._between(name, statement.target, statement.value, sign)
        for child in ast.iter_child_nodes(statement):
            yield from self._node(name, child)

    def _node(self, name: str, node: ast.AST) -> Iterator[Mutant]:
        if isinstance(node, ast.stmt):
            yield from self._statement(name, node)
            return
        if isinstance(node, ast.JoinedStr | ast.arguments):
            return
        if isinstance(node, ast.expr):
            yield from self._expression(name, node)
        for child in ast.iter_child_nodes(node):
            yield from self._node(name, child)

    def _expression(self, name: str, node: ast.expr) -> Iterator[Mutant]:
        if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _COMPARISONS:
            yield self._between(name, node.left, node.comparators[0], _COMPARISONS[type(node.ops[0])])
        elif isinstance(node, ast.BoolOp):
            word = "or" if isinstance(node.op, ast.And) else "and"
            yield self._between(name, node.values[0], node.values[1], word)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            yield self._change(name, node, node, f"({self._segment(node.operand)})")
        elif isinstance(node, ast.IfExp):
            yield self._change(name, node.test, node.test, f"(not ({self._segment(node.test)}))")
        elif isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC and not _has_text(node):
            yield self._between(name, node.left, node.right, _ARITHMETIC[type(node.op)])
        elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
            yield self._change(name, node, node, str(not node.value))
        elif isinstance(node, ast.Constant) and isinstance(node.value, int):
            yield self._change(name, node, node, str(node.value + 1))

    def _between(self, name: str, left: ast.expr, right: ast.expr, word: str) -> Mutant:
        """Replace the operator between two expressions; brackets around them stay."""
        start, end = self._offset(left, at_end=True), self._offset(right, at_end=False)
        between = self._text[start:end]
        kept_left = len(between) - len(between.lstrip(") \n\\"))
        kept_right = len(between) - len(between.rstrip("( \n\\"))
        begin, finish = start + kept_left, end - kept_right
        return Mutant(self._module, name, left.end_lineno or 0, begin, finish, word)

    def _change(self, name: str, first: ast.AST, last: ast.AST, replacement: str) -> Mutant:
        start, end = self._offset(first, at_end=False), self._offset(last, at_end=True)
        return Mutant(self._module, name, getattr(first, "lineno", 0), start, end, replacement)

    def _segment(self, node: ast.expr) -> str:
        return self._text[self._offset(node, at_end=False) : self._offset(node, at_end=True)]

    def _offset(self, node: ast.AST, *, at_end: bool) -> int:
        """Return where the node begins or ends, in characters; ast counts columns in bytes of UTF-8."""
        line = node.end_lineno if at_end else node.lineno  # type: ignore[attr-defined]
        column = node.end_col_offset if at_end else node.col_offset  # type: ignore[attr-defined]
        return len(self._bytes[: self._lines[line - 1] + column].decode())


def _removal(statement: ast.stmt) -> str | None:
    """Return the replacement of a removed statement; None for one that must not be removed."""
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
        return "pass"
    if isinstance(statement, ast.Raise):
        return "pass"
    if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Attribute):
        return "pass"
    if isinstance(statement, ast.Return) and not _is_falsy(statement.value):
        return "return None"
    return {ast.Break: "continue", ast.Continue: "break"}.get(type(statement))


def _is_falsy(value: ast.expr | None) -> bool:
    """Tell whether a returned value is a constant that None could replace."""
    return value is None or (isinstance(value, ast.Constant) and not value.value)


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _has_text(node: ast.BinOp) -> bool:
    sides = (node.left, node.right)
    texts = ast.Constant | ast.JoinedStr
    return any(isinstance(side, texts) and not isinstance(getattr(side, "value", None), int | float) for side in sides)


def _is_lock(items: list[ast.withitem]) -> bool:
    names = [getattr(item.context_expr, "attr", "") for item in items]
    return all(name.endswith(("lock", "_changed", "_condition")) for name in names)
