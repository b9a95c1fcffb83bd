"""Spans of jobs and of their ranges, exported over OTLP/HTTP by a thread of
OpenTelemetry.

No other module imports OpenTelemetry. Attributes have the names of OpenTelemetry's
semantic conventions; dlpool's own names begin with ``dlpool.``.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    SpanExporter,
    SpanExportResult,
)
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased
from opentelemetry.trace import (
    Span,
    SpanKind,
    Status,
    StatusCode,
    Tracer,
    set_span_in_context,
)

from dlpool import threads
from dlpool.config import OtelSettings
from dlpool.errors import NoThread
from dlpool.observe.log import Logger
from dlpool.observe.values import safe_text
from dlpool.transfer.http.urls import display_url
from dlpool.version import __version__

QUEUE = 2048  # spans that wait to be sent
BATCH = 512
DELAY_S = 1.0  # between two batches
TIMEOUT_S = 3.0  # to send one batch, including retries
FLUSH_S = 1.5  # to send the rest when the process exits
_FAILED = ("failed", "retry", "node_fault")  # attempt results that are errors
_STATISTICS = {
    "size": "file.size",
    "received": "dlpool.received",
    "resumed_from": "dlpool.resumed_from",
    "retries": "dlpool.retries",
    "connections": "dlpool.connections",
}
_TRACE_ID = re.compile(r"(?!0{32})[0-9a-fA-F]{32}")


class Traces:
    """The exporter of the traces of a process. Thread-safe; only ``close`` waits. The
    lock guards the numbers of ended and of sent spans."""

    def __init__(self, settings: OtelSettings, node_id: str, log: Logger) -> None:
        _silence_library()
        self._log = log
        self._lock = threading.Lock()
        self._ended = self._sent = 0
        self._has_failed = False
        self._ids = _SpanIds()
        resource = Resource(
            {
                "service.name": settings.service_name,
                "service.version": __version__,
                "service.instance.id": node_id,
                "host.name": socket.gethostname(),
                "process.pid": os.getpid(),
            }
        )
        self._provider = TracerProvider(
            sampler=TraceIdRatioBased(settings.sample_ratio),
            resource=resource,
            shutdown_on_exit=False,
            id_generator=self._ids,
        )
        url = settings.endpoint.rstrip("/") + "/v1/traces"
        exporter = _CountingExporter(OTLPSpanExporter(url, timeout=TIMEOUT_S), self)
        self._provider.add_span_processor(_CountingProcessor(exporter, self))
        self._tracer = self._provider.get_tracer("dlpool", __version__)

    def start_job_span(
        self,
        trace_id: str,
        span_id: str,
        url: str,
        job_id: str,
        user_id: str | None,
        attempt: int,
    ) -> JobSpan:
        """Start the span of one run of a job. Call this on the thread that runs the
        job. ``span_id`` is 16 hex digits."""
        self._ids.next = (trace_id_number(trace_id), int(span_id, 16))
        known: dict[str, Any] = {
            "url.full": safe_text(display_url(url)),
            "dlpool.job.id": safe_text(job_id),
            "dlpool.attempt": attempt,
        }
        if user_id is not None:
            known["user.id"] = safe_text(user_id)
        span = self._tracer.start_span("download", Context(), attributes=known)
        return JobSpan(self._tracer, span, known["url.full"])

    def close(self, left_s: float) -> None:
        """Send the queued spans, and log how many spans were lost. Wait about
        ``left_s`` seconds at most, and never longer than ``FLUSH_S``."""
        with suppress(NoThread):
            threads.start_thread(self._provider.shutdown, "traces").join(
                max(0.1, min(left_s, FLUSH_S))
            )
        with self._lock:
            lost = self._ended - self._sent
        if lost:
            self._log.warning(
                "traces_lost",
                error="the collector did not take them in time",
                spans=lost,
            )

    def note_ended(self) -> None:
        """Count a span that has ended and will be sent."""
        with self._lock:
            self._ended += 1

    def note_export(self, spans: int, *, is_sent: bool) -> None:
        """Count the spans of a batch if it was sent; log the first failure."""
        with self._lock:
            self._sent += spans if is_sent else 0
            is_first_failure = not is_sent and not self._has_failed
            self._has_failed = self._has_failed or not is_sent
        if is_first_failure:
            self._log.warning(
                "traces_lost",
                error="the collector of [otel] endpoint is unavailable or refuses "
                "spans: downloads continue",
                spans=spans,
            )


class JobSpan:
    """The span of one run of a job. Any thread may call ``add_range``."""

    def __init__(self, tracer: Tracer, span: Span, url: str) -> None:
        self._tracer = tracer
        self._span = span
        self._request: dict[str, Any] = {"http.request.method": "GET", "url.full": url}
        with suppress(ValueError):
            parts = urlsplit(url)
            port = parts.port or (443 if parts.scheme == "https" else 80)
            self._request |= {
                "server.address": parts.hostname or "",
                "server.port": port,
            }

    def add_range(self, fields: Mapping[str, Any]) -> None:
        """Add a span for a request, from the fields of the event ``range_fetched`` or
        ``range_retry``."""
        now = time.time_ns()
        end = fields["end"]
        known = self._request | {"dlpool.range.start": fields["start"]}
        if end is not None:
            known["dlpool.range.end"] = end
        if "status" in fields:
            known["http.response.status_code"] = fields["status"]
        if "label" in fields:
            known |= {
                "error.type": fields["label"],
                "dlpool.range.attempt": fields["attempt"],
            }
        span = self._tracer.start_span(
            "GET",
            set_span_in_context(self._span, Context()),
            SpanKind.CLIENT,
            known,
            start_time=now - round(fields["seconds"] * 1e9),
        )
        if "label" in fields:
            span.set_status(Status(StatusCode.ERROR, safe_text(fields["error"])))
        span.end(now)

    def end(
        self,
        attempt_result: str,
        path: str | None,
        statistics: Mapping[str, Any],
        label: str,
        message: str,
    ) -> None:
        """End the span of the run, with the values of the run's ``EndedFrame``."""
        self._span.set_attribute("dlpool.attempt_result", attempt_result)
        if path is not None:
            self._span.set_attribute("file.path", safe_text(path))
        for key, name in _STATISTICS.items():
            if statistics.get(key) is not None:
                self._span.set_attribute(name, statistics[key])
        if attempt_result in _FAILED:
            self._span.set_attribute("error.type", label)
            self._span.set_status(Status(StatusCode.ERROR, safe_text(message)))
        self._span.end()


def trace_id_number(trace_id: str) -> int:
    """Return a trace id as the number that OpenTelemetry uses. An invalid trace id is
    hashed."""
    if _TRACE_ID.fullmatch(trace_id) is None:
        trace_id = hashlib.sha256(trace_id.encode(errors="surrogatepass")).hexdigest()[
            :32
        ]
    return int(trace_id, 16)


class _SpanIds(RandomIdGenerator):
    """A generator of random ids. If a thread has set ``next``, the next root span that
    the thread starts gets the ids in ``next`` instead."""

    def __init__(self) -> None:
        self._local = threading.local()

    @property
    def next(self) -> tuple[int, int] | None:
        """Return the trace id and span id for the next root span of this thread; None
        for random ids."""
        return getattr(self._local, "next", None)

    @next.setter
    def next(self, ids: tuple[int, int] | None) -> None:
        self._local.next = ids

    def generate_trace_id(self) -> int:
        return self.next[0] if self.next is not None else super().generate_trace_id()

    def generate_span_id(self) -> int:
        ids, self.next = self.next, None
        return ids[1] if ids is not None else super().generate_span_id()


class _CountingProcessor(BatchSpanProcessor):
    """A processor that counts the spans that end. The count shows losses: a full queue
    drops its oldest span silently."""

    def __init__(self, exporter: SpanExporter, traces: Traces) -> None:
        super().__init__(exporter, QUEUE, DELAY_S * 1000, BATCH, TIMEOUT_S * 1000)
        self._traces = traces

    def on_end(self, span: ReadableSpan) -> None:
        self._traces.note_ended()
        super().on_end(span)


class _CountingExporter(SpanExporter):
    """A wrapper of the library's exporter, which reports each batch to ``Traces``."""

    def __init__(self, exporter: OTLPSpanExporter, traces: Traces) -> None:
        self._exporter = exporter
        self._traces = traces

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        self._traces.note_export(len(spans), is_sent=result is SpanExportResult.SUCCESS)
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()  # type: ignore[no-untyped-call]


def _silence_library() -> None:
    """Keep the library's log off standard error: dlpool's log reports failures once."""
    logger = logging.getLogger("opentelemetry")
    logger.addHandler(logging.NullHandler())
    logger.propagate = False
