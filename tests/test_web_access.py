"""Who may ask for what, how often, and from where."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jwt
import pytest
import requests
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from dlpool.config.web import parse_networks
from dlpool.web.middleware import AccessMiddleware
from tests.conftest import free_port, wait_until
from tests.processes import ROOT, run
from tests.web import RawClient, WebServer

KEY = "k" * 32
SECRET = "correct horse battery staple"
PATH = "/go-uploader/upload_chunk?file_id=f&chunk_index=0"


def token(key: Any = KEY, algorithm: str = "HS256", **claims: Any) -> str:
    return jwt.encode({"sub": "alice", "exp": time.time() + 3600, **claims}, key, algorithm)


def bearer(text: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text}"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebServer]:
    folder = tmp_path_factory.mktemp("web")
    (folder / "key").write_text(KEY + "\n")
    settings: Any = {
        "web": {
            "jwt_key_file": folder / "key",
            "secret_key": SECRET,
            "scrape_from": "192.0.2.0/24",
            "trusted_proxies": "127.0.0.1",
        }
    }
    with WebServer(folder, settings) as server:
        yield server


def unsigned(claims: dict[str, Any]) -> str:
    parts = [
        base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()
        for part in ({"alg": "none", "typ": "JWT"}, claims)
    ]
    return ".".join([*parts, ""])


def wrong_tokens() -> dict[str, str]:
    rsa_key = rsa.generate_private_key(65537, 2048)
    soon = time.time() + 60
    return {
        "none": unsigned({"sub": "alice", "exp": soon}),
        "expired": token(exp=time.time() - 3600),
        "without exp": jwt.encode({"sub": "alice"}, KEY, "HS256"),
        "without sub": jwt.encode({"exp": soon}, KEY, "HS256"),
        "empty sub": token(sub=""),
        "control characters": token(sub="a\nb"),
        "not yet": token(nbf=time.time() + 3600),
        "foreign key": token("x" * 32),
        "another algorithm": token(KEY * 2, "HS512"),
        "RS256 with a key of its own": token(rsa_key, "RS256"),
        "cut": token()[:-3],
        "rubbish": "a.b.c",
        "nothing": "",
    }


@pytest.mark.parametrize(("why", "text"), wrong_tokens().items(), ids=list(wrong_tokens()))
def test_a_token_that_is_not_good_opens_nothing(why: str, text: str, server: WebServer) -> None:
    said = requests.get(f"{server.url}/tasks", headers=bearer(text), timeout=10)
    assert said.status_code == 401, why
    assert said.json()["code"] == "unauthorized"
    assert said.headers["WWW-Authenticate"].startswith("Bearer")


def test_health_alone_is_open(server: WebServer) -> None:
    assert requests.get(f"{server.url}/health", timeout=10).status_code == 200
    for method, path in (
        ("GET", "/tasks"),
        ("GET", "/system"),
        ("GET", "/metrics"),
        ("GET", "/files/x"),
        ("POST", "/upload_chunk"),
        ("POST", "/merge_chunks"),
        ("GET", "/upload_status?file_id=x"),
        ("DELETE", "/tasks/x"),
        ("POST", "/tasks/batch"),
        ("PATCH", "/tasks"),
    ):
        assert requests.request(method, f"{server.url}{path}", timeout=10).status_code == 401, path


def test_metrics_are_open_to_those_who_scrape(server: WebServer) -> None:
    """The test is a proxy on loopback, which is trusted; what clients say of themselves before it is not."""
    for hops, status in (("192.0.2.7", 200), ("192.0.2.7, 198.51.100.1", 401), ("198.51.100.1, 192.0.2.7", 200)):
        said = requests.get(f"{server.url}/metrics", headers={"X-Forwarded-For": hops}, timeout=10)
        assert said.status_code == status, hops


@pytest.mark.parametrize("headers", [{"X-Secret-Key": SECRET}, bearer(token())], ids=["secret", "token"])
def test_the_secret_and_a_good_token_open_everything(headers: dict[str, str], server: WebServer) -> None:
    assert requests.get(f"{server.url}/tasks", headers=headers, timeout=10).status_code == 200
    assert SECRET not in requests.get(f"{server.url}/system", headers=headers, timeout=10).text


@pytest.mark.parametrize("wrong", [SECRET[:-1], SECRET + "x", "", "ü", KEY])
def test_another_secret_does_not(wrong: str, server: WebServer) -> None:
    headers = {"X-Secret-Key": wrong.encode("latin-1")}
    assert requests.get(f"{server.url}/tasks", headers=headers, timeout=10).status_code == 401


def test_a_stranger_is_refused_before_the_body(server: WebServer) -> None:
    """Neither is the body waited for, nor asked for with 100 Continue."""
    for more in ((), ("Expect: 100-continue",)):
        with RawClient(server.port) as client:
            client.post(PATH, "Content-Type: application/octet-stream", "Content-Length: 1000000", *more)
            with client.sock.makefile("rb") as answer:
                assert answer.readline().startswith(b"HTTP/1.1 401")
    assert list(server.upload_dir.rglob("*.tmp")) == []


def test_each_task_is_its_owners(server: WebServer) -> None:
    alice, bob, both = bearer(token()), bearer(token(sub="bob")), {"X-Secret-Key": SECRET}
    chunk = {"data": {"file_id": "hers", "chunk_index": 0}, "files": {"chunk": b"x"}, "timeout": 10}
    assert requests.post(f"{server.url}/upload_chunk", headers=alice, **chunk).status_code == 200  # type: ignore[arg-type]
    merge: Any = {"file_id": "hers", "filename": "f", "total_chunks": 1}
    body: Any
    for method, path, body in (
        ("GET", "/tasks/hers", None),
        ("DELETE", "/tasks/hers", None),
        ("POST", "/tasks/hers/pause", None),
        ("POST", "/merge_chunks", merge),
    ):
        said = requests.request(method, f"{server.url}{path}", headers=bob, json=body, timeout=10)
        assert (said.status_code, said.json()["code"]) == (404, "no_such_task"), path
    for headers, ids in ((alice, ["hers"]), (bob, []), (both, ["hers"])):
        found = requests.get(f"{server.url}/tasks", headers=headers, timeout=10).json()["tasks"]
        assert [task["task_id"] for task in found] == ids
    said = requests.post(f"{server.url}/tasks/cleanup?status=uploading&older_than=0", headers=bob, timeout=10)
    assert said.json()["cleaned_count"] == 0
    assert requests.delete(f"{server.url}/tasks/hers", headers=alice, timeout=10).status_code == 200
    assert server.events("request_served")[-1]["user.id"] == "alice"


def test_a_public_key_is_for_rs256_only(tmp_path: Path) -> None:
    key = rsa.generate_private_key(65537, 2048)
    pem = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "key.pem").write_bytes(pem)
    with WebServer(tmp_path, {"web": {"jwt_key_file": tmp_path / "key.pem", "jwt_algorithms": "RS256"}}) as server:
        good = requests.get(f"{server.url}/tasks", headers=bearer(token(key, "RS256")), timeout=10)
        assert good.status_code == 200
        for other in (token(rsa.generate_private_key(65537, 2048), "RS256"), signed_with(pem)):
            assert requests.get(f"{server.url}/tasks", headers=bearer(other), timeout=10).status_code == 401


def signed_with(pem: bytes) -> str:
    """HS256 with the public key as the secret, which PyJWT does not make."""

    def encoded(data: bytes) -> bytes:
        return base64.urlsafe_b64encode(data).rstrip(b"=")

    claims = {"sub": "mallory", "exp": int(time.time()) + 60}
    text = encoded(b'{"alg":"HS256","typ":"JWT"}') + b"." + encoded(json.dumps(claims).encode())
    return (text + b"." + encoded(hmac.new(pem, text, hashlib.sha256).digest())).decode()


# --- what keeps it from starting ---


def refused(folder: Path, web: dict[str, object], upload: dict[str, object] | None = None) -> tuple[int, str]:
    server = WebServer(folder, {"web": web, "upload": upload or {}})
    ended = run("-c", server.ini, module="dlpool.cli.web")
    lines = ended.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("dlpool-web: "), ended.err
    return ended.code, lines[0]


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "192.0.2.1", "example.org", "127.0.0.1.nip.io"])
def test_it_does_not_start_where_others_reach_it_without_a_key(address: str, tmp_path: Path) -> None:
    code, line = refused(tmp_path, {"bind": address})
    assert code == 78 and address in line and "jwt_key_file or secret_key_file" in line
    assert refused(tmp_path, {"bind": address, "auth": "off", "secret_key": SECRET})[0] == 78


@pytest.mark.parametrize(
    ("web", "said"),
    [
        ({"auth": "on"}, "no key is given"),
        ({"jwt_key": "short"}, "fewer than 32 bytes"),
        ({"secret_key": "fifteen bytes.."}, "fewer than 16 bytes"),
        ({"jwt_key_file": "/nowhere/key"}, "/nowhere/key"),
        ({"jwt_key": KEY, "jwt_algorithms": "RS256"}, "must be a public key in PEM"),
        ({"jwt_key": KEY, "jwt_algorithms": "HS256,RS256"}, "of one kind"),
        ({"jwt_key": KEY, "jwt_algorithms": "none"}, "not a list of HS256"),
        ({"prefix": "/a/../b"}, "not a path"),
        ({"prefix": ""}, "not a path"),
        ({"prefix": "/files/uploads"}, "below /api, /files and /static"),
        ({"scrape_from": "everybody"}, "not a list of addresses"),
        ({"secret_key": "x", "secret_key_file": "/y"}, "keep one of them"),
        ({"colour": "red"}, "no such key"),
    ],
)
def test_settings_that_cannot_be_used_are_one_sentence(web: dict[str, object], said: str, tmp_path: Path) -> None:
    code, line = refused(tmp_path, web)
    assert code == 78 and said in line


def test_a_key_of_another_kind_is_refused(tmp_path: Path) -> None:
    pem = (
        ec.generate_private_key(ec.SECP256R1())
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    (tmp_path / "key").write_bytes(pem)
    assert "must be an RSA key" in refused(tmp_path, {"jwt_key_file": tmp_path / "key", "jwt_algorithms": "RS256"})[1]


def test_a_port_in_use_and_a_folder_that_cannot_be_made_are_one_sentence(tmp_path: Path) -> None:
    with RawListener() as port:
        code, line = refused(tmp_path, {}, {"port": port})
        assert code == 3 and f"127.0.0.1:{port}" in line
    (tmp_path / "file").write_text("")
    code, line = refused(tmp_path, {}, {"upload_dir": tmp_path / "file" / "x"})
    assert code == 3 and "cannot create the folder" in line


class RawListener:
    """Somebody else at a port."""

    def __enter__(self) -> int:
        self.sock = socket.create_server(("127.0.0.1", 0))
        port: int = self.sock.getsockname()[1]
        return port

    def __exit__(self, *_: object) -> None:
        self.sock.close()


def test_without_the_extra_it_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "falcon.py").write_text("raise ModuleNotFoundError('x', name='falcon')\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    ended = run("-c", WebServer(tmp_path).ini, module="dlpool.cli.web", env=environment)
    assert ended.code == 78
    assert ended.err == "dlpool-web: dlpool-web needs more libraries: pip install 'dlpool[web]' (falcon is missing)\n"


def test_settings_of_uploads_come_from_everywhere(tmp_path: Path) -> None:
    (tmp_path / "x.ini").write_text("[upload]\nprofile = throughput\nconcurrent_uploads = 7\n")
    (tmp_path / "web_secret_key").write_text(SECRET)
    environment = {**os.environ, "DLPOOL_UPLOAD_MAX_CHUNK_SIZE": "9M", "CREDENTIALS_DIRECTORY": str(tmp_path)}
    ended = run("config", "show", "-c", tmp_path / "x.ini", "--json", env=environment)
    rows = [json.loads(line) for line in ended.out.splitlines()]
    found = {(row["section"], row["key"]): (row["value"], row["origin"]) for row in rows}
    assert found["upload", "max_chunk_size"] == (9 * 1024**2, "environment DLPOOL_UPLOAD_MAX_CHUNK_SIZE")
    assert found["upload", "concurrent_uploads"] == (7, f"{tmp_path}/x.ini:3")
    assert found["upload", "cleanup_interval"] == (1800, "profile throughput")
    assert found["upload", "max_file_size"] == (10 * 1024**3, "default")
    assert found["web", "secret_key"] == ("...", "credential web_secret_key")
    assert SECRET not in ended.out


# --- how much ---


def test_who_asks_too_often_is_told_when_to_come_again(tmp_path: Path) -> None:
    """All worker processes count together, and a client that is refused delays no other one."""
    with WebServer(
        tmp_path, {"web": {"request_rate": "5/s", "request_burst": 20, "processes": 3, "trusted_proxies": "127.0.0.1"}}
    ) as server:
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: requests.get(f"{server.url}/tasks", timeout=10), range(60)))
        codes = [one.status_code for one in answers]
        assert set(codes) == {200, 429}
        assert 20 <= codes.count(200) <= 45
        refusal = next(one for one in answers if one.status_code == 429)
        assert int(refusal.headers["Retry-After"]) >= 1 and refusal.json()["code"] == "too_many"
        assert requests.get(f"{server.url}/health", timeout=10).status_code == 200
        other = {"X-Forwarded-For": "192.0.2.9"}
        assert requests.get(f"{server.url}/tasks", headers=other, timeout=10).status_code == 200
        wait_until(lambda: requests.get(f"{server.url}/tasks", timeout=10).status_code == 200)


def test_one_client_has_only_so_many_transfers_at_once(tmp_path: Path) -> None:
    """Counted over all processes; the place of a client that is gone is free again."""
    with (
        WebServer(tmp_path, {"web": {"client_uploads": 3, "trusted_proxies": "127.0.0.1"}}) as server,
        ExitStack() as stack,
    ):
        slow = [stack.enter_context(RawClient(server.port)) for _ in range(3)]
        for client in slow:
            client.post(PATH, "Content-Type: application/octet-stream", "Content-Length: 10", body=b"x")

        def upload(**headers: str) -> int:
            headers |= {"Content-Type": "application/octet-stream"}
            return requests.post(f"{server.root}{PATH}", data=b"x", headers=headers, timeout=10).status_code

        wait_until(lambda: len(list(server.upload_dir.rglob("*.tmp"))) == 3)
        assert upload() == 429
        assert upload(**{"X-Forwarded-For": "192.0.2.9"}) == 200
        slow[0].sock.close()
        wait_until(lambda: upload() == 200)
        for worker in server.workers():  # a killed process leaves no place taken
            worker.kill()
        wait_until(lambda: _health(server) == 200)
        assert upload() == 200


def _health(server: WebServer) -> int:
    try:
        return requests.get(f"{server.url}/health", timeout=5).status_code
    except requests.RequestException:
        return 0


def test_another_wsgi_server_can_serve_it(tmp_path: Path) -> None:
    """The standard library's, in a process of its own; with the INI file from the environment."""
    server, port = WebServer(tmp_path), free_port()
    program = (
        "from wsgiref.simple_server import make_server\nfrom dlpool.cli.web import application\n"
        f"make_server('127.0.0.1', {port}, application()).serve_forever()\n"
    )
    environment = {**os.environ, "DLPOOL_INI": str(server.ini), "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", program], env=environment, stderr=subprocess.DEVNULL, cwd=tmp_path
    )
    try:
        server.port = port
        wait_until(lambda: _health(server) == 200)
        said = requests.post(
            f"{server.root}{PATH}", data=b"x" * 1000, timeout=10, headers={"Content-Type": "application/octet-stream"}
        )
        assert said.json()["size"] == 1000
    finally:
        process.terminate()
        process.wait(10)


def test_an_unknown_address_is_behind_the_gate(server: WebServer) -> None:
    assert requests.get(f"{server.url}/nothing", timeout=10).status_code == 401
    assert requests.get(f"{server.url}/nothing", headers=bearer(token()), timeout=10).status_code == 404


def test_a_mapped_address_is_the_one_of_ipv4() -> None:
    for address, is_among in (("::ffff:192.0.2.7", True), ("192.0.2.7", True), ("::ffff:192.0.3.7", False)):
        assert AccessMiddleware._is_among(address, parse_networks("192.0.2.0/24")) is is_among


def test_the_system_tells_no_secret(tmp_path: Path) -> None:
    settings: Any = {"redis": {"url": "redis://:hush@localhost:1"}, "web": {"jwt_key": KEY, "secret_key": SECRET}}
    with WebServer(tmp_path, settings) as server:
        said = requests.get(f"{server.url}/system", headers=bearer(token()), timeout=10)
        shown = said.json()["configuration"]
    assert not any(secret in said.text for secret in ("hush", KEY, SECRET))
    assert set(shown) == {"upload", "web"} and shown["web"]["jwt_key"] == "set" and "jwt_key_file" not in shown["web"]
