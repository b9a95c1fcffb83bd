"""Connections to Redis, and its errors as ours. The only module that knows how redis-py fails.

redis-py's defaults repeat a command whose reply was lost, up to ten times: a push would be there several times. Here
nothing is repeated below the transitions, which are idempotent, and whose callers decide when to try again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import redis
from redis import exceptions as errors
from redis.backoff import NoBackoff
from redis.retry import Retry

from dlpool.config import RedisSettings
from dlpool.errors import ConfigurationError, QueueAway, QueueError, QueueRefused
from dlpool.jobs.embedded import socket_path

CONNECT_S = 3.0
SOCKET_S = 5.0  # longest wait for a reply
BLOCK_S = 1.0  # longest blocking pop; well below SOCKET_S, so that silence means that Redis is away
EMBEDDED = "embedded"
SCHEMES = ("redis", "rediss", "unix")

_REFUSED = (
    errors.AuthenticationError, errors.AuthorizationError, errors.NoPermissionError,
    errors.AuthenticationWrongNumberOfArgsError,
)  # fmt: skip
_AWAY = (
    errors.ConnectionError, errors.TimeoutError, errors.BusyLoadingError, errors.ReadOnlyError, errors.TryAgainError,
    errors.ClusterDownError, errors.MasterDownError, OSError,
)  # fmt: skip
_AWAY_CODES = ("OOM", "MISCONF", "LOADING", "BUSY", "MASTERDOWN", "NOREPLICAS", "UNBLOCKED")


def effective_url(settings: RedisSettings, state_dir: Path) -> str:
    """The URL of the settings; for ``embedded`` that of the private server in ``state_dir``. May raise LocalFault."""
    return f"unix://{socket_path(state_dir)}" if settings.url == EMBEDDED else settings.url


def shown_server(url: str) -> str:
    """The URL without user info, for messages and logs."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()


def connect(settings: RedisSettings, state_dir: Path, *, name: str = "dlpool") -> redis.Redis:
    """A client that connects when it is first used. Thread-safe.

    Raises ConfigurationError for a URL or a password file that cannot be used.
    """
    url = effective_url(settings, state_dir)
    if urlsplit(url).scheme not in SCHEMES:
        raise ConfigurationError(
            f"[redis] url = {shown_server(url)}: it is none of redis://, rediss://, unix://, embedded"
        )
    options: dict[str, Any] = {}
    password = _password(settings)
    if password is not None:
        options["password"] = password
    if settings.username is not None:
        options["username"] = settings.username
    try:
        return redis.Redis.from_url(
            url, socket_timeout=SOCKET_S, socket_connect_timeout=CONNECT_S, retry=Retry(NoBackoff(), 0),
            retry_on_timeout=False, client_name=name, health_check_interval=0, **_keepalive(url), **options,
        )  # fmt: skip
    except ValueError as error:
        raise ConfigurationError(f"[redis] url = {shown_server(url)}: {error}") from error


@contextmanager
def translated(client: redis.Redis) -> Iterator[None]:
    """Turn redis-py's errors of the block into QueueAway, QueueRefused or QueueError, in one sentence."""
    try:
        yield
    except _REFUSED as error:
        raise QueueRefused(
            f"Redis at {_where(client)} refuses: {_reason(error)} (user and password are in [redis])"
        ) from error
    except _AWAY as error:
        raise QueueAway(f"Redis at {_where(client)} cannot be reached: {_reason(error)}") from error
    except errors.RedisError as error:
        text = _reason(error)
        kind = QueueAway if text.startswith(_AWAY_CODES) else QueueRefused if "NOPERM" in text else QueueError
        raise kind(f"Redis at {_where(client)} refuses: {text}") from error


def _where(client: redis.Redis) -> str:
    options = client.connection_pool.connection_kwargs
    return str(options.get("path") or f"{options.get('host', 'localhost')}:{options.get('port', 6379)}")


def _reason(error: Exception) -> str:
    return str(error).replace("\n", " ").strip().rstrip(".")[:300] or type(error).__name__


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
