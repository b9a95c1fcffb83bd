"""Redis over TLS: by a CA of its own, with client certificates, and one sentence where that cannot be."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import trustme

from dlpool.config import RedisSettings
from dlpool.errors import ConfigurationError, QueueError, QueueRefused
from dlpool.jobs.connection import connect, translated
from tests import processes
from tests.conftest import Authority, free_port
from tests.fleet import Client, Supervisor
from tests.origin import File, Origin
from tests.outage import DATA, wait_until
from tests.redis_kinds import Cluster
from tests.redis_server import RedisServer


@cache
def has_tls() -> bool:
    """Whether the server on this machine was built with TLS: one without it does not know the option."""
    binary = shutil.which("redis-server") or shutil.which("valkey-server")
    assert binary is not None
    command = [binary, "--port", "0", "--tls-port", "0", "--no-such-option", "0"]
    said = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    return "no-such-option" in said.stdout + said.stderr


pytestmark = pytest.mark.skipif(not has_tls(), reason="this machine's redis-server was built without TLS")


def tls_options(authority: Authority, **more: object) -> dict[str, object]:
    return {
        "tls_cert_file": authority.cert_file,
        "tls_key_file": authority.key_file,
        "tls_ca_cert_file": authority.ca_file,
        "tls_auth_clients": "no",
        **more,
    }


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def server(tmp_path: Path, authority: Authority, port: int) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "redis", **tls_options(authority, tls_port=port)) as started:  # type: ignore[arg-type]
        yield started


@pytest.fixture
def url(server: RedisServer, port: int) -> str:
    return f"rediss://localhost:{port}"


def ini(folder: Path, **settings: object) -> Path:
    path = folder / "x.ini"
    path.write_text("[redis]\n" + "".join(f"{name} = {value}\n" for name, value in settings.items()))
    return path


def test_the_service_and_its_commands_work_over_tls(
    server: RedisServer, url: str, authority: Authority, tmp_path: Path
) -> None:
    settings = {"redis": {"tls_cacert": authority.ca_file}}
    with Origin(File(DATA)) as origin, Supervisor(tmp_path / "service", url, settings) as service:
        pushed = processes.run("push", f"{origin.url}/a", "a.bin", "-c", service.ini)
        assert pushed.code == 0, pushed.err
        Client(server.client()).wait_for(f"{origin.url}/a")
        assert (service.out / "a.bin").read_bytes() == DATA
        assert service.stop() == 0, service.said()


def test_a_server_of_an_unknown_ca_is_refused_in_one_sentence(url: str) -> None:
    ended = processes.run("stats", "--redis-url", url)
    assert ended.code == 20
    [line] = ended.err.splitlines()
    assert line.startswith(f"dlpool: Redis at {url.removeprefix('rediss://')} is not trusted: ")
    assert line.endswith("(its CA is tls_cacert in [redis])")


def test_a_certificate_of_another_host_is_refused(server: RedisServer, authority: Authority, tmp_path: Path) -> None:
    """Which is what makes TLS worth something."""
    ca, folder = trustme.CA(), tmp_path / "other"
    folder.mkdir()
    other = ca.issue_cert("redis.example.org")
    ca.cert_pem.write_to_path(folder / "ca.pem")
    other.private_key_pem.write_to_path(folder / "key.pem")
    other.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    wrong, port = Authority(folder / "ca.pem", folder / "cert.pem", folder / "key.pem"), free_port()
    with RedisServer(tmp_path / "wrong", **tls_options(wrong, tls_port=port)):  # type: ignore[arg-type]
        settings = replace(RedisSettings(), url=f"rediss://localhost:{port}", tls_cacert=str(wrong.ca_file))
        client = connect(settings, tmp_path)
        with pytest.raises(QueueRefused, match="is not trusted: Hostname mismatch"), translated(client):
            client.ping()


@pytest.mark.parametrize("name", ["tls_cacert", "tls_cert"])
def test_a_file_that_cannot_be_read_is_a_wrong_setting(name: str, tmp_path: Path) -> None:
    ended = processes.run("stats", "-c", ini(tmp_path, url="rediss://localhost:1", **{name: tmp_path / "none"}))
    assert ended.code == 78
    [line] = ended.err.splitlines()
    assert line.startswith(f"dlpool: [redis] {name} = {tmp_path}/none")
    assert "No such file or directory" in line


def test_a_key_without_its_certificate_is_a_wrong_setting(tmp_path: Path) -> None:
    settings = replace(RedisSettings(), url="rediss://localhost:1", tls_key="key.pem")
    with pytest.raises(ConfigurationError, match=r"^\[redis\] tls_key is given without tls_cert$"):
        connect(settings, tmp_path)


def test_a_file_without_certificates_is_a_wrong_setting(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nothing")
    settings = replace(RedisSettings(), url="rediss://localhost:1", tls_cacert=str(tmp_path / "ca.pem"))
    with pytest.raises(ConfigurationError, match=r"^\[redis\] tls_cacert = \S+: "):
        connect(settings, tmp_path)


def test_a_server_that_wants_a_client_certificate_gets_it(tmp_path: Path, authority: Authority, port: int) -> None:
    options = tls_options(authority, tls_port=port, tls_auth_clients="yes")
    with RedisServer(tmp_path / "strict", **options):  # type: ignore[arg-type]
        settings = replace(RedisSettings(), url=f"rediss://localhost:{port}", tls_cacert=str(authority.ca_file))
        own = replace(settings, tls_cert=str(authority.cert_file), tls_key=str(authority.key_file))
        assert connect(own, tmp_path).ping()
        client = connect(settings, tmp_path)
        with pytest.raises(QueueError, match="if it wants a client certificate"), translated(client):
            client.ping()


def test_a_cluster_may_be_over_tls(tmp_path: Path, authority: Authority, port: int) -> None:
    options: dict[str, Any] = tls_options(authority, tls_port=port, tls_cluster="yes")
    with Cluster(tmp_path / "cluster", **options):
        url, settings = f"rediss+cluster://localhost:{port}", {"redis": {"tls_cacert": authority.ca_file}}
        with Origin(File(DATA)) as origin, Supervisor(tmp_path / "service", url, settings) as service:
            pushed = processes.run("push", f"{origin.url}/a", "a.bin", "-c", service.ini)
            assert pushed.code == 0, pushed.err
            job = ("job", pushed.out.strip(), "--json", "-c", service.ini)
            wait_until(lambda: processes.run(*job).json["state"] == "succeeded")
            assert service.events("redis_unavailable") == []
            assert service.stop() == 0, service.said()
