"""Declares a setting: a dataclass field with its kind, bounds, option and help.

To add a setting, add a field to the class of its section; the docstring of
``dlpool.config`` names the module of each section. Options, the INI file, its checks
and the documentation follow from the field's metadata.
"""

from __future__ import annotations

from dataclasses import Field, field
from typing import Any

from dlpool.kinds import DURATION, Kind, duration_text, unit_hint


def setting(
    kind: Kind,
    default: str | None,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    short: str | None = None,
    reload: bool = True,
    shipped: str | None = None,
    is_secret: bool = False,
    not_below: str | None = None,
    needs: str | None = None,
    instead_of: str | None = None,
    service: str | None = None,
) -> Any:
    """Return the dataclass field of a setting.

    ``default`` is written as in an INI file; None means unset. ``low`` and ``high`` are
    the bounds of a number. ``short`` is a short command-line option, such as ``-c``.
    ``reload`` tells whether a running service applies a changed value. ``service`` is
    the default of the service; None means ``default``. ``shipped`` is the value in the
    shipped INI file; None means the default of the service. The value of a setting with
    ``is_secret`` is never shown.

    Three parameters name another setting of the section. ``not_below`` names the
    setting whose value is the lower bound. ``needs`` names a setting that must be set
    if this setting is set. ``instead_of`` names a setting that must not be set together
    with this setting.
    """
    value = None if default is None else kind.parse(default)
    meta = {
        "kind": kind,
        "text": default,
        "help": help,
        "low": low,
        "high": high,
        "short": short,
        "reload": reload,
        "shipped": shipped or service,
        "service": service,
        "is_secret": is_secret,
        "not_below": not_below,
        "needs": needs,
        "instead_of": instead_of,
    }
    return field(default=value, metadata=meta)


def parse_setting(declared: Field[Any], text: str) -> Any:
    """Parse the text of a setting; an empty text unsets a setting without a default.

    Raises ValueError with a message that continues "NAME = '...': it is ...".
    """
    if text == "" and declared.default is None:
        return None
    value = declared.metadata["kind"].parse(text)
    low, high = declared.metadata["low"], declared.metadata["high"]
    if isinstance(value, str):  # only numbers have bounds
        return value
    if low is not None and value < low:
        raise ValueError(f"below {low:g}")
    if high is not None and value > high:
        hint = unit_hint(text) if declared.metadata["kind"] is DURATION else ""
        raise ValueError(f"above {format_bound(declared, high)}{hint}")
    return value


def format_bound(declared: Field[Any], amount: float) -> str:
    """Return a bound of a setting as text; a bound of a duration has a unit."""
    return (
        duration_text(amount)
        if declared.metadata["kind"] is DURATION
        else f"{amount:g}"
    )


def option_names(declared: Field[Any]) -> list[str]:
    """Return the command-line options of a setting.

    The options are the short option, if the setting has one, and ``--NAME``. A switch
    that is on by default has ``--no-NAME`` instead of ``--NAME``.
    """
    name = declared.name.replace("_", "-")
    long = f"--no-{name}" if declared.default is True else f"--{name}"
    short = declared.metadata["short"]
    return [short, long] if short else [long]
