"""A real nginx in front, with the configuration that is shipped."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.conftest import free_port, make_data, run_nginx, wait_until
from tests.processes import ROOT
from tests.web import RawClient, WebServer

SIZE = 2_000_000


@pytest.fixture
def server(tmp_path: Path) -> Iterator[WebServer]:
    settings = {"web": {"accel_prefix": "/dlpool-merged", "client_uploads": 2, "trusted_proxies": "127.0.0.1"}}
    with WebServer(tmp_path / "web", settings) as server:
        yield server


@pytest.fixture
def front(server: WebServer, tmp_path: Path) -> Iterator[int]:
    """The port of an nginx that includes the file as it stands, but for address and folder."""
    port, text = free_port(), (ROOT / "etc" / "nginx" / "dlpool-web.conf").read_text()
    for shipped, ours in (
        ("127.0.0.1:18101", f"127.0.0.1:{server.port}"),
        ("/var/lib/dlpool/merged", str(server.merged_dir)),
    ):
        assert text.count(shipped) == 1
        text = text.replace(shipped, ours)
    (tmp_path / "dlpool-web.conf").write_text(text)
    servers = f"server {{ listen 127.0.0.1:{port}; include {tmp_path}/dlpool-web.conf; }}"
    with run_nginx(tmp_path, servers, port):
        yield port


def test_a_file_goes_through_nginx_and_comes_back_from_it(front: int, server: WebServer) -> None:
    url, data = f"http://127.0.0.1:{front}/go-uploader", make_data(SIZE)
    for index in range(2):
        piece = data[index * SIZE // 2 : (index + 1) * SIZE // 2]
        said = requests.post(
            f"{url}/upload_chunk", data={"file_id": "f", "chunk_index": index}, files={"chunk": piece}, timeout=20
        )
        assert said.status_code == 200, said.text
    merge = {"file_id": "f", "filename": "a ü%?.bin", "total_chunks": "2", "relative_path": "d e"}
    assert requests.post(f"{url}/merge_chunks", json=merge, timeout=20).status_code == 200
    path = f"{url}/files/d%20e/a%20%C3%BC%25%3F.bin"
    assert "X-Accel-Redirect" in requests.get(path.replace(str(front), str(server.port)), timeout=20).headers
    whole = requests.get(path, timeout=20)
    assert (whole.content, whole.headers["Server"].partition("/")[0]) == (data, "nginx")
    assert "X-Accel-Redirect" not in whole.headers and whole.headers["X-Content-Type-Options"] == "nosniff"
    assert whole.headers["Content-Disposition"].count("attachment") == 1
    head = requests.head(path, timeout=20)
    assert (head.headers["ETag"], head.headers["Content-Length"]) == (whole.headers["ETag"], str(SIZE))
    headers = {"Range": "bytes=5-9", "If-Range": whole.headers["ETag"]}
    part = requests.get(path, headers=headers, timeout=20)
    assert (part.status_code, part.content) == (206, data[5:10])
    inner = path.replace("/go-uploader/files", "/dlpool-merged")
    assert requests.get(inner, timeout=20).status_code == 404
    assert server.events("request_served")[-1]["client.address"] == "127.0.0.1"


def test_the_conditions_of_a_client_are_met_by_nginx(front: int, server: WebServer) -> None:
    server.merged_dir.mkdir(exist_ok=True)
    (server.merged_dir / "f").write_bytes(b"bytes")
    url = f"http://127.0.0.1:{front}/go-uploader/files/f"
    first = requests.get(url, timeout=20)
    assert (first.status_code, first.headers["Accept-Ranges"]) == (200, "bytes")
    etag = first.headers["ETag"]
    for headers, status in (
        ({"If-Match": etag}, 200),
        ({"If-Match": '"else"'}, 412),
        ({"If-None-Match": etag}, 304),
        ({"If-Range": etag, "Range": "bytes=1-2"}, 206),
        ({"If-Range": '"else"', "Range": "bytes=1-2"}, 200),
        ({"Range": "bytes=9-"}, 416),
    ):
        assert requests.get(url, headers=headers, timeout=20).status_code == status, headers


def test_nginx_keeps_no_body_back(front: int, server: WebServer) -> None:
    """What a client has sent of a body is with us while the rest is yet to come."""
    query = "/go-uploader/upload_chunk?file_id=f&chunk_index=0"
    with RawClient(front) as client:
        client.post(query, "Content-Type: application/octet-stream", f"Content-Length: {SIZE}", body=bytes(SIZE // 2))
        wait_until(lambda: sum(path.stat().st_size for path in server.upload_dir.rglob("*.tmp")) == SIZE // 2)
        client.say(bytes(SIZE // 2))
        assert client.answer()[0] == 200


def test_clients_cannot_say_whose_address_they_have(front: int, server: WebServer) -> None:
    said = requests.get(
        f"http://127.0.0.1:{front}/go-uploader/tasks", headers={"X-Forwarded-For": "192.0.2.1"}, timeout=10
    )
    assert said.status_code == 200
    assert server.events("request_served")[-1]["client.address"] == "127.0.0.1"
