"""What dlpool-web relies on in gunicorn, so that a new version fails here with a reason, and not in production."""

from __future__ import annotations

import inspect
import socket
from collections.abc import Callable
from typing import Any

import pytest
from gunicorn import __version__, http  # type: ignore[import-untyped]
from gunicorn.config import Config  # type: ignore[import-untyped]
from gunicorn.glogging import Logger  # type: ignore[import-untyped]
from gunicorn.http.body import LengthReader  # type: ignore[import-untyped]
from gunicorn.workers.gthread import TConn, ThreadWorker  # type: ignore[import-untyped]

from dlpool.web.gunicorn_adapter import GunicornLog, WebWorker

OVERRIDDEN = {
    "accept": ("self", "listener"),
    "enqueue_req": ("self", "conn"),
    "finish_request": ("self", "conn", "fs"),
    "get_thread_pool": ("self",),
    "handle_error": ("self", "req", "client", "addr", "exc"),
    "handle_request": ("self", "req", "conn"),
    "murder_keepalived": ("self", "force"),
    "run": ("self",),
    "wait_for_and_dispatch_events": ("self", "timeout"),
    "_cap_keepalive": ("self", "deadline"),
}
REQUEST = b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\nab"


def changed(what: str) -> str:
    return f"gunicorn {__version__}: {what} has changed: adapt dlpool/web/gunicorn_adapter.py"


def parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(function).parameters)


@pytest.fixture
def pair() -> Any:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def conn(pair: tuple[socket.socket, socket.socket]) -> TConn:
    """A connection whose parser has received the beginning of a request."""
    ours, theirs = pair
    theirs.sendall(REQUEST)
    made = TConn(Config(), ours, ("192.0.2.1", 1), ("192.0.2.2", 2))
    made.init()
    return made


@pytest.mark.parametrize(("name", "expected"), OVERRIDDEN.items())
def test_the_methods_that_the_worker_overrides_exist(name: str, expected: tuple[str, ...]) -> None:
    assert name in vars(WebWorker)
    found = getattr(ThreadWorker, name, None)
    assert found is not None, changed(f"ThreadWorker.{name} is gone, which")
    assert parameters(found) == expected, changed(f"the signature of ThreadWorker.{name}")


@pytest.mark.parametrize(
    "name", ["nr_conns", "worker_connections", "poller", "method_queue", "alive", "cfg", "settings"]
)
def test_the_attributes_that_the_worker_uses_exist(name: str) -> None:
    worker = WebWorker(1, 1, [], None, 1.0, Config(), None)
    assert hasattr(worker, name), changed(f"ThreadWorker.{name}")


def test_the_main_loop_calls_what_the_worker_overrides() -> None:
    """Each is a place at which heads are received, expire, or end."""
    source = inspect.getsource(ThreadWorker.run) + inspect.getsource(ThreadWorker.set_accept_enabled)
    for call in (
        "self.accept)",
        "self.wait_for_and_dispatch_events(",
        "self.murder_keepalived()",
        "self.murder_keepalived(force=True)",
        "self._cap_keepalive(",
    ):
        assert call in source, changed(f"the main loop without {call}")
    assert "defer" in dir(WebWorker(1, 1, [], None, 1.0, Config(), None).method_queue), changed("method_queue.defer")


def test_a_thread_handles_a_connection_whose_data_is_ready_at_once() -> None:
    source = inspect.getsource(ThreadWorker.handle)
    assert "conn.data_ready" in source, changed("data_ready, which says that no thread has to wait for a head,")
    assert "self.handle_request(req, conn)" in source, changed("the call of handle_request")


def test_a_connection_has_what_the_adapter_uses(conn: TConn) -> None:
    assert parameters(TConn) == ("cfg", "sock", "client", "server"), changed("the signature of TConn")
    assert parameters(TConn.close) == ("self", "graceful"), changed("the signature of TConn.close")
    for name in ("sock", "client", "data_ready"):
        assert hasattr(conn, name), changed(f"TConn.{name}")
    unreader = conn.parser.unreader
    assert unreader.sock is conn.sock, changed("unreader.sock, from which requests are read,")
    unreader.unread(b"xy")
    assert unreader.take_buffered() == b"xy", changed("unreader.unread and take_buffered")


def test_a_request_has_the_reader_of_its_body(conn: TConn) -> None:
    req = next(conn.parser)
    assert isinstance(req.body.reader, LengthReader), changed("the reader of a body with Content-Length")
    assert req.body.reader.length == 4, changed("LengthReader.length")
    assert req.body.reader.unreader.take_buffered() == b"ab", changed("LengthReader.unreader")
    assert callable(req.should_close), changed("req.should_close")


def test_the_client_is_told_to_continue_by_the_application_only(
    conn: TConn, pair: tuple[socket.socket, socket.socket]
) -> None:
    req = next(conn.parser)
    assert req._expected_100_continue is True, changed("req._expected_100_continue")
    pair[1].setblocking(False)
    with pytest.raises(BlockingIOError):
        pair[1].recv(1)


def test_the_errors_that_the_worker_answers_exist() -> None:
    for name in (
        "ExpectationFailed",
        "InvalidHeader",
        "InvalidHeaderName",
        "LimitRequestHeaders",
        "LimitRequestLine",
        "UnsupportedTransferCoding",
    ):
        found = getattr(http.errors, name, None)
        assert found is not None and issubclass(found, http.errors.ParseException), changed(f"http.errors.{name}")
    assert issubclass(http.errors.NoMoreData, IOError), changed("http.errors.NoMoreData")


SETTINGS = (
    "bind workers threads worker_class logger_class worker_connections keepalive graceful_timeout proc_name "
    "forwarded_allow_ips limit_request_line control_socket_disable"
)


@pytest.mark.parametrize("name", SETTINGS.split())
def test_the_settings_that_the_server_sets_exist(name: str) -> None:
    assert name in Config().settings, changed(f"the setting {name}")


def test_the_log_replaces_every_method_of_gunicorns() -> None:
    """A method that is not replaced would write to standard error, or use settings that are not there."""
    own = {name for name, value in vars(Logger).items() if callable(value) and not name.startswith("_")}
    inherited = own - set(vars(GunicornLog)) - {"atoms", "atoms_wrapper_class", "log", "now"}
    assert not inherited, changed(f"Logger, which has {sorted(inherited)} now,")
