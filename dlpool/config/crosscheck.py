"""Settings that are right by themselves and wrong together, by what their metadata says
of each other."""

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
    """The settings of the same section that say the same in another way."""
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
    """A problem for each contradiction; ``described`` says a setting and its place, by
    section and name."""
    problems = []
    for section, kind in SECTIONS.items():
        values = vars(getattr(settings, section))
        for declared in fields(kind):
            sentence, other = _contradiction(section, declared, values, described)
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


def _contradiction(
    section: str,
    declared: Field[Any],
    values: dict[str, Any],
    described: Callable[[str, str], str],
) -> tuple[str, str]:
    """The sentence, and the other setting that it is about; both empty if there is
    nothing to say."""
    name, value = declared.name, values[declared.name]
    if value is None:
        return "", ""
    least, other, rival = (
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
    if rival is not None and values[rival] is not None:
        return (
            f"{described(section, name)} and {described(section, rival)} are both "
            f"given: keep one of them",
            rival,
        )
    return "", ""
