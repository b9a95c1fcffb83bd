"""The settings of the log, metrics and traces."""

from __future__ import annotations

from dlpool.config.declaration import setting
from dlpool.dataclass import dataclass
from dlpool.kinds import (
    ADDRESS,
    BASE_URL,
    COMMAND,
    COUNT,
    DAY_S,
    DURATION,
    HOUR_S,
    KIB,
    LEVELS,
    LOGGER_LEVELS,
    NAME,
    RATIO,
    SIZE,
    SWITCH,
    choice,
)


@dataclass(frozen=True)
class LoggingSettings:
    """``[logging]``: the JSON log. Sizes are in bytes, times in seconds."""

    level: str = setting(choice(*LEVELS), "info", "lowest level that is logged")
    levels: str | None = setting(
        LOGGER_LEVELS,
        None,
        "levels of single loggers, such as jobs=warning, worker=debug",
    )
    log_format: str = setting(
        choice("json", "console"),
        "json",
        "json (ECS), or console for reading",
        reload=False,
    )
    traceparent: bool = setting(
        SWITCH, "no", "send the job's trace id to its origin (W3C traceparent)"
    )
    rotate_size: int = setting(
        SIZE, "100M", "size above which the log is rotated", low=64 * KIB
    )
    rotate_daily: bool = setting(SWITCH, "yes", "rotate the log at midnight UTC")
    compress_after: float = setting(
        DURATION,
        "10m",
        "age at which a rotated log is compressed; shippers can read it until then",
    )
    keep_days: int = setting(COUNT, "30", "days after which logs are deleted", low=1)
    keep_size: int = setting(
        SIZE,
        "10G",
        "total size above which the oldest logs are deleted",
        low=64 * KIB,
        not_below="rotate_size",
    )
    keep_files: int | None = setting(
        COUNT, None, "number above which the oldest logs are deleted", low=1
    )
    archive_command: str | None = setting(
        COMMAND,
        None,
        "command to run for each compressed log, with its path as last argument, to "
        "store it elsewhere",
    )
    archive_timeout: float = setting(
        DURATION,
        "10m",
        "time limit of archive_command",
        low=0.1,
        high=DAY_S,
    )
    archive_retry_delay: float = setting(
        DURATION,
        "1m",
        "delay before a failed archive_command is repeated",
        low=0.1,
        high=6 * HOUR_S,
    )
    progress_interval: float = setting(
        DURATION,
        "10s",
        "interval of a job's download_progress lines",
        low=0.1,
        high=HOUR_S,
    )


@dataclass(frozen=True)
class MetricsSettings:
    """``[metrics]``: HTTP endpoint of a supervisor for metrics and health."""

    listen: str = setting(
        ADDRESS,
        "127.0.0.1:9108",
        "address of /metrics, /livez, /readyz and /version; empty: off",
    )


@dataclass(frozen=True)
class OtelSettings:
    """``[otel]``: traces for an OpenTelemetry collector; needs the extra ``otel``."""

    endpoint: str = setting(
        BASE_URL,
        "",
        "OTLP/HTTP address of a collector, such as http://localhost:4318 (/v1/traces "
        "is appended); "
        "empty: off",
        reload=False,
    )
    service_name: str = setting(
        NAME, "dlpool", "service.name of the traces", reload=False
    )
    sample_ratio: float = setting(
        RATIO, "1", "share of jobs that are traced, chosen by trace id", reload=False
    )
