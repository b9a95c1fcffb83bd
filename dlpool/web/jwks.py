"""Fetches and caches the public keys of a token provider (JWKS, RFC 7517) from the
configured URL.

Keys are cached as ``Cache-Control`` allows. An unknown key id triggers another fetch,
at most every ``MIN_INTERVAL_S`` seconds (``RETRY_S`` after a failure). While the URL is
unreachable, known keys stay valid for ``MAX_STALE_S`` seconds after the last successful
fetch. At most ``WAITERS`` requests wait for a fetch, each for at most ``WAIT_S``
seconds, so that a slow provider or forged ids do not occupy the threads of the server.
"""

from __future__ import annotations

import http.client
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import field
from typing import Any
from urllib.parse import urlsplit

from dlpool import __version__, jsontext
from dlpool.dataclass import dataclass
from dlpool.errors import DlpoolError
from dlpool.web.errors import HttpError
from dlpool.web.public_keys import TokenKey, load_jwk

MIN_INTERVAL_S = 10.0  # minimum interval of fetches
RETRY_S = 5.0  # after a failure
WAIT_S = 3.0  # that a request waits for a fetch
WAITERS = 4  # requests that may wait at the same time
MAX_STALE_S = 24 * 3600.0  # validity of keys that cannot be fetched again
READ_TIMEOUT_S = 3.0  # timeout of each read
TOTAL_TIMEOUT_S = 10.0  # for a fetch
MIN_AGE_S, MAX_AGE_S, DEFAULT_AGE_S = 60.0, 24 * 3600.0, 600.0  # of cached keys
MAX_BYTES = 256 * 1024  # of a response
MAX_KEYS = 200
_MAX_VALUES = 10_000
_MAX_DEPTH = 8

KeysById = Mapping[str, tuple[TokenKey, ...]]


class JwksFailed(DlpoolError):
    """The key set could not be fetched or is invalid."""

    label = "jwks"


@dataclass(frozen=True)
class _KeySet:
    """A fetched key set. Times are of the monotonic clock."""

    keys: KeysById = field(default_factory=dict)
    fresh_until: float = float("-inf")
    valid_until: float = float("-inf")


class JwksSource:
    """The keys of one URL. Thread-safe. Each fetch has its own thread; the first
    request for a key starts the first fetch.

    ``on_fetch(None, n)`` is called when the key ids differ from the ids of the previous
    set; ``n`` is the number of key ids. ``on_fetch(reason, 0)`` is called when a fetch
    fails, unless the previous fetch failed for the same reason.
    """

    def __init__(
        self,
        url: str,
        tell: Callable[[str | None, int], None] = lambda _reason, _count: None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.on_fetch = tell
        self._url = url
        self._clock = clock
        self._lock = threading.Lock()
        self._waiters = threading.BoundedSemaphore(WAITERS)
        self._set = _KeySet()
        self._fetching: threading.Event | None = None
        self._next_at = float("-inf")
        self._failure: str | None = None

    def keys(self, kid: str) -> tuple[TokenKey, ...]:
        """Return the keys with this id, ``()`` if the provider has no such key.

        Raises HttpError (503) if the id is unknown and the key set cannot be fetched in
        time.
        """
        found, fetching = self._lookup(kid)
        if found or fetching is None:
            return found or self._no_keys()
        if self._waiters.acquire(blocking=False):
            try:
                fetching.wait(WAIT_S)
            finally:
                self._waiters.release()
        with self._lock:
            found = self._known(kid)
            is_open = self._fetching is fetching
        return found or self._no_keys(is_open=is_open)

    def _lookup(self, kid: str) -> tuple[tuple[TokenKey, ...], threading.Event | None]:
        """Return the known keys with this id, and the fetch in progress (None: no
        fetch). Start a fetch if needed."""
        with self._lock:
            found, now = self._known(kid), self._clock()
            is_wanted = not found or now >= self._set.fresh_until
            if is_wanted and self._fetching is None and now >= self._next_at:
                self._start_fetch()
            return found, self._fetching

    def _known(self, kid: str) -> tuple[TokenKey, ...]:
        return (
            self._set.keys.get(kid, ()) if self._clock() < self._set.valid_until else ()
        )

    def _no_keys(self, *, is_open: bool = False) -> tuple[TokenKey, ...]:
        """Return an empty tuple: the provider has no key with the wanted id.

        Raises HttpError (503) if this is uncertain: the last fetch failed, the key set
        is too old, or ``is_open`` (a fetch is in progress).
        """
        with self._lock:
            is_known = self._failure is None and self._clock() < self._set.valid_until
        if is_known and not is_open:
            return ()
        text = "cannot fetch the keys of the token provider: try again"
        raise HttpError(
            503, "keys_unavailable", text, headers={"Retry-After": str(round(RETRY_S))}
        )

    def _start_fetch(self) -> None:
        """Start fetching the set in a thread. The caller holds the lock."""
        self._fetching = threading.Event()
        thread = threading.Thread(
            target=self._run, args=(self._fetching,), name="jwks", daemon=True
        )
        try:
            thread.start()
        except RuntimeError:  # no further thread can be started
            self._fetching, self._next_at = None, self._clock() + RETRY_S
            self._failure = self._failure or "no thread could be started"

    def _run(self, fetching: threading.Event) -> None:
        failure: str | None = None
        keys: KeysById = {}
        max_age_s = 0.0
        try:
            data, max_age_s = fetch(self._url)
            keys = parse_key_set(data)
        except JwksFailed as error:
            failure = str(error)
        except Exception as error:  # noqa: BLE001 - an error here must not stop later fetches
            failure = f"internal error: {type(error).__name__}"
        with self._lock:
            now = self._clock()
            is_news = (
                failure != self._failure
                if failure is not None
                else keys.keys() != self._set.keys.keys()
            )
            self._failure = failure
            self._next_at = now + (MIN_INTERVAL_S if failure is None else RETRY_S)
            if failure is None:
                self._set = _KeySet(
                    keys, now + max_age_s, now + max(MAX_STALE_S, max_age_s)
                )
        try:
            if is_news:
                self.on_fetch(failure, len(keys))
        finally:
            with self._lock:
                self._fetching = None
            fetching.set()


def parse_key_set(data: bytes) -> KeysById:
    """Return the keys of a key set by id; keys without an id or of an unsupported kind
    are skipped.

    Raises JwksFailed if the key set is invalid, too large, or without a usable key.
    """
    try:
        jsontext.check_bounds(data, depth=_MAX_DEPTH, values=_MAX_VALUES)
        said = jsontext.loads(data)
    except (ValueError, RecursionError) as error:
        raise JwksFailed(
            "the response is not JSON, or is too large or too deeply nested"
        ) from error
    listed = said.get("keys") if isinstance(said, dict) else None
    if not isinstance(listed, list) or len(listed) > MAX_KEYS:
        raise JwksFailed(f"the response is not a key set of at most {MAX_KEYS} keys")
    found: dict[str, tuple[TokenKey, ...]] = {}
    for one in listed:
        kid = one.get("kid") if isinstance(one, dict) else None
        key = load_jwk(one) if isinstance(kid, str) and kid else None
        if key is not None and isinstance(kid, str):
            found[kid] = (*found.get(kid, ()), key)
    if not found:
        raise JwksFailed("the key set has no usable RSA or EC key with a kid")
    return found


def fetch(url: str) -> tuple[bytes, float]:
    """Fetch the URL; return the body, and the seconds for which it may be cached.

    Follows no redirects and uses no proxy. Takes at most about ``TOTAL_TIMEOUT_S``
    seconds, plus name resolution. Raises JwksFailed.
    """
    parts = urlsplit(url)
    host, port = (
        parts.hostname or "",
        parts.port or (443 if parts.scheme == "https" else 80),
    )
    try:
        with (
            socket.create_connection((host, port), READ_TIMEOUT_S) as plain,
            _with_tls(plain, parts.scheme, host) as sock,
        ):
            timer = threading.Timer(TOTAL_TIMEOUT_S, _abort, (sock,))
            timer.daemon = True
            timer.start()
            try:
                return _exchange(
                    sock,
                    host,
                    port,
                    f"{parts.path or '/'}{parts.query and '?' + parts.query}",
                )
            finally:
                timer.cancel()
    except (OSError, http.client.HTTPException, ValueError, RuntimeError) as error:
        reason = (
            getattr(error, "verify_message", None)
            or getattr(error, "strerror", None)
            or type(error).__name__
        )
        raise JwksFailed(f"cannot fetch the key set: {reason}") from error


def _with_tls(plain: socket.socket, scheme: str, host: str) -> socket.socket:
    """Return ``plain`` for http. For https, return a TLS socket on top of ``plain``;
    its handshake has not begun."""
    if scheme != "https":
        return plain
    context = ssl.create_default_context()
    return context.wrap_socket(
        plain, server_hostname=host, do_handshake_on_connect=False
    )


def _abort(sock: socket.socket) -> None:
    """Shut down a socket, so that the thread that reads or writes it fails, even during
    a TLS handshake."""
    with suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


def _exchange(sock: Any, host: str, port: int, target: str) -> tuple[bytes, float]:
    if isinstance(sock, ssl.SSLSocket):
        sock.do_handshake()
    connection = http.client.HTTPConnection(host, port)
    connection.sock = sock
    headers = {
        "Accept": "application/json",
        "User-Agent": f"dlpool/{__version__}",
        "Connection": "close",
    }
    connection.request("GET", target, headers=headers)
    with connection.getresponse() as answer:
        if answer.status != 200:
            raise JwksFailed(f"the response has status {answer.status}")
        if (answer.headers.get("Content-Encoding") or "identity").lower() != "identity":
            raise JwksFailed("the response is compressed")
        data = answer.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise JwksFailed(f"the response has more than {MAX_BYTES} bytes")
        return data, parse_max_age(answer.headers.get("Cache-Control"))


def parse_max_age(header: str | None) -> float:
    """Return the seconds for which a response may be cached (RFC 9111, section 5.2.2),
    between a minute and a day."""
    wanted = DEFAULT_AGE_S
    for one in (header or "")[:1000].lower().split(","):
        name, _, value = one.strip().partition("=")
        if name in ("no-store", "no-cache"):
            return MIN_AGE_S
        if name == "max-age" and re.fullmatch(r'"?[0-9]{1,9}"?', value):
            wanted = float(value.strip('"'))
    return min(max(wanted, MIN_AGE_S), MAX_AGE_S)
