"""Resources for probes, health, system information, metrics, and the settings for
clients."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, fields
from datetime import datetime, timezone
from typing import Any

import falcon
import psutil

from dlpool import __version__, jsontext
from dlpool.config import SECTIONS, UploadSettings
from dlpool.observe.health import HealthCheck, format_checks
from dlpool.storage.digests import ALGORITHMS
from dlpool.storage.values import HEALTHY, UNHEALTHY, WARNING, Volume, health_of
from dlpool.web import exposition
from dlpool.web.principal import OPERATE_SCOPES, READ_SCOPES, RESUME_SCOPES
from dlpool.web.schemas import CLIENT_SETTINGS
from dlpool.web.wiring import WebServices

_BY_SEVERITY = (HEALTHY, WARNING, UNHEALTHY)


class HealthResource:
    """``GET /health``: whether disks and folders allow uploads."""

    access = "probe"

    def __init__(self, services: WebServices) -> None:
        self._backend = services.backend
        self._settings = services.settings.upload

    def on_get(self, _req: falcon.Request, resp: falcon.Response) -> None:
        """Answer with all checks; the status is 503 if unhealthy, else 200."""
        checks = health_checks(self._backend.volumes(), self._settings)
        status = max(
            (check["status"] for check in checks.values()), key=_BY_SEVERITY.index
        )
        resp.status = 503 if status == UNHEALTHY else 200
        resp.data = jsontext.dumps(
            {"status": status, "timestamp": _now(), "checks": checks}
        )
        resp.content_type = "application/json"

    on_head = on_get


class LiveResource:
    """``GET /livez``: whether this process responds."""

    access = "probe"

    def on_get(self, _req: falcon.Request, resp: falcon.Response) -> None:
        """Answer without checks: a failed probe causes a restart, which does not repair
        a disk or folder."""
        _answer_probe((), resp, is_verbose=False)

    on_head = on_get


class ReadyResource:
    """``GET /readyz``: the checks of ``/health`` as text for probes.

    The response lists failed checks; ``?verbose`` adds passed checks.
    """

    access = "probe"

    def __init__(self, services: WebServices) -> None:
        self._backend = services.backend
        self._settings = services.settings.upload

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer with failed checks; the status is 503 if there are any, else 200."""
        checks = [
            HealthCheck(
                name,
                str(check.get("message") or "not enough free space")
                if _is_bad(check)
                else "",
            )
            for name, check in health_checks(
                self._backend.volumes(), self._settings
            ).items()
        ]
        _answer_probe(checks, resp, is_verbose=req.has_param("verbose"))

    on_head = on_get


class ClientResource:
    """``GET /client``: what an upload client needs to know.

    These are settings in ``[upload]``, and the digests that chunks may have.
    """

    scopes = RESUME_SCOPES

    def __init__(self, services: WebServices) -> None:
        self._advice = jsontext.dumps(
            {
                name: getattr(services.settings.upload, name)
                for name in CLIENT_SETTINGS["properties"]
                if name != "digests"
            }
            | {"digests": ALGORITHMS}
        )

    def on_get(self, _req: falcon.Request, resp: falcon.Response) -> None:
        """Answer with the settings that an upload client needs."""
        resp.data = self._advice
        resp.content_type = "application/json"

    on_head = on_get


class SystemResource:
    """``GET /system``: memory, threads, configuration without secrets, tasks, disks."""

    scopes = OPERATE_SCOPES

    def __init__(self, services: WebServices) -> None:
        self._services = services

    def on_get(self, _req: falcon.Request, resp: falcon.Response) -> None:
        """Answer with the current values."""
        resp.data = jsontext.dumps(
            {
                "version": __version__,
                "timestamp": _now(),
                "memory": memory(),
                "threads": {
                    "this_process": threading.active_count(),
                    "limit": self._services.settings.web.threads,
                },
                "configuration": shown_configuration(self._services.settings),
                "tasks": task_totals(self._services)["states"],
                "disk": disks(
                    self._services.backend.volumes(), self._services.settings.upload
                ),
            }
        )
        resp.content_type = "application/json"

    on_head = on_get


class MetricsResource:
    """``GET /metrics``: Prometheus text format, or JSON if the client accepts JSON but
    not text."""

    access = "scrape"
    scopes = READ_SCOPES

    def __init__(self, services: WebServices) -> None:
        self._services = services

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer with the metrics of all processes, and of the tasks on disk."""
        tasks = task_totals(self._services)
        settings, volumes = (
            self._services.settings.upload,
            self._services.backend.volumes(),
        )
        found = exposition.MetricsSnapshot(
            self._services.counters.totals(),
            tasks["states"],
            tasks["chunks"],
            tasks["size"],
            memory(),
            disks(volumes, settings),
            folder_health(volumes, settings),
        )
        if "application/json" in req.accept and "text/plain" not in req.accept:
            resp.data, resp.content_type = (
                jsontext.dumps(asdict(found)),
                "application/json",
            )
        else:
            resp.data, resp.content_type = exposition.render(found)

    on_head = on_get


def health_checks(
    volumes: Sequence[Volume], settings: UploadSettings
) -> dict[str, dict[str, Any]]:
    """Return the status and details of each check by name: one check of the disk space,
    and one of each folder."""
    checks = {"disk_space": disk_check(volumes, settings)}
    return checks | {volume.name: folder_check(volume) for volume in volumes}


def disk_check(volumes: Sequence[Volume], settings: UploadSettings) -> dict[str, Any]:
    """Return the health of the fullest disk; unhealthy if a disk cannot be read."""
    for volume in volumes:
        if volume.capacity_error:
            return {"status": UNHEALTHY, "message": volume.capacity_error}
    capacities = [one.capacity for one in volumes if one.capacity is not None]
    if not capacities:
        text = "the file system does not report its free space"
        return {"status": HEALTHY, "message": text}
    fullest = max(capacities, key=lambda capacity: capacity.used_share)
    return {
        "status": health_of(fullest, settings),
        "used_percent": round(100 * fullest.used_share, 1),
        "free": fullest.free,
        "total": fullest.total,
    }


def folder_check(volume: Volume) -> dict[str, Any]:
    """Return the status of the folder of a volume, with a message if there is one."""
    if volume.message:
        return {"status": volume.status, "message": volume.message}
    return {"status": volume.status}


def memory() -> dict[str, int]:
    """Return the resident bytes of this worker process and its siblings by pid."""
    own, found = psutil.Process(), {}
    try:
        command, siblings = own.cmdline(), psutil.Process(own.ppid()).children()
    except psutil.Error:  # the parent has exited or is not visible
        return {str(own.pid): own.memory_info().rss}
    for process in siblings:
        with suppress(psutil.Error):
            if process.pid == own.pid or process.cmdline() == command:
                found[str(process.pid)] = process.memory_info().rss
    return found


def disks(
    volumes: Sequence[Volume], settings: UploadSettings
) -> dict[str, dict[str, Any]]:
    """Return the space in bytes, the used percentage and the health of each volume by
    name. Volumes that do not report their space are left out."""
    return {
        volume.name: {
            "total": volume.capacity.total,
            "free": volume.capacity.free,
            "used_percent": round(100 * volume.capacity.used_share, 1),
            "health": health_of(volume.capacity, settings),
        }
        for volume in sorted(volumes, key=lambda volume: volume.name)
        if volume.capacity is not None
    }


def folder_health(
    volumes: Sequence[Volume], settings: UploadSettings
) -> dict[str, str]:
    """Return the health of each volume by name: the worse health of disk and
    folder."""
    found = {}
    for volume in sorted(volumes, key=lambda volume: volume.name):
        use = volume.status if volume.status == UNHEALTHY else HEALTHY
        space = disk_check([volume], settings)["status"]
        found[volume.name] = max(space, use, key=_BY_SEVERITY.index)
    return found


def task_totals(services: WebServices) -> dict[str, Any]:
    """Return the number of tasks by state, and two totals of all tasks: the number of
    chunks, and the bytes of the files."""
    counts = services.backend.counts_by_state()
    return {
        "states": {state: own.tasks for state, own in counts.items()},
        "chunks": sum(own.chunks for own in counts.values()),
        "size": sum(own.file_size for own in counts.values()),
    }


def shown_configuration(settings: Any) -> dict[str, dict[str, Any]]:
    """Return the options of ``[upload]`` and ``[web]`` that have a value. The value of
    a secret is shown as the text ``set``."""
    return {
        section: {
            one.name: "set"
            if one.metadata["is_secret"]
            else getattr(getattr(settings, section), one.name)
            for one in fields(SECTIONS[section])
            if getattr(getattr(settings, section), one.name) is not None
        }
        for section in ("upload", "web")
    }


def probe_paths(prefix: str) -> tuple[frozenset[str], frozenset[str]]:
    """Return the paths of probes without checks, and of probes that access disks.

    Access to a disk may block, so ``request_pools`` gives each group its own thread.
    """
    return frozenset({"/livez", f"{prefix}/livez"}), frozenset(
        {"/readyz", f"{prefix}/readyz", f"{prefix}/health"}
    )


def add_routes(app: falcon.App[Any, Any], services: WebServices) -> None:
    """Add all resources below the prefix. Add ``/livez`` and ``/readyz`` at the root as
    well."""
    prefix = services.settings.web.prefix
    for root in {"", prefix}:
        app.add_route(f"{root}/livez", LiveResource())
        app.add_route(f"{root}/readyz", ReadyResource(services))
    app.add_route(f"{prefix}/health", HealthResource(services))
    app.add_route(f"{prefix}/client", ClientResource(services))
    app.add_route(f"{prefix}/system", SystemResource(services))
    app.add_route(f"{prefix}/metrics", MetricsResource(services))


def _is_bad(check: dict[str, Any]) -> bool:
    return bool(check["status"] == UNHEALTHY)


def _answer_probe(
    checks: Sequence[HealthCheck], resp: falcon.Response, *, is_verbose: bool
) -> None:
    """Answer a probe in the same text format as the probes of the job supervisor."""
    is_good, text = format_checks(checks, is_verbose=is_verbose)
    resp.status = 200 if is_good else 503
    resp.text, resp.content_type = text, "text/plain; charset=utf-8"
    resp.set_header("Cache-Control", "no-store")


def _now() -> str:
    return (
        datetime.now(timezone.utc)
        .isoformat(timespec="milliseconds")
        .replace("+00:00", "Z")
    )
