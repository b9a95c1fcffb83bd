"""TLS sessions: later connections resume them, and never past a certificate that must be verified."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme

from dlpool import errors
from dlpool.transfer.http import tls
from tests.conftest import Authority, Fetcher, make_data
from tests.handlers import Serve, check_file, then_hang_up
from tests.origin import File, Handler, Origin
from tests.tunnel import Tunnel

DATA = make_data(1_000_003)
SMALL = make_data(5000)  # for one request
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


@pytest.fixture(params=VERSIONS, ids=lambda version: version.name)
def context(request: pytest.FixtureRequest, authority: Authority) -> ssl.SSLContext:
    context = authority.server_context()
    context.minimum_version = context.maximum_version = request.param
    return context


@pytest.fixture
def trusting(authority: Authority) -> dict[str, Any]:
    return {"cacert": str(authority.ca_file)}


def handshakes(context: ssl.SSLContext) -> tuple[int, int]:
    """How many handshakes the server has finished: complete ones, and resumed ones."""
    stats = context.session_stats()
    return stats["accept_good"] - stats["hits"], stats["hits"]


def hangs_up() -> Handler:
    """The file, and each connection closed after its answer, so that the next request needs another."""
    return then_hang_up(File(SMALL))


def test_further_connections_of_a_download_resume_the_first_session(
    context: ssl.SSLContext, trusting: dict[str, Any], serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    origin = serve(File(DATA, block=64 * 1024, pause_s=0.02), tls=context)
    outcome = fetch(f"{origin.url}/f", tmp_path / "f", connections=4, network=trusting)
    check_file(tmp_path / "f", DATA)
    assert outcome.connections == 4
    assert handshakes(context) == (1, 3)


def test_the_next_download_of_a_client_resumes_too(
    context: ssl.SSLContext, trusting: dict[str, Any], serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    origin, client = serve(hangs_up(), tls=context), fetch.client(**trusting)
    for number in range(3):
        fetch(f"{origin.url}/f", tmp_path / f"f{number}", connections=1, client=client)
    assert handshakes(context)[0] == 1


def test_a_client_with_other_settings_resumes_nothing(
    context: ssl.SSLContext, trusting: dict[str, Any], serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    origin = serve(File(DATA), tls=context)
    insecure = fetch.client(insecure=True)
    fetch(f"{origin.url}/f", tmp_path / "f", connections=1, client=insecure)
    fetch(f"{origin.url}/f", tmp_path / "g", connections=1, network=trusting)
    assert handshakes(context) == (2, 0)
    with pytest.raises(errors.TlsFailed, match="certificate was refused"):
        fetch(f"{origin.url}/f", tmp_path / "h")  # trusts no such authority


def test_another_name_of_the_server_is_verified_again(
    context: ssl.SSLContext, trusting: dict[str, Any], serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    origin, client = serve(hangs_up(), tls=context), fetch.client(**trusting)
    for number, name in enumerate(["localhost", "127.0.0.1", "localhost"]):
        fetch(f"https://{name}:{origin.port}/f", tmp_path / f"f{number}", connections=1, client=client)
    assert handshakes(context) == (2, 1)


def test_a_server_that_forgot_the_session_must_show_a_certificate_that_is_trusted(
    authority: Authority, trusting: dict[str, Any], fetch: Fetcher, tmp_path: Path
) -> None:
    client = fetch.client(**trusting)
    with Origin(hangs_up(), tls=authority.server_context()) as origin:
        port = origin.port
        fetch(f"{origin.url}/f", tmp_path / "f", connections=1, client=client)
    other = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("localhost").configure_cert(other)
    with Impostor(port, other) as impostor, pytest.raises(errors.TlsFailed, match="certificate was refused"):
        fetch(f"https://localhost:{port}/f", tmp_path / "g", connections=1, client=client)
    assert impostor.requests == []
    assert not (tmp_path / "g").exists()


class Impostor(Origin):
    """An origin on a port that another one has just left."""

    def __init__(self, port: int, context: ssl.SSLContext) -> None:
        super().__init__(File(DATA), tls=context)
        self._listener.close()
        self._listener = socket.create_server(("127.0.0.1", port), backlog=64)


def test_a_renewed_certificate_is_verified_where_the_session_is_unknown(
    authority: Authority, trusting: dict[str, Any], serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    """Each connection gets a context of its own, as after a restart: no session is known to it."""
    contexts: list[ssl.SSLContext] = []

    class Restarting:
        def wrap_socket(self, *arguments: Any, **options: Any) -> ssl.SSLSocket:
            contexts.append(authority.server_context())
            return contexts[-1].wrap_socket(*arguments, **options)

    origin = serve(File(DATA, block=64 * 1024, pause_s=0.02), tls=Restarting())
    outcome = fetch(f"{origin.url}/f", tmp_path / "f", connections=4, network=trusting)
    check_file(tmp_path / "f", DATA)
    assert outcome.retries == 0
    assert {handshakes(context) for context in contexts} == {(1, 0)}


def test_a_server_that_breaks_on_a_session_is_asked_without_it(
    authority: Authority, trusting: dict[str, Any], serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    context, hellos = authority.server_context(), list[int]()

    class Intolerant:
        """Resets each connection whose ClientHello has a session ticket."""

        def wrap_socket(self, sock: Any, **options: Any) -> ssl.SSLSocket:
            hello = b""
            while len(hello) < 5 or len(hello) < 5 + int.from_bytes(hello[3:5], "big"):
                hello = sock.recv(65536, socket.MSG_PEEK)
            hellos.append(len(hello))
            if hellos[-1] > hellos[0]:
                raise ConnectionResetError
            return context.wrap_socket(sock, **options)

    origin, client = serve(hangs_up(), tls=Intolerant()), fetch.client(**trusting)
    for number in range(3):
        fetch(f"{origin.url}/f", tmp_path / f"f{number}", connections=1, client=client)
    assert [size > hellos[0] for size in hellos] == [False, True, False, True, False]
    assert handshakes(context) == (3, 0)


@pytest.mark.parametrize("is_old", [False, True])
def test_a_session_is_resumed_for_a_limited_time(
    is_old: bool,
    context: ssl.SSLContext,
    trusting: dict[str, Any],
    serve: Serve,
    fetch: Fetcher,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tls, "MAX_SESSION_S", -2.0 if is_old else 600.0)
    origin, client = serve(hangs_up(), tls=context), fetch.client(**trusting)
    for number in range(2):
        fetch(f"{origin.url}/f", tmp_path / f"f{number}", connections=1, client=client)
    assert handshakes(context)[1] == (0 if is_old else 1)


def test_sessions_are_bounded(
    context: ssl.SSLContext,
    trusting: dict[str, Any],
    serve: Serve,
    fetch: Fetcher,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tls, "MAX_SESSIONS", 1)
    client = fetch.client(**trusting)
    one, other = (serve(hangs_up(), tls=context) for _ in range(2))
    for number, origin in enumerate([one, other, one]):
        fetch(f"{origin.url}/f", tmp_path / f"f{number}", connections=1, client=client)
    assert handshakes(context) == (3, 0)


def test_through_a_tunnel_a_session_is_resumed(
    context: ssl.SSLContext, trusting: dict[str, Any], serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    origin = serve(hangs_up(), tls=context)
    with Tunnel(None) as tunnel:
        client = fetch.client(**trusting, proxy=tunnel.url)
        for number in range(2):
            fetch(f"{origin.url}/f", tmp_path / f"f{number}", connections=1, client=client)
    assert handshakes(context) == (1, 1)
