"""Error responses that a worker sends without calling the application."""

from __future__ import annotations

from dlpool import jsontext
from dlpool.dataclass import dataclass
from dlpool.observe.http_server import NO_SNIFF

RETRY_AFTER_S = 1


@dataclass(frozen=True)
class RawError:
    """Status, reason phrase and error code of a response."""

    status: int
    phrase: str
    code: str = "bad_request"


BAD_REQUEST = RawError(400, "Bad Request")
TIMEOUT = RawError(408, "Request Timeout", "too_slow")
URI_TOO_LONG = RawError(414, "URI Too Long")
EXPECTATION_FAILED = RawError(417, "Expectation Failed")
HEAD_TOO_LONG = RawError(431, "Request Header Fields Too Large")
NOT_IMPLEMENTED = RawError(501, "Not Implemented")
BUSY = RawError(503, "Service Unavailable", "busy")


def render_error(error: RawError, text: str) -> bytes:
    """Return the bytes of a complete response with ``Connection: close``.

    Its body has the JSON format of all errors; 503 has ``Retry-After``.
    """
    body = jsontext.dumps({"error": text, "code": error.code})
    headers = [
        "Connection: close",
        "Content-Type: application/json",
        *([f"Retry-After: {RETRY_AFTER_S}"] if error is BUSY else []),
        f"Content-Length: {len(body)}",
        ": ".join(NO_SNIFF),
    ]
    head = "\r\n".join((f"HTTP/1.1 {error.status} {error.phrase}", *headers, "", ""))
    return head.encode() + body
