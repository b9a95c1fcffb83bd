"""The errors of requests, urllib3, http.client, ssl and sockets, translated once into ours. Pure."""

from __future__ import annotations

import http.client
import re
import socket
import ssl
from collections.abc import Iterator

from urllib3 import exceptions

from dlpool.errors import (
    AccessDenied,
    BadAnswer,
    ConnectionBroken,
    DlpoolError,
    HttpRefused,
    ServerTrouble,
    ShortBody,
    TimedOut,
    TlsFailed,
    UsageError,
)

_TIMEOUTS = (TimeoutError, socket.timeout, exceptions.TimeoutError)
_SHORT = (http.client.IncompleteRead, exceptions.IncompleteRead)
_BROKEN = (ConnectionError, http.client.RemoteDisconnected, ssl.SSLEOFError, ssl.SSLZeroReturnError)
_INVALID = (exceptions.LocationValueError,)
_MALFORMED = (http.client.HTTPException, exceptions.InvalidHeader, ValueError)


def network_error(error: Exception, is_reused: bool = False, *, is_answered: bool = False) -> DlpoolError:
    """Our error for a foreign one.

    ``is_reused``: the connection had served an earlier request. ``is_answered``: the body had begun, so that no
    failure can be the handshake's.
    """
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, DlpoolError):
            return cause
        if isinstance(cause, ssl.SSLCertVerificationError):
            return TlsFailed(f"the server's certificate was refused: {cause.verify_message or cause}")
        if isinstance(cause, OSError) and str(cause).startswith("Tunnel connection failed"):
            return _tunnel_error(str(cause))
    if _find(causes, _INVALID):
        return UsageError(f"the URL cannot be used: {error}")
    if _find(causes, _TIMEOUTS):
        return TimedOut("the server sent nothing for longer than the read timeout")
    if _find(causes, _SHORT):
        return ShortBody("the connection ended before the body did")
    if broken := _find(causes, _BROKEN):
        return ConnectionBroken(f"the connection broke ({broken})", is_stale=is_reused and not is_answered)
    if refused := _find(causes, (ssl.SSLError,)):
        reason = getattr(refused, "reason", None) or refused
        return ConnectionBroken(f"TLS broke ({reason})") if is_answered else TlsFailed(f"TLS failed ({reason})")
    if malformed := _find(causes, _MALFORMED):
        return BadAnswer(f"the server's answer is malformed ({str(malformed)[:200] or type(malformed).__name__})")
    return ConnectionBroken(f"the connection broke ({str(error)[:200]})")


def _find(causes: list[BaseException], kinds: tuple[type[BaseException], ...]) -> BaseException | None:
    return next((cause for cause in causes if isinstance(cause, kinds)), None)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and all that it wraps, in whichever way its library does."""
    pending: list[BaseException | None] = [error]
    seen: set[int] = set()
    while pending:
        cause = pending.pop(0)
        if cause is None or id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        wrapped = [getattr(cause, "reason", None), getattr(cause, "original_error", None), *cause.args]
        pending += [item for item in wrapped if isinstance(item, BaseException)]
        pending += [cause.__cause__, cause.__context__]


def _tunnel_error(message: str) -> DlpoolError:
    match = re.search(r"failed: (\d{3})", message)
    status = int(match[1]) if match else 0
    said = f"the proxy answered {status} to CONNECT"
    if status in (401, 403, 407):
        return AccessDenied(said)
    return ServerTrouble(said) if status >= 500 else HttpRefused(said)


