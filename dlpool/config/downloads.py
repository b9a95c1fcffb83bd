"""The settings of downloads: transfers, connections, host limits, malware checks."""

from __future__ import annotations

from dlpool.config.declaration import setting
from dlpool.config.web import NETWORKS
from dlpool.dataclass import dataclass
from dlpool.kinds import (
    CLAMD,
    COMMAND,
    COUNT,
    COUNT_OR_AUTO,
    DAY_S,
    DURATION,
    FREQUENCY,
    HOUR_S,
    KIB,
    MINUTE_S,
    PATH,
    RATE,
    SIZE,
    SWITCH,
    TEXT,
    Kind,
    choice,
    parse_text,
)


@dataclass(frozen=True)
class TransferSettings:
    """``[transfer]``: the download of a URL. ``[group:NAME]``: the same for one group.

    Sizes are in bytes, times in seconds.
    """

    connections: int | str = setting(
        COUNT_OR_AUTO,
        "4",
        "connections per file; auto: adapts to the host",
        low=1,
        high=64,
        short="-c",
    )
    max_connections: int = setting(
        COUNT,
        "16",
        "with connections = auto: maximum of connections to one host, for all files of "
        "a process",
        low=1,
        high=64,
    )
    min_split_size: int = setting(
        SIZE, "1M", "size of the smallest range that is planned", low=64 * KIB
    )
    probe: str = setting(
        choice("range", "head"),
        "range",
        "how to determine size and range support: with the first range request, or "
        "with HEAD",
    )
    retries: int = setting(
        COUNT,
        "5",
        "consecutive attempts below low_speed_limit after which a range fails",
    )
    retry_delay: float = setting(
        DURATION, "1s", "first backoff; doubles, with full jitter", high=5 * MINUTE_S
    )
    retry_max_delay: float = setting(
        DURATION, "60s", "longest backoff", not_below="retry_delay", high=6 * HOUR_S
    )
    max_retry_after: float = setting(
        DURATION, "15m", "longest Retry-After for which a download waits", high=DAY_S
    )
    deadline: float | None = setting(
        DURATION, None, "time limit of a complete download", high=30 * DAY_S
    )
    network_wait: float = setting(
        DURATION, "5m", "time to wait for the local network to return", high=DAY_S
    )
    limit_rate: int | None = setting(
        RATE, None, "bandwidth limit of the download, in bytes per second", low=KIB
    )
    if_exists: str = setting(
        choice("overwrite", "skip", "fail", "rename"),
        "overwrite",
        "what to do if the target exists",
    )
    resume: bool = setting(SWITCH, "yes", "resume from the part file of an earlier run")
    remote_time: bool = setting(
        SWITCH, "no", "set the modification time of the remote file"
    )
    preallocate: str = setting(
        choice("auto", "falloc", "truncate", "none"),
        "auto",
        "how to allocate the part file",
    )
    content_encoding: str = setting(
        choice("auto", "keep", "refuse"),
        "auto",
        "what to do with a file that the server encodes unasked: decode it unless its "
        "name or type says "
        "gzip (auto), keep it encoded, or refuse it",
    )
    verify: bool = setting(
        SWITCH,
        "yes",
        "verify the given checksum, or the digest that the server sends",
    )
    html_guard: bool = setting(
        SWITCH,
        "yes",
        "refuse an HTML page if the URL ends like that of a binary file (.zip, .iso, "
        "...)",
    )
    allow_change: bool = setting(
        SWITCH,
        "no",
        "let a response with another content type, or from another host, replace the "
        "part file",
    )
    sync: bool = setting(
        SWITCH, "yes", "count bytes as received only when they are on the disk"
    )
    scan: bool = setting(
        SWITCH,
        "no",
        "check the file for malware, as set in [scan], before it is published",
    )
    max_file_size: int | None = setting(
        SIZE,
        None,
        "size above which files are refused; if unset, the service stops bodies of "
        "unknown length at 10G",
    )

    def pool_size(self, downloads: int) -> int:
        """Return the size of the connection pool of one host.

        ``downloads`` is the number of downloads that share the pool.
        """
        fixed = self.connections
        return (
            fixed * downloads
            if isinstance(fixed, int)
            else self.max_connections + downloads
        )


@dataclass(frozen=True)
class NetworkSettings:
    """``[network]``: connections to origin servers.

    Sizes are in bytes, times in seconds.
    """

    connect_timeout: float = setting(
        DURATION,
        "10s",
        "time limit of connecting, including the TLS handshake",
        low=0.001,
        high=10 * MINUTE_S,
    )
    read_timeout: float = setting(
        DURATION,
        "30s",
        "longest time without data from the server",
        low=0.001,
        high=HOUR_S,
    )
    low_speed_limit: int = setting(
        RATE, "1K", "bytes per second below which a connection is too slow; 0: never"
    )
    low_speed_time: float = setting(
        DURATION,
        "30s",
        "time for which a connection may be too slow",
        low=1,
        high=HOUR_S,
    )
    proxy: str | None = setting(
        Kind("URL", parse_text),
        None,
        "proxy (default: from the environment)",
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
    netrc: bool = setting(SWITCH, "no", "use user and password from ~/.netrc")
    network: str = setting(
        choice("any", "no-metadata", "public-only"),
        "no-metadata",
        "addresses that may be contacted",
        service="public-only",
    )
    network_allow: str | None = setting(
        NETWORKS,
        None,
        "further addresses or networks that may be contacted, such as "
        "10.0.0.0/8,fd12::/16",
    )


@dataclass(frozen=True)
class DownloaderSettings:
    """``[downloader]``: the settings of ``DownloadEngine.from_config``.

    Sizes are in bytes, times in seconds.
    """

    max_workers: int = setting(COUNT, "3", "files at once", low=1, high=1024)
    chunk_size: int = setting(
        SIZE,
        "8192",
        "bytes to collect for one write, for at most 20 ms; less than 128K means 128K",
        low=1,
    )
    retry_times: int = setting(
        COUNT,
        "3",
        "consecutive attempts without progress; replaces retries of [transfer]",
    )
    retry_delay: float = setting(
        DURATION,
        "5s",
        "first backoff; replaces retry_delay of [transfer]",
        high=5 * MINUTE_S,
    )
    timeout: float = setting(
        DURATION,
        "30s",
        "time limit of connecting; replaces connect_timeout of [network]",
        low=0.001,
        high=10 * MINUTE_S,
    )
    progress_interval: float = setting(
        DURATION,
        "500ms",
        "interval of progress callbacks",
        low=0.001,
        high=MINUTE_S,
    )
    verify_hash: bool = setting(
        SWITCH, "yes", "verify the task's checksum, or the digest that the server sends"
    )


@dataclass(frozen=True)
class LimitSettings:
    """``[limits]``: limits per origin host. ``[host:NAME]``: the same for one host.

    All nodes of a Redis share the limits.
    """

    max_per_host: int | None = setting(
        COUNT, None, "jobs that may contact a host at once", low=1
    )
    rate_per_host: float | None = setting(
        FREQUENCY, None, "rate at which jobs may start at a host"
    )


@dataclass(frozen=True)
class ScanSettings:
    """``[scan]``: malware checks of all uploads, and of downloads with ``scan``.

    Sizes are in bytes, times in seconds.
    """

    clamd: str | None = setting(
        CLAMD,
        None,
        "address of clamd: unix:/PATH or tcp://HOST:PORT",
        reload=False,
    )
    command: str | None = setting(
        COMMAND,
        None,
        "command to run for each file, with its path as last argument; exit code 0: "
        "clean, 1: infected",
        reload=False,
        instead_of="clamd",
    )
    timeout: float = setting(
        DURATION,
        "5m",
        "time limit for the check of one file",
        low=0.1,
        high=HOUR_S,
        reload=False,
    )
    max_size: int = setting(
        SIZE,
        "100M",
        "size above which files are not checked; must not exceed the scanner's limits",
        low=1,
        reload=False,
    )
    on_unavailable: str = setting(
        choice("refuse", "pass"),
        "refuse",
        "what to do with a file that could not be checked",
        reload=False,
    )
    quarantine_dir: str = setting(
        PATH, ".dlpool/quarantine", "folder of infected files", reload=False
    )
    quarantine_size: int = setting(
        SIZE,
        "10G",
        "total size above which the oldest quarantined files are deleted",
        low=64 * KIB,
        reload=False,
    )
