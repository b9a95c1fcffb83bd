"""What a foreign exception of the network becomes, however it is wrapped."""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Callable

import pytest
import requests
from urllib3 import exceptions

from dlpool import errors
from dlpool.transfer.http.network_errors import network_error


def raised_from(cause: BaseException, error: Exception) -> Exception:
    error.__cause__ = cause
    return error


def raised_in(context: BaseException, error: Exception) -> Exception:
    error.__context__ = context
    return error


def verification() -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, "failed")
    error.verify_message = "self-signed certificate"
    return error


WRAPPED: list[Callable[[Exception], Exception]] = [
    lambda error: error,
    requests.ConnectionError,
    lambda error: requests.ConnectionError(exceptions.ProtocolError("aborted", error)),
    lambda error: raised_from(error, OSError("other")),
    lambda error: raised_in(error, OSError("other")),
    lambda error: requests.ConnectionError(raised_from(error, OSError("other"))),
]


@pytest.mark.parametrize("wrapped", WRAPPED)
@pytest.mark.parametrize(
    ("error", "expected", "said"),
    [
        (errors.ShortBody("ours"), errors.ShortBody, "ours"),
        (verification(), errors.TlsFailed, "the server's certificate was refused: self-signed certificate"),
        (OSError("Tunnel connection failed: 407 Auth"), errors.AccessDenied, "the proxy answered 407 to CONNECT"),
        (TimeoutError("late"), errors.TimedOut, "the server sent nothing for longer than the read timeout"),
        (http.client.IncompleteRead(b""), errors.ShortBody, "the connection ended before the body did"),
        (ConnectionResetError("reset"), errors.ConnectionBroken, "the connection broke (reset)"),
        (ssl.SSLEOFError(8, "eof"), errors.ConnectionBroken, "the connection broke"),
        (ssl.SSLZeroReturnError(6, "closed"), errors.ConnectionBroken, "the connection broke"),
        (ssl.SSLError(1, "[SSL] wrong version"), errors.TlsFailed, "TLS failed ("),
        (http.client.BadStatusLine("nonsense"), errors.BadAnswer, "the server's answer is malformed (nonsense)"),
    ],
)
def test_the_cause_tells_however_it_is_wrapped(
    error: Exception, expected: type[Exception], said: str, wrapped: Callable[[Exception], Exception]
) -> None:
    found = network_error(wrapped(error))
    assert type(found) is expected
    assert said in str(found)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (exceptions.LocationParseError("h:x"), errors.UsageError),
        (exceptions.ReadTimeoutError(None, "u", "late"), errors.TimedOut),  # type: ignore[arg-type]
        (exceptions.IncompleteRead(1, 2), errors.ShortBody),
        (exceptions.InvalidHeader("odd"), errors.BadAnswer),
        (ValueError(""), errors.BadAnswer),
        (OSError("odd"), errors.ConnectionBroken),
        (requests.ConnectionError(), errors.ConnectionBroken),
    ],
)
def test_the_exceptions_of_libraries(error: Exception, expected: type[Exception]) -> None:
    assert type(network_error(error)) is expected


def test_an_error_without_a_text_is_named_by_its_type() -> None:
    assert str(network_error(ValueError(""))) == "the server's answer is malformed (ValueError)"
    assert str(network_error(OSError("odd"))) == "the connection broke (odd)"


@pytest.mark.parametrize(
    ("is_reused", "is_answered", "is_stale"),
    [(False, False, False), (True, False, True), (True, True, False), (False, True, False)],
)
def test_a_used_connection_that_breaks_before_its_answer_was_stale(
    is_reused: bool, is_answered: bool, is_stale: bool
) -> None:
    found = network_error(http.client.RemoteDisconnected("gone"), is_reused, is_answered=is_answered)
    assert isinstance(found, errors.ConnectionBroken)
    assert found.is_stale is is_stale


@pytest.mark.parametrize("is_answered", [True, False])
def test_a_failure_of_tls_within_a_body_is_a_broken_connection(is_answered: bool) -> None:
    cut = network_error(ssl.SSLEOFError(8, "eof"), is_answered=is_answered)
    assert type(cut) is (errors.ShortBody if is_answered else errors.ConnectionBroken)
    broken = network_error(ssl.SSLError(1, "bad record"), is_answered=is_answered)
    assert type(broken) is (errors.ConnectionBroken if is_answered else errors.TlsFailed)
    assert str(broken).startswith("TLS broke (" if is_answered else "TLS failed (")


def test_a_certificate_is_refused_with_the_reason_that_there_is() -> None:
    error = ssl.SSLCertVerificationError(1, "no reason")
    error.verify_message = ""
    assert "no reason" in str(network_error(error, is_answered=True))


@pytest.mark.parametrize(
    ("status", "expected", "is_away"),
    [
        (401, errors.AccessDenied, None),
        (403, errors.AccessDenied, None),
        (407, errors.AccessDenied, None),
        (400, errors.HttpRefused, None),
        (404, errors.HttpRefused, None),
        (499, errors.HttpRefused, None),
        (500, errors.ServerTrouble, False),
        (501, errors.ServerTrouble, False),
        (502, errors.ServerTrouble, True),
        (503, errors.ServerTrouble, True),
        (504, errors.ServerTrouble, True),
        (505, errors.ServerTrouble, False),
    ],
)
def test_what_a_proxy_answers_to_connect(status: int, expected: type[Exception], is_away: bool | None) -> None:
    found = network_error(OSError(f"Tunnel connection failed: {status} Reason"))
    assert type(found) is expected
    assert str(found) == f"the proxy answered {status} to CONNECT"
    assert getattr(found, "is_away", None) is is_away


def test_a_proxy_whose_status_is_unknown_has_refused() -> None:
    assert str(network_error(OSError("Tunnel connection failed: odd"))) == "the proxy answered 0 to CONNECT"


def test_exceptions_that_wrap_each_other_have_an_end() -> None:
    one, other = OSError("one"), OSError("other")
    one.__context__, other.__context__ = other, one
    assert isinstance(network_error(one), errors.ConnectionBroken)
