"""Counts the steps of parsers: those of each regular expression, calls of functions, and the composing of accents."""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest

from tests.backtracking import Counted, Meter

METERED = ("dlpool.", "email.", "http.c", "urllib.parse", "idna.", "requests.", "urllib3.util", "multipart")
_METHODS = ("match", "fullmatch", "search", "findall", "finditer", "sub", "subn", "split")


class _Metered(Counted):
    """Without the calls that counting itself makes."""

    def count(self, text: str, how: str) -> None:
        profile = sys.getprofile()
        sys.setprofile(None)
        try:
            super().count(text, how)
        finally:
            sys.setprofile(profile)


class _Re:
    """The module ``re``, whose functions count."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def __getattr__(self, name: str) -> Any:
        function = getattr(re, name)
        if name not in _METHODS:
            return function

        def counted(pattern: Any, *args: Any, flags: int = 0, **kwargs: Any) -> Any:
            if not isinstance(pattern, str | bytes):
                return getattr(pattern, name)(*args, **kwargs)
            if name in ("match", "fullmatch", "search", "findall", "finditer") and len(args) > 1:
                args, flags = args[:1], int(args[1])
            return getattr(_Metered(re.compile(pattern, flags), self._meter), name)(*args, **kwargs)

        return counted


class Metering:
    """Counts the steps of what is called within ``at_most``; made once for many calls."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.meter = Meter(0)
        for module in list(sys.modules.values()):
            if isinstance(module, ModuleType) and module.__name__.startswith(METERED):
                _meter_module(module, self.meter, patch)
        patch.setattr(unicodedata, "normalize", _normalizing(self.meter))

    @contextmanager
    def at_most(self, steps: int) -> Iterator[Meter]:
        """Within this block at most so many steps may be taken. Raises TooManySteps."""
        meter = self.meter
        meter.steps, meter.most = 0, steps
        sys.setprofile(lambda _frame, what, _arg: meter.add() if what in ("call", "c_call") else None)
        try:
            yield meter
        finally:
            sys.setprofile(None)
            meter.most = sys.maxsize


def _meter_module(module: ModuleType, meter: Meter, patch: pytest.MonkeyPatch) -> None:
    for name, value in list(vars(module).items()):
        if isinstance(value, re.Pattern):
            patch.setattr(module, name, _Metered(value, meter))
        elif value is re:
            patch.setattr(module, name, _Re(meter))


def _normalizing(meter: Meter) -> Any:
    real = unicodedata.normalize

    def normalize(form: str, text: str) -> str:
        profile = sys.getprofile()
        sys.setprofile(None)
        try:
            run = 0
            for letter in text:  # each accent may be moved before all that follow the same letter (insertion sort)
                run = run + 1 if unicodedata.combining(letter) else 0
                meter.add(1 + run)
            return real(form, text)  # type: ignore[arg-type]
        finally:
            sys.setprofile(profile)

    return normalize
