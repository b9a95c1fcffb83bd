"""Connections to Redis, and the translation of redis-py's errors into dlpool's errors.

By default redis-py sends a command again if its reply is lost. A repeated push would
queue a job several times, so no command is repeated here. The transitions are
idempotent, and their callers decide when to try again.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis
from redis import exceptions as errors
from redis.backoff import NoBackoff
from redis.connection import SSLConnection
from redis.retry import Retry

from dlpool.config import RedisSettings
from dlpool.errors import ConfigurationError, QueueAway, QueueError, QueueRefused
from dlpool.jobs.connection_routing import (
    AutoConnection,
    ClusterRoute,
    Dialer,
    RoutedConnection,
    RoutedTlsConnection,
    SentinelRoute,
    ServerRoute,
)
from dlpool.jobs.embedded_socket import socket_path, socket_url
from dlpool.jobs.keys import QueueKeys
from dlpool.jobs.redis_address import SCHEMES, RedisAddress
from dlpool.kinds import split_address
from dlpool.usertext import NotText, read_text

CONNECT_S = 3.0  # timeout of a connection attempt
SOCKET_S = 5.0  # timeout of a reply
# timeout of a blocking command: well below SOCKET_S, so that a longer silence means
# that Redis is away
BLOCK_S = 1.0
EMBEDDED = "embedded"
AUTO = "auto"
DEFAULT_ADDRESS = "127.0.0.1:6379"

_REFUSED = (
    errors.AuthenticationError,
    errors.AuthorizationError,
    errors.NoPermissionError,
    errors.AuthenticationWrongNumberOfArgsError,
)
_UNREACHED = (errors.ConnectionError, errors.TimeoutError, OSError)
_UNABLE = (
    errors.BusyLoadingError,
    errors.ReadOnlyError,
    errors.OutOfMemoryError,
    errors.TryAgainError,
    errors.ClusterDownError,
    errors.MasterDownError,
    errors.AskError,  # also the base class of MovedError
)
# Errors without a class in redis-py. Redis 6.2 has them in the middle of a script's
# error.
_UNABLE_TEXT = re.compile(
    r"(?:^|-)(?:OOM|MISCONF|LOADING|BUSY|READONLY|MASTERDOWN|NOREPLICAS|UNBLOCKED)\b"
    # the queue's slot moves to another node of a Cluster
    r"|attempted to access a non local key"
)
_UNTRUSTED_TEXT = "CERTIFICATE_VERIFY_FAILED] "
_REFUSED_TEXT = re.compile(r"NOPERM|The user executing the script can't")
# Redis 7 appends the line of the script
_SCRIPT_SUFFIX = re.compile(r"\.? script: [0-9a-f]{40}, on @\w+:\d+\.?$")
_PIPELINE_PREFIX = re.compile(r"^Command # \d+ \(.*?\) of pipeline caused error: ")


def effective_url(settings: RedisSettings, state_dir: Path) -> str:
    """Return the URL of the settings; for ``embedded``, the URL of the private server's
    socket. Raises LocalFault if the folder of the socket cannot be used."""
    return socket_url(state_dir) if settings.url == EMBEDDED else settings.url


def auto_address(settings: RedisSettings) -> str:
    """Return the HOST:PORT at which ``url = auto`` expects a Redis. If no Redis listens
    there, the supervisor's private server uses this address."""
    return settings.embedded_listen or DEFAULT_ADDRESS


def is_redis(client: redis.Redis) -> bool:
    """Return whether a Redis answers, even if it is still loading. Raises QueueRefused
    if it requires another password or user."""
    try:
        client.ping()
    except _REFUSED as error:
        raise _translate(error, client) from error
    except _UNABLE:
        return True
    except (errors.RedisError, OSError):
        return False
    return True


def shown_server(url: str) -> str:
    """Return a form of a URL for messages and logs. It contains no user, no password
    and no query."""
    scheme, separator, rest = url.partition("://") if "://" in url else ("", "", url)
    authority, slash, path = re.split("[?#]", rest, maxsplit=1)[0].partition("/")
    if "@" in rest[len(authority) :]:
        return f"{scheme}{separator}..."
    return f"{scheme}{separator}{authority.rpartition('@')[2]}{slash}{path}"


def connect(
    settings: RedisSettings, state_dir: Path, *, name: str = "dlpool"
) -> redis.Redis:
    """Return a thread-safe client that connects on first use.

    In a Cluster the client connects to the node that has dlpool's own keys;
    ``cluster_of`` returns a route with clients of the other nodes. Raises
    ConfigurationError if the settings cannot be used, and LocalFault if the folder of
    the private server's socket cannot be used.
    """
    if settings.url == AUTO:
        return redis.Redis.from_pool(_auto_pool(settings, state_dir, name))
    url = effective_url(settings, state_dir)
    if url.partition("://")[0] not in SCHEMES:
        raise ConfigurationError(
            f"[redis] url = {shown_server(url)}: it is none of redis://, rediss://, "
            f"unix://, redis+sentinel://, "
            "redis+cluster://, embedded, auto"
        )
    options = _options(settings, url, name)
    try:
        address = RedisAddress.parse(url)
        pool = redis.ConnectionPool.from_url(address.server_url, **options)
        # raises TypeError for an unknown option
        pool.connection_class(**pool.connection_kwargs)
    except (ValueError, TypeError, errors.RedisError):
        # The cause may quote part of a password, for example as an invalid port.
        raise ConfigurationError(
            f"[redis] url = {shown_server(url)}: it cannot be used; special characters "
            f"of a user or password "
            "are written as %XX there, and only redis-py's own options may follow a ?"
        ) from None
    return redis.Redis.from_pool(
        _routed(pool, address, settings) if address.hosts else pool
    )


def cluster_of(client: redis.Redis) -> ClusterRoute | None:
    """Return the route to the nodes of the client's Cluster; None if the client's URL
    does not name a Cluster."""
    route = client.connection_pool.connection_kwargs.get("route")
    return route if isinstance(route, ClusterRoute) else None


def _options(settings: RedisSettings, url: str, name: str) -> dict[str, Any]:
    given = {
        "username": settings.username,
        "password": _password(settings.password, settings.password_file),
        **({"socket_keepalive": True} if not url.startswith("unix") else {}),
        **(_tls(settings) if url.startswith("rediss") else {}),
    }
    return {
        "socket_timeout": SOCKET_S,
        "socket_connect_timeout": CONNECT_S,
        "retry": Retry(NoBackoff(), 0),
        "retry_on_timeout": False,
        "protocol": 2,
        "client_name": name,
        "health_check_interval": 0,
        **{key: value for key, value in given.items() if value is not None},
    }


def _auto_pool(
    settings: RedisSettings, state_dir: Path, name: str
) -> redis.ConnectionPool:
    """Return a pool whose connections try the private server first, then
    ``auto_address``."""
    host, port = split_address(auto_address(settings))
    options = _options(settings, "redis://", name)
    path = str(socket_path(state_dir))
    return redis.ConnectionPool(
        connection_class=AutoConnection, path=path, host=host, port=port, **options
    )


def _routed(
    pool: redis.ConnectionPool, address: RedisAddress, settings: RedisSettings
) -> redis.ConnectionPool:
    """Return a new pool with the options of ``pool``. Each connection of the new pool
    first asks the Sentinels or Cluster nodes for the address of the server."""
    options = {
        name: value
        for name, value in pool.connection_kwargs.items()
        if name not in ("host", "port")
    }
    route: ServerRoute
    if address.kind == "cluster":
        dialer = Dialer(pool.connection_class, options)
        route = ClusterRoute(address.hosts, QueueKeys(settings.group).intake, dialer)
    else:
        password = _password(
            settings.sentinel_password, settings.sentinel_password_file, "sentinel_"
        )
        own = {"username": settings.sentinel_username, "password": password}
        dialer = Dialer(pool.connection_class, options | own)
        route = SentinelRoute(address.hosts, address.service, dialer)
    is_tls = issubclass(pool.connection_class, SSLConnection)
    kind = RoutedTlsConnection if is_tls else RoutedConnection
    return redis.ConnectionPool(connection_class=kind, route=route, **options)


def _tls(settings: RedisSettings) -> dict[str, Any]:
    """Return the options of redis-py for TLS. Raises ConfigurationError."""
    if settings.tls_key and not settings.tls_cert:
        raise ConfigurationError("[redis] tls_key is given without tls_cert")
    try:
        context = ssl.create_default_context(cafile=settings.tls_cacert)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(
            f"[redis] tls_cacert = {settings.tls_cacert}: {_reason(error)}"
        ) from error
    try:
        if settings.tls_cert:
            context.load_cert_chain(settings.tls_cert, settings.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(
            f"[redis] tls_cert = {settings.tls_cert}, tls_key = {settings.tls_key}: "
            f"{_reason(error)}"
        ) from error
    return {
        "ssl_cert_reqs": "required",
        "ssl_check_hostname": True,
        "ssl_ca_certs": settings.tls_cacert,
        "ssl_certfile": settings.tls_cert,
        "ssl_keyfile": settings.tls_key,
    }


@contextmanager
def translated(client: redis.Redis) -> Iterator[None]:
    """Translate each error of redis-py in the ``with`` block into QueueAway,
    QueueRefused or QueueError, with a message of one sentence."""
    try:
        yield
    except (errors.RedisError, OSError) as error:
        raise _translate(error, client) from error


def _translate(error: Exception, client: redis.Redis) -> QueueError:
    server, text = _where(client), _reason(error)
    untrusted, is_openssl, _ = text.partition(_UNTRUSTED_TEXT)[2].partition(" (_ssl")
    if is_openssl:
        reason = untrusted.removeprefix("certificate verify failed: ").removesuffix(".")
        return QueueRefused(
            f"Redis at {server} is not trusted: {reason} (its CA is tls_cacert in "
            f"[redis])"
        )
    if isinstance(error, _REFUSED) or _REFUSED_TEXT.search(text):
        return QueueRefused(
            f"Redis at {server} refuses: {text} (user and password are in [redis])"
        )
    if isinstance(error, _UNABLE) or _UNABLE_TEXT.search(text):
        return QueueAway(f"Redis at {server} cannot serve now: {text}")
    if isinstance(error, errors.InvalidResponse):
        return QueueAway(
            f"the server at {server} does not use the protocol of Redis: check the "
            f"address in [redis]"
        )
    if isinstance(error, _UNREACHED):
        return QueueAway(
            f"Redis at {server} cannot be reached: {text}{_hint(client, text)}"
        )
    return QueueError(f"Redis at {server} refuses: {text}")


def _hint(client: redis.Redis, text: str) -> str:
    """Return a hint on client certificates if the lack of one may have caused an error;
    otherwise return ''. ``text``: the message of the error. A server that requires a
    client certificate often closes the connection without a reason."""
    options = client.connection_pool.connection_kwargs
    lacks_certificate = "ssl_cert_reqs" in options and "ssl_certfile" not in options
    is_closed = re.search("CERTIFICATE_REQUIRED|EOF|closed|reset|Broken pipe", text)
    return (
        " (if it wants a client certificate: tls_cert and tls_key in [redis])"
        if lacks_certificate and is_closed
        else ""
    )


def _where(client: redis.Redis) -> str:
    options = client.connection_pool.connection_kwargs
    if "route" in options:
        return str(options["route"])
    if client.connection_pool.connection_class is AutoConnection:
        # the private server was tried first
        return f"{options['host']}:{options['port']}"
    return str(
        options.get("path")
        or f"{options.get('host', 'localhost')}:{options.get('port', 6379)}"
    )


def _reason(error: Exception) -> str:
    text = _SCRIPT_SUFFIX.sub(
        "", _PIPELINE_PREFIX.sub("", str(error).replace("\n", " ").strip())
    ).rstrip(".")
    return text[:300] or type(error).__name__


def _password(password: str | None, file: str | None, prefix: str = "") -> str | None:
    if file is None:
        return password
    try:
        return read_text(Path(file)).strip()
    except (OSError, NotText) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise ConfigurationError(
            f"[redis] {prefix}password_file = {file}: {reason}"
        ) from error
