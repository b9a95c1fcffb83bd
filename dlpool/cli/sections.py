"""All sections of an INI file: those of the service, and those of the HTTP side, which the service knows nothing of."""

from __future__ import annotations

from collections.abc import Mapping

from dlpool import config
from dlpool.web import settings as web
from dlpool.web.settings import PRESET, PROFILES

SECTIONS: dict[str, type] = {**config.SECTIONS, **web.SECTIONS}


def preset(section: str, name: str) -> bool:
    """Whether the default of a setting depends on the profile."""
    return section == "upload" and name in PRESET


def presets(profile: str) -> Mapping[str, str]:
    """What a profile says, by the names of ``[upload]``."""
    return PROFILES[profile]
