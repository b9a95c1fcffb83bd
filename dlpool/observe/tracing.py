"""Traces: the switch that imports OpenTelemetry only if an endpoint is set, and the
header ``traceparent``."""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import TYPE_CHECKING

from dlpool.config import OtelSettings
from dlpool.errors import ConfigurationError
from dlpool.observe.log import Logger

if TYPE_CHECKING:
    from dlpool.observe.spans import Traces

TRACEPARENT = "traceparent"
_REQUIRED = ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http")
_TRACEPARENT = re.compile(
    r"(?P<version>(?!ff)[0-9a-f]{2})-(?P<trace_id>(?!0{32})[0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?P<rest>-.*)?"
)


def check_traces(settings: OtelSettings) -> None:
    """Raise ConfigurationError if an endpoint is set and the extra ``otel`` is not
    installed."""
    try:
        is_installed = not settings.endpoint or all(
            find_spec(name) is not None for name in _REQUIRED
        )
    except ModuleNotFoundError:  # of a parent package
        is_installed = False
    if not is_installed:
        raise ConfigurationError(
            "[otel] endpoint is set, but OpenTelemetry is not installed: pip install "
            "'dlpool[otel]', or leave it empty"
        )


def open_traces(settings: OtelSettings, node_id: str, log: Logger) -> Traces | None:
    """Return the exporter of this process's traces; None if traces are off or no thread
    can be started for it."""
    if not settings.endpoint:
        return None
    from dlpool.observe.spans import Traces

    try:
        return Traces(settings, node_id, log)
    except RuntimeError as error:  # no more threads
        log.warning("traces_lost", error=str(error), spans=0)
        return None


def parse_traceparent(header: str | None) -> str | None:
    """Return the trace id in a header ``traceparent``; None if the header is absent or
    invalid.

    Follows W3C Trace Context, levels 1 and 2. Several headers, which a server joins
    with commas, are invalid (sections 3.2 and 4.3).
    """
    match = None if header is None else _TRACEPARENT.fullmatch(header.strip(" \t"))
    if match is None or (match["rest"] and match["version"] == "00"):
        return None
    return match["trace_id"]
