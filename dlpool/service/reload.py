"""Reload of the settings while the service runs. If a setting is invalid, nothing
changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

from dlpool.config import SECTIONS, Settings
from dlpool.config.owned_paths import check_owned_paths
from dlpool.errors import ConfigurationError
from dlpool.service.hooks.archiving import check_archive_command
from dlpool.service.hooks.runner import check_hooks

SettingsLoader = Callable[[], Settings]


def reload_settings(
    present: Settings, load: SettingsLoader
) -> tuple[Settings | None, list[str]]:
    """Load and check new settings.

    Return two values. The first is the settings to use, or None if the new settings are
    invalid. The second is a list of problems: errors, or settings that change only at a
    restart.
    """
    try:
        wanted = load()
        check_hooks(wanted.hooks)
        check_archive_command(wanted.logging)
        check_owned_paths(wanted)
        new, deferred = _merge(present, wanted)
        # a path that changes at the restart is still owned at its present place
        check_owned_paths(new)
    except ConfigurationError as error:
        return None, str(error).splitlines()
    return new, deferred


def _merge(present: Settings, wanted: Settings) -> tuple[Settings, list[str]]:
    """Return the wanted settings, and a message for each change that needs a restart.

    A setting that needs a restart keeps its present value.
    """
    new: dict[str, Any] = {}
    deferred = []
    for section in fields(Settings):
        if section.name not in SECTIONS:
            new[section.name] = getattr(wanted, section.name)
            continue
        old, loaded = getattr(present, section.name), getattr(wanted, section.name)
        kept: dict[str, Any] = {}
        for declared in fields(old):
            before, after = getattr(old, declared.name), getattr(loaded, declared.name)
            if before != after and not declared.metadata["reload"]:
                kept[declared.name] = before
                deferred.append(
                    f"[{section.name}] {declared.name} takes effect at the next start"
                )
        new[section.name] = replace(loaded, **kept)
    return Settings(**new), deferred
