"""Whether there are traces: without an endpoint nothing of OpenTelemetry is
imported."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from dlpool.config import OtelSettings
from dlpool.errors import ConfigurationError
from dlpool.observe.log import Logger

if TYPE_CHECKING:
    from dlpool.observe.spans import Traces

_NEEDED = ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http")


def check_traces(settings: OtelSettings) -> None:
    """Raise ConfigurationError where traces are wanted and the extra that sends them is
    not installed."""
    try:
        is_installed = not settings.endpoint or all(
            find_spec(name) is not None for name in _NEEDED
        )
    except ModuleNotFoundError:  # of a package above it
        is_installed = False
    if not is_installed:
        raise ConfigurationError(
            "[otel] endpoint is set, but OpenTelemetry is not installed: pip install "
            "'dlpool[otel]', or leave it empty"
        )


def open_traces(settings: OtelSettings, node_id: str, log: Logger) -> Traces | None:
    """What sends the traces of this process, None if they are off."""
    if not settings.endpoint:
        return None
    from dlpool.observe.spans import Traces

    try:
        return Traces(settings, node_id, log)
    except RuntimeError as error:  # no thread can be started to export spans
        log.warning("traces_lost", error=str(error), spans=0)
        return None
