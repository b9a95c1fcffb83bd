"""Against servers and proxies that others wrote: nginx, plain and with TLS, and tinyproxy."""

from __future__ import annotations

import os
import shutil
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from dlpool import errors
from dlpool.errors import Cancelled
from tests.conftest import IN_FLIGHT, Authority, Fetcher, Nginx, free_port, make_data, wait_for_port, wait_until
from tests.origin import File, Origin
from tests.processes import run

Serve = Callable[..., Origin]

SIZE = 5_000_011
DATA = make_data(SIZE)


@pytest.fixture(scope="module", autouse=True)
def files(nginx: Nginx) -> None:
    for size in (0, 1, 3, SIZE):
        (nginx.root / f"f{size}").write_bytes(DATA[:size])


@pytest.fixture
def trusting(authority: Authority) -> dict[str, str]:
    return {"cacert": str(authority.ca_file)}


# --- nginx ---


@pytest.mark.parametrize("size", [0, 1, 3, SIZE])
@pytest.mark.parametrize("probe", ["range", "head"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_nginx_serves_exact_files(
    size: int, probe: str, scheme: str, nginx: Nginx, trusting: dict[str, str], fetch: Fetcher, tmp_path: Path
) -> None:
    base = nginx.url if scheme == "http" else nginx.tls_url
    outcome = fetch(f"{base}/f{size}", tmp_path, probe=probe, network=trusting)
    assert outcome.path.read_bytes() == DATA[:size]
    assert outcome.received <= size * 1.02 + IN_FLIGHT
    assert outcome.retries == 0


def test_a_file_replaced_on_nginx_in_mid_download_is_wholly_the_new_one(
    nginx: Nginx, fetch: Fetcher, tmp_path: Path
) -> None:
    other = make_data(SIZE, seed=9)
    remote = nginx.root / f"changing-{os.getpid()}"
    remote.write_bytes(DATA)
    transfer = fetch.transfer(f"{nginx.url}/{remote.name}", tmp_path / "f", limit_rate=4_000_000)

    def replace_half_way() -> None:
        wait_until(lambda: transfer.progress().done > SIZE // 3)
        remote.with_suffix(".new").write_bytes(other)
        os.utime(remote.with_suffix(".new"), (1, 1))
        remote.with_suffix(".new").rename(remote)

    replacer = threading.Thread(target=replace_half_way)
    replacer.start()
    # What nginx sends of the old file it has open: a new answer shows the new one.
    outcome = transfer.run()
    replacer.join()
    got = (tmp_path / "f").read_bytes()
    assert got in (DATA, other)
    assert (got == other) == (outcome.restarts > 0)


# --- TLS ---


def test_an_unknown_authority_is_refused_as_tls(nginx: Nginx, tmp_path: Path) -> None:
    ended = run("fetch", f"{nginx.tls_url}/f3", tmp_path / "f", "--json")
    assert ended.code == 5
    assert ended.json["error"]["label"] == "tls"
    assert "certificate was refused" in ended.err


def test_a_certificate_for_another_name_is_refused(
    serve: Serve, authority: Authority, trusting: dict[str, str], fetch: Fetcher, tmp_path: Path
) -> None:
    origin = serve(File(DATA), tls=authority.server_context(), host="127.0.0.2")
    with pytest.raises(errors.TlsFailed):
        fetch(f"https://127.0.0.2:{origin.port}/f", tmp_path / "f", network=trusting)
    assert origin.requests == []


def test_the_authority_can_come_from_an_option_or_the_systems_place(
    nginx: Nginx, authority: Authority, tmp_path: Path
) -> None:
    url = f"{nginx.tls_url}/f{SIZE}"
    assert run("fetch", url, tmp_path / "a", "--cacert", authority.ca_file).code == 0
    assert run("fetch", url, tmp_path / "b", env={**os.environ, "SSL_CERT_FILE": str(authority.ca_file)}).code == 0
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == DATA


def test_insecure_fetches_without_verification(nginx: Nginx, tmp_path: Path) -> None:
    ended = run("fetch", f"{nginx.tls_url}/f3", tmp_path / "f", "--insecure")
    assert ended.code == 0
    assert (tmp_path / "f").read_bytes() == DATA[:3]
    assert "Warning" not in ended.err


def test_a_client_certificate_is_presented(
    serve: Serve, authority: Authority, trusting: dict[str, str], fetch: Fetcher, tmp_path: Path
) -> None:
    context = authority.server_context()
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(authority.ca_file)
    origin = serve(File(DATA), tls=context)
    pair = {"cert": str(authority.cert_file), "key": str(authority.key_file)}
    fetch(f"{origin.url}/f", tmp_path / "f", network={**trusting, **pair})
    assert (tmp_path / "f").read_bytes() == DATA
    with pytest.raises(errors.DlpoolError):
        fetch(f"{origin.url}/f", tmp_path / "g", network=trusting, retries=0)


@pytest.mark.parametrize("option", ["--cacert", "--cert", "--key"])
def test_certificates_that_cannot_be_read_are_a_configuration_error(option: str, tmp_path: Path) -> None:
    arguments = [option, tmp_path / "nowhere"]
    if option == "--key":
        arguments = ["--cert", tmp_path / "nowhere", *arguments]
    ended = run("fetch", "https://localhost:1/f", tmp_path / "f", *arguments)
    assert ended.code == 78
    assert "nowhere" in ended.err


def test_plain_http_on_a_tls_port_is_a_tls_error(serve: Serve, tmp_path: Path) -> None:
    origin = serve(lambda _r, c: c.answer(200))
    ended = run(
        "fetch",
        f"https://127.0.0.1:{origin.port}/f",
        tmp_path / "f",
        "--retries",
        "0",
        "--json",
        "--read-timeout",
        "2s",
        "--connect-timeout",
        "2s",
    )
    assert ended.code in (4, 5)


def test_a_handshake_that_never_ends_is_bounded_by_the_connect_timeout(tmp_path: Path) -> None:
    import socket
    import time

    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        ended = run(
            "fetch",
            f"https://127.0.0.1:{silent.getsockname()[1]}/f",
            tmp_path / "f",
            "--retries",
            "0",
            "--connect-timeout",
            "1s",
            "--json",
        )
    assert ended.code == 4
    assert ended.json["error"]["label"] == "timeout"
    assert time.monotonic() - began < 20


def test_cancel_during_a_blocked_tls_read_ends_it_and_writes_no_ciphertext(
    serve: Serve, authority: Authority, trusting: dict[str, str], fetch: Fetcher, tmp_path: Path
) -> None:
    file = File(DATA, block=200_000, pause_s=0.3)
    origin = serve(file, tls=authority.server_context())
    for _ in range(4):
        transfer = fetch.transfer(f"{origin.url}/f", tmp_path / "f", network=trusting, min_split_size=1024 * 1024)
        before = transfer.progress().done
        timer = threading.Timer(0.7, transfer.cancel)
        timer.start()
        with pytest.raises(Cancelled):
            transfer.run()
        timer.cancel()
        assert transfer.progress().done > before
        written = (tmp_path / "f.part").read_bytes()
        assert len(written) <= len(DATA)  # no more is reserved than once again what has arrived
        assert written == bytes(right if there else 0 for there, right in zip(written, DATA, strict=False))
    file.pause_s = 0.0
    fetch(f"{origin.url}/f", tmp_path / "f", network=trusting)
    assert (tmp_path / "f").read_bytes() == DATA


# --- proxies ---


@dataclass(frozen=True)
class Proxy:
    """A running tinyproxy."""

    url: str
    log: Path

    @property
    def text(self) -> str:
        return self.log.read_text()


@pytest.fixture
def proxy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    binary = shutil.which("tinyproxy")
    assert binary is not None, "tinyproxy is not installed: scripts/test installs it"
    folder = tmp_path_factory.mktemp("proxy")
    port = free_port()
    lines = [f"Port {port}", "Listen 127.0.0.1", "Timeout 60", f'LogFile "{folder}/log"', "LogLevel Connect"]
    lines += ["MaxClients 100", *getattr(request, "param", [])]
    (folder / "conf").write_text("\n".join(lines) + "\n")
    process = subprocess.Popen([binary, "-d", "-c", folder / "conf"], stdout=subprocess.DEVNULL)
    try:
        wait_for_port(port, process)
        yield Proxy(f"http://127.0.0.1:{port}", folder / "log")
    finally:
        process.terminate()
        process.wait(10)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_is_used_for_every_range(
    scheme: str, proxy: Proxy, nginx: Nginx, trusting: dict[str, str], fetch: Fetcher, tmp_path: Path
) -> None:
    base = nginx.url if scheme == "http" else nginx.tls_url
    outcome = fetch(f"{base}/f{SIZE}", tmp_path / "f", network={**trusting, "proxy": proxy.url})
    assert (tmp_path / "f").read_bytes() == DATA
    assert outcome.connections == 4
    assert ("CONNECT" if scheme == "https" else f"/f{SIZE}") in proxy.text


def test_the_environments_proxy_is_used_and_no_proxy_respected(proxy: Proxy, nginx: Nginx, tmp_path: Path) -> None:
    environment = {**os.environ, "http_proxy": proxy.url, "no_proxy": ""}
    assert run("fetch", f"{nginx.url}/f3", tmp_path / "a", env=environment).code == 0
    assert "/f3" in proxy.text
    assert run("fetch", f"{nginx.url}/f1", tmp_path / "b", env={**environment, "no_proxy": "127.0.0.1"}).code == 0
    assert "/f1" not in proxy.text


@pytest.mark.parametrize("proxy", [["BasicAuth me secret"]], indirect=True)
def test_a_proxy_that_wants_a_password_gets_it_or_refuses(
    proxy: Proxy, nginx: Nginx, trusting: dict[str, str], fetch: Fetcher, tmp_path: Path
) -> None:
    known = proxy.url.replace("http://", "http://me:secret@")
    for base in (nginx.url, nginx.tls_url):
        fetch(f"{base}/f3", tmp_path / "f", network={**trusting, "proxy": known})
        assert (tmp_path / "f").read_bytes() == DATA[:3]
        with pytest.raises(errors.AccessDenied) as raised:
            fetch(f"{base}/f3", tmp_path / "g", network={**trusting, "proxy": proxy.url})
        assert raised.value.exit_code == 6


def test_a_proxy_does_not_open_the_way_to_metadata_addresses(proxy: Proxy, tmp_path: Path) -> None:
    ended = run("fetch", "http://169.254.169.254/latest", tmp_path / "f", "--proxy", proxy.url)
    assert ended.code == 12
    assert "169.254.169.254" not in proxy.text


def test_a_proxy_that_is_away_is_a_network_error(tmp_path: Path) -> None:
    ended = run(
        "fetch", "http://127.0.0.1:1/f", tmp_path / "f", "--proxy", f"http://127.0.0.1:{free_port()}", "--retries", "0"
    )
    assert ended.code == 4
