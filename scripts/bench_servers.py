"""Servers for measurements: true pacing of each connection, and a network with a round-trip time.

``paced_server`` serves one file in ranges. The kernel paces each connection by ``SO_MAX_PACING_RATE`` (socket(7)); the
number of the connection decides its rate. ``limit_rate`` of nginx paces each request instead, after a free first
second. Call ``PacedServer.begin`` before each run: it starts the numbers at 0 again, so that both tools of a pair meet
the same slow connections.

    with paced_server(Path("100m"), fast=10 << 20, slow=512 << 10) as server:
        for tool in (["dlpool", "fetch", "-q"], ["aria2c", "-q", "-x4", "-s4", "-k1M"]):
            server.begin("ssffsffsff")
            run([*server.prefix, *tool, server.url])
            print(server.connections())

With ``rtt_s`` the server is in a network namespace of its own, behind a TUN device that holds back each packet for half
the round-trip time: handshakes, slow start and acknowledgements take as long as over a distance. Both the kernel's
user namespaces and ``/dev/net/tun`` are needed, root is not. Put ``server.prefix`` in front of a tool's command, so
that it runs in this namespace; without ``rtt_s`` the prefix is empty.

    with paced_server(Path("100m"), fast=4 << 20, rtt_s=0.1) as server: ...
"""

from __future__ import annotations

import argparse
import fcntl
import os
import random
import re
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SO_MAX_PACING_RATE = 47  # asm-generic/socket.h
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000  # linux/if_tun.h
DEVICE, NEAR, FAR = "distance", "10.213.0.1", "10.213.0.2"
BLOCK = 64 * 1024  # bytes that one sendfile hands to the kernel
MAX_PACKET = 65536
# bytes: the kernel does not pace the first ten segments of a connection, which would be 640 KiB on loopback
SEGMENT = 1448
RANGE = re.compile(rb"(?im)^range: *bytes=(\d+)-(\d*)")


@dataclass(frozen=True)
class ServedConnection:
    """A connection that a server accepted: its number, rate in bytes per second, requests and bytes of body."""

    number: int
    rate: int
    requests: int
    sent: int


@dataclass(frozen=True)
class PacedServer:
    """A running server: the URL of its file, and what to put in front of a command that is to reach it."""

    url: str
    prefix: tuple[str, ...]
    _process: subprocess.Popen[str]

    def begin(self, pattern: str = "f") -> None:
        """Begin a run: the next connection has number 0.

        ``pattern``: one letter for each number, ``f`` for fast and ``s`` for slow, repeated; or ``pN`` or ``pN:SEED``
        for a share of N per cent slow ones that SEED and the number decide.
        """
        self._ask(pattern)

    def connections(self) -> list[ServedConnection]:
        """Return the connections since ``begin``, in the order of their numbers."""
        return [ServedConnection(*map(int, one.split(","))) for one in self._ask("?").split()]

    def _ask(self, line: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(line, file=self._process.stdin, flush=True)
        return self._process.stdout.readline()


@contextmanager
def paced_server(path: Path, *, fast: int, slow: int = 0, rtt_s: float = 0.0, mtu: int = 1500) -> Iterator[PacedServer]:
    """Serve the file at ``path``; ``fast`` and ``slow`` are rates in bytes per second, 0 for no limit."""
    namespace = ["unshare", "--user", "--map-root-user", "--net"] if rtt_s else []
    options = ["--fast", fast, "--slow", slow, "--rtt", rtt_s, "--mtu", mtu]
    command = [*namespace, sys.executable, "-m", "scripts.bench_servers", str(path), *map(str, options)]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        if not url:
            sys.exit(f"{' '.join(command)} ended with {process.wait()}")
        inside = ("nsenter", "-t", str(process.pid), "--user", "--net", "--preserve-credentials") if rtt_s else ()
        yield PacedServer(url, inside, process)
    finally:
        process.communicate(timeout=10)  # the end of its input ends the process


def rate_of(number: int, pattern: str, fast: int, slow: int) -> int:
    """Return the rate of the connection with this number."""
    if pattern.startswith("p"):
        share, _, seed = pattern[1:].partition(":")
        is_slow = random.Random(f"{seed} {number}").random() * 100 < int(share)
    else:
        is_slow = pattern[number % len(pattern)] == "s"
    return slow if is_slow else fast


@dataclass
class _Connection:
    number: int
    rate: int
    requests: int = 0
    sent: int = 0

    def __str__(self) -> str:
        return f"{self.number},{self.rate},{self.requests},{self.sent}"


@dataclass
class _Origin:
    """Answers GET and HEAD for one file, each connection on a thread of its own."""

    file: int
    size: int
    fast: int
    slow: int
    pattern: str = "f"
    made: list[_Connection] = field(default_factory=list)

    def accept(self, listener: socket.socket) -> None:
        while True:
            sock, _ = listener.accept()
            number = len(self.made)
            one = _Connection(number, rate_of(number, self.pattern, self.fast, self.slow))
            self.made.append(one)
            threading.Thread(target=self._serve, args=(sock, one), daemon=True).start()

    def _serve(self, sock: socket.socket, one: _Connection) -> None:
        if one.rate:
            sock.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, one.rate)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        received = b""
        with sock, suppress(OSError):
            while True:
                while b"\r\n\r\n" not in received:
                    if not (data := sock.recv(BLOCK)):
                        return
                    received += data
                head, _, received = received.partition(b"\r\n\r\n")
                one.requests += 1
                self._answer(sock, head, one)

    def _answer(self, sock: socket.socket, head: bytes, one: _Connection) -> None:
        asked = RANGE.search(head)
        start = int(asked[1]) if asked else 0
        end = min(int(asked[2]) + 1 if asked and asked[2] else self.size, self.size)
        status = "200 OK" if asked is None else "206 Partial Content" if start < end else "416 Range Not Satisfiable"
        fields = [
            f"HTTP/1.1 {status}",
            f"Content-Length: {max(0, end - start)}",
            'ETag: "x1"',
            "Accept-Ranges: bytes",
            "Last-Modified: Sun, 29 Nov 2026 18:00:00 GMT",
            "Content-Type: application/octet-stream",
        ]
        if asked:
            fields.append(f"Content-Range: bytes {start}-{end - 1}/{self.size}")
        sock.sendall("\r\n".join([*fields, "", ""]).encode())
        while start < end and not head.startswith(b"HEAD"):
            size = os.sendfile(sock.fileno(), self.file, start, min(BLOCK, end - start))
            start, one.sent = start + size, one.sent + size


def delay_packets(device: int, delay_s: float) -> None:
    """Send each packet of a TUN device back after ``delay_s`` seconds, with its addresses exchanged.

    So a connection to ``FAR`` arrives at ``NEAR``, as one from ``FAR``. The checksums of IP and TCP stay right, because
    they are sums.
    """
    os.set_blocking(device, False)
    held: deque[tuple[float, bytes]] = deque()
    while True:
        wait_s = max(0.0, held[0][0] - time.monotonic()) if held else None
        select.select([device], [], [], wait_s)
        now = time.monotonic()
        with suppress(BlockingIOError):
            while packet := os.read(device, MAX_PACKET):
                if packet[0] >> 4 == 4:  # IPv4
                    held.append((now + delay_s, packet[:12] + packet[16:20] + packet[12:16] + packet[20:]))
        while held and held[0][0] <= now:
            with suppress(BlockingIOError):
                os.write(device, held.popleft()[1])


def open_distance(rtt_s: float, mtu: int) -> int:
    """Create the TUN device in this network namespace, and a process that delays its packets; return its pid."""
    device = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH14x", DEVICE.encode(), IFF_TUN | IFF_NO_PI))
    for line in (
        "link set lo up",
        f"addr add {NEAR}/30 dev {DEVICE}",
        f"link set {DEVICE} mtu {mtu} txqueuelen 20000 up",
    ):
        subprocess.run(["ip", *line.split()], check=True)
    process = os.fork()
    if process == 0:
        delay_packets(device, rtt_s / 2)
    os.close(device)
    return process


def main() -> None:
    """Serve, until the standard input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("path", type=Path)
    parser.add_argument("--fast", type=int, default=0)
    parser.add_argument("--slow", type=int, default=0)
    parser.add_argument("--rtt", type=float, default=0.0)
    parser.add_argument("--mtu", type=int, default=1500)
    given = parser.parse_args()
    child = open_distance(given.rtt, given.mtu) if given.rtt else None
    try:
        listener = socket.create_server((NEAR if child else "127.0.0.1", 0), backlog=512)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SEGMENT)
        file = os.open(given.path, os.O_RDONLY)
        origin = _Origin(file, os.fstat(file).st_size, given.fast, given.slow)
        threading.Thread(target=origin.accept, args=(listener,), daemon=True).start()
        print(f"http://{FAR if child else '127.0.0.1'}:{listener.getsockname()[1]}/{given.path.name}", flush=True)
        for line in sys.stdin:
            if line.strip() == "?":
                print(*origin.made, flush=True)
            else:
                origin.pattern, origin.made = line.strip(), []
                print(flush=True)
    finally:
        if child is not None:
            os.kill(child, 9)


if __name__ == "__main__":
    main()
