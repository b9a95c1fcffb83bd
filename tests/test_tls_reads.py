"""Bodies read from TLS sockets: exact in every framing, and at a cost that is counted, not timed."""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from dlpool import errors
from dlpool.transfer.body_copy import BUFFER
from dlpool.transfer.http.cancellable import PooledResponse
from dlpool.transfer.http.http_client_adapter import COLLECT_S
from tests.conftest import Authority, Fetcher, Nginx, make_data, wait_until
from tests.handlers import Serve, check_file
from tests.origin import Connection, File, Request

KIB, MIB = 1024, 1024 * 1024
DATA = make_data(MIB + 5)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(DATA)
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


@pytest.fixture
def is_tls() -> bool:
    return True


# --- one response ---


class Link:
    """A client's TLS socket, and the server's, whose thread sends what a test wants."""

    def __init__(self, authority: Authority, version: ssl.TLSVersion) -> None:
        ours, theirs = socket.socketpair()
        context = authority.server_context()
        context.minimum_version = context.maximum_version = version
        trusting = ssl.create_default_context(cafile=str(authority.ca_file))
        trusting.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
        thread = threading.Thread(target=self._accept, args=(context, theirs))
        thread.start()
        self.client = trusting.wrap_socket(ours, server_hostname="localhost", suppress_ragged_eofs=False)
        thread.join(20.0)
        self.client.settimeout(5.0)
        self._threads: list[threading.Thread] = []

    def _accept(self, context: ssl.SSLContext, sock: socket.socket) -> None:
        self.server = context.wrap_socket(sock, server_side=True)

    def send(self, *parts: bytes, end: Callable[[], object] | None = None) -> None:
        """Send the parts from a thread, one record or more each, and then do ``end``."""

        def work() -> None:
            with suppress(OSError):
                for part in parts:
                    self.server.sendall(part)
                if end is not None:
                    end()

        self._threads.append(threading.Thread(target=work, daemon=True))
        self._threads[-1].start()

    def response(self) -> PooledResponse:
        response = PooledResponse(self.client, method="GET")
        response.tls_socket = self.client
        response.begin()
        return response

    def close(self) -> None:
        for sock in (self.client, self.server):
            sock.close()
        for thread in self._threads:
            thread.join(20.0)


Connect = Callable[[], Link]


@pytest.fixture(params=VERSIONS, ids=lambda version: version.name)
def connect(request: pytest.FixtureRequest, authority: Authority) -> Iterator[Connect]:
    """Make links; they end with the test."""
    with ExitStack() as stack:

        def start() -> Link:
            link = Link(authority, request.param)
            stack.callback(link.close)
            return link

        yield start


def read_all(response: PooledResponse, size: int) -> bytes:
    body, buffer = bytearray(), bytearray(size)
    while count := response.readinto1(buffer):
        body += buffer[:count]
    return bytes(body)


@pytest.mark.parametrize("size", [1000, 16 * KIB, 16 * KIB + 1, 40_000, BUFFER, 2 * MIB])
@pytest.mark.parametrize("head", [HEAD, HEAD + DATA[:1], HEAD + DATA[:9000]], ids=["alone", "and a byte", "and 9000"])
def test_a_body_is_exact_whatever_came_with_its_header(head: bytes, size: int, connect: Connect) -> None:
    link = connect()
    link.send(head, DATA[len(head) - len(HEAD) :])
    assert read_all(link.response(), size) == DATA


def test_what_follows_a_body_is_left_to_the_next_response(connect: Connect) -> None:
    link = connect()
    link.send(HEAD + DATA + HEAD + DATA[::-1])  # the next header is in the body's last record
    assert read_all(link.response(), BUFFER) == DATA
    assert link.client.pending() > 0
    assert read_all(link.response(), BUFFER) == DATA[::-1]


def test_records_that_arrive_together_are_read_at_once(connect: Connect) -> None:
    link = connect()
    link.send(HEAD + DATA)
    response, view = link.response(), memoryview(bytearray(BUFFER))
    sizes = [response.readinto1(view) for _ in range(4)]
    assert sizes[0] <= 16 * KIB
    assert sum(sizes[1:]) > 4 * 16 * KIB


def test_records_that_trickle_are_handed_over_early(connect: Connect) -> None:
    link, go = connect(), threading.Event()
    link.send(HEAD + DATA[:20_000])
    response, view = link.response(), memoryview(bytearray(BUFFER))
    got = response.readinto1(view)
    while got < 20_000:
        timer = threading.Timer(3 * COLLECT_S, lambda: link.send(DATA[20_000:20_100], end=go.set))
        timer.start()
        got += response.readinto1(view)
    assert got <= 20_100, "the read did not wait for the remaining body"


@pytest.mark.parametrize(
    ("end", "kind"),
    [
        ("cut", ssl.SSLEOFError),
        ("silence", TimeoutError),
        ("garbage", ssl.SSLError),
    ],
)
def test_a_failure_comes_after_the_bytes_before_it(end: str, kind: type[Exception], connect: Connect) -> None:
    link = connect()
    raw = socket.socket(fileno=socket.dup(link.server.fileno()))
    ends = {"cut": lambda: raw.shutdown(socket.SHUT_WR), "silence": None, "garbage": lambda: raw.sendall(b"x" * 64)}
    link.client.settimeout(0.2)
    link.send(HEAD + DATA[:100_000], end=ends[end])
    response, view, body = link.response(), memoryview(bytearray(BUFFER)), b""
    with raw, pytest.raises(kind) as caught:
        while True:
            body += view[: response.readinto1(view)]
    assert body == DATA[:100_000]
    assert response.length == len(DATA) - 100_000
    with pytest.raises(kind) as again:
        response.readinto1(view)
    assert again.value is caught.value


def test_a_connection_that_is_closed_in_order_has_ended(connect: Connect) -> None:
    link = connect()
    link.client.settimeout(20.0)
    link.send(HEAD + DATA[:100_000], end=link.server.unwrap)
    response = link.response()
    assert read_all(response, BUFFER) == DATA[:100_000]
    assert response.length == len(DATA) - 100_000, "the caller sees that bytes are missing"


# --- downloads ---


def test_a_cancelled_download_ends_at_once_while_its_records_stop(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    def stall(_request: Request, connection: Connection) -> None:
        connection.send(HEAD + DATA[: MIB // 2])
        connection.wait_for_client_to_go(60.0)

    origin, raised = serve(stall), list[BaseException]()
    transfer = fetch.transfer(f"{origin.url}/f", tmp_path / "f", network={"read_timeout": 300.0})

    def run() -> None:
        try:
            transfer.run()
        except errors.DlpoolError as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    wait_until(lambda: transfer.progress().done > MIB // 4)
    began = time.monotonic()
    transfer.cancel()
    thread.join(20.0)
    assert type(raised[0]) is errors.Cancelled
    assert time.monotonic() - began < 5.0  # a read would wait for 300 s


def test_a_server_that_closes_after_each_answer_is_read_to_the_end(
    serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    file = File(DATA, extra={"Connection": "close"})

    def handle(request: Request, connection: Connection) -> None:
        file(request, connection)
        connection.hang_up()

    outcome = fetch(f"{serve(handle).url}/f", tmp_path / "f")
    check_file(tmp_path / "f", DATA)
    assert outcome.retries == 0


# --- what it costs ---

SIZE = 64 * MIB
FETCH = """
import sys, threading, collections
import dlpool.transfer.http.pools  # else imported, and counted, by a thread
from dlpool.cli.main import main
counts, lock = collections.Counter(), threading.Lock()
def note(frame, event, argument):
    if event == "c_call":
        counts["C " + argument.__name__] += 1
    elif event == "call":
        counts["calls"] += 1
threading.setprofile(note)
try:
    main(sys.argv[1:])
except SystemExit as end:
    assert not end.code, end.code
threading.setprofile(None)
print(dict(counts))
"""


@pytest.fixture(scope="module")
def large(nginx: Nginx) -> Iterator[str]:
    """The URL of 64 MiB on nginx with TLS."""
    (nginx.root / "large").write_bytes(make_data(MIB) * (SIZE // MIB))
    yield f"{nginx.tls_url}/large"
    (nginx.root / "large").unlink()


def options(authority: Authority, *more: str) -> list[str]:
    return ["fetch", "-q", "--no-sync", "--network", "any", "--cacert", str(authority.ca_file), *more]


@pytest.mark.parametrize("connections", ["1", "4"])
def test_a_record_costs_few_calls(connections: str, large: str, authority: Authority, tmp_path: Path) -> None:
    """The calls of the connection threads for 64 MiB, which are 4096 records."""
    command = [sys.executable, "-c", FETCH, *options(authority, "-c", connections, large, str(tmp_path / "f"))]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    counts: Counter[str] = Counter(eval(ended.stdout))
    records = SIZE // (16 * KIB)
    assert records <= counts["C read"] <= 1.3 * records
    assert counts["C monotonic"] <= 1.6 * records, "one clock reading for each record, and some for each read"
    assert counts["calls"] <= 6.5 * records
    assert (tmp_path / "f").stat().st_size == SIZE


def test_a_record_costs_few_system_calls(large: str, authority: Authority, tmp_path: Path) -> None:
    log = tmp_path / "strace"
    program = Path(sys.executable).parent / "dlpool"
    strace = ["strace", "-f", "-qq", "-c", "-o", str(log), "-e", "trace=read,recvfrom,poll,pwrite64,write"]
    command = [*strace, str(program), *options(authority, "-c", "1", large, str(tmp_path / "f"))]
    subprocess.run(command, timeout=100, check=True)
    calls = {line.split()[-1]: int(line.split()[3]) for line in log.read_text().splitlines()[2:-2]}
    assert calls["read"] <= 2.5 * SIZE // (16 * KIB), "the header of a record, and its body"
    assert calls.get("write", 0) + calls.get("pwrite64", 0) <= SIZE // (64 * KIB)
