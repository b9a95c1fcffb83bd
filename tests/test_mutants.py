"""The places that ``scripts/mutate`` changes, and its list of changes that make no difference."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from scripts.mutants import mutants_of
from tests.processes import ROOT

EQUIVALENT = ROOT / "tests" / "equivalent_mutants.txt"

# What stands in a function, and what it becomes, one entry a mutant.
CHANGES = [
    ("return a < b", ["return None", "return a <= b"]),
    ("return (a) >= (b)", ["return None", "return (a) > (b)"]),
    ("return a is not b", ["return None", "return a is b"]),
    ("return a and b and c", ["return None", "return a or b and c"]),
    ("return not a", ["return None", "return (a)"]),
    ("return a + 1", ["return None", "return a - 1", "return a + 2"]),
    ("return a // b", ["return None", "return a * b"]),
    ("return b if a else c", ["return None", "return b if (not (a)) else c"]),
    ("return False", ["return True"]),
    ("return", []),
    ("return ''", []),
    ("a += b", ["a -= b"]),
    ("a.b = c", ["pass"]),
    ("a = b", []),
    ("f(a)", ["pass"]),
    ("raise ValueError(a)", ["pass"]),
    ("assert a < b", []),
    ("'a text'", []),
    ("f(f'{a + 1}')", ["pass"]),
    ("if a: b()", ["if not (a): b()", "if a: pass"]),
    ("while a: break", ["while not (a): break", "while a: continue"]),
    ("with self._lock: f()", ["with __import__('contextlib').nullcontext(): f()", "with self._lock: pass"]),
    ("return 'ä' + str(a == b)", ["return None", "return 'ä' + str(a != b)"]),
    ("x = lambda a=1: a", []),
]


@pytest.mark.parametrize(("line", "expected"), CHANGES, ids=[line for line, _ in CHANGES])
def test_each_place_of_a_function_is_changed(line: str, expected: list[str]) -> None:
    head = "def f(a, b, c=1, self=None):\n    "
    text = f"{head}{line}\n"
    changed = [mutant.applied(text).removeprefix(head).rstrip("\n") for mutant in mutants_of("m.py", text)]
    assert sorted(changed) == sorted(expected)


def test_constants_of_modules_and_representations_are_left_alone() -> None:
    text = "A = 1 + 2\nclass C:\n    B = 3\n    def __repr__(self):\n        return str(1 + 2)\n"
    assert mutants_of("m.py", text) == []


def test_a_mutant_is_named_by_its_function_and_keeps_its_name_when_other_lines_change() -> None:
    text = "class C:\n    def f(self):\n        return self.a < 1\n"
    moved = f"import os\n\n\n{text}"
    names = [[mutant.identity(one) for mutant in mutants_of("m.py", one)] for one in (text, moved)]
    assert names[0] == names[1]
    assert "m.py C.f: return self.a < 1 -> return self.a <= 1" in names[0]


@pytest.mark.parametrize("package", ["transfer", "jobs", "service", "storage"])
def test_every_mutant_of_the_package_is_python(package: str) -> None:
    number = 0
    for path in sorted((ROOT / "dlpool" / package).rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        for mutant in mutants_of(str(path), text)[::7]:
            ast.parse(mutant.applied(text))
            assert mutant.applied(text) != text
            number += 1
    assert number > 50


def test_listed_equivalents_are_of_this_code_and_have_a_reason() -> None:
    for line in EQUIVALENT.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") or not line.strip():
            continue
        identity, _, reason = line.rpartition(" | ")
        module = identity.partition(" ")[0]
        text = Path(ROOT, module).read_text(encoding="utf-8")
        assert identity in {mutant.identity(text) for mutant in mutants_of(module, text)}, f"no such mutant: {identity}"
        assert len(reason.split()) >= 4, f"no reason: {line}"
