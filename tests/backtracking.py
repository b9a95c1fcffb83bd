"""What a backtracking matcher does with a pattern: where it may need more than linear time, how many steps it takes.

The lint builds the position automaton of a pattern (Glushkov) and looks for ambiguity in it, which is where a matcher
that backtracks tries the same text in several ways: Weideman et al., "Analyzing Matching Time Behavior of Backtracking
Regular Expression Matchers by Using Ambiguity of NFA" (CIAA 2016). The meter runs a pattern as ``re`` does, and counts.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from importlib import import_module
from typing import Any

_parser: Any = import_module("re._parser" if sys.version_info >= (3, 11) else "sre_parse")
_END = "end of text"  # a letter of the alphabet, which only ``$`` and ``\\Z`` read
_IGNORECASE, _MULTILINE, _DOTALL = int(re.IGNORECASE), int(re.MULTILINE), int(re.DOTALL)
_ALPHABET = frozenset(map(chr, range(0x80))) | set(
    "\x85\xa0\xb5\xe9\u03bc\u0301\u2028\u202e\u2066\u3000\ud800\U0001f600"
)
BOUNDED = 64  # a repeat of at most so many is no loop: it costs a constant factor
_CATEGORIES: dict[str, Callable[[str], bool]] = {
    "DIGIT": str.isdecimal,
    "SPACE": str.isspace,
    "WORD": lambda one: one.isalnum() or one == "_",
}

Chars = frozenset[str]
Test = Callable[[str], bool]


@dataclass(frozen=True)
class One:
    """One character."""

    test: Test

    @property
    def chars(self) -> Chars:
        """Those of the alphabet that it can be."""
        return frozenset(filter(self.test, _ALPHABET))


@dataclass(frozen=True)
class Repeat:
    """``body`` from ``least`` to ``most`` times; ``most`` is None for any number."""

    body: list[Any]
    least: int
    most: int | None
    is_lazy: bool = False


@dataclass(frozen=True)
class Branch:
    """One of several."""

    bodies: list[list[Any]]


@dataclass(frozen=True)
class Look:
    """An assertion about the text before or behind."""

    body: list[Any]
    is_not: bool
    is_behind: bool


@dataclass(frozen=True)
class At:
    """An anchor: AT_BEGINNING, AT_END, AT_BOUNDARY and so on."""

    where: str


def parsed(pattern: str | bytes, flags: int = 0) -> list[Any]:
    """Return the elements of a pattern."""
    tree = _parser.parse(pattern, flags)
    return _elements(tree, int(tree.state.flags))


def _elements(tree: Any, flags: int) -> list[Any]:
    found: list[Any] = []
    for op, value in tree:
        found += _element(str(op), value, flags)
    return found


def _element(op: str, value: Any, flags: int) -> list[Any]:
    if op == "SUBPATTERN":
        _, added, removed, body = value
        return _elements(body, (flags | added) & ~removed)
    if op in ("MAX_REPEAT", "MIN_REPEAT"):
        least, most, body = value
        is_loop = most is _parser.MAXREPEAT
        return [Repeat(_elements(body, flags), int(least), None if is_loop else int(most), op == "MIN_REPEAT")]
    if op == "BRANCH":
        return [Branch([_elements(body, flags) for body in value[1]])]
    if op in ("ASSERT", "ASSERT_NOT"):
        return [Look(_elements(value[1], flags), op == "ASSERT_NOT", value[0] < 0)]
    if op == "AT":
        where = str(value)
        return [At(f"{where}_LINE" if flags & _MULTILINE and where in ("AT_BEGINNING", "AT_END") else where)]
    return [One(_test(op, value, flags))]


def _test(op: str, value: Any, flags: int) -> Test:
    """Return whether a character matches. Raises NotImplementedError for what is not of one character."""
    if op == "ANY":
        return (lambda _: True) if flags & _DOTALL else (lambda one: one != "\n")
    if op == "CATEGORY":
        negated, name = "_NOT_" in str(value), str(value).rsplit("_", 1)[1]
        return lambda one: _CATEGORIES[name](one) != negated
    if op == "RANGE":
        return lambda one: any(value[0] <= ord(case) <= value[1] for case in _cases(one, flags))
    if op in ("LITERAL", "NOT_LITERAL"):
        return lambda one: (chr(value) in _cases(one, flags)) == (op == "LITERAL")
    if op != "IN":
        raise NotImplementedError(op)
    tests = [_test(str(kind), one, flags) for kind, one in value if str(kind) != "NEGATE"]
    negated = str(value[0][0]) == "NEGATE"
    return lambda one: any(test(one) for test in tests) != negated


def _cases(one: str, flags: int) -> tuple[str, ...]:
    return (one, *one.lower()[:1], *one.upper()[:1]) if flags & _IGNORECASE else (one,)


# --- the lint ---------------------------------------------------------------------------------------------------------


@dataclass
class _Automaton:
    """Positions with the characters that each reads, and which may follow which."""

    chars: list[Chars] = field(default_factory=list)
    follow: dict[int, set[int]] = field(default_factory=dict)
    twice: bool = False  # two loops lead from one position to another: nested quantifiers

    def one(self, chars: Chars) -> int:
        self.follow[len(self.chars)] = set()
        self.chars.append(chars)
        return len(self.chars) - 1

    def sequence(self, elements: list[Any]) -> tuple[set[int], set[int], bool]:
        """Add the elements: the positions that come first and last, and whether all may be left out."""
        first, last, is_empty = set[int](), set[int](), True
        for element in elements:
            begin, end, may_skip = self.add(element)
            self.connect(last, begin)
            first |= begin if is_empty else set()
            last = end | (last if may_skip else set())
            is_empty = is_empty and may_skip
        return first, last, is_empty

    def add(self, element: Any) -> tuple[set[int], set[int], bool]:
        if isinstance(element, One):
            here = {self.one(element.chars)}
            return here, here, False
        if isinstance(element, Branch):
            parts = [self.sequence(body) for body in element.bodies]
            return (
                set().union(*(one[0] for one in parts)),
                set().union(*(one[1] for one in parts)),
                any(one[2] for one in parts),
            )
        if isinstance(element, Repeat):
            return self.repeat(element)
        if isinstance(element, Look) and not element.is_not and not element.is_behind:
            return self.sequence(element.body)
        where = element.where if isinstance(element, At) else ""
        if where.startswith("AT_END"):
            here = {self.one(frozenset({_END, "\n"} if where.endswith("LINE") else {_END}))}
            return here, here, False
        return set(), set(), True

    def repeat(self, element: Repeat) -> tuple[set[int], set[int], bool]:
        if element.most is not None and element.most <= BOUNDED:
            least, most = min(element.least, 2), min(element.most, 2)
            optional = [Repeat(element.body, 0, 1)] * (most - least)
            if (element.least, element.most) != (0, 1):
                return self.sequence(element.body * least + optional)
            first, last, _ = self.sequence(element.body)
            return first, last, True
        first, last, is_empty = self.sequence(element.body)
        self.twice = self.twice or any(after in self.follow[before] for before in last for after in first)
        self.connect(last, first)
        return first, last, is_empty or element.least == 0

    def connect(self, before: set[int], after: set[int]) -> None:
        for one in before:
            self.follow[one] |= after

    @cached_property
    def _masks(self) -> list[int]:
        """For each position a bit for each kind of character that it reads; one kind is alike at all positions."""
        kinds = {tuple(letter in chars for chars in self.chars) for letter in _ALPHABET | {_END}}
        numbered = list(enumerate(kinds))
        return [sum(1 << number for number, kind in numbered if kind[one]) for one in range(len(self.chars))]

    def moves(self, state: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        """The states that several walks can be in after they have read one and the same character."""
        walks: list[tuple[tuple[int, ...], int]] = [((), -1)]
        for one in state:
            walks = [
                ((*done, after), both)
                for done, mask in walks
                for after in self.follow[one]
                if (both := mask & self._masks[after])
            ]
        yield from (done for done, _ in walks)

    def reaches(self, begin: tuple[int, ...], end: tuple[int, ...]) -> bool:
        """Whether walks from ``begin`` come to ``end``, having read the same text of at least a character."""
        seen: set[tuple[int, ...]] = set()
        pending = [begin]
        while pending:
            for after in self.moves(pending.pop()):
                if after == end:
                    return True
                if after not in seen:
                    seen.add(after)
                    pending.append(after)
        return False


def fault(pattern: str | bytes, flags: int = 0, how: str = "search") -> str | None:
    """Why matching may take more than linear time, None if it never does. ``how``: the method, as ``fullmatch``."""
    elements = parsed(pattern, flags)
    inner = [one.body for one in _all(elements) if isinstance(one, Look)]
    return next(filter(None, (_fault(one, how if one is elements else "match") for one in (elements, *inner))), None)


def _all(elements: list[Any]) -> Iterator[Any]:
    for one in elements:
        yield one
        if isinstance(one, Repeat | Look):
            yield from _all(one.body)
        elif isinstance(one, Branch):
            for body in one.bodies:
                yield from _all(body)


def _fault(elements: list[Any], how: str) -> str | None:
    automaton = _Automaton()
    begin = automaton.one(frozenset())
    automaton.connect({begin}, {begin})
    first, last, _ = automaton.sequence(elements)
    where = elements[0].where if elements and isinstance(elements[0], At) else ""
    if where == "AT_BEGINNING_LINE":
        line_end = automaton.one(frozenset("\n"))
        automaton.connect({line_end}, first)
        first = {line_end}
    automaton.connect({begin}, first)
    is_searched = how not in ("match", "fullmatch") and where != "AT_BEGINNING"
    automaton.chars[begin] = _ALPHABET if is_searched else frozenset()
    if automaton.twice:
        return "nested quantifiers"
    loops = [one for one in automaton.follow if automaton.reaches((one,), (one,))]
    for one in loops:
        for other in loops:
            # Behind a match nothing fails; a loop over all characters never does.
            ends = other in last and (how != "fullmatch" or automaton.chars[other] >= _ALPHABET)
            if one != other and not ends and automaton.reaches((one, one, other), (one, other, other)):
                return "overlapping quantifiers" if one != begin else "a quantifier that begins anywhere"
    if any(_is_ambiguous(automaton, one) for one in loops):
        return "alternatives that overlap in a loop"
    return None


def _is_ambiguous(automaton: _Automaton, one: int) -> bool:
    """Whether two different walks lead from a position back to itself over one text."""
    pairs = {after for after in automaton.moves((one, one)) if after[0] != after[1]}
    pairs |= {
        after for same in automaton.follow[one] for after in automaton.moves((same, same)) if after[0] != after[1]
    }
    return any(automaton.reaches(pair, (one, one)) for pair in pairs)


# --- the meter --------------------------------------------------------------------------------------------------------


class TooManySteps(AssertionError):
    """A matcher has taken more steps than it may."""


@dataclass
class Meter:
    """Counts steps up to ``most``."""

    most: int
    steps: int = 0

    def add(self, steps: int = 1) -> None:
        """Raise TooManySteps beyond the bound."""
        self.steps += steps
        if self.steps > self.most:
            raise TooManySteps(f"more than {self.most} steps")


class Counted:
    """A compiled pattern whose methods count the steps of their matching."""

    def __init__(self, pattern: re.Pattern[Any], meter: Meter) -> None:
        self._real = pattern
        self._meter = meter

    @cached_property
    def _code(self) -> list[tuple[Any, ...]]:
        return _code(self._real.pattern, self._real.flags)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._real, name)
        if name not in ("match", "fullmatch", "search", "findall", "finditer", "sub", "subn", "split"):
            return found

        def counted(*args: Any, **kwargs: Any) -> Any:
            text = args[1] if name in ("sub", "subn") else args[0]
            self.count(bytes(text).decode("latin-1") if not isinstance(text, str) else text, name)
            return found(*args, **kwargs)

        return counted

    def count(self, text: str, how: str) -> None:
        """Count what the method does with ``text``."""
        at = 0
        while at <= len(text):
            if how not in ("match", "fullmatch"):
                self._meter.add(-at + (at := _next_begin(self._code[0], text, at)))
            end = _matched(self._code, text, at, self._meter, is_full=how == "fullmatch")
            if how in ("match", "fullmatch") or (how == "search" and end is not None):
                return
            at = max(at + 1, end or 0)


def _code(pattern: Any, flags: int) -> list[tuple[Any, ...]]:
    code: list[tuple[Any, ...]] = []
    _compile(parsed(pattern, flags), code)
    return [*code, ("done",)]


def _compile(elements: list[Any], code: list[tuple[Any, ...]]) -> None:
    for one in elements:
        if isinstance(one, One):
            code.append(("one", lru_cache(None)(one.test)))
        elif isinstance(one, Branch):
            _compile_branch(one, code)
        elif isinstance(one, Repeat):
            _compile_repeat(one, code)
        elif isinstance(one, Look):
            inner: list[tuple[Any, ...]] = []
            _compile(one.body, inner)
            code.append(("look", [*inner, ("done",)], one))
        else:
            code.append(("at", one.where))


def _compile_branch(branch: Branch, code: list[tuple[Any, ...]]) -> None:
    exits: list[int] = []
    for number, body in enumerate(branch.bodies, 1):
        fork = len(code)
        code.append(())
        _compile(body, code)
        exits.append(len(code))
        code.append(())
        code[fork] = ("fork", fork + 1, len(code)) if number < len(branch.bodies) else ("jump", fork + 1)
    for exit_ in exits:
        code[exit_] = ("jump", len(code))


def _compile_repeat(repeat: Repeat, code: list[tuple[Any, ...]]) -> None:
    if len(repeat.body) == 1 and isinstance(repeat.body[0], One):
        code.append(("run", lru_cache(None)(repeat.body[0].test), repeat.least, repeat.most, repeat.is_lazy))
        return
    for _ in range(repeat.least):
        _compile(repeat.body, code)
    for _ in range(1 if repeat.most is None else repeat.most - repeat.least):
        fork = len(code)
        code.append(())
        _compile(repeat.body, code)
        if repeat.most is None:
            code.append(("jump", fork))
        ways = (fork + 1, len(code))
        code[fork] = ("fork", *(reversed(ways) if repeat.is_lazy else ways))


def _next_begin(op: tuple[Any, ...], text: str, at: int) -> int:
    """Where a match may begin, from ``at`` on, by what it begins with; the end of the text if nowhere."""
    if op[0] == "one":
        return next((place for place in range(at, len(text)) if op[1](text[place])), len(text))
    if op == ("at", "AT_BEGINNING_LINE") and at:
        found = text.find("\n", at - 1)
        return len(text) if found < 0 else found + 1
    return len(text) if op[0] == "at" and op[1].startswith("AT_BEGINNING") and at else at


def _matched(code: list[tuple[Any, ...]], text: str, at: int, meter: Meter, *, is_full: bool) -> int | None:
    """Where a match that begins at ``at`` ends; None if there is none."""
    pending: list[tuple[int, int, int]] = [
        (0, at, -1)
    ]  # a place in the code, one in the text, how far a run may shrink
    while pending:
        place, at, least = pending.pop()
        if least >= 0 and at > least:
            pending.append((place, at - 1, least))
        while True:
            meter.add()
            op = code[place]
            if op[0] == "done":
                if not is_full or at == len(text):
                    return at
                break
            following = _step(op, place, text, at, meter, pending)
            if following is None:
                break
            place, at = following
    return None


def _step(
    op: tuple[Any, ...], place: int, text: str, at: int, meter: Meter, pending: list[tuple[int, int, int]]
) -> tuple[int, int] | None:
    """Where to continue, None if this way fails."""
    if op[0] == "one":
        return (place + 1, at + 1) if at < len(text) and op[1](text[at]) else None
    if op[0] == "jump":
        return op[1], at
    if op[0] == "fork":
        pending.append((op[2], at, -1))
        return op[1], at
    if op[0] == "run":
        most = len(text) if op[3] is None else min(len(text), at + op[3])
        end = at
        while end < most and op[1](text[end]):
            end += 1
        meter.add(end - at)
        if end - at < op[2]:
            return None
        if op[4]:  # a lazy run tries each length; here all are counted, from the shortest
            pending.extend((place + 1, stop, -1) for stop in range(end, at + op[2], -1))
            return place + 1, at + op[2]
        if end > at + op[2]:
            pending.append((place + 1, end - 1, at + op[2]))
        return place + 1, end
    is_met = _looks(op, text, at, meter) if op[0] == "look" else _is_at(op[1], text, at)
    return (place + 1, at) if is_met else None


def _looks(op: tuple[Any, ...], text: str, at: int, meter: Meter) -> bool:
    look: Look = op[2]
    begin = at - 1 if look.is_behind else at  # those behind are of one character here
    found = begin >= 0 and _matched(op[1], text, begin, meter, is_full=False) is not None
    return found != look.is_not


def _is_at(where: str, text: str, at: int) -> bool:
    if where.startswith("AT_BEGINNING"):
        return at == 0 or (where.endswith("LINE") and text[at - 1] == "\n")
    if where.startswith("AT_END"):
        return at == len(text) or (where != "AT_END_STRING" and text[at] == "\n")
    return True
