"""The service's entry point: checks settings, opens the log, runs the supervisor."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from dlpool.config import SECTIONS, Settings
from dlpool.config.owned_paths import check_owned_paths
from dlpool.errors import DlpoolError, InternalError
from dlpool.jobs.connection import shown_server
from dlpool.jobs.keys import QueueKeys
from dlpool.kinds import COMMAND, redacted_command
from dlpool.observe.log import Log, OnEvent
from dlpool.observe.processors import LogOrigin
from dlpool.observe.tracing import check_traces
from dlpool.service.hooks.archiving import check_archive_command
from dlpool.service.hooks.runner import check_hooks
from dlpool.service.node.launch import tune_garbage_collector
from dlpool.service.node.node import Node
from dlpool.service.reload import SettingsLoader
from dlpool.service.supervisor import Supervisor
from dlpool.service.wiring import SupervisorComponents
from dlpool.service.worker_handle import remove_old_stacks
from dlpool.transfer.http.client import HttpClient
from dlpool.transfer.http.limits import HostHolds, NetworkMonitor

OLD_WORKERS_S = 6.0  # workers of a supervisor that was killed exit within 5 s


def serve(
    settings: Settings,
    load: SettingsLoader,
    early: Iterable[int] = (),
    on_event: OnEvent = lambda *_: None,
) -> None:
    """Run the service until a signal stops it. Call it on the main thread.

    ``load`` reads the settings again for a reload. ``early`` are signals that were
    received before the call. ``on_event`` is called for each log event. Raises
    DlpoolError or OSError if the service cannot start or continue.
    """
    HttpClient(
        settings.network, 1, HostHolds(lambda: 0.0), NetworkMonitor(lambda: 0.0)
    ).check()
    check_owned_paths(settings)
    check_hooks(settings.hooks)
    check_archive_command(settings.logging)
    check_traces(settings.otel)
    node = Node.open(
        Path(settings.paths.state_dir).absolute(), settings.supervisor.node_id
    )
    try:
        log = Log(
            Path(settings.paths.log_dir),
            settings.logging,
            LogOrigin("dlpool-supervisor", node.node_id),
            on_event=on_event,
        )
        try:
            _serve(settings, load, early, node, log)
        except Exception as error:
            log.logger("supervisor").critical("service_failed", error=error)
            if isinstance(error, DlpoolError | OSError):
                raise
            raise InternalError.of(error) from error
        finally:
            log.close()
    finally:
        node.close()


def _serve(
    settings: Settings, load: SettingsLoader, early: Iterable[int], node: Node, log: Log
) -> None:
    logger = log.logger("supervisor")
    for warning in node.warnings:
        logger.warning("state_damaged", reason=warning)
    if not node.wait_for_old_workers(OLD_WORKERS_S):
        logger.warning(
            "old_workers_running",
            reason="their jobs wait until these workers unlock their files",
        )
    remove_old_stacks(node.state_dir)
    components = SupervisorComponents(settings, node, log)
    server = components.redis_server
    logger.info(
        "service_started",
        sid=components.sid,
        queue=QueueKeys(settings.redis.group).intake,
        redis=server.display_url,
        client_url=server.client_url,
        configuration=shown_settings(settings),
    )
    tune_garbage_collector()
    Supervisor(settings, load, node, log, components).run(early)


def shown_settings(settings: Settings) -> dict[str, Any]:
    """Return the effective settings for the log, without secrets."""
    shown = {
        name: value
        for name, value in asdict(settings).items()
        if name in SECTIONS or name == "hosts"
    }
    for section in SECTIONS:
        for declared in fields(getattr(settings, section)):
            value = shown[section][declared.name]
            if declared.metadata["is_secret"] and value is not None:
                shown[section][declared.name] = "..."
            elif declared.metadata["kind"] is COMMAND and value is not None:
                shown[section][declared.name] = redacted_command(value)
    shown["redis"]["url"] = shown_server(settings.redis.url)
    return shown
