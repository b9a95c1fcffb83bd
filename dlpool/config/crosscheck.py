"""Finds contradictions between settings that are valid on their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import Field, fields
from functools import lru_cache
from typing import Any

from dlpool.config.sections import SECTIONS, Settings
from dlpool.config.sourced import ConfigProblem
from dlpool.redaction import without_password


@lru_cache(maxsize=1024)
def mutually_exclusive(section: str, name: str) -> tuple[str, ...]:
    """Return the settings of a section that cannot be set together with ``name``."""
    pairs = (
        [(one.name, one.metadata["instead_of"]) for one in fields(SECTIONS[section])]
        if section in SECTIONS
        else []
    )
    return tuple(
        b if a == name else a for a, b in pairs if b is not None and name in (a, b)
    )


def find_conflicts(
    settings: Settings, described: Callable[[str, str], str]
) -> list[ConfigProblem]:
    """Return a problem for each contradiction between settings.

    ``described`` takes the section and the name of a setting, and returns a text for
    messages: the name, value and source of the setting.
    """
    problems = []
    for section, kind in SECTIONS.items():
        values = vars(getattr(settings, section))
        for declared in fields(kind):
            sentence, other = _conflict(section, declared, values, described)
            if sentence:
                concerned = ((section, declared.name), (section, other))
                problems.append(
                    ConfigProblem(f"[{section}] {sentence}", settings=concerned)
                )
    if (
        settings.transfer.scan
        and settings.scan.clamd is None
        and settings.scan.command is None
    ):
        sentence = (
            f"[transfer] {described('transfer', 'scan')} needs clamd or command in "
            f"[scan]"
        )
        problems.append(
            ConfigProblem(
                sentence,
                settings=(("transfer", "scan"), ("scan", "clamd"), ("scan", "command")),
            )
        )
    redis = settings.redis
    if without_password(redis.url) != redis.url and (
        redis.password or redis.password_file
    ):
        problems.append(
            ConfigProblem(
                "[redis] url holds a password, and another one is given: keep one of "
                "them",
                settings=(("redis", "url"),),
            )
        )
    return problems


def _conflict(
    section: str,
    declared: Field[Any],
    values: dict[str, Any],
    described: Callable[[str, str], str],
) -> tuple[str, str]:
    """Check a setting against the settings that its metadata names.

    The metadata keys are ``not_below``, ``needs`` and ``instead_of``. Returns two
    texts: a sentence that describes the first conflict, and the name of the other
    setting. Both are empty if there is no conflict.
    """
    name, value = declared.name, values[declared.name]
    if value is None:
        return "", ""
    least, other, excluded = (
        declared.metadata[key] for key in ("not_below", "needs", "instead_of")
    )
    if least is not None and values[least] is not None and value < values[least]:
        return (
            f"{described(section, name)} is below {described(section, least)}: raise "
            f"the one, or lower the other",
            least,
        )
    if other is not None and values[other] is None:
        return f"{described(section, name)} needs {other}: give both, or none", other
    if excluded is not None and values[excluded] is not None:
        return (
            f"{described(section, name)} and {described(section, excluded)} are both "
            f"given: keep one of them",
            excluded,
        )
    return "", ""
