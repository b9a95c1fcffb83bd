"""``dataclass`` with shared methods, which makes the programs start faster.

The standard library compiles six methods for each class. For the classes that a
download uses this takes longer than the download of a small file. Here only
``__init__`` is compiled; the other methods are the same functions for all classes. The
classes behave like those of the standard library, whose ``field``, ``fields``,
``replace`` and ``asdict`` accept them. Type checkers see the standard decorator.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import MISSING, Field, FrozenInstanceError
from inspect import get_annotations
from operator import attrgetter
from reprlib import recursive_repr
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
else:

    def dataclass(
        cls: type | None = None, /, *, frozen: bool = False, eq: bool = True
    ) -> Any:
        """Make a class a dataclass, as ``dataclasses.dataclass`` does.

        ``InitVar``, ``order`` and keyword-only fields are not supported.
        """
        if cls is None:
            return lambda cls: _process(cls, is_frozen=frozen, has_eq=eq)
        return _process(cls, is_frozen=frozen, has_eq=eq)


_FACTORY = object()  # stands for an argument that the default factory makes


def _process(cls: type, *, is_frozen: bool, has_eq: bool) -> type:
    declared = _fields(cls)
    made: Any = cls
    made.__dataclass_fields__ = declared
    made.__dataclass_params__ = SimpleNamespace(
        init=True, repr=True, eq=has_eq, order=False, frozen=is_frozen
    )
    names = tuple(declared)
    _add(cls, "__init__", _init(cls, declared.values(), is_frozen=is_frozen))
    _add(cls, "__match_args__", names)
    if "__repr__" not in cls.__dict__:
        made.__repr__ = _repr
    if is_frozen:
        _freeze(made, frozenset(names))
    if has_eq:
        _compare(made, [one.name for one in declared.values() if one.compare])
    return cls


def _add(cls: type, name: str, value: object) -> None:
    """Set an attribute of a class unless the class defines it itself."""
    if name not in cls.__dict__:
        setattr(cls, name, value)


def _fields(cls: type) -> dict[str, Field[Any]]:
    """Return the fields of a class by name, those of its base classes first.

    In the class, replaces each ``field()`` by its default. Removes each ``field()``
    without a default.
    """
    found: dict[str, Field[Any]] = {}
    for base in cls.__mro__[-1:0:-1]:
        found |= getattr(base, "__dataclass_fields__", {})
    for name, kind in get_annotations(cls).items():
        if str(kind).startswith(("ClassVar", "typing.ClassVar")):
            continue
        default = cls.__dict__.get(name, MISSING)
        own: Any = default if isinstance(default, Field) else None
        if own is None:
            own = dataclasses.field(default=default)
        elif own.default is not MISSING:
            setattr(cls, name, own.default)
        else:
            delattr(cls, name)
        if type(own.default).__hash__ is None:
            raise ValueError(f"{name}: instances would share its default")
        own.name, own.type = name, kind
        own._field_type, own.kw_only = dataclasses._FIELD, False  # type: ignore[attr-defined]
        found[name] = own
    return found


def _init(
    cls: type, declared: Iterable[Field[Any]], *, is_frozen: bool
) -> Callable[..., None]:
    """Compile the ``__init__`` of a class; fields with a default must come last."""
    scope: dict[str, Any] = {"_FACTORY": _FACTORY, "_put": object.__setattr__}
    parameters, lines = ["self"], []
    annotations: dict[str, Any] = {}
    for one in declared:
        name, value, default = one.name, one.name, f"_default_{one.name}"
        annotations[name] = one.type
        if one.default_factory is not MISSING:
            scope[default] = one.default_factory
            parameters.append(f"{name}=_FACTORY")
            value = f"{default}() if {name} is _FACTORY else {name}"
        elif one.default is not MISSING:
            scope[default] = one.default
            parameters.append(f"{name}={default}")
        else:
            parameters.append(name)
        lines.append(
            f"_put(self, {name!r}, {value})" if is_frozen else f"self.{name} = {value}"
        )
    if hasattr(cls, "__post_init__"):
        lines.append("self.__post_init__()")
    body = "\n ".join(lines or ["pass"])
    exec(f"def __init__({', '.join(parameters)}):\n {body}", scope)
    made: Any = scope["__init__"]
    made.__qualname__ = f"{cls.__qualname__}.__init__"
    made.__module__ = cls.__module__
    made.__annotations__ = annotations | {"return": None}
    return made  # type: ignore[no-any-return]


@recursive_repr()
def _repr(self: Any) -> str:
    shown = ", ".join(
        f"{one.name}={getattr(self, one.name)!r}"
        for one in self.__dataclass_fields__.values()
        if one.repr
    )
    return f"{type(self).__qualname__}({shown})"


def _freeze(cls: Any, names: frozenset[str]) -> None:
    """Let a class refuse changes of its fields."""

    def set_attribute(self: Any, name: str, value: object) -> None:
        if type(self) is cls or name in names:
            raise FrozenInstanceError(f"cannot assign to field {name!r}")
        super(cls, self).__setattr__(name, value)

    def delete_attribute(self: Any, name: str) -> None:
        if type(self) is cls or name in names:
            raise FrozenInstanceError(f"cannot delete field {name!r}")
        super(cls, self).__delattr__(name)

    cls.__setattr__, cls.__delattr__ = set_attribute, delete_attribute


def _compare(cls: Any, names: list[str]) -> None:
    """Let instances of a class be equal if the fields ``names`` are equal.

    Instances of a frozen class are hashed by these fields; others have no hash. A
    method that the class defines itself is kept.
    """
    values = _getter(names)

    def is_equal(self: Any, other: object) -> Any:
        if other.__class__ is not self.__class__:
            return NotImplemented
        return values(self) == values(other)

    def hash_fields(self: Any) -> int:
        return hash(values(self))

    _add(cls, "__eq__", is_equal)
    is_frozen = cls.__dataclass_params__.frozen
    if cls.__dict__.get("__hash__") is None:
        cls.__hash__ = hash_fields if is_frozen else None


def _getter(names: list[str]) -> Callable[[Any], tuple[Any, ...]]:
    """Return a function that returns the values of attributes as a tuple."""
    if len(names) > 1:
        return attrgetter(*names)
    return lambda value: tuple(getattr(value, name) for name in names)
