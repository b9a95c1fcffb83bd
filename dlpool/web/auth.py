"""Authenticates clients by JSON web tokens and keys.

Tokens (RFC 7519) are sent in ``Authorization: Bearer`` (RFC 6750), the secret and named
keys in ``X-Secret-Key``.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable

from dlpool.config import WebSettings
from dlpool.config.web import split_words
from dlpool.config.web_access import check_web_access, read_key
from dlpool.web.jwks import JwksSource
from dlpool.web.keyring import KeyRing
from dlpool.web.principal import ANONYMOUS, WITH_SECRET, Principal, unauthorized
from dlpool.web.public_keys import TokenKey, load_pem_key
from dlpool.web.tokens import TokenVerifier


class Authenticator:
    """Checks tokens and keys. ``is_required``: whether requests need a token or key.
    Thread-safe.

    The constructor raises ConfigurationError for invalid settings and keys, and if
    authentication is required but no key is configured.
    """

    def __init__(self, settings: WebSettings) -> None:
        check_web_access(settings)
        secret = read_key(settings.secret_key, settings.secret_key_file)
        self._secret = secret.encode() if secret else None
        self._ring = KeyRing(settings.keys_file) if settings.keys_file else None
        static = _static_key(settings)
        self._source = JwksSource(settings.jwks_url) if settings.jwks_url else None
        has_token_key = static is not None or self._source is not None
        self._tokens = (
            TokenVerifier(settings, static, self._source) if has_token_key else None
        )
        has_key = any(
            one is not None for one in (self._tokens, self._secret, self._ring)
        )
        self.is_required = settings.auth == "on" or (
            settings.auth == "auto" and has_key
        )

    def set_listeners(
        self, problem: Callable[[str], None], fetched: Callable[[str | None, int], None]
    ) -> None:
        """Set the listeners of the key sources.

        ``problem`` is called for problems of ``keys_file`` (see ``KeyRing``),
        ``fetched`` for fetches of ``jwks_url`` (see ``JwksSource``).
        """
        if self._ring is not None:
            self._ring.on_problem = problem
        if self._source is not None:
            self._source.on_fetch = fetched

    def authenticate(self, authorization: str | None, secret: str | None) -> Principal:
        """Return the client that the headers of a request identify.

        ``authorization``: the header Authorization; ``secret``: X-Secret-Key. Returns
        ANONYMOUS if ``is_required`` is false. Raises HttpError (401, 503).
        """
        if not self.is_required:
            return ANONYMOUS
        if secret is not None and (self._secret is not None or self._ring is not None):
            return self._with_secret(secret.encode("latin-1", "replace"))
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not token or self._tokens is None:
            raise unauthorized(self._wanted())
        return self._tokens.verify(token.strip())

    def _with_secret(self, secret: bytes) -> Principal:
        is_secret = self._secret is not None and hmac.compare_digest(
            secret, self._secret
        )
        key = self._ring.find(secret) if self._ring is not None else None
        if is_secret:
            return WITH_SECRET
        if key is None:
            raise unauthorized("X-Secret-Key is not the secret")
        return Principal(
            f"key {key.name}", key.scopes, key.owner, key.owner or key.name
        )

    def _wanted(self) -> str:
        has_secret = self._secret is not None or self._ring is not None
        ways = (
            ["a token is needed: Authorization: Bearer TOKEN"]
            if self._tokens is not None
            else []
        )
        ways += ["X-Secret-Key"] if has_secret else []
        return (
            ", or ".join(ways)
            if self._tokens is not None
            else "a key is needed: X-Secret-Key"
        )


def _static_key(settings: WebSettings) -> TokenKey | None:
    text = read_key(settings.jwt_key, settings.jwt_key_file)
    algorithms = split_words(settings.jwt_algorithms)
    if text is None:
        return None
    return (
        TokenKey(text, frozenset(algorithms))
        if algorithms[0].startswith("HS")
        else load_pem_key(text, algorithms)
    )
