"""Translate exceptions of the HTTP libraries and sockets. Pure."""

from __future__ import annotations

import http.client
import re
import ssl
import sys
from collections.abc import Callable, Iterator

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


def library_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions that a request may raise besides those of dlpool.

    The exceptions of the library ``requests`` are OSErrors.
    """
    return (http.client.HTTPException, OSError, ValueError, *_of_urllib3("HTTPError"))


def _of_urllib3(name: str) -> tuple[type[Exception], ...]:
    """Return an exception class of urllib3; nothing before urllib3 is imported."""
    module = sys.modules.get("urllib3.exceptions")
    return () if module is None else (getattr(module, name),)


def network_error(
    error: Exception, is_reused: bool = False, *, is_answered: bool = False
) -> DlpoolError:
    """Return the DlpoolError for a library's exception.

    ``is_reused``: the connection had served an earlier request. ``is_answered``: the
    response header was received, so that the handshake cannot have failed.
    """
    causes = list(_causes(error))
    for cause in causes:
        if (known := _decisive_error(cause)) is not None:
            return known
    for kinds, translate in _rules():
        if found := next((cause for cause in causes if isinstance(cause, kinds)), None):
            return translate(found, is_reused, is_answered)
    return ConnectionBroken(f"the connection broke ({str(error)[:200]})")


def _decisive_error(cause: BaseException) -> DlpoolError | None:
    """Return the error for a cause that takes precedence over all other causes.

    Returns None for a cause without this precedence.
    """
    if isinstance(cause, DlpoolError):
        return cause
    if isinstance(cause, ssl.SSLCertVerificationError):
        return TlsFailed(
            f"the server's certificate was refused: {cause.verify_message or cause}"
        )
    if isinstance(cause, OSError) and str(cause).startswith("Tunnel connection failed"):
        return _tunnel_error(str(cause))
    return None


def _broken(cause: BaseException, is_reused: bool, is_answered: bool) -> DlpoolError:
    if is_answered and isinstance(cause, ssl.SSLEOFError):
        return ShortBody(
            "the TLS connection ended without close_notify, so the body may have been "
            "cut"
        )
    return ConnectionBroken(
        f"the connection broke ({cause})", is_stale=is_reused and not is_answered
    )


def _tls(cause: BaseException, _is_reused: bool, is_answered: bool) -> DlpoolError:
    reason = getattr(cause, "reason", None) or cause
    return (
        ConnectionBroken(f"TLS broke ({reason})")
        if is_answered
        else TlsFailed(f"TLS failed ({reason})")
    )


def _malformed(
    cause: BaseException, _is_reused: bool, _is_answered: bool
) -> DlpoolError:
    return BadAnswer(
        f"the server's answer is malformed ({str(cause)[:200] or type(cause).__name__})"
    )


_Translate = Callable[[BaseException, bool, bool], DlpoolError]


def _rules() -> tuple[tuple[tuple[type[BaseException], ...], _Translate], ...]:
    """Return the rules; the first rule that has the class of a cause applies."""
    return (
        (
            _of_urllib3("LocationValueError"),
            lambda cause, *_: UsageError(f"the URL cannot be used: {cause}"),
        ),
        (
            (TimeoutError, *_of_urllib3("TimeoutError")),
            lambda *_: TimedOut(
                "the server sent nothing for longer than the read timeout"
            ),
        ),
        (
            (http.client.IncompleteRead, *_of_urllib3("IncompleteRead")),
            lambda *_: ShortBody("the connection ended before the body did"),
        ),
        (
            (
                ConnectionError,
                http.client.RemoteDisconnected,
                ssl.SSLEOFError,
                ssl.SSLZeroReturnError,
            ),
            _broken,
        ),
        ((ssl.SSLError,), _tls),
        (
            (http.client.HTTPException, *_of_urllib3("InvalidHeader"), ValueError),
            _malformed,
        ),
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and every exception that it wraps."""
    pending: list[BaseException | None] = [error]
    seen: set[int] = set()
    while pending:
        cause = pending.pop(0)
        if cause is None or id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        wrapped = [
            getattr(cause, "reason", None),
            getattr(cause, "original_error", None),
            *cause.args,
        ]
        pending += [item for item in wrapped if isinstance(item, BaseException)]
        pending += [cause.__cause__, cause.__context__]


def _tunnel_error(message: str) -> DlpoolError:
    match = re.search(r"failed: (\d{3})", message)
    status = int(match[1]) if match else 0
    message = f"the proxy answered {status} to CONNECT"
    if status in (401, 403, 407):
        return AccessDenied(message)
    return (
        ServerTrouble(message, is_away=status in (502, 503, 504))
        if status >= 500
        else HttpRefused(message)
    )
