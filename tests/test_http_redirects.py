"""Redirects, credentials, and the names that servers give."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from dlpool import errors
from tests.conftest import Fetcher
from tests.handlers import (
    DATA,
    OTHER,
    SIZE,
    Serve,
    check_file,
    cut_after,
    redirect,
)
from tests.origin import Connection, File, Request

# --- redirects ---


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed_with_the_range_on_each_hop(
    status: int, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    file = File(DATA)

    def handle(request: Request, connection: Connection) -> None:
        if request.path == "/start":
            connection.answer(status, {"Location": "next/../middle?x=1"})
        elif request.path.startswith("/middle"):
            connection.answer(status, {"Location": f"http://127.0.0.1:{origin.port}/end"})
        else:
            file(request, connection)

    origin = serve(handle)
    fetch(f"{origin.url}/start", tmp_path / "f")
    check_file(tmp_path / "f")
    assert all(request.range for request in origin.requests)


def test_a_redirect_loop_ends_with_an_error(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    origin = serve(redirect("/again"))
    with pytest.raises(errors.ProtocolBroken, match="redirected more than 10 times"):
        fetch(f"{origin.url}/f", tmp_path / "f")
    assert len(origin.requests) == 11


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://127.0.0.1/x", "javascript:1", "http://[:x"])
def test_a_redirect_to_anything_but_http_is_refused(
    location: str, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    origin = serve(redirect(location))
    with pytest.raises(errors.PolicyRefused):
        fetch(f"{origin.url}/f", tmp_path / "f")


def test_a_redirect_without_a_location_is_an_error(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    origin = serve(lambda _r, c: c.answer(302))
    with pytest.raises(errors.ProtocolBroken):
        fetch(f"{origin.url}/f", tmp_path / "f")


def test_an_expired_signed_url_is_renewed_at_the_original_one(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    file = File(DATA)
    uses: dict[str, int] = {}
    lock = threading.Lock()

    def signed(request: Request, connection: Connection) -> None:
        with lock:
            uses[request.path] = uses.get(request.path, 0) + 1
            is_expired = uses[request.path] > 2
        if is_expired:
            connection.answer(403)
        else:
            cut_after(100_000, reset=False)(request, connection)

    cdn = serve(signed)
    made = iter(range(1000))
    origin = serve(lambda r, c: c.answer(302, {"Location": f"{cdn.url}/f?signature={next(made)}"}))
    outcome = fetch(f"{origin.url}/f", tmp_path / "f")
    check_file(tmp_path / "f")
    assert SIZE == len(file.data) <= outcome.received < SIZE * 1.05
    assert len(uses) > 2


def test_credentials_never_reach_another_origin(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    other = serve(File(DATA))
    origin = serve(redirect(f"{other.url}/f"))
    secrets = {"Cookie": "session=1", "X-Api-Key": "k", "Accept-Language": "de"}
    fetch(f"{origin.url}/f", tmp_path / "f", headers=secrets, user=("me", "secret"))
    check_file(tmp_path / "f")
    assert origin.requests[0].headers["authorization"].startswith("Basic ")
    assert origin.requests[0].headers["cookie"] == "session=1"
    for request in other.requests:
        assert not {"authorization", "cookie", "x-api-key"} & request.headers.keys()
        assert request.headers["accept-language"] == "de"


def test_user_info_of_the_url_is_sent_as_credentials_and_not_in_the_url(
    serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    origin = serve(File(DATA))
    fetch(f"http://me:pass%20word@127.0.0.1:{origin.port}/f", tmp_path / "f")
    assert origin.requests[0].headers["authorization"] == "Basic bWU6cGFzcyB3b3Jk"
    assert "me" not in origin.requests[0].headers["host"]


def test_a_cookie_set_by_a_redirect_is_sent_back_to_its_host(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    def handle(request: Request, connection: Connection) -> None:
        if request.headers.get("cookie") == "seen=yes":
            File(DATA)(request, connection)
        else:
            connection.answer(302, {"Location": request.path, "Set-Cookie": "seen=yes"})

    origin = serve(handle)
    fetch(f"{origin.url}/f", tmp_path / "f")
    check_file(tmp_path / "f")


# --- names ---


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ('attachment; filename="plain.bin"', "plain.bin"),
        ("attachment; filename=token.bin", "token.bin"),
        ("attachment; filename=\"no.bin\"; filename*=UTF-8''na%C3%AFve%20file.bin", "naïve file.bin"),
        ('attachment; filename="../../etc/passwd"', "passwd"),
        ('attachment; filename="/etc/passwd"', "passwd"),
        ('attachment; filename="C:\\\\windows\\\\evil.exe"', "evil.exe"),
        ('attachment; filename=".bashrc"', "_bashrc"),
        ('attachment; filename="x.part"', "x.part_"),
        ("attachment; filename*=UTF-8''%E2%80%AEgnp.exe", "gnp.exe"),
        ("attachment; filename*=UTF-8''a%00b%0Ac", "abc"),
        ('attachment; filename=".."', "from-url.bin"),
        ("attachment", "from-url.bin"),
    ],
)
def test_the_servers_name_is_made_safe(value: str, name: str, serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    origin = serve(File(DATA, extra={"Content-Disposition": value}))
    outcome = fetch(f"{origin.url}/a/from-url.bin?x=/y", tmp_path)
    assert outcome.path == tmp_path / name
    check_file(tmp_path / name)


def test_the_digest_of_the_server_is_verified(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    import base64
    import hashlib

    digest = base64.b64encode(hashlib.sha256(DATA).digest()).decode()
    origin = serve(File(DATA, extra={"Repr-Digest": f"sha-256=:{digest}:"}))
    outcome = fetch(f"{origin.url}/f", tmp_path / "f")
    assert outcome.checksum == f"sha256:{hashlib.sha256(DATA).hexdigest()}"

    wrong = serve(File(OTHER, extra={"Repr-Digest": f"sha-256=:{digest}:"}))
    with pytest.raises(errors.ChecksumMismatch):
        fetch(f"{wrong.url}/g", tmp_path / "g")
    check_file(tmp_path / "f")
