"""The sections of the INI file, and the settings that have no module of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field

from dlpool.config.declaration import setting
from dlpool.config.downloads import (
    DownloaderSettings,
    LimitSettings,
    NetworkSettings,
    ScanSettings,
    TransferSettings,
)
from dlpool.config.observability import LoggingSettings, MetricsSettings, OtelSettings
from dlpool.config.uploads import UploadSettings
from dlpool.config.web import WebSettings
from dlpool.dataclass import dataclass
from dlpool.kinds import (
    COMMAND,
    COUNT,
    COUNT_OR_AUTO,
    DAY_S,
    DURATION,
    GROUP,
    HOUR_S,
    KIB,
    LOOPBACK,
    NAME,
    PATH,
    RATE,
    RATIO,
    SIZE,
    TEXT,
    UMASK,
    choice,
)


@dataclass(frozen=True)
class RedisSettings:
    """``[redis]``: connection to the queue's Redis."""

    url: str = setting(
        TEXT,
        "redis://localhost:6379",
        "URL of the server (redis://, rediss://, unix://, redis+sentinel://, "
        "redis+cluster://); "
        "embedded: a private server; auto: the Redis at embedded_listen if one answers "
        "there, else a "
        "private server",
        reload=False,
        shipped="auto",
    )
    embedded_listen: str = setting(
        LOOPBACK,
        "127.0.0.1:6379",
        "address at which the private server accepts clients of this machine, if it is "
        "free; empty: only "
        "the Unix socket",
        reload=False,
    )
    username: str | None = setting(TEXT, None, "ACL user", reload=False)
    password: str | None = setting(
        TEXT, None, "password; password_file is safer", reload=False, is_secret=True
    )
    password_file: str | None = setting(
        PATH,
        None,
        "file with the password",
        reload=False,
        instead_of="password",
    )
    tls_cacert: str | None = setting(
        PATH,
        None,
        "CA certificates for rediss:// (default: the system's)",
        reload=False,
    )
    tls_cert: str | None = setting(
        PATH, None, "client certificate for rediss://, PEM", reload=False
    )
    tls_key: str | None = setting(
        PATH, None, "key of the client certificate, PEM", reload=False, needs="tls_cert"
    )
    sentinel_username: str | None = setting(
        TEXT, None, "ACL user of the Sentinels", reload=False
    )
    sentinel_password: str | None = setting(
        TEXT,
        None,
        "password of the Sentinels; sentinel_password_file is safer",
        reload=False,
        is_secret=True,
    )
    sentinel_password_file: str | None = setting(
        PATH,
        None,
        "file with the password of the Sentinels",
        reload=False,
        instead_of="sentinel_password",
    )
    group: str | None = setting(
        GROUP,
        None,
        "name of a separate queue, with the list GROUP:go_download_urls",
        reload=False,
    )
    order: str = setting(
        choice("fifo", "lifo"),
        "fifo",
        "order in which jobs are taken: first in first out, or last in first out",
    )
    audit_events: int = setting(
        COUNT,
        "50000",
        "approximate number of audit events to keep in Redis",
        low=100,
        high=1_000_000,
        reload=False,
    )


@dataclass(frozen=True)
class SupervisorSettings:
    """``[supervisor]``: jobs and workers of a node.

    Times are in seconds, sizes in bytes.
    """

    node_id: str | None = setting(
        NAME,
        None,
        "name of this node (default: generated once, kept in state_dir)",
        reload=False,
    )
    max_concurrent_downloads: int | str = setting(
        COUNT_OR_AUTO,
        "5",
        "jobs at once on this node; auto: adapts to the throughput",
        low=1,
        high=1024,
        reload=False,
    )
    max_slots: int = setting(
        COUNT,
        "64",
        "maximum of jobs at once with max_concurrent_downloads = auto",
        low=1,
        high=1024,
        reload=False,
    )
    host_share: float = setting(
        RATIO,
        "0.5",
        "share of the slots that one origin host may use while jobs of other hosts "
        "wait, at least one "
        "slot; 1: no limit",
    )
    yield_after: float = setting(
        DURATION,
        "5s",
        "time after which a slow job yields its slot to waiting jobs; doubles with "
        "each yield; 0: never",
        high=HOUR_S,
    )
    slow_rate: int = setting(
        RATE,
        "8K",
        "bytes per second below which a job is slow, however fast other jobs are",
    )
    min_free: int | None = setting(
        SIZE,
        None,
        "free space on each disk of targets below which no job starts (default: 1G, or "
        "a twentieth of a "
        "smaller disk)",
    )
    workers: int | None = setting(
        COUNT,
        None,
        "worker processes (default: one per core, at most one per job)",
        low=1,
        high=256,
        reload=False,
    )
    node_rate: int | None = setting(
        RATE,
        None,
        "bandwidth limit of all jobs of this node together, in bytes per second",
        low=64 * KIB,
    )
    drain_timeout: float = setting(
        DURATION, "30s", "time for running jobs to finish after SIGTERM"
    )
    lease: float = setting(
        DURATION,
        "30s",
        "time after which the leases of a silent supervisor expire",
        low=1,
        reload=False,
        high=HOUR_S,
    )
    grace: float = setting(
        DURATION,
        "15s",
        "time after that until other supervisors take its jobs",
        low=1,
        reload=False,
        high=HOUR_S,
    )
    max_attempts: int = setting(
        COUNT, "5", "runs of a job, each with its own retries of ranges", low=1
    )
    job_retry_delay: float = setting(
        DURATION,
        "5s",
        "first backoff of a job; doubles, with full jitter",
        high=HOUR_S,
    )
    job_retry_max_delay: float = setting(
        DURATION,
        "15m",
        "longest backoff of a job",
        not_below="job_retry_delay",
        high=7 * DAY_S,
    )
    locked_delay: float = setting(
        DURATION,
        "5s",
        "delay of a job whose target another job is writing",
        high=HOUR_S,
    )
    fault_delay: float = setting(
        DURATION,
        "30s",
        "time without new jobs after a full or broken disk; also the delay of a job "
        "that does not fit on "
        "its disk",
        high=HOUR_S,
    )
    max_crashes: int = setting(
        COUNT,
        "3",
        "number of worker deaths, with the job in flight, at which the job fails",
        low=1,
    )
    max_takeovers: int = setting(
        COUNT,
        "10",
        "number of supervisor deaths, with the job in flight, that a job may survive",
        low=1,
    )
    worker_timeout: float = setting(
        DURATION, "30s", "silence after which a worker is killed", low=2, high=HOUR_S
    )
    worker_memory_soft: int | None = setting(
        SIZE,
        "512M",
        "memory above which a worker is replaced when its jobs have finished",
    )
    worker_memory_hard: int | None = setting(
        SIZE,
        "1G",
        "memory above which a worker is killed and its jobs are requeued",
        not_below="worker_memory_soft",
    )
    max_jobs_per_worker: int | None = setting(
        COUNT, None, "number of jobs after which a worker is replaced", low=1
    )


@dataclass(frozen=True)
class PathSettings:
    """``[paths]``: folders; relative paths are relative to the working directory."""

    download_dir: str = setting(PATH, "./downloads", "folder of relative save_paths")
    allowed_roots: str | None = setting(
        PATH,
        None,
        "folders that jobs may write to, separated by colons (default: download_dir)",
    )
    state_dir: str = setting(
        PATH,
        ".dlpool",
        "folder of node id, locks, spool and private Redis",
        reload=False,
    )
    log_dir: str = setting(PATH, ".dlpool/log", "folder of the log", reload=False)
    umask: str = setting(
        UMASK,
        "027",
        "permissions withheld from files and folders of the service and dlpool-web; "
        "files with "
        "credentials are accessible to their owner only",
        reload=False,
    )


@dataclass(frozen=True)
class HookSettings:
    """``[hooks]``: commands that run when a job has ended. Times are in seconds."""

    on_success: str | None = setting(
        COMMAND,
        None,
        "command to run after a success, with the job as JSON on standard input",
    )
    on_failure: str | None = setting(
        COMMAND, None, "command to run after a final failure, with the same input"
    )
    timeout: float = setting(DURATION, "30s", "time limit of a hook", low=0.1)
    max_running: int = setting(COUNT, "4", "hooks that run at once", low=1, high=64)


SECTIONS: dict[str, type] = {
    "redis": RedisSettings,
    "supervisor": SupervisorSettings,
    "transfer": TransferSettings,
    "paths": PathSettings,
    "network": NetworkSettings,
    "logging": LoggingSettings,
    "hooks": HookSettings,
    "metrics": MetricsSettings,
    "otel": OtelSettings,
    "limits": LimitSettings,
    "downloader": DownloaderSettings,
    "upload": UploadSettings,
    "web": WebSettings,
    "scan": ScanSettings,
}


@dataclass(frozen=True)
class Settings:
    """All sections of an INI file.

    ``hosts`` holds the sections ``[host:NAME]`` by NAME, merged with ``limits``.
    ``files`` are the files that were read, the INI file first.
    """

    redis: RedisSettings = RedisSettings()
    supervisor: SupervisorSettings = SupervisorSettings()
    transfer: TransferSettings = field(default_factory=TransferSettings)
    paths: PathSettings = PathSettings()
    network: NetworkSettings = field(default_factory=NetworkSettings)
    logging: LoggingSettings = field(default_factory=LoggingSettings)
    hooks: HookSettings = HookSettings()
    metrics: MetricsSettings = field(default_factory=MetricsSettings)
    otel: OtelSettings = field(default_factory=OtelSettings)
    limits: LimitSettings = field(default_factory=LimitSettings)
    downloader: DownloaderSettings = field(default_factory=DownloaderSettings)
    upload: UploadSettings = field(default_factory=UploadSettings)
    web: WebSettings = field(default_factory=WebSettings)
    scan: ScanSettings = field(default_factory=ScanSettings)
    hosts: Mapping[str, LimitSettings] = field(default_factory=dict)
    files: tuple[str, ...] = field(default=(), compare=False)
