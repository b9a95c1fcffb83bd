"""The settings of dlpool-web, and its scopes: what a token or key may do."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection
from urllib.parse import urlsplit

from dlpool.config.declaration import setting
from dlpool.dataclass import dataclass
from dlpool.kinds import (
    COUNT,
    DURATION,
    FREQUENCY,
    HOUR_S,
    KIB,
    MINUTE_S,
    PATH,
    RATE,
    SIZE,
    TEXT,
    Kind,
    choice,
    parse_text,
)

READ = "read"  # see jobs, uploads and figures; download merged files
UPLOAD = "upload"  # upload files, control and delete the owner's uploads
PUSH = "push"  # queue jobs
# control jobs, nodes and the queue; retry and delete failure records
OPERATE = "operate"
ADMIN = "admin"  # everything, for all owners
SCOPES = (READ, UPLOAD, PUSH, OPERATE, ADMIN)
COMMON = (READ, UPLOAD, PUSH, OPERATE)  # all but ADMIN
ALGORITHMS = ("HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "ES256", "ES384")
REFUSED = "!"  # prefix of a refused content type


def allows(granted: Collection[str], scope: str) -> bool:
    """Return whether ``granted`` includes ``scope``; the scope admin includes all."""
    return ADMIN in granted or scope in granted


def known_scopes(names: Collection[object]) -> frozenset[str]:
    """Return the scopes of dlpool-web among ``names``.

    A token may also have scopes for other services.
    """
    return frozenset(name for name in names if isinstance(name, str) and name in SCOPES)


def _parse_words(text: str) -> str:
    """Check a list of words separated by commas, and return it as text.

    ``split_words`` splits the text later.
    """
    if text and not all(split_words(text)):
        raise ValueError("not a list separated by commas")
    return parse_text(text)


def split_words(text: str | None) -> tuple[str, ...]:
    """Return the words of a list separated by commas."""
    return tuple(word.strip() for word in text.split(",")) if text else ()


def _parse_content_types(text: str) -> str:
    for word in split_words(text):
        kind = word.removeprefix(REFUSED)
        if kind != "executable" and not re.fullmatch(
            r"[A-Za-z0-9][A-Za-z0-9.+_-]*/([A-Za-z0-9.+_-]+|\*)", kind
        ):
            raise ValueError(
                f"not a list of media types, TYPE/* or !executable ({word[:40]!r})"
            )
        if word == "executable":
            raise ValueError(
                "executable without !: name the media types that are taken"
            )
    return parse_text(text)


def _parse_networks(text: str) -> str:
    try:
        parse_networks(text)
    except ValueError:
        raise ValueError(
            "not a list of addresses or networks separated by commas"
        ) from None
    return text


def parse_networks(
    text: str | None,
) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    """Return the networks of a list separated by commas. Raises ValueError."""
    return tuple(ipaddress.ip_network(word, strict=False) for word in split_words(text))


def _parse_algorithms(text: str) -> str:
    for word in split_words(text):
        if word not in ALGORITHMS:
            raise ValueError(f"not a list of {', '.join(ALGORITHMS)}")
    if len({word[:2] for word in split_words(text)}) != 1:
        raise ValueError(
            "not of one kind: HS, RS or ES (a public key must not be taken for a "
            "shared secret)"
        )
    return text


def is_loopback(host: str) -> bool:
    """Return whether ``host`` is a loopback address or ``localhost``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _parse_jwks_url(text: str) -> str:
    if not re.fullmatch(r"https?://[\x21-\x7e]+", text) or re.search(r"[@#\\]", text):
        raise ValueError("not an https URL in ASCII without user and fragment")
    try:
        parts = urlsplit(text)
        is_good = bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_good = False
    if not is_good:
        raise ValueError("not an https URL with a host and, if any, a port")
    if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        raise ValueError(
            "http to another machine, where keys could be replaced on the way: take "
            "https"
        )
    return text


def _parse_scopes(text: str) -> str:
    for word in split_words(text):
        if word not in SCOPES:
            raise ValueError(f"not a list of {', '.join(SCOPES)}")
    return text


def _parse_claim(text: str) -> str:
    if not re.fullmatch(r"[\x21-\x7e]{1,200}", text):
        raise ValueError(
            "not the name of a claim: 1 to 200 ASCII characters without spaces"
        )
    return text


def _parse_prefix(text: str) -> str:
    if not re.fullmatch(r"(/[A-Za-z0-9_.~-]+)+", text) or re.search(
        r"/\.\.?(/|$)", text
    ):
        raise ValueError("not a path as /go-uploader")
    return text


def _parse_own_prefix(text: str) -> str:
    if _parse_prefix(text).split("/")[1] in ("api", "files", "static"):
        raise ValueError(
            "not a path of its own: the job API, tus and the page are below /api, "
            "/files and /static"
        )
    return text


def _parse_bind(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]+|[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*", text):
        raise ValueError("not a host name or an address without a port")
    return text


WORDS = Kind("WORD,...", _parse_words)
CONTENT_TYPES = Kind("[!]TYPE,...", _parse_content_types)
ALGORITHM_LIST = Kind("NAME,...", _parse_algorithms)
JWKS_URL = Kind("URL", _parse_jwks_url)
SCOPE_LIST = Kind("SCOPE,...", _parse_scopes)
CLAIM = Kind("NAME", _parse_claim)
NETWORKS = Kind("NETWORK,...", _parse_networks)
PREFIX = Kind("PATH", _parse_prefix)
OWN_PREFIX = Kind("PATH", _parse_own_prefix)
HOST = Kind("HOST", _parse_bind)


@dataclass(frozen=True)
class WebSettings:
    """``[web]``: access to dlpool-web, and its limits.

    Sizes are in bytes, times in seconds.
    """

    bind: str = setting(
        HOST,
        "127.0.0.1",
        "address to listen on; any but loopback needs a key",
        reload=False,
    )
    prefix: str = setting(
        OWN_PREFIX, "/go-uploader", "path prefix of the upload API", reload=False
    )
    processes: int | None = setting(
        COUNT,
        None,
        "worker processes (default: one per core, 2 to 4)",
        low=1,
        high=64,
        reload=False,
    )
    threads: int = setting(
        COUNT, "32", "requests at once per process", low=4, high=512, reload=False
    )
    auth: str = setting(
        choice("auto", "on", "off"),
        "auto",
        "require a token; auto: except on loopback",
        reload=False,
    )
    hosts: str | None = setting(
        WORDS,
        None,
        "host names that requests may name if no key is required (default: addresses "
        "and localhost)",
        reload=False,
    )
    jwt_key: str | None = setting(
        TEXT,
        None,
        "secret (HS) or public key (RS, ES) of JSON web tokens; jwt_key_file is safer",
        reload=False,
        is_secret=True,
    )
    jwt_key_file: str | None = setting(
        PATH, None, "file with that key", reload=False, instead_of="jwt_key"
    )
    jwt_algorithms: str = setting(
        ALGORITHM_LIST,
        "HS256",
        "algorithms of tokens that are verified with jwt_key: HS..., RS... or ES...",
        reload=False,
    )
    jwks_url: str | None = setting(
        JWKS_URL,
        None,
        "URL of the public keys of tokens (JWKS): https, or http on loopback",
        reload=False,
        needs="jwt_audience",
    )
    jwt_audience: str | None = setting(
        WORDS,
        None,
        "accepted values of a token's aud (default: aud is not checked)",
        reload=False,
    )
    jwt_issuer: str | None = setting(
        WORDS,
        None,
        "accepted values of a token's iss (default: iss is not checked)",
        reload=False,
    )
    jwt_scope_claim: str = setting(
        CLAIM,
        "scope",
        "claim with the scopes of a token: a text separated by spaces, or a list",
        reload=False,
    )
    jwt_default_scopes: str = setting(
        SCOPE_LIST,
        ",".join(COMMON),
        "scopes of a token without that claim",
        reload=False,
    )
    jwt_owner_claim: str = setting(
        CLAIM,
        "sub",
        "claim that names the owner whose uploads a token sees",
        reload=False,
    )
    secret_key: str | None = setting(
        TEXT,
        None,
        "secret that clients may send in X-Secret-Key instead of a token; "
        "secret_key_file is safer",
        reload=False,
        is_secret=True,
    )
    secret_key_file: str | None = setting(
        PATH, None, "file with that secret", reload=False, instead_of="secret_key"
    )
    keys_file: str | None = setting(
        PATH,
        None,
        "named keys for X-Secret-Key, one JSON object per line; read again when it "
        "changes",
        reload=False,
    )
    scrape_from: str = setting(
        NETWORKS,
        "127.0.0.1,::1",
        "addresses or networks that may read /metrics without a token",
        reload=False,
    )
    trusted_proxies: str = setting(
        NETWORKS,
        "",
        "addresses or networks of proxies whose X-Forwarded-For is trusted (default: "
        "none)",
        reload=False,
    )
    request_rate: float | None = setting(
        FREQUENCY, "100/s", "rate of requests per client", reload=False
    )
    request_burst: int = setting(
        COUNT, "500", "requests that a client may send at once", low=1, reload=False
    )
    client_uploads: int = setting(
        COUNT,
        "32",
        "request bodies that are received from one client at once",
        low=1,
        reload=False,
    )
    body_timeout: float = setting(
        DURATION,
        "30s",
        "longest time without data within a request body",
        low=0.1,
        reload=False,
        high=HOUR_S,
    )
    body_rate: int = setting(
        RATE,
        "1K",
        "bytes per second below which a request body is too slow; 0: never",
        reload=False,
    )
    body_rate_time: float = setting(
        DURATION,
        "30s",
        "time for which a request body may be too slow",
        low=0.1,
        reload=False,
        high=HOUR_S,
    )
    head_timeout: float = setting(
        DURATION,
        "10s",
        "time limit for a client to send the head of a request",
        low=0.1,
        reload=False,
        high=10 * MINUTE_S,
    )
    field_size: int = setting(
        SIZE,
        "64K",
        "maximum size of the fields of a form; a complete form or JSON body: 4 times "
        "that, a batch: 16 "
        "times",
        low=KIB,
        reload=False,
    )
    accel_prefix: str | None = setting(
        PREFIX,
        None,
        "internal location from which nginx sends merged files (X-Accel-Redirect)",
        reload=False,
    )
