"""The members of libraries that the adapters in ``dlpool/transfer/http/`` override or call.

They are private, or their use is not documented, so a release of the library may change them. Then a test here names
the library, the member and the adapter to change.
"""

from __future__ import annotations

import http.client
import inspect
import platform
import ssl
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

import pytest
import urllib3
from requests.adapters import HTTPAdapter
from requests.cookies import RequestsCookieJar, extract_cookies_to_jar
from urllib3.connection import HTTPConnection

from dlpool.config import NetworkSettings
from dlpool.transfer.http.client import HttpClient
from dlpool.transfer.http.header_fields import HeaderFields
from dlpool.transfer.http.limits import HostHolds, NetworkMonitor
from tests.fakes import Clock
from tests.handlers import Serve
from tests.origin import File

URLLIB3 = ("urllib3", version("urllib3"), "urllib3_adapter.py")
HTTP_CLIENT = ("http.client of Python", platform.python_version(), "http_client_adapter.py")
REQUESTS = ("requests", version("requests"), "requests_adapter.py")
Library = tuple[str, str, str]


def changed(library: Library, what: str) -> str:
    name, release, adapter = library
    return f"{name} {release} has changed {what}: adapt dlpool/transfer/http/{adapter}"


@pytest.mark.parametrize(
    ("library", "owner", "name", "parameters"),
    [
        (URLLIB3, HTTPConnection, "_new_conn", ["self"]),
        (URLLIB3, HTTPConnection, "connect", ["self"]),
        (URLLIB3, HTTPConnection, "close", ["self"]),
        (URLLIB3, HTTPConnection, "getresponse", ["self"]),
        (URLLIB3, urllib3.HTTPConnectionPool, "_get_conn", ["self", "timeout"]),
        (URLLIB3, urllib3.HTTPConnectionPool, "_put_conn", ["self", "conn"]),
        (HTTP_CLIENT, http.client.HTTPResponse, "begin", ["self"]),
        (HTTP_CLIENT, http.client.HTTPResponse, "_read_status", ["self"]),
        (HTTP_CLIENT, http.client.HTTPResponse, "_check_close", ["self"]),
        (HTTP_CLIENT, http.client.HTTPResponse, "_close_conn", ["self"]),
        (HTTP_CLIENT, http.client.HTTPResponse, "_get_chunk_left", ["self"]),
        (
            HTTP_CLIENT,
            http.client.HTTPConnection,
            "putrequest",
            ["self", "method", "url", "skip_host", "skip_accept_encoding"],
        ),
        (HTTP_CLIENT, http.client.HTTPConnection, "putheader", ["self", "header", "values"]),
        (HTTP_CLIENT, http.client.HTTPConnection, "getresponse", ["self"]),
        (HTTP_CLIENT, ssl.SSLSocket, "read", ["self", "len", "buffer"]),
        (REQUESTS, HTTPAdapter, "init_poolmanager", ["self", "connections", "maxsize", "block", "pool_kwargs"]),
        (REQUESTS, HTTPAdapter, "proxy_manager_for", ["self", "proxy", "proxy_kwargs"]),
        (REQUESTS, HTTPAdapter, "proxy_headers", ["self", "proxy"]),
        (REQUESTS, HTTPAdapter, "cert_verify", ["self", "conn", "url", "verify", "cert"]),
        (REQUESTS, HTTPAdapter, "build_connection_pool_key_attributes", ["self", "request", "verify", "cert"]),
        (REQUESTS, HTTPAdapter, "get_connection_with_tls_context", ["self", "request", "verify", "proxies", "cert"]),
    ],
)
def test_a_member_that_an_adapter_uses_has_its_parameters(
    library: Library, owner: type, name: str, parameters: list[str]
) -> None:
    member = getattr(owner, name, None)
    assert member is not None, changed(library, f"{owner.__name__}.{name}, which does not exist")
    found = list(inspect.signature(member).parameters)
    assert found == parameters, changed(library, f"the parameters of {owner.__name__}.{name}")


@pytest.mark.parametrize("name", ["_dns_host", "proxy", "socket_options", "timeout", "sock"])
def test_a_connection_of_urllib3_has_the_attributes_that_its_adapter_reads(name: str) -> None:
    assert hasattr(HTTPConnection("h.test"), name), changed(URLLIB3, f"HTTPConnection.{name}, which does not exist")


def test_a_pool_of_urllib3_is_a_queue_of_connections_and_none() -> None:
    pool = urllib3.HTTPConnectionPool("h.test", maxsize=2)
    idle: Any = pool.pool
    with idle.mutex:
        assert list(idle.queue) == [None, None], changed(URLLIB3, "the queue of idle connections")
    pool.close()
    assert pool.pool is None, changed(URLLIB3, "what a closed pool is")


@pytest.mark.parametrize("name", ["fp", "length", "chunked", "chunk_left", "will_close", "headers", "msg", "_method"])
def test_a_response_of_http_client_has_the_attributes_that_its_adapter_uses(name: str) -> None:
    sock: Any = SimpleNamespace(makefile=lambda _mode: None)
    response = http.client.HTTPResponse(sock, method="GET")
    assert hasattr(response, name), changed(HTTP_CLIENT, f"HTTPResponse.{name}, which does not exist")


@pytest.mark.parametrize("name", ["poolmanager", "proxy_manager"])
def test_an_adapter_of_requests_has_the_managers_that_ours_uses(name: str) -> None:
    assert hasattr(HTTPAdapter(), name), changed(REQUESTS, f"HTTPAdapter.{name}, which does not exist")


def test_the_cookie_jar_of_requests_reads_a_response_as_our_adapter_makes_it() -> None:
    jar, request = RequestsCookieJar(), SimpleNamespace(url="http://h.test/", headers={})
    fields = HeaderFields([("Set-Cookie", "a=1")])
    response = SimpleNamespace(_original_response=SimpleNamespace(msg=fields))
    extract_cookies_to_jar(jar, request, response)  # type: ignore[arg-type]
    assert dict(jar) == {"a": "1"}, changed(REQUESTS, "where extract_cookies_to_jar finds the header fields")


def test_a_request_over_the_adapters_uses_our_connection_and_gives_it_back(serve: Serve) -> None:
    origin, clock = serve(File(b"data")), Clock()
    client = HttpClient(NetworkSettings(network="any"), 2, HostHolds(clock), NetworkMonitor(clock))
    for _ in range(2):
        response: Any = client.send("GET", f"{origin.url}/f", {"Host": "h.test"})
        assert type(response).__name__ == "PooledResponse", changed(URLLIB3, "the class of a connection's response")
        assert hasattr(response._connection, "idle_since"), changed(URLLIB3, "which connection a response holds")
        assert response._pool is not None, changed(URLLIB3, "which pool a response holds")
        buffer = bytearray(8)
        assert response.readinto1(buffer) == 4, changed(HTTP_CLIENT, "how a body is read")
        response.release()
    assert {request.connection for request in origin.requests} == {1}, changed(URLLIB3, "how a connection is reused")
    client.close()
