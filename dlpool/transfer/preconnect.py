"""Open the other connections of a download while its first request is under way.

This saves a round trip, or several with TLS. It is not worth its cost for a near host,
and not for one whose files are small.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from contextlib import suppress

from dlpool import threads
from dlpool.errors import NoThread
from dlpool.transfer.context import TransferContext
from dlpool.transfer.http.exchange import Exchange

MIN_RTT_S = 0.03  # a host with a shorter round-trip time is near
MAX_WAIT_S = 1.0  # for connections that are being opened; a lost SYN takes longer
MAX_SMALL_HOSTS = 1000  # remembered hosts
_DESCRIPTORS = 64  # left free
_RTT_OFFSET = 68  # of tcpi_rtt in struct tcp_info (linux/tcp.h), in microseconds


class Preconnector:
    """Opens idle connections in the pools of the client, each on a thread.

    The attempt's thread uses it.
    """

    def __init__(self, context: TransferContext) -> None:
        self._context = context
        self._threads: list[threading.Thread] = []

    def watch(self, exchange: Exchange) -> None:
        """Open the other connections when the connection of ``exchange`` is open.

        Opens none if they are not worth their cost.
        """
        exchange.on_connect = self._start

    def wait(self) -> None:
        """Wait until the connections are open, at most ``MAX_WAIT_S`` seconds."""
        until = time.monotonic() + MAX_WAIT_S
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        self._threads = []

    def remember(self, connections: int) -> None:
        """Record whether the host's files are small.

        ``connections``: how many the size of the latest file justifies; 1 means small.
        """
        small_hosts = self._context.client.small_hosts
        if connections > 1:
            small_hosts.discard(self._context.host)
        elif len(small_hosts) < MAX_SMALL_HOSTS:
            small_hosts.add(self._context.host)

    def _start(self, sock: socket.socket) -> None:
        context = self._context
        others = context.initial_connections() - 1
        if (
            self._threads
            or round_trip_s(sock) < MIN_RTT_S
            or context.host in context.client.small_hosts
            or not threads.has_free_descriptors(2 * others + _DESCRIPTORS)
        ):
            return
        for work in context.client.preconnect(context.source.location, others):
            with suppress(NoThread):
                self._threads.append(threads.start_thread(work, "dlpool-connect"))


def round_trip_s(sock: socket.socket) -> float:
    """Return the round-trip time that the kernel measured, in seconds."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _RTT_OFFSET + 4)
    (rtt_us,) = struct.unpack_from("=I", info, _RTT_OFFSET)
    return float(rtt_us) / 1e6
