"""Loads public keys of JSON web tokens from PEM and from JSON web keys (RFC 7517).

A key is used only with the algorithms of its own kind, so that a token cannot use a
public key as the secret of an HS algorithm.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    SECP384R1,
    EllipticCurvePublicKey,
    EllipticCurvePublicNumbers,
)
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey, RSAPublicNumbers
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from dlpool.dataclass import dataclass
from dlpool.errors import ConfigurationError

# Sizes of RSA keys. The minimum is from RFC 7518, section 3.3; keys above the maximum
# take too much time.
MIN_BITS, MAX_BITS = 2048, 8192
RSA_ALGORITHMS = ("RS256", "RS384", "RS512")
# Algorithms by curve (RFC 7518, section 3.4).
_CURVE_ALGORITHMS = {
    "secp256r1": ("ES256",),
    "secp384r1": ("ES384",),
}


@dataclass(frozen=True)
class TokenKey:
    """A key that verifies signatures of tokens, with its allowed algorithms."""

    key: str | RSAPublicKey | EllipticCurvePublicKey
    algorithms: frozenset[str]


ALGORITHMS = frozenset(
    (*RSA_ALGORITHMS, *(one for of in _CURVE_ALGORITHMS.values() for one in of))
)


def algorithms_of(key: object) -> tuple[str, ...]:
    """Return the algorithms for a public key; none if its kind is not supported."""
    if isinstance(key, RSAPublicKey):
        return RSA_ALGORITHMS
    return (
        _CURVE_ALGORITHMS.get(key.curve.name, ())
        if isinstance(key, EllipticCurvePublicKey)
        else ()
    )


def load_pem_key(text: str, algorithms: tuple[str, ...]) -> TokenKey:
    """Load a public key in PEM. Raises ConfigurationError if it is invalid, or fits
    none of ``algorithms``."""
    kind = algorithms[0][:2]
    try:
        key = load_pem_public_key(text.encode())
    except ValueError as error:
        raise ConfigurationError(
            f"[web] jwt_key must be a public key in PEM for {kind} algorithms"
        ) from error
    usable = frozenset(algorithms).intersection(algorithms_of(key))
    if not usable or not isinstance(key, RSAPublicKey | EllipticCurvePublicKey):
        wanted = {"RS": "RSA", "ES": "EC"}[kind] + (
            " key on its curve" if kind == "ES" else " key"
        )
        raise ConfigurationError(
            f"[web] jwt_key must be an {wanted} for {', '.join(algorithms)}"
        )
    return TokenKey(key, usable)


def load_jwk(members: Mapping[str, Any]) -> TokenKey | None:
    """Load a JSON web key (RFC 7518, section 6). Return None if it is not for
    signatures, or not supported.

    Supported are RSA of 2048 to 8192 bits, and EC on P-256 and P-384.
    """
    usage, operations, algorithm = (
        members.get("use"),
        members.get("key_ops"),
        members.get("alg"),
    )
    if usage not in (None, "sig") or not (
        operations is None or (isinstance(operations, list) and "verify" in operations)
    ):
        return None
    try:
        key = _build(members)
    except ValueError:
        return None
    usable = frozenset(algorithms_of(key))
    if algorithm is not None:
        usable = usable.intersection([algorithm] if isinstance(algorithm, str) else [])
    return TokenKey(key, usable) if usable else None


def _build(members: Mapping[str, Any]) -> RSAPublicKey | EllipticCurvePublicKey:
    """Build the key from its public numbers. Raises ValueError for an unsupported key,
    and for a point that is not on the curve."""
    if members.get("kty") == "RSA":
        modulus, exponent = _number(members.get("n")), _number(members.get("e"))
        if (
            not MIN_BITS <= modulus.bit_length() <= MAX_BITS
            or exponent.bit_length() > 32
        ):
            raise ValueError("unsupported key size")
        return RSAPublicNumbers(exponent, modulus).public_key()
    curve = {"P-256": SECP256R1, "P-384": SECP384R1}.get(str(members.get("crv")))
    if members.get("kty") != "EC" or curve is None:
        raise ValueError("unsupported kind of key")
    return EllipticCurvePublicNumbers(
        _number(members.get("x")), _number(members.get("y")), curve()
    ).public_key()


def _number(text: object) -> int:
    """Decode a Base64urlUInt. Raises ValueError."""
    if not isinstance(text, str) or not re.fullmatch(r"[A-Za-z0-9_-]{1,2048}", text):
        raise ValueError("not a number")
    return int.from_bytes(
        base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)), "big"
    )
