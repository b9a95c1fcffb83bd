"""Health, system and metrics of the HTTP side, and what clients should keep to."""

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
from dlpool.storage.values import HEALTHY, UNHEALTHY, WARNING, Volume, health_of
from dlpool.web import exposition
from dlpool.web.principal import OPERATE_SCOPES, READ_SCOPES, RESUME_SCOPES
from dlpool.web.schemas import ADVICE
from dlpool.web.wiring import WebServices

_WORST = (HEALTHY, WARNING, UNHEALTHY)


class HealthResource:
    """``GET /health``: whether uploads can be taken."""

    access = "probe"

    def __init__(self, services: WebServices) -> None:
        self._backend = services.backend
        self._settings = services.settings.upload

    def on_get(self, _req: falcon.Request, resp: falcon.Response) -> None:
        """503 only if it is unhealthy."""
        checks = health_checks(self._backend.volumes(), self._settings)
        status = max((check["status"] for check in checks.values()), key=_WORST.index)
        resp.status = 503 if status == UNHEALTHY else 200
        resp.data = jsontext.dumps(
            {"status": status, "timestamp": _now(), "checks": checks}
        )
        resp.content_type = "application/json"

    on_head = on_get


class LiveResource:
    """``GET /livez``: whether this process answers."""

    access = "probe"

    def on_get(self, _req: falcon.Request, resp: falcon.Response) -> None:
        """Nothing is looked at: a disk or a folder that is away does not come back by a
        restart."""
        _say((), resp, is_verbose=False)

    on_head = on_get


class ReadyResource:
    """``GET /readyz``: what ``/health`` finds, by its status; ``?verbose`` names what
    is in order, too."""

    access = "probe"

    def __init__(self, services: WebServices) -> None:
        self._backend = services.backend
        self._settings = services.settings.upload

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """503 only if it is unhealthy."""
        checks = [
            HealthCheck(
                name,
                str(check.get("message") or "there is too little space")
                if _is_bad(check)
                else "",
            )
            for name, check in health_checks(
                self._backend.volumes(), self._settings
            ).items()
        ]
        _say(checks, resp, is_verbose=req.has_param("verbose"))

    on_head = on_get


class ClientResource:
    """``GET /client``: what a client should keep to."""

    scopes = RESUME_SCOPES

    def __init__(self, parts: WebServices) -> None:
        self._advice = jsontext.dumps(
            {
                name: getattr(parts.settings.upload, name)
                for name in ADVICE["properties"]
            }
        )

    def on_get(self, _req: falcon.Request, resp: falcon.Response) -> None:
        """The settings that concern clients."""
        resp.data = self._advice
        resp.content_type = "application/json"

    on_head = on_get


class SystemResource:
    """``GET /system``: memory, threads, configuration without secrets, tasks, disk."""

    scopes = OPERATE_SCOPES

    def __init__(self, parts: WebServices) -> None:
        self._parts = parts

    def on_get(self, _req: falcon.Request, resp: falcon.Response) -> None:
        """What holds now."""
        resp.data = jsontext.dumps(
            {
                "version": __version__,
                "timestamp": _now(),
                "memory": memory(),
                "threads": {
                    "this_process": threading.active_count(),
                    "limit": self._parts.settings.web.threads,
                },
                "configuration": shown_configuration(self._parts.settings),
                "tasks": task_figures(self._parts)["states"],
                "disk": disks(
                    self._parts.backend.volumes(), self._parts.settings.upload
                ),
            }
        )
        resp.content_type = "application/json"

    on_head = on_get


class MetricsResource:
    """``GET /metrics``: Prometheus' text, or JSON for who accepts only that."""

    access = "scrape"
    scopes = READ_SCOPES

    def __init__(self, parts: WebServices) -> None:
        self._parts = parts

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """The figures of all processes; those of tasks are what the disk says now."""
        tasks = task_figures(self._parts)
        settings, volumes = self._parts.settings.upload, self._parts.backend.volumes()
        found = exposition.MetricsSnapshot(
            self._parts.counters.totals(),
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
    """Return ``status`` and details of everything that uploads need, by name."""
    checks = {"disk_space": disk_check(volumes, settings)}
    return checks | {volume.name: folder_check(volume) for volume in volumes}


def disk_check(volumes: Sequence[Volume], settings: UploadSettings) -> dict[str, Any]:
    """Return the health of the fullest disk of the volumes."""
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
    """Return whether files can be created in the folder of a volume."""
    if volume.message:
        return {"status": volume.status, "message": volume.message}
    return {"status": volume.status}


def memory() -> dict[str, int]:
    """Resident bytes of the worker processes by pid: of this one, and of those that
    were forked with it."""
    own, found = psutil.Process(), {}
    try:
        command, siblings = own.cmdline(), psutil.Process(own.ppid()).children()
    except psutil.Error:  # this one's parent is gone, or cannot be seen
        return {str(own.pid): own.memory_info().rss}
    for process in siblings:
        with suppress(psutil.Error):
            if process.pid == own.pid or process.cmdline() == command:
                found[str(process.pid)] = process.memory_info().rss
    return found


def disks(
    volumes: Sequence[Volume], settings: UploadSettings
) -> dict[str, dict[str, Any]]:
    """Return the space of each volume that reports it, in bytes, by name."""
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
    """Return the health of each volume: the worse of its space and of its folder."""
    found = {}
    for volume in sorted(volumes, key=lambda volume: volume.name):
        use = volume.status if volume.status == UNHEALTHY else HEALTHY
        space = disk_check([volume], settings)["status"]
        found[volume.name] = max(space, use, key=_WORST.index)
    return found


def task_figures(parts: WebServices) -> dict[str, Any]:
    """Tasks by state, and their chunks, as the disk says."""
    counts = parts.backend.counts_by_state()
    return {
        "states": {state: own.tasks for state, own in counts.items()},
        "chunks": sum(own.chunks for own in counts.values()),
        "size": sum(own.file_size for own in counts.values()),
    }


def shown_configuration(settings: Any) -> dict[str, dict[str, Any]]:
    """The settings of the HTTP side that are given; of a secret only that it is set."""
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
    """The paths of the probes: those that look at nothing, and those that look at
    disks, which may hang."""
    return frozenset({"/livez", f"{prefix}/livez"}), frozenset(
        {"/readyz", f"{prefix}/readyz", f"{prefix}/health"}
    )


def add_routes(app: falcon.App[Any, Any], parts: WebServices) -> None:
    """Below the prefix; ``/livez`` and ``/readyz`` at the root, too."""
    prefix = parts.settings.web.prefix
    for root in {"", prefix}:
        app.add_route(f"{root}/livez", LiveResource())
        app.add_route(f"{root}/readyz", ReadyResource(parts))
    app.add_route(f"{prefix}/health", HealthResource(parts))
    app.add_route(f"{prefix}/client", ClientResource(parts))
    app.add_route(f"{prefix}/system", SystemResource(parts))
    app.add_route(f"{prefix}/metrics", MetricsResource(parts))


def _is_bad(check: dict[str, Any]) -> bool:
    return bool(check["status"] == UNHEALTHY)


def _say(
    checks: Sequence[HealthCheck], resp: falcon.Response, *, is_verbose: bool
) -> None:
    """Answer a probe as a supervisor does."""
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
