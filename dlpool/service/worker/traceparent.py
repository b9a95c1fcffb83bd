"""A job's trace id for its origin: the header ``traceparent`` of W3C Trace Context,
level 1. Pure."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace

from dlpool.service.wire.frames import JobFrame

_HEADER = "traceparent"
_TRACE_ID = re.compile(r"(?!0{32})[0-9a-f]{32}")


def with_traceparent(frame: JobFrame) -> JobFrame:
    """The frame with that header, unless the job has its own, or a trace id that W3C
    does not know (section 3.2.2.3).

    The parent id stands for this run of the job: the same for all of its requests,
    another one for its next run.
    """
    has_own = any(name.lower() == _HEADER for name in frame.headers)
    if has_own or _TRACE_ID.fullmatch(frame.trace_id) is None:
        return frame
    return replace(
        frame,
        headers={**frame.headers, _HEADER: f"00-{frame.trace_id}-{span_id(frame)}-01"},
    )


def span_id(frame: JobFrame) -> str:
    """The id of a run of a job, 16 hex digits: the origin's spans, told by the header,
    are children of ours."""
    return hashlib.sha256(frame.lease_id.encode()).hexdigest()[:16]
