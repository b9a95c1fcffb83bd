"""What nginx makes of URLs, of too many connections, and of encoded files."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Fetcher, free_port, make_data, run_nginx
from tests.test_urls_as_given import SENT

DATA = make_data(2_000_000)

_SERVERS = """
  limit_conn_zone $binary_remote_addr zone=clients:1m;
  server {{
    listen 127.0.0.1:{port}; root {folder}/www; merge_slashes off;
    location / {{ try_files /nothing @echo; }}
    location @echo {{ return 200 "$request_uri"; }}
    location /limited403/ {{
      alias {folder}/www/; limit_conn clients 2; limit_conn_status 403; limit_rate 1m;
    }}
    location /limited503/ {{
      alias {folder}/www/; limit_conn clients 2; limit_conn_status 503; limit_rate 1m;
    }}
    location /encoded/ {{ alias {folder}/www/packed/; add_header Content-Encoding gzip; }}
  }}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder, port = tmp_path_factory.mktemp("nginx"), free_port()
    (folder / "www" / "packed").mkdir(parents=True)
    (folder / "www" / "f").write_bytes(DATA)
    (folder / "www" / "packed" / "f.txt").write_bytes(gzip.compress(DATA))
    servers = _SERVERS.format(port=port, folder=folder)
    for parent in [folder, *folder.parents]:
        if parent.name.startswith("pytest-") or parent == folder:
            parent.chmod(0o755)
    with run_nginx(folder, servers, port):
        yield f"http://127.0.0.1:{port}"


# nginx itself refuses a bad escape, a NUL, and a path that leads above the root.
@pytest.mark.parametrize(
    ("given_path", "sent"),
    [
        pair
        for pair in SENT
        if not any(bad in pair[1].partition("?")[0] for bad in ("100%", "%zz", "a%", "%00", "/%2e%2e"))
    ],
)
def test_nginx_gets_the_path_and_query_as_given(
    given_path: str, sent: str, server: str, fetch: Fetcher, tmp_path: Path
) -> None:
    fetch(f"{server}{given_path}", tmp_path / "f")
    assert (tmp_path / "f").read_text() == sent


@pytest.mark.parametrize("status", [403, 503])
@pytest.mark.parametrize("connections", [6, "auto"])
def test_a_limit_of_connections_is_kept_to(
    connections: int | str, status: int, server: str, fetch: Fetcher, tmp_path: Path
) -> None:
    fetch(f"{server}/limited{status}/f", tmp_path / "f", connections=connections)
    assert (tmp_path / "f").read_bytes() == DATA


def test_a_file_that_nginx_calls_encoded_is_decoded(server: str, fetch: Fetcher, tmp_path: Path) -> None:
    fetch(f"{server}/encoded/f.txt", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == DATA
