"""Verifies JSON web tokens (RFC 7519): size and nesting before parsing, signature,
claims.

Follows RFC 8725: the key, not the token, determines the algorithms, and no key is
fetched from a location in a token (``jku``, ``x5u``, ``jwk``).
"""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jwt

from dlpool import jsontext
from dlpool.config import WebSettings
from dlpool.config.web import ADMIN, known_scopes, split_words
from dlpool.dataclass import dataclass
from dlpool.web.principal import Principal, unauthorized
from dlpool.web.public_keys import ALGORITHMS, TokenKey

LEEWAY_S = 10
MAX_TOKEN = 8192  # characters
MAX_DEPTH = 8
MAX_VALUES = 1000
MAX_NAME = 255
_MAX_TIME = 2**53
_BASE64URL = re.compile(r"[A-Za-z0-9_-]+")


class KeySource(Protocol):
    """Provides keys by their id."""

    def keys(self, kid: str) -> tuple[TokenKey, ...]:
        """Return the keys with this id. Raises HttpError (503) while they are
        unavailable."""


class InvalidToken(Exception):
    """An invalid token. The message is ASCII and contains no part of the token."""


@dataclass(frozen=True)
class _TokenHeader:
    algorithm: str
    kid: str | None


class TokenVerifier:
    """Verifies tokens. Thread-safe.

    ``static``: the configured key, or None. ``source``: provides further keys by id;
    None if there are no further keys.
    """

    def __init__(
        self,
        settings: WebSettings,
        static: TokenKey | None,
        source: KeySource | None = None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._static = static
        self._source = source
        self._clock = clock
        self._audiences = frozenset(split_words(settings.jwt_audience))
        self._issuers = frozenset(split_words(settings.jwt_issuer))
        self._scope_claim = settings.jwt_scope_claim
        self._owner_claim = settings.jwt_owner_claim
        self._default = known_scopes(split_words(settings.jwt_default_scopes))

    def verify(self, token: str) -> Principal:
        """Return the client of a token. Raises HttpError: 401 for an invalid token,
        503 while keys are unavailable."""
        try:
            claims = _object(self._payload(token), "payload")
            self._check_times(claims)
            self._check_origin(claims)
            owner = _name(claims, self._owner_claim)
            subject = _name(claims, "sub") if "sub" in claims else owner
            scopes = self._scopes(claims)
        except InvalidToken as error:
            raise unauthorized(f"invalid token: {error}", is_token=True) from error
        return Principal(
            f"token {subject}", scopes, None if ADMIN in scopes else owner, owner
        )

    def _payload(self, token: str) -> bytes:
        """Verify the signature of a token and return the payload."""
        head = _head(token)
        for key in self._candidates(head):
            try:
                found = jwt.PyJWS().decode_complete(
                    token, key.key, algorithms=[head.algorithm]
                )
            except (jwt.PyJWTError, ValueError, TypeError, OverflowError):
                continue
            payload: bytes = found["payload"]
            return payload
        raise InvalidToken("its signature matches no configured key")

    def _candidates(self, head: _TokenHeader) -> Iterator[TokenKey]:
        """Yield the keys that may match the header. The keys of the source come last,
        because fetching them may take time."""
        if self._static is not None and head.algorithm in self._static.algorithms:
            yield self._static
        if (
            self._source is not None
            and head.kid is not None
            and head.algorithm in ALGORITHMS
        ):
            yield from (
                key
                for key in self._source.keys(head.kid)
                if head.algorithm in key.algorithms
            )

    def _check_times(self, claims: dict[str, Any]) -> None:
        now = self._clock()
        if "exp" not in claims:
            raise InvalidToken("it has no exp")
        if _time(claims, "exp") <= now - LEEWAY_S:
            raise InvalidToken("it has expired")
        for name in ("nbf", "iat"):
            if name in claims and _time(claims, name) > now + LEEWAY_S:
                raise InvalidToken(f"its {name} is in the future")

    def _check_origin(self, claims: dict[str, Any]) -> None:
        """Check issuer and audience (RFC 7519, sections 4.1.1 and 4.1.3)."""
        issuer, audience = claims.get("iss"), claims.get("aud")
        if self._issuers and not (isinstance(issuer, str) and issuer in self._issuers):
            raise InvalidToken("its iss is not one of jwt_issuer")
        given = audience if isinstance(audience, list) else [audience]
        if self._audiences and not any(
            isinstance(one, str) and one in self._audiences for one in given
        ):
            raise InvalidToken("its aud is not one of jwt_audience")

    def _scopes(self, claims: dict[str, Any]) -> frozenset[str]:
        """Return the scopes of a token, or ``jwt_default_scopes`` if it has no scope
        claim. The claim is a text separated by spaces (RFC 8693, section 4.2), or a
        list of texts."""
        if self._scope_claim not in claims:
            return self._default
        given = claims[self._scope_claim]
        if isinstance(given, str):
            given = given.split(" ")
        if not isinstance(given, list) or not all(
            isinstance(one, str) for one in given
        ):
            raise InvalidToken("its scopes must be a text or a list of texts")
        return known_scopes(given)


def _head(token: str) -> _TokenHeader:
    """Check the size and nesting of a token; return its header. Raises
    InvalidToken."""
    if len(token) > MAX_TOKEN:
        raise InvalidToken(f"it has more than {MAX_TOKEN} characters")
    pieces = token.split(".")
    if len(pieces) != 3 or not all(_BASE64URL.fullmatch(piece) for piece in pieces):
        raise InvalidToken("it is not three parts in base64url")
    found = _object(_decoded(pieces[0]), "header")
    _object(_decoded(pieces[1]), "payload")
    algorithm, kid = found.get("alg"), found.get("kid")
    if not isinstance(algorithm, str) or not (
        kid is None or (isinstance(kid, str) and len(kid) <= MAX_NAME)
    ):
        raise InvalidToken("its alg or kid is not a text")
    # RFC 7515, section 4.1.11: no extension is supported.
    if "crit" in found or "b64" in found:
        raise InvalidToken("its header requires extensions")
    return _TokenHeader(algorithm, kid)


def _decoded(piece: str) -> bytes:
    try:
        return base64.urlsafe_b64decode(piece + "=" * (-len(piece) % 4))
    except ValueError as error:
        raise InvalidToken("it is not three parts in base64url") from error


def _object(data: bytes, what: str) -> dict[str, Any]:
    try:
        jsontext.check_bounds(data, depth=MAX_DEPTH, values=MAX_VALUES)
        found = jsontext.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidToken(
            f"its {what} is not JSON, or is too deeply nested"
        ) from error
    if not isinstance(found, dict):
        raise InvalidToken(f"its {what} is not a JSON object")
    return found


def _time(claims: dict[str, Any], name: str) -> float:
    """Return the time in a claim, in seconds since 1970.

    Raises InvalidToken if the claim is not a number, or is NaN or huge.
    """
    value = claims[name]
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not abs(value) <= _MAX_TIME
    ):
        raise InvalidToken(f"its {name} is not a time")
    return float(value)


def _name(claims: dict[str, Any], name: str) -> str:
    value = claims.get(name)
    if (
        not isinstance(value, str)
        or not value
        or len(value) > MAX_NAME
        or not value.isprintable()
    ):
        raise InvalidToken(
            f"its {'sub' if name == 'sub' else 'owner claim'} is not a valid name"
        )
    return value
