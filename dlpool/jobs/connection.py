"""Connections to Redis, and its errors as ours. The only module that knows how redis-py fails.

redis-py's defaults repeat a command whose reply was lost, up to ten times: a push would be there several times. Here
nothing is repeated below the transitions, which are idempotent, and whose callers decide when to try again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis
from redis import exceptions as errors
from redis.backoff import NoBackoff
from redis.retry import Retry

from dlpool.config import RedisSettings
from dlpool.errors import ConfigurationError, QueueAway, QueueError, QueueRefused
from dlpool.jobs.embedded import socket_url

CONNECT_S = 3.0
SOCKET_S = 5.0  # longest wait for a reply
BLOCK_S = 1.0  # longest blocking pop; well below SOCKET_S, so that silence means that Redis is away
EMBEDDED = "embedded"
SCHEMES = ("redis", "rediss", "unix")

_REFUSED = (
    errors.AuthenticationError, errors.AuthorizationError, errors.NoPermissionError,
    errors.AuthenticationWrongNumberOfArgsError,
)  # fmt: skip
_UNREACHED = (errors.ConnectionError, errors.TimeoutError, OSError)
_UNABLE = (
    errors.BusyLoadingError, errors.ReadOnlyError, errors.OutOfMemoryError, errors.TryAgainError,
    errors.ClusterDownError, errors.MasterDownError,
)  # fmt: skip
# Those that redis-py has no class for; Redis 6.2 puts them into the midst of a script's error.
_UNABLE_TEXT = re.compile(r"(?:^|-)(?:OOM|MISCONF|LOADING|BUSY|READONLY|MASTERDOWN|NOREPLICAS|UNBLOCKED)\b")
_REFUSED_TEXT = re.compile(r"NOPERM|The user executing the script can't")
_PIPELINE_PREFIX = re.compile(r"^Command # \d+ \(.*?\) of pipeline caused error: ")


def effective_url(settings: RedisSettings, state_dir: Path) -> str:
    """The URL of the settings; for ``embedded`` that of the private server in ``state_dir``. May raise LocalFault."""
    return socket_url(state_dir) if settings.url == EMBEDDED else settings.url


def shown_server(url: str) -> str:
    """The URL for messages and logs: without user info, query, and whatever may be a piece of a password."""
    scheme, separator, rest = url.partition("://") if "://" in url else ("", "", url)
    authority, slash, path = re.split("[?#]", rest, maxsplit=1)[0].partition("/")
    if "@" in rest[len(authority) :]:
        return f"{scheme}{separator}..."
    return f"{scheme}{separator}{authority.rpartition('@')[2]}{slash}{path}"


def connect(settings: RedisSettings, state_dir: Path, *, name: str = "dlpool") -> redis.Redis:
    """A client that connects when it is first used. Thread-safe.

    Raises ConfigurationError for a URL or a password file that cannot be used.
    """
    url = effective_url(settings, state_dir)
    if url.partition("://")[0] not in SCHEMES:
        raise ConfigurationError(
            f"[redis] url = {shown_server(url)}: it is none of redis://, rediss://, unix://, embedded"
        )
    given = {"username": settings.username, "password": _password(settings)}
    try:
        if "#" in url:
            raise ValueError("redis-py would ignore the rest")
        client = redis.Redis.from_url(
            url, socket_timeout=SOCKET_S, socket_connect_timeout=CONNECT_S, retry=Retry(NoBackoff(), 0),
            retry_on_timeout=False, protocol=2, client_name=name, health_check_interval=0, **_keepalive(url),
            **{key: value for key, value in given.items() if value is not None},
        )  # fmt: skip
        client.connection_pool.connection_class(**client.connection_pool.connection_kwargs)  # knows its options
    except (ValueError, TypeError):
        # The cause may name a piece of a password, as a port that is not a number.
        raise ConfigurationError(
            f"[redis] url = {shown_server(url)}: it cannot be used; special characters of a user or password "
            "are written as %XX there, and only redis-py's own options may follow a ?"
        ) from None
    return client


@contextmanager
def translated(client: redis.Redis) -> Iterator[None]:
    """Turn redis-py's errors of the block into QueueAway, QueueRefused or QueueError, in one sentence."""
    try:
        yield
    except (errors.RedisError, OSError) as error:
        raise _as_ours(error, _where(client)) from error


def _as_ours(error: Exception, server: str) -> QueueError:
    text = _reason(error)
    if isinstance(error, _REFUSED) or _REFUSED_TEXT.search(text):
        return QueueRefused(f"Redis at {server} refuses: {text} (user and password are in [redis])")
    if isinstance(error, _UNABLE) or _UNABLE_TEXT.search(text):
        return QueueAway(f"Redis at {server} cannot serve now: {text}")
    if isinstance(error, _UNREACHED):
        return QueueAway(f"Redis at {server} cannot be reached: {text}")
    return QueueError(f"Redis at {server} refuses: {text}")


def _where(client: redis.Redis) -> str:
    options = client.connection_pool.connection_kwargs
    return str(options.get("path") or f"{options.get('host', 'localhost')}:{options.get('port', 6379)}")


def _reason(error: Exception) -> str:
    text = _PIPELINE_PREFIX.sub("", str(error).replace("\n", " ").strip()).rstrip(".")
    return text[:300] or type(error).__name__


def _keepalive(url: str) -> dict[str, Any]:
    return {} if url.startswith("unix") else {"socket_keepalive": True}


def _password(settings: RedisSettings) -> str | None:
    if settings.password_file is None:
        return settings.password
    try:
        return Path(settings.password_file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise ConfigurationError(f"[redis] password_file = {settings.password_file}: {reason}") from error
