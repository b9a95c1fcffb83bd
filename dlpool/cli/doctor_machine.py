"""The checks of ``dlpool doctor`` on this machine and its Redis.

The checks change nothing.
"""

from __future__ import annotations

import os
import pwd
import resource
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import redis

from dlpool.cli.doctor_findings import (
    FAILED,
    OK,
    WARNING,
    DoctorFinding,
    clock_finding,
    files_needed,
    latency_finding,
    open_files_finding,
)
from dlpool.config import Settings
from dlpool.errors import QueueAway, QueueError
from dlpool.jobs.connection import AUTO, EMBEDDED, auto_address, connect, translated
from dlpool.jobs.embedded_socket import embedded_dir as embedded_folder
from dlpool.jobs.server_check import (
    ServerInfo,
    master_of_replica,
    read_server_info,
    warnings,
)
from dlpool.service.node.embedded_redis import find_redis_program

PINGS = 20  # whose median is the latency
# The checks, by the event with which the service warns about the same problem.
_CHECK_OF_EVENT = {
    "redis_may_evict": "redis eviction",
    "redis_not_persistent": "redis persistence",
}


def check_redis(settings: Settings) -> Iterator[DoctorFinding]:
    """Check that Redis answers; check its configuration, latency and clock.

    Raises ConfigurationError.
    """
    state_dir = Path(settings.paths.state_dir).absolute()
    is_auto = settings.redis.url == AUTO
    if settings.redis.url == EMBEDDED:
        find_redis_program()
        if not os.path.lexists(embedded_folder(state_dir)):
            yield DoctorFinding(
                "redis", OK, "embedded: not started yet; the supervisor starts it"
            )
            return
    client = connect(settings.redis, state_dir, name="dlpool-cli")
    try:
        yield from _server(client)
    except QueueError as error:
        is_ours = settings.redis.url == EMBEDDED or (
            is_auto and isinstance(error, QueueAway)
        )
        if is_auto and is_ours and not os.path.lexists(embedded_folder(state_dir)):
            find_redis_program()
            where = auto_address(settings.redis)
            yield DoctorFinding(
                "redis",
                OK,
                f"auto: no server answers at {where}; the supervisor will start a "
                "private one",
            )
            return
        advice = (
            "start dlpool-supervisor, which starts it"
            if is_ours
            else "see [redis], the server and the network"
        )
        yield DoctorFinding("redis", WARNING if is_ours else FAILED, str(error), advice)
    finally:
        client.close()


def check_folders(settings: Settings) -> Iterator[DoctorFinding]:
    """Check that the current user can write to the folders of the service."""
    paths = settings.paths
    roots = [
        (f"allowed_roots {root}", root)
        for root in (paths.allowed_roots or "").split(":")
        if root
    ]
    named = [
        ("download_dir", paths.download_dir),
        ("state_dir", paths.state_dir),
        ("log_dir", paths.log_dir),
    ]
    for name, folder in (*named, *roots):
        yield _folder(name.partition(" ")[0], Path(folder).absolute())


def check_limits(settings: Settings) -> Iterator[DoctorFinding]:
    """Check that a worker may open enough files."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield open_files_finding(
        files_needed(settings, os.cpu_count() or 1),
        None if hard == resource.RLIM_INFINITY else hard,
    )


def _server(client: redis.Redis) -> Iterator[DoctorFinding]:
    server = read_server_info(client)
    if master := master_of_replica(server.info or {}):
        found = f"version {_version(server)}, a read-only replica of {master}"
        yield DoctorFinding(
            "redis",
            FAILED,
            found,
            "name its master in [redis], or its Sentinels: redis+sentinel://",
        )
    else:
        yield DoctorFinding("redis", OK, f"version {_version(server)}")
    yield from _risks(server)
    latencies = []
    with translated(client):
        for _ in range(PINGS):
            began = time.monotonic()
            client.ping()
            latencies.append(time.monotonic() - began)
        asked = time.time()
        seconds, microseconds = client.time()
        local_time = (asked + time.time()) / 2
    yield latency_finding(statistics.median(latencies))
    yield clock_finding("redis clock", seconds + microseconds / 1e6 - local_time)


def _version(server: ServerInfo) -> str:
    if server.info is None:
        return "unknown"
    valkey = server.info.get("valkey_version")
    return (
        f"Valkey {valkey}"
        if valkey
        else str(server.info.get("redis_version", "unknown"))
    )


def _risks(server: ServerInfo) -> Iterator[DoctorFinding]:
    """Check that Redis neither evicts jobs nor loses them at a restart."""
    found = (
        {}
        if server.info is None
        else {one.event: one.reason for one in warnings(server.info, server.save)}
    )
    is_known = {
        "redis_may_evict": server.info is not None,
        "redis_not_persistent": server.save is not None,
    }
    for event, check in _CHECK_OF_EVENT.items():
        if event in found:
            reason, _, advice = found[event].rpartition("; ")
            yield DoctorFinding(check, WARNING, reason, advice)
        else:
            yield DoctorFinding(
                check,
                OK,
                "jobs are kept" if is_known[event] else "hidden from this user",
            )


def _folder(name: str, folder: Path) -> DoctorFinding:
    existing = nearest(folder)
    try:
        owner, is_folder = existing.stat().st_uid, existing.is_dir()
    except OSError as error:
        return DoctorFinding(
            name, FAILED, f"{existing}: {error.strerror}", "see the path in [paths]"
        )
    if not is_folder:
        return DoctorFinding(
            name,
            FAILED,
            f"{existing} is not a folder",
            f"move it away, or set another {name} in [paths]",
        )
    if not os.access(existing, os.W_OK | os.X_OK):
        advice = (
            f"make it writable for {_user(os.geteuid())}, who runs this, or mount it "
            f"writable"
        )
        return DoctorFinding(
            name,
            FAILED,
            f"{existing} cannot be written to; it is {_user(owner)}'s",
            advice,
        )
    if existing != folder:
        return DoctorFinding(
            name, OK, f"{folder} does not exist yet and can be created"
        )
    if owner != os.geteuid():
        advice = (
            f"if the service runs as {_user(owner)}: run doctor as that user, or it "
            f"tells "
            f"another's rights"
        )
        return DoctorFinding(
            name,
            WARNING,
            f"{folder} is {_user(owner)}'s, this runs as {_user(os.geteuid())}",
            advice,
        )
    return DoctorFinding(name, OK, f"{folder}, writable, {_user(owner)}'s")


def nearest(folder: Path) -> Path:
    """Return the folder if it exists, else its nearest existing parent."""
    while not os.path.lexists(folder) and folder != folder.parent:
        folder = folder.parent
    return folder


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)
