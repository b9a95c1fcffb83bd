"""Settings: frozen dataclasses, one field in one place.

Each field's metadata says its kind (how text becomes a value), its bounds, whether a
reload may change it, its option and its help; the command line, the INI file, their
checks and their documentation are derived from it.
"""

from dlpool.config.declaration import option_names, parse_setting, setting
from dlpool.config.sections import (
    SECTIONS,
    DownloaderSettings,
    HookSettings,
    LimitSettings,
    LoggingSettings,
    MetricsSettings,
    NetworkSettings,
    OtelSettings,
    PathSettings,
    RedisSettings,
    ScanSettings,
    Settings,
    SupervisorSettings,
    TransferSettings,
)
from dlpool.config.web import UploadSettings, WebSettings

__all__ = [
    "SECTIONS",
    "DownloaderSettings",
    "HookSettings",
    "LimitSettings",
    "LoggingSettings",
    "MetricsSettings",
    "NetworkSettings",
    "OtelSettings",
    "PathSettings",
    "RedisSettings",
    "ScanSettings",
    "Settings",
    "SupervisorSettings",
    "TransferSettings",
    "UploadSettings",
    "WebSettings",
    "option_names",
    "parse_setting",
    "setting",
]
