"""Settings read anew while the service runs: all or nothing."""

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
    """The new settings, None if they cannot be used; and what is wrong, or waits for a
    restart."""
    try:
        wanted = load()
        check_hooks(wanted.hooks)
        check_archive_command(wanted.logging)
        check_owned_paths(wanted)
        new, waiting = _mixed(present, wanted)
        check_owned_paths(new)  # what waits for a restart is still owned where it is
    except ConfigurationError as error:
        return None, str(error).splitlines()
    return new, waiting


def _mixed(present: Settings, wanted: Settings) -> tuple[Settings, list[str]]:
    """Return the wanted settings as far as a reload may change them, and what waits for
    a restart."""
    new: dict[str, Any] = {}
    waiting = []
    for section in fields(Settings):
        if section.name not in SECTIONS:
            new[section.name] = getattr(wanted, section.name)
            continue
        old, given = getattr(present, section.name), getattr(wanted, section.name)
        kept: dict[str, Any] = {}
        for declared in fields(old):
            before, after = getattr(old, declared.name), getattr(given, declared.name)
            if before != after and not declared.metadata["reload"]:
                kept[declared.name] = before
                waiting.append(
                    f"[{section.name}] {declared.name} takes effect at the next start"
                )
        new[section.name] = replace(given, **kept)
    return Settings(**new), waiting
