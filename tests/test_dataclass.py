"""dlpool's dataclasses behave like those of the standard library."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
from collections.abc import Callable
from dataclasses import FrozenInstanceError, asdict, astuple, dataclass, field, fields, replace
from typing import Any, ClassVar

import pytest

from dlpool.dataclass import dataclass as shared

KINDS = (dataclass, shared)


def declare(make: Any, **options: bool) -> Any:
    """Return a class with each kind of field that dlpool uses."""

    @make(**options)
    class Base:
        """A class."""

        kind: ClassVar[str] = "k"
        first: int
        second: str = field(default="x", metadata={"help": "h"})

    @make(**options)
    class Derived(Base):
        """A class with a base class."""

        third: dict[str, int] = field(default_factory=dict)
        fourth: int | None = field(default=None, compare=False)
        fifth: str = field(default="secret", repr=False)
        sixth: Any = None

    return Derived


@pytest.mark.parametrize("options", [{}, {"frozen": True}, {"eq": False}], ids=str)
@pytest.mark.parametrize(
    "ask",
    [
        lambda cls: repr(cls(1)),
        lambda cls: repr(cls(1, sixth=[cls(2)])),
        lambda cls: cls(1) == cls(1, fourth=5),
        lambda cls: (cls(1) == cls(1, "y"), cls(1) == 1, cls(1) != cls(2)),
        lambda cls: cls(1).third is cls(1).third,
        lambda cls: asdict(cls(1, third={"a": 1})),
        lambda cls: astuple(cls(1)),
        lambda cls: astuple(replace(cls(1), second="z")),
        lambda cls: astuple(copy.copy(cls(7))),
        lambda cls: [(one.name, one.type, one.default, one.compare, dict(one.metadata)) for one in fields(cls)],
        lambda cls: [one.default_factory for one in fields(cls)],
        lambda cls: list(inspect.signature(cls).parameters),
        lambda cls: (cls.kind, cls.second, hasattr(cls, "third"), cls.__match_args__),
        lambda cls: (cls.__hash__ is None, cls.__init__.__qualname__),
        lambda cls: dataclasses.is_dataclass(cls(1)),
    ],
)
def test_a_class_behaves_like_one_of_the_standard_library(
    options: dict[str, bool], ask: Callable[[Any], object]
) -> None:
    expected, found = (ask(declare(make, **options)) for make in KINDS)
    assert found == expected


@pytest.mark.parametrize("make", KINDS)
def test_a_frozen_object_keeps_its_fields(make: Any) -> None:
    cls = declare(make, frozen=True)

    class Below(cls):  # type: ignore[misc, valid-type]
        """A class that is no dataclass itself."""

    one, below = cls(1), Below(1)
    for changed, name in ((one, "first"), (one, "other"), (below, "first")):
        with pytest.raises(FrozenInstanceError, match=f"cannot assign to field '{name}'"):
            setattr(changed, name, 2)
    with pytest.raises(FrozenInstanceError, match="cannot delete field 'first'"):
        del one.first
    below.other = 3
    assert (one.first, below.first, below.other) == (1, 1, 3)


@pytest.mark.parametrize("make", KINDS)
def test_a_frozen_object_has_the_hash_of_its_fields(make: Any) -> None:
    @make(frozen=True)
    class Pair:
        first: int
        second: int = field(default=0, compare=False)

    pair: Any = Pair
    assert hash(pair(1, 2)) == hash(pair(1, 3)) == hash((1,))
    assert len({pair(1), pair(1, 5), pair(2)}) == 2


@pytest.mark.parametrize("make", KINDS)
def test_methods_of_the_class_stay(make: Any) -> None:
    @make(frozen=True)
    class Own:
        first: int

        def __post_init__(self) -> None:
            object.__setattr__(self, "first", self.first + 1)

        def __repr__(self) -> str:
            return "own"

        def __eq__(self, other: object) -> bool:
            return True

        def __hash__(self) -> int:
            return 7

    own: Any = Own
    assert (own(1).first, repr(own(1)), own(1) == own(2), hash(own(1))) == (2, "own", True, 7)


@pytest.mark.parametrize("make", KINDS)
def test_wrong_arguments_and_defaults_are_errors(make: Any) -> None:
    cls = declare(make)
    for arguments in ((), (1, 2, 3, 4, 5, 6, 7)):
        with pytest.raises(TypeError):
            cls(*arguments)
    with pytest.raises(TypeError):
        cls(1, other=2)
    with pytest.raises(ValueError):

        @make
        class _Shared:
            values: list[int] = []  # noqa: RUF012


@shared(frozen=True)
class Sent:
    """A class that pickle finds."""

    first: int
    second: tuple[int, ...] = ()


def test_objects_can_be_pickled() -> None:
    assert pickle.loads(pickle.dumps(Sent(1, (2,)))) == Sent(1, (2,))


def test_an_object_that_contains_itself_has_a_representation() -> None:
    one = declare(shared)(1)
    one.sixth = one
    assert "sixth=..." in repr(one)
