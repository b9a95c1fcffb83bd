"""Public keys of JSON web tokens and the algorithms that fit each: from PEM, and from JSON web keys (RFC 7517).

A key is used with the algorithms of its own kind only, whatever a token says, so that a public key is never taken for
the secret of an HS algorithm.
"""

from __future__ import annotations

from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from dlpool.errors import ConfigurationError

RSA_ALGORITHMS = ("RS256", "RS384", "RS512")
_OF_CURVE = {"secp256r1": ("ES256",), "secp384r1": ("ES384",)}  # RFC 7518, section 3.4


@dataclass(frozen=True)
class TokenKey:
    """What the signature of a token is checked with. ``algorithms``: with which it may be."""

    key: str | RSAPublicKey | EllipticCurvePublicKey
    algorithms: frozenset[str]


def algorithms_of(key: object) -> tuple[str, ...]:
    """Return the algorithms that a public key fits; none for a kind that is not supported."""
    if isinstance(key, RSAPublicKey):
        return RSA_ALGORITHMS
    return _OF_CURVE.get(key.curve.name, ()) if isinstance(key, EllipticCurvePublicKey) else ()


def key_of_pem(text: str, algorithms: tuple[str, ...]) -> TokenKey:
    """Return the public key in PEM. Raises ConfigurationError if it is none, or fits none of ``algorithms``."""
    kind = algorithms[0][:2]
    try:
        key = load_pem_public_key(text.encode())
    except ValueError as error:
        raise ConfigurationError(f"[web] jwt_key is no public key in PEM, which {kind} algorithms need") from error
    fitting = frozenset(algorithms).intersection(algorithms_of(key))
    if not fitting or not isinstance(key, RSAPublicKey | EllipticCurvePublicKey):
        wanted = {"RS": "RSA", "ES": "EC"}[kind] + (" key on its curve" if kind == "ES" else " key")
        raise ConfigurationError(f"[web] jwt_key is no {wanted}, which {', '.join(algorithms)} need")
    return TokenKey(key, fitting)
