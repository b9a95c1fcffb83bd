"""Who asks: JSON web tokens (RFC 7519) in ``Authorization: Bearer`` (RFC 6750), or the secret in ``X-Secret-Key``."""

from __future__ import annotations

import hmac

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from dlpool.config import WebSettings
from dlpool.config.door import check_door, key_of
from dlpool.config.web import words
from dlpool.errors import ConfigurationError
from dlpool.web.refusal import Refusal

LEEWAY_S = 10


class Keys:
    """What tokens are checked with. ``is_required``: whether anybody is asked for one.

    Raises ConfigurationError for keys that cannot be used, and where some are needed and none is there. Thread-safe.
    """

    def __init__(self, settings: WebSettings) -> None:
        check_door(settings)
        secret = key_of(settings.secret_key, settings.secret_key_file)
        self._secret = secret.encode() if secret else None
        self._algorithms = list(words(settings.jwt_algorithms))
        self._key = _jwt_key(settings)
        has_key = self._key is not None or self._secret is not None
        self.is_required = settings.auth == "on" or (settings.auth == "auto" and has_key)

    def owner(self, authorization: str | None, secret: str | None) -> str | None:
        """Whose request it is: a token's ``sub``; None for who knows the secret, or where nobody is asked.

        Raises Refusal (401).
        """
        if not self.is_required:
            return None
        if secret is not None and self._secret is not None:
            if hmac.compare_digest(secret.encode("latin-1", "replace"), self._secret):
                return None
            raise _unauthorized("X-Secret-Key is not the secret")
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not token or self._key is None:
            raise _unauthorized("a token is needed: Authorization: Bearer TOKEN" + (
                ", or X-Secret-Key" if self._secret is not None else ""))  # fmt: skip
        return self._subject(token.strip())

    def _subject(self, token: str) -> str:
        try:
            claims = jwt.decode(token, self._key or "", algorithms=self._algorithms, leeway=LEEWAY_S,
                                options={"require": ["exp", "sub"], "verify_aud": False})  # fmt: skip
        except jwt.PyJWTError as error:
            raise _unauthorized(f"the token is not good: {str(error).partition(':')[0]}") from error
        subject = claims["sub"]
        if not isinstance(subject, str) or not subject or len(subject) > 255 or not subject.isprintable():
            raise _unauthorized("the token is not good: its sub is no name")
        return subject


def _jwt_key(settings: WebSettings) -> str | RSAPublicKey | None:
    text = key_of(settings.jwt_key, settings.jwt_key_file)
    if text is None or words(settings.jwt_algorithms)[0].startswith("HS"):
        return text
    try:
        key = load_pem_public_key(text.encode())
    except ValueError as error:
        raise ConfigurationError("[web] jwt_key is no public key in PEM, which RS algorithms need") from error
    if not isinstance(key, RSAPublicKey):
        raise ConfigurationError("[web] jwt_key is no RSA key, which RS algorithms need")
    return key


def _unauthorized(text: str) -> Refusal:
    return Refusal(401, "unauthorized", text, headers={"WWW-Authenticate": 'Bearer realm="dlpool"'})
