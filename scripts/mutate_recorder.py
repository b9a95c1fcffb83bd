"""Records which functions of dlpool the tests and their child processes call, for ``scripts/mutate``.

A copy of the modules is instrumented: each function begins with a call of ``called``. It writes one line for the first
call of each function in each test, at once, because many processes end by SIGKILL or ``os._exit``; the file is
closed in between, because some tests count descriptors.
"""

from __future__ import annotations

import ast
import os
from contextlib import suppress

from scripts.mutants import functions_of

_path = os.environ.get("DLPOOL_CALLS", "")
_test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" (")[0]  # of a process that a test has started
_seen: set[str] = set()


def start_test(test: str) -> None:
    """Record the calls in this process under the name ``test`` from now on."""
    global _test
    _test = test
    _seen.clear()


def called(function: str) -> None:
    """Record a call. Thread-safe: one call may be recorded twice."""
    if function in _seen or not _test:
        return
    _seen.add(function)
    with suppress(OSError):  # the test has no descriptor left, or a limit of file sizes
        file = os.open(_path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        os.write(file, f"{_test}\t{function}\n".encode())
        os.close(file)


def instrumented(module: str, text: str) -> str:
    """Return the module's text with a call of ``called`` in each function. Pure."""
    tree = ast.parse(text)
    for name, function in functions_of(tree):
        start = 1 if ast.get_docstring(function, clean=False) is not None else 0
        function.body[start:start] = ast.parse(f"_called({module + ' ' + name!r})").body
    names = [node.module if isinstance(node, ast.ImportFrom) else "" for node in tree.body]
    start = names.index("__future__") + 1 if "__future__" in names else 0
    tree.body[start:start] = ast.parse("from scripts.mutate_recorder import called as _called").body
    return ast.unparse(tree)
