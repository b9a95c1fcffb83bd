"""All settings: a class a section of the INI file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dlpool.config.declaration import setting
from dlpool.config.web import NETWORKS, UploadSettings, WebSettings
from dlpool.kinds import (
    ADDRESS,
    BASE_URL,
    CLAMD,
    COMMAND,
    COUNT,
    COUNT_OR_AUTO,
    DAY_S,
    DURATION,
    FREQUENCY,
    GROUP,
    HOUR_S,
    KIB,
    LEVELS,
    LOGGER_LEVELS,
    LOOPBACK,
    MINUTE_S,
    NAME,
    PATH,
    RATE,
    RATIO,
    SIZE,
    SWITCH,
    TEXT,
    UMASK,
    Kind,
    choice,
    parse_text,
)


@dataclass(frozen=True)
class TransferSettings:
    """``[transfer]``: how one URL becomes one file; ``[group:NAME]`` for a group. Sizes
    in bytes, times in seconds."""

    connections: int | str = setting(
        COUNT_OR_AUTO,
        "4",
        "connections for one file; auto: as many as its host rewards",
        low=1,
        high=64,
        short="-c",
    )
    max_connections: int = setting(
        COUNT,
        "16",
        "with connections = auto, the most to one host, of all files of a process",
        low=1,
        high=64,
    )
    min_split_size: int = setting(
        SIZE, "1M", "no range is planned smaller than this", low=64 * KIB
    )
    probe: str = setting(
        choice("range", "head"),
        "range",
        "how to learn size and ranges: by the first range, or HEAD",
    )
    retries: int = setting(
        COUNT, "5", "attempts in a row below low_speed_limit before a range is given up"
    )
    retry_delay: float = setting(
        DURATION, "1s", "first backoff; it doubles, with full jitter", high=5 * MINUTE_S
    )
    retry_max_delay: float = setting(
        DURATION, "60s", "longest backoff", not_below="retry_delay", high=6 * HOUR_S
    )
    max_retry_after: float = setting(
        DURATION, "15m", "longest Retry-After that is waited for", high=DAY_S
    )
    deadline: float | None = setting(
        DURATION, None, "time limit of a whole download", high=30 * DAY_S
    )
    network_wait: float = setting(
        DURATION, "5m", "how long to wait for our own network to come back", high=DAY_S
    )
    limit_rate: int | None = setting(
        RATE, None, "bytes a second for this download", low=KIB
    )
    if_exists: str = setting(
        choice("overwrite", "skip", "fail", "rename"),
        "overwrite",
        "when the target exists",
    )
    resume: bool = setting(
        SWITCH, "yes", "go on with a part file that an earlier run left"
    )
    remote_time: bool = setting(
        SWITCH, "no", "give the file the remote's modification time"
    )
    preallocate: str = setting(
        choice("auto", "falloc", "truncate", "none"),
        "auto",
        "how the part file gets its length",
    )
    content_encoding: str = setting(
        choice("auto", "keep", "refuse"),
        "auto",
        "a file that the server encodes unasked: decode it unless its name or type "
        "says gzip, keep, or refuse it",
    )
    verify: bool = setting(
        SWITCH,
        "yes",
        "verify the checksum, the given one or the server's digest of the file",
    )
    html_guard: bool = setting(
        SWITCH,
        "yes",
        "refuse an HTML page in place of a file whose URL ends like that of a binary "
        "one (.zip, .iso, ...)",
    )
    allow_change: bool = setting(
        SWITCH,
        "no",
        "let an answer of another kind of content, or from another host, replace what "
        "was fetched",
    )
    sync: bool = setting(
        SWITCH, "yes", "wait until bytes are on the disk before they count"
    )
    scan: bool = setting(
        SWITCH,
        "no",
        "check the file for malware before it gets its name, as [scan] says",
    )
    max_file_size: int | None = setting(
        SIZE,
        None,
        "refuse larger files; the service stops bodies of unknown length at 10G where "
        "this is not set",
    )

    def pool_size(self, downloads: int) -> int:
        """Connections that so many downloads at once may have to one host."""
        fixed = self.connections
        return (
            fixed * downloads
            if isinstance(fixed, int)
            else self.max_connections + downloads
        )


@dataclass(frozen=True)
class NetworkSettings:
    """``[network]``: how connections are made. Sizes in bytes, times in seconds."""

    connect_timeout: float = setting(
        DURATION,
        "10s",
        "limit of connecting, TLS handshake included",
        low=0.001,
        high=10 * MINUTE_S,
    )
    read_timeout: float = setting(
        DURATION, "30s", "longest silence of a server", low=0.001, high=HOUR_S
    )
    low_speed_limit: int = setting(
        RATE, "1K", "bytes a second below which a connection is too slow; 0: never"
    )
    low_speed_time: float = setting(
        DURATION, "30s", "for how long it may be that slow", low=1, high=HOUR_S
    )
    proxy: str | None = setting(
        Kind("URL", parse_text),
        None,
        "proxy (default: the environment's)",
        reload=False,
    )
    cacert: str | None = setting(
        PATH, None, "CA certificates (default: the system's)", reload=False
    )
    cert: str | None = setting(PATH, None, "client certificate, PEM", reload=False)
    key: str | None = setting(
        PATH, None, "key of the client certificate, PEM", reload=False, needs="cert"
    )
    insecure: bool = setting(
        SWITCH, "no", "do not verify the server's certificate", reload=False
    )
    allow_downgrade: bool = setting(SWITCH, "no", "follow redirects from https to http")
    user_agent: str | None = setting(
        TEXT, None, "User-Agent header (default: dlpool/VERSION)", short="-A"
    )
    netrc: bool = setting(SWITCH, "no", "take user and password from ~/.netrc")
    network: str = setting(
        choice("any", "no-metadata", "public-only"),
        "no-metadata",
        "addresses that may be connected to",
        service="public-only",
    )
    network_allow: str | None = setting(
        NETWORKS,
        None,
        "other addresses or networks that may be connected to, as 10.0.0.0/8,fd12::/16",
    )


@dataclass(frozen=True)
class RedisSettings:
    """``[redis]``: where the queue is."""

    url: str = setting(
        TEXT,
        "redis://localhost:6379",
        "redis://, rediss://, unix://, redis+sentinel:// or redis+cluster:// URL, "
        "or embedded: a private server, or auto: the Redis at embedded_listen if one "
        "answers there, else embedded",
        reload=False,
        shipped="auto",
    )
    embedded_listen: str = setting(
        LOOPBACK,
        "127.0.0.1:6379",
        "where the private server listens for clients of this machine, if that is "
        "free; empty: at its Unix socket only",
        reload=False,
    )
    username: str | None = setting(TEXT, None, "ACL user", reload=False)
    password: str | None = setting(
        TEXT, None, "password; better in password_file", reload=False, is_secret=True
    )
    password_file: str | None = setting(
        PATH,
        None,
        "a file that holds the password",
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
        "password of the Sentinels; better in sentinel_password_file",
        reload=False,
        is_secret=True,
    )
    sentinel_password_file: str | None = setting(
        PATH, None, "a file that holds it", reload=False, instead_of="sentinel_password"
    )
    group: str | None = setting(
        GROUP, None, "work on the list GROUP:go_download_urls", reload=False
    )
    order: str = setting(
        choice("fifo", "lifo"), "fifo", "which end of the list is taken from"
    )
    audit_events: int = setting(
        COUNT,
        "50000",
        "about so many audit events are kept in the stream that dlpool audit reads",
        low=100,
        high=1_000_000,
        reload=False,
    )


@dataclass(frozen=True)
class SupervisorSettings:
    """``[supervisor]``: jobs, workers, and how they end. Times in seconds, memory in
    bytes."""

    node_id: str | None = setting(
        NAME,
        None,
        "name of this node (default: made once, kept in state_dir)",
        reload=False,
    )
    max_concurrent_downloads: int | str = setting(
        COUNT_OR_AUTO,
        "5",
        "jobs at once on this node; auto: as many as bring more bytes a second",
        low=1,
        high=1024,
        reload=False,
    )
    max_slots: int = setting(
        COUNT,
        "64",
        "with max_concurrent_downloads = auto, the most of them",
        low=1,
        high=1024,
        reload=False,
    )
    host_share: float = setting(
        RATIO,
        "0.5",
        "of the jobs at once, the part that one origin host gets while jobs of others "
        "wait, at least one job; 1: all",
    )
    yield_after: float = setting(
        DURATION,
        "5s",
        "how long a slow job runs before it gives its slot to jobs that wait; each "
        "time twice as long; 0: never does",
        high=HOUR_S,
    )
    slow_rate: int = setting(
        RATE, "8K", "bytes a second below which a job is slow, whatever others bring"
    )
    min_free: int | None = setting(
        SIZE,
        None,
        "no job begins while a disk of targets has less to spare (default: 1G, or a "
        "twentieth of a smaller one)",
    )
    workers: int | None = setting(
        COUNT,
        None,
        "worker processes (default: one a core, at most one a job)",
        low=1,
        high=256,
        reload=False,
    )
    node_rate: int | None = setting(
        RATE, None, "bytes a second of all jobs of this node together", low=64 * KIB
    )
    drain_timeout: float = setting(
        DURATION, "30s", "after SIGTERM, how long running jobs may go on"
    )
    lease: float = setting(
        DURATION,
        "30s",
        "how long a silent supervisor keeps its jobs",
        low=1,
        reload=False,
        high=HOUR_S,
    )
    grace: float = setting(
        DURATION,
        "15s",
        "how much longer before others take them",
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
        "first backoff of a job; it doubles, with full jitter",
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
        "when a job whose target another one writes is tried again",
        high=HOUR_S,
    )
    fault_delay: float = setting(
        DURATION,
        "30s",
        "how long this node takes no jobs after a full or broken disk, and a job waits "
        "that does not fit",
        high=HOUR_S,
    )
    max_crashes: int = setting(
        COUNT, "3", "worker deaths that a job may be aboard of", low=1
    )
    max_takeovers: int = setting(
        COUNT, "10", "supervisor deaths that a job may be aboard of", low=1
    )
    worker_timeout: float = setting(
        DURATION, "30s", "a worker that is silent so long is killed", low=2, high=HOUR_S
    )
    worker_memory_soft: int | None = setting(
        SIZE, "512M", "a worker above it ends after its jobs and is replaced"
    )
    worker_memory_hard: int | None = setting(
        SIZE,
        "1G",
        "a worker above it is killed, its jobs are given back",
        not_below="worker_memory_soft",
    )
    max_jobs_per_worker: int | None = setting(
        COUNT, None, "a worker is replaced after so many jobs", low=1
    )


@dataclass(frozen=True)
class PathSettings:
    """``[paths]``: folders; relative ones are relative to the working directory."""

    download_dir: str = setting(PATH, "./downloads", "where relative save_paths go")
    allowed_roots: str | None = setting(
        PATH,
        None,
        "folders that files may go to, with colons between (default: download_dir)",
    )
    state_dir: str = setting(
        PATH, ".dlpool", "node id, locks, spool, embedded Redis", reload=False
    )
    log_dir: str = setting(PATH, ".dlpool/log", "where the log is", reload=False)
    umask: str = setting(
        UMASK,
        "027",
        "rights that files and folders of the service and dlpool-web do not get; files "
        "with credentials are their owner's alone",
        reload=False,
    )


@dataclass(frozen=True)
class LoggingSettings:
    """``[logging]``: the JSON log. Sizes in bytes, times in seconds."""

    level: str = setting(choice(*LEVELS), "info", "least level that is logged")
    levels: str | None = setting(
        LOGGER_LEVELS,
        None,
        "other levels for single loggers, as jobs=warning, worker=debug",
    )
    log_format: str = setting(
        choice("json", "console"),
        "json",
        "lines for machines (ECS), or for the eyes",
        reload=False,
    )
    traceparent: bool = setting(
        SWITCH, "no", "send the trace id of a job to its origin (W3C traceparent)"
    )
    rotate_size: int = setting(
        SIZE, "100M", "a log larger than this is rotated", low=64 * KIB
    )
    rotate_daily: bool = setting(SWITCH, "yes", "rotate at midnight, UTC")
    compress_after: float = setting(
        DURATION,
        "10m",
        "a rotated log is compressed when it is this old, read by shippers until then",
    )
    keep_days: int = setting(COUNT, "30", "older logs are removed", low=1)
    keep_size: int = setting(
        SIZE,
        "10G",
        "oldest logs are removed above this sum",
        low=64 * KIB,
        not_below="rotate_size",
    )
    keep_files: int | None = setting(
        COUNT, None, "oldest logs are removed above this number", low=1
    )
    archive_command: str | None = setting(
        COMMAND,
        None,
        "runs with each compressed log's path as its last argument, to store it "
        "elsewhere",
    )
    archive_timeout: float = setting(
        DURATION,
        "10m",
        "an archive_command that takes longer is ended",
        low=0.1,
        high=DAY_S,
    )
    archive_retry_delay: float = setting(
        DURATION, "1m", "when one that failed is tried again", low=0.1, high=6 * HOUR_S
    )
    progress_interval: float = setting(
        DURATION,
        "10s",
        "between two download_progress lines of a job",
        low=0.1,
        high=HOUR_S,
    )


@dataclass(frozen=True)
class HookSettings:
    """``[hooks]``: commands that run when a job has ended. Times in seconds."""

    on_success: str | None = setting(
        COMMAND, None, "runs after a success, the job as JSON on its standard input"
    )
    on_failure: str | None = setting(COMMAND, None, "the same after a failure for good")
    timeout: float = setting(
        DURATION, "30s", "a hook that takes longer is ended", low=0.1
    )
    max_running: int = setting(COUNT, "4", "hooks at once", low=1, high=64)


@dataclass(frozen=True)
class MetricsSettings:
    """``[metrics]``: where a supervisor can be asked for metrics and health."""

    listen: str = setting(
        ADDRESS,
        "127.0.0.1:9108",
        "where /metrics, /livez, /readyz and /version are served over HTTP; empty: "
        "nowhere",
    )


@dataclass(frozen=True)
class OtelSettings:
    """``[otel]``: traces, sent to a collector of OpenTelemetry; needs the extra
    ``otel``."""

    endpoint: str = setting(
        BASE_URL,
        "",
        "a collector's OTLP/HTTP address, as http://localhost:4318 (/v1/traces is "
        "added); empty: off",
        reload=False,
    )
    service_name: str = setting(
        NAME, "dlpool", "service.name of the traces", reload=False
    )
    sample_ratio: float = setting(
        RATIO, "1", "the share of jobs that are traced, by trace id", reload=False
    )


@dataclass(frozen=True)
class DownloaderSettings:
    """``[downloader]``: a ``DownloadEngine`` that is made by ``from_config``. Sizes in
    bytes, times in seconds."""

    max_workers: int = setting(COUNT, "3", "files at once", low=1, high=1024)
    chunk_size: int = setting(
        SIZE,
        "8192",
        "the least that one write collects, of what comes within 20 ms; less than 128K "
        "means 128K",
        low=1,
    )
    retry_times: int = setting(
        COUNT,
        "3",
        "attempts in a row without progress; instead of retries in [transfer]",
    )
    retry_delay: float = setting(
        DURATION,
        "5s",
        "first backoff; instead of the one in [transfer]",
        high=5 * MINUTE_S,
    )
    timeout: float = setting(
        DURATION,
        "30s",
        "limit of connecting; instead of connect_timeout in [network]",
        low=0.001,
        high=10 * MINUTE_S,
    )
    progress_interval: float = setting(
        DURATION,
        "500ms",
        "between two calls of progress callbacks",
        low=0.001,
        high=MINUTE_S,
    )
    verify_hash: bool = setting(
        SWITCH, "yes", "verify the task's checksum, or the server's digest of the file"
    )


@dataclass(frozen=True)
class LimitSettings:
    """``[limits]``: what all nodes of a Redis together spare each origin host;
    ``[host:NAME]`` for one."""

    max_per_host: int | None = setting(
        COUNT, None, "jobs that ask a host at once", low=1
    )
    rate_per_host: float | None = setting(
        FREQUENCY, None, "how often a job for a host may begin"
    )


@dataclass(frozen=True)
class ScanSettings:
    """``[scan]``: how files are checked for malware, uploads always, downloads with
    ``scan``. Sizes in bytes."""

    clamd: str | None = setting(
        CLAMD,
        None,
        "where a clamd listens: unix:/PATH or tcp://HOST:PORT",
        reload=False,
    )
    command: str | None = setting(
        COMMAND,
        None,
        "runs with the path of each file as its last argument; exit code 0: clean, 1: "
        "infected",
        reload=False,
        instead_of="clamd",
    )
    timeout: float = setting(
        DURATION,
        "5m",
        "for one file, until the scanner's answer",
        low=0.1,
        high=HOUR_S,
        reload=False,
    )
    max_size: int = setting(
        SIZE,
        "100M",
        "larger files are not checked; not above the scanner's limits",
        low=1,
        reload=False,
    )
    on_unavailable: str = setting(
        choice("refuse", "pass"),
        "refuse",
        "what becomes of a file that could not be checked",
        reload=False,
    )
    quarantine_dir: str = setting(
        PATH, ".dlpool/quarantine", "where infected files go", reload=False
    )
    quarantine_size: int = setting(
        SIZE,
        "10G",
        "oldest files there are removed above this sum",
        low=64 * KIB,
        reload=False,
    )


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
    """All sections of an INI file. ``hosts``: its sections ``[host:NAME]``, by name,
    over ``limits``.

    ``files``: the files that they were read from, the INI file first.
    """

    redis: RedisSettings = RedisSettings()
    supervisor: SupervisorSettings = SupervisorSettings()
    transfer: TransferSettings = TransferSettings()
    paths: PathSettings = PathSettings()
    network: NetworkSettings = NetworkSettings()
    logging: LoggingSettings = LoggingSettings()
    hooks: HookSettings = HookSettings()
    metrics: MetricsSettings = MetricsSettings()
    otel: OtelSettings = OtelSettings()
    limits: LimitSettings = LimitSettings()
    downloader: DownloaderSettings = DownloaderSettings()
    upload: UploadSettings = field(default_factory=UploadSettings)
    web: WebSettings = field(default_factory=WebSettings)
    scan: ScanSettings = ScanSettings()
    hosts: Mapping[str, LimitSettings] = field(default_factory=dict)
    files: tuple[str, ...] = field(default=(), compare=False)
