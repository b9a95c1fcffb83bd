"""The header ``traceparent`` of a request, as W3C Trace Context (level 1 and 2) defines
it. Pure."""

from __future__ import annotations

import re

HEADER = "traceparent"
_FORM = re.compile(
    r"(?P<version>(?!ff)[0-9a-f]{2})-(?P<trace_id>(?!0{32})[0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?P<rest>-.*)?"
)


def trace_id_of(header: str | None) -> str | None:
    """Return the trace id that ``header`` names; None if it is absent or invalid, and
    must be ignored.

    Invalid are a version of ff, upper case, an id of zeros only, further fields in
    version 00, and several headers, which a server joins with commas (sections 3.2 and
    4.3).
    """
    match = None if header is None else _FORM.fullmatch(header.strip(" \t"))
    if match is None or (match["rest"] and match["version"] == "00"):
        return None
    return match["trace_id"]
