"""Open TCP connections to checked addresses, within a time limit."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from dlpool.disk_errors import is_out_of_descriptors
from dlpool.errors import (
    ConnectionBroken,
    NameNotResolved,
    OutOfDescriptors,
    RetryRange,
    TimedOut,
    Unreachable,
)
from dlpool.threads import has_free_descriptors
from dlpool.transfer.http.policy import NetworkPolicy

_TOO_MANY = "too many files are open (raise ulimit -n, or use fewer connections)"
_OWN_NETWORK = {errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTUNREACH}


def connect(
    host: str,
    port: int,
    timeout_s: float | None,
    policy: NetworkPolicy,
    on_socket: Callable[[socket.socket], None],
) -> socket.socket:
    """Connect to the first address of ``host`` that accepts the connection.

    Gives up ``timeout_s`` seconds after the name has been resolved. ``policy`` checks
    each address before it is tried. ``on_socket`` is called with each socket before the
    socket connects. Raises PolicyRefused, or a RetryRange such as NameNotResolved,
    Unreachable or TimedOut.
    """
    # %25: a zone, RFC 6874
    addresses = _resolve(host.strip("[]").replace("%25", "%"), port)
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    failure: RetryRange = Unreachable(f"{host} has no usable address")
    for index, (family, address) in enumerate(addresses):
        policy.check(address[0])
        limit = None
        if deadline is not None:
            # keep half of the remaining time for the addresses after this one
            left = deadline - time.monotonic()
            limit = max(0.001, left / 2 if index + 1 < len(addresses) else left)
        try:
            return _connect_one(family, address, limit, on_socket)
        except RetryRange as error:
            failure = error
    raise failure


def _resolve(host: str, port: int) -> list[tuple[int, tuple[Any, ...]]]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        if not has_free_descriptors(1):  # the resolver does not report this cause
            raise OutOfDescriptors(f"cannot resolve {host}: {_TOO_MANY}") from error
        is_own = error.errno == socket.EAI_AGAIN
        reason = f"cannot resolve the host name {host} ({error.strerror})"
        raise NameNotResolved(reason, is_own_network=is_own, is_away=True) from error
    except OSError as error:  # EAI_SYSTEM, getaddrinfo(3)
        raise _unreachable(host, error) from error
    except UnicodeError as error:
        raise NameNotResolved(f"{host!r} is not a valid host name") from error
    return [(family, address) for family, _kind, _protocol, _name, address in found]


def _connect_one(
    family: int,
    address: tuple[Any, ...],
    timeout_s: float | None,
    on_socket: Callable[[socket.socket], None],
) -> socket.socket:
    address_text = f"{address[0]} port {address[1]}"
    sock = None
    try:
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.settimeout(timeout_s)
        on_socket(sock)
        sock.connect(address)
        return sock
    except BaseException as error:
        if sock is not None:
            with suppress(OSError):
                sock.close()
        if isinstance(error, TimeoutError):
            raise TimedOut(
                f"connecting to {address_text} took longer than the connect timeout",
                is_away=True,
            ) from error
        if isinstance(error, OSError):
            raise _unreachable(address_text, error) from error
        raise


def _unreachable(address_text: str, error: OSError) -> RetryRange:
    reason = error.strerror or str(error)
    if is_out_of_descriptors(error):
        return OutOfDescriptors(f"cannot connect to {address_text}: {_TOO_MANY}")
    if error.errno == errno.ECONNRESET:
        return ConnectionBroken(f"{address_text} reset the connection")
    is_own = error.errno in _OWN_NETWORK
    return Unreachable(
        f"{address_text} cannot be reached ({reason})",
        is_own_network=is_own,
        is_away=True,
    )
