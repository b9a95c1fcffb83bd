"""Settings: frozen dataclasses, one for each section of the INI file.

Read in this order: ``declaration`` (how a setting is declared), ``sections``,
``downloads``, ``observability``, ``uploads`` and ``web`` (all settings), ``sourced`` (a
value and its source), ``layers`` (which value wins), ``ini`` and ``go_config`` (files),
``crosscheck`` (conflicts), ``sample`` (the shipped INI file), ``owned_paths`` (files
that no job may touch), ``web_access`` and ``keysfile`` (keys of dlpool-web).

A new setting is a field in the class of its section: ``[transfer]``, ``[network]``,
``[downloader]``, ``[limits]`` and ``[scan]`` are in ``downloads``; ``[logging]``,
``[metrics]`` and ``[otel]`` in ``observability``; ``[upload]`` in ``uploads``,
``[web]`` in ``web``, and all other sections in ``sections``.

The metadata of each field has its kind, bounds, option and help. The command line, the
INI file, the checks and the documentation are derived from this metadata. All processes
use the package; it starts no thread.
"""

from dlpool.config.declaration import option_names, parse_setting, setting
from dlpool.config.downloads import (
    DownloaderSettings,
    LimitSettings,
    NetworkSettings,
    ScanSettings,
    TransferSettings,
)
from dlpool.config.observability import LoggingSettings, MetricsSettings, OtelSettings
from dlpool.config.sections import (
    SECTIONS,
    HookSettings,
    PathSettings,
    RedisSettings,
    Settings,
    SupervisorSettings,
)
from dlpool.config.uploads import UploadSettings
from dlpool.config.web import WebSettings

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
