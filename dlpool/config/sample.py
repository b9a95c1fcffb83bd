"""Writes the INI file with all settings and their defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, fields
from typing import Any

from dlpool.config.declaration import format_bound
from dlpool.config.downloads import LimitSettings, TransferSettings
from dlpool.config.sections import SECTIONS
from dlpool.config.uploads import is_profile_setting

_HEAD = """\
# Settings of dlpool. Each value is the default, unless its comment names another one.
# Sizes take K, M, G, T (powers of 1024); times take ms, s, m, h. Files conf.d/*.ini
# beside this file override it; variables DLPOOL_SECTION_KEY of the environment
# override both.
"""


def default_ini(instead: Mapping[str, str] | None = None) -> str:
    """Return an INI file with all settings, their bounds and defaults.

    The file is shipped as ``etc/dlpool.ini``. ``instead`` holds, by key, values that
    replace defaults.
    """
    lines = [_HEAD]
    for name, kind in SECTIONS.items():
        lines.append(f"[{name}]")
        for declared in fields(kind):
            usual = declared.metadata["text"]
            text = (
                (instead or {}).get(declared.name)
                or declared.metadata["shipped"]
                or usual
            )
            notice = f"; default: {usual}" if text != usual is not None else ""
            said = (
                f"{declared.metadata['kind'].metavar}{bounds(declared, name)}{notice}"
            )
            lines.append(f"# {declared.metadata['help']} ({said})")
            is_shown = text is not None and not is_profile_setting(name, declared.name)
            lines.append(
                f"{declared.name} = {text}"
                if is_shown
                else f"#{declared.name} = {text or ''}".rstrip()
            )
        if kind is TransferSettings:
            lines += [
                "# other settings of [transfer] for one group",
                "#[group:nightly]",
                "#max_file_size = 1G",
            ]
        if kind is LimitSettings:
            lines += [
                "# other limits for one host or host:port",
                "#[host:example.org]",
                "#max_per_host = 2",
            ]
        lines.append("")
    return "\n".join(lines)


def bounds(declared: Field[Any], section: str) -> str:
    """Return the bounds of a setting as text, such as ``, at least 1``; '' if none."""
    meta = declared.metadata
    least, most, other = meta["low"], meta["high"], meta["not_below"]
    said = [
        f"at least {least:g}" if least is not None else "",
        f"at most {format_bound(declared, most)}" if most is not None else "",
        f"not below {other}" if other else "",
        "by profile" if is_profile_setting(section, declared.name) else "",
    ]
    return "".join(f", {text}" for text in said if text)
