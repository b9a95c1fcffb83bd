"""Public keys of a provider of tokens: its key set (JWKS, RFC 7517), from one URL of
the settings.

Keys are kept for as long as ``Cache-Control`` says. An id that is not known has the set
fetched again, not more often than every ``AGAIN_S`` seconds; while the URL cannot be
reached the keys that are known stay valid for ``STALE_S`` seconds. A request never
waits for more than ``WAIT_S`` seconds, and few do at once, so that neither a slow
provider nor forged ids hold the threads of the server.
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
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from dlpool import __version__, jsontext
from dlpool.errors import DlpoolError
from dlpool.web.errors import HttpError
from dlpool.web.public_keys import TokenKey, load_jwk

AGAIN_S = 10.0  # between two fetches, whatever ids tokens have
RETRY_S = 5.0  # after a failure
WAIT_S = 3.0
WAITERS = 4
STALE_S = 24 * 3600.0
SILENCE_S = 3.0  # of the provider
TOTAL_S = 10.0  # for a fetch
MIN_AGE_S, MAX_AGE_S, DEFAULT_AGE_S = 60.0, 24 * 3600.0, 600.0
MAX_BYTES = 256 * 1024
MAX_KEYS = 200
_MAX_VALUES = 10_000
_MAX_DEPTH = 8

KeysById = Mapping[str, tuple[TokenKey, ...]]


class JwksFailed(DlpoolError):
    """The key set could not be fetched, or is none."""

    label = "jwks"


@dataclass(frozen=True)
class _Set:
    """What was fetched, and when; the times are of the monotonic clock."""

    keys: KeysById = field(default_factory=dict)
    fresh_until: float = float("-inf")
    valid_until: float = float("-inf")


class JwksSource:
    """The keys of one URL. Thread-safe. Fetches in threads of its own, the first time
    when a key is asked for.

    ``tell`` is called with ``(None, n)`` when a set with other ids was fetched, ``n``
    of them, and with ``(reason, 0)`` when fetching begins to fail or fails for another
    reason.
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
        self._set = _Set()
        self._underway: threading.Event | None = None
        self._next_at = float("-inf")
        self._failure: str | None = None

    def keys(self, kid: str) -> tuple[TokenKey, ...]:
        """Return the keys with that id, none if the provider has no such key.

        Raises Refusal (503) while that cannot be told: no set could be fetched yet, or
        not again.
        """
        found, underway = self._look(kid)
        if found or underway is None:
            return found or self._none()
        if self._waiters.acquire(blocking=False):
            try:
                underway.wait(WAIT_S)
            finally:
                self._waiters.release()
        with self._lock:
            found = self._known(kid)
            is_open = self._underway is underway
        return found or self._none(is_open=is_open)

    def _look(self, kid: str) -> tuple[tuple[TokenKey, ...], threading.Event | None]:
        """Return the keys that are known, and a fetch that is worth waiting for."""
        with self._lock:
            found, now = self._known(kid), self._clock()
            is_wanted = not found or now >= self._set.fresh_until
            if is_wanted and self._underway is None and now >= self._next_at:
                self._begin()
            return found, self._underway

    def _known(self, kid: str) -> tuple[TokenKey, ...]:
        return (
            self._set.keys.get(kid, ()) if self._clock() < self._set.valid_until else ()
        )

    def _none(self, *, is_open: bool = False) -> tuple[TokenKey, ...]:
        """Return no keys if the set is known to have none of that id. Raises Refusal
        (503)."""
        with self._lock:
            is_known = self._failure is None and self._clock() < self._set.valid_until
        if is_known and not is_open:
            return ()
        text = "the keys of tokens cannot be fetched from their provider, try again"
        raise HttpError(
            503, "keys_unavailable", text, headers={"Retry-After": str(round(RETRY_S))}
        )

    def _begin(self) -> None:
        """Start to fetch the set; the lock is held."""
        self._underway = threading.Event()
        thread = threading.Thread(
            target=self._run, args=(self._underway,), name="jwks", daemon=True
        )
        try:
            thread.start()
        except RuntimeError:  # no further thread can be started
            self._underway, self._next_at = None, self._clock() + RETRY_S
            self._failure = self._failure or "no thread could be started"

    def _run(self, underway: threading.Event) -> None:
        failure: str | None = None
        keys: KeysById = {}
        max_age_s = 0.0
        try:
            data, max_age_s = fetch(self._url)
            keys = parse_key_set(data)
        except JwksFailed as error:
            failure = str(error)
        except Exception as error:  # noqa: BLE001 - else no thread would ever fetch again
            failure = f"a defect: {type(error).__name__}"
        with self._lock:
            now = self._clock()
            is_news = (
                failure != self._failure
                if failure is not None
                else keys.keys() != self._set.keys.keys()
            )
            self._failure = failure
            self._next_at = now + (AGAIN_S if failure is None else RETRY_S)
            if failure is None:
                self._set = _Set(keys, now + max_age_s, now + max(STALE_S, max_age_s))
        try:
            if is_news:
                self.on_fetch(failure, len(keys))
        finally:
            with self._lock:
                self._underway = None
            underway.set()


def parse_key_set(data: bytes) -> KeysById:
    """Return the keys of a key set by their ids; a key without an id, or of another
    kind, is passed over.

    Raises JwksFailed for what is no key set, is too large, or has no key that can be
    used.
    """
    try:
        jsontext.check_bounds(data, depth=_MAX_DEPTH, values=_MAX_VALUES)
        said = jsontext.loads(data)
    except (ValueError, RecursionError) as error:
        raise JwksFailed("the answer is not JSON, or too deep or long") from error
    listed = said.get("keys") if isinstance(said, dict) else None
    if not isinstance(listed, list) or len(listed) > MAX_KEYS:
        raise JwksFailed(f"the answer is not a key set of at most {MAX_KEYS} keys")
    found: dict[str, tuple[TokenKey, ...]] = {}
    for one in listed:
        kid = one.get("kid") if isinstance(one, dict) else None
        key = load_jwk(one) if isinstance(kid, str) and kid else None
        if key is not None and isinstance(kid, str):
            found[kid] = (*found.get(kid, ()), key)
    if not found:
        raise JwksFailed("the key set has no RSA or EC key with a kid that can be used")
    return found


def fetch(url: str) -> tuple[bytes, float]:
    """Return the body of the URL and for how many seconds it may be kept. No redirect
    is followed, no proxy is used.

    Raises JwksFailed. Takes about ``TOTAL_S`` seconds at most, beside the resolver's
    time.
    """
    parts = urlsplit(url)
    host, port = (
        parts.hostname or "",
        parts.port or (443 if parts.scheme == "https" else 80),
    )
    try:
        with (
            socket.create_connection((host, port), SILENCE_S) as plain,
            _secured(plain, parts.scheme, host) as sock,
        ):
            timer = threading.Timer(TOTAL_S, _cut, (sock,))
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
        raise JwksFailed(f"it cannot be fetched: {reason}") from error


def _secured(plain: socket.socket, scheme: str, host: str) -> socket.socket:
    """Return the socket to talk over; with https a TLS socket whose handshake is still
    to be made."""
    if scheme != "https":
        return plain
    context = ssl.create_default_context()
    return context.wrap_socket(
        plain, server_hostname=host, do_handshake_on_connect=False
    )


def _cut(sock: socket.socket) -> None:
    """End what another thread does with the socket; also a TLS handshake."""
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
            raise JwksFailed(f"the answer is {answer.status}")
        if (answer.headers.get("Content-Encoding") or "identity").lower() != "identity":
            raise JwksFailed("the answer is compressed, which was not asked for")
        data = answer.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise JwksFailed(f"the answer has more than {MAX_BYTES} bytes")
        return data, parse_max_age(answer.headers.get("Cache-Control"))


def parse_max_age(header: str | None) -> float:
    """Return for how many seconds an answer may be kept (RFC 9111, section 5.2.2),
    between a minute and a day."""
    wanted = DEFAULT_AGE_S
    for one in (header or "")[:1000].lower().split(","):
        name, _, value = one.strip().partition("=")
        if name in ("no-store", "no-cache"):
            return MIN_AGE_S
        if name == "max-age" and re.fullmatch(r'"?[0-9]{1,9}"?', value):
            wanted = float(value.strip('"'))
    return min(max(wanted, MIN_AGE_S), MAX_AGE_S)
