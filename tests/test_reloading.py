"""Settings that are read again: what takes effect at once, what waits for the next start, and what is refused."""

from __future__ import annotations

from dataclasses import Field, fields, replace
from typing import Any

import pytest

from dlpool.config import SECTIONS, HookSettings, LimitSettings, LoggingSettings, Settings
from dlpool.errors import ConfigurationError
from dlpool.service.reload import reload_settings

DECLARED = [(section, declared) for section, kind in SECTIONS.items() for declared in fields(kind)]
VALUE = "true"  # also a program that is there


@pytest.mark.parametrize(("section", "declared"), DECLARED, ids=[f"{one}.{field.name}" for one, field in DECLARED])
def test_each_setting_takes_effect_now_or_is_said_to_wait(section: str, declared: Field[Any]) -> None:
    present = Settings()
    wanted = replace(present, **{section: replace(getattr(present, section), **{declared.name: VALUE})})
    settings, said = reload_settings(present, lambda: wanted)
    if declared.metadata["reload"]:
        assert (settings, said) == (wanted, [])
    else:
        assert (settings, said) == (present, [f"[{section}] {declared.name} takes effect at the next start"])


def test_what_waits_keeps_nothing_else_from_taking_effect() -> None:
    present = Settings()
    wanted = replace(
        present,
        supervisor=replace(present.supervisor, lease=77.0, node_id="n", max_attempts=9),
        limits=LimitSettings(3),
        hosts={"h": LimitSettings(1)},
    )
    settings, said = reload_settings(present, lambda: wanted)
    assert settings == replace(wanted, supervisor=replace(present.supervisor, max_attempts=9))
    assert said == [f"[supervisor] {name} takes effect at the next start" for name in ("node_id", "lease")]


def test_settings_that_stay_are_nothing_to_tell_of() -> None:
    assert reload_settings(Settings(), Settings) == (Settings(), [])


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (
            Settings(hooks=HookSettings(on_success="no-such a", on_failure="/no/such b")),
            [
                "[hooks] on_success: cannot find executable program 'no-such'",
                "[hooks] on_failure: cannot find executable program '/no/such'",
            ],
        ),
        (
            Settings(logging=LoggingSettings(archive_command="no-such x")),
            ["[logging] archive_command: cannot find executable program 'no-such'"],
        ),
    ],
)
def test_a_program_that_is_not_there_refuses_all(wanted: Settings, said: list[str]) -> None:
    assert reload_settings(Settings(), lambda: replace(wanted, limits=LimitSettings(3))) == (None, said)


def test_a_file_that_cannot_be_used_refuses_all() -> None:
    def load() -> Settings:
        raise ConfigurationError("one thing\nand another")

    assert reload_settings(Settings(), load) == (None, ["one thing", "and another"])
