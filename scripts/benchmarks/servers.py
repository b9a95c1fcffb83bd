"""The nginx that benchmarks fetch from, and the files that it serves."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import trustme

from tests.conftest import free_port, run_nginx

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


def fill(path: Path, size: int) -> Path:
    """Write a file of ``size`` bytes that do not compress; the same bytes for the same size. Return its path."""
    chance = random.Random(size)
    with path.open("wb") as file:
        for start in range(0, size, MIB):
            file.write(chance.randbytes(min(MIB, size - start)))
    return path


@contextmanager
def nginx(folder: Path) -> Iterator[dict[str, str]]:
    """Serve ``folder/www``; yields the URLs of a server without TLS (``plain``) and of one with it (``tls``)."""
    ports = {name: free_port() for name in ("plain", "tls")}
    certificate = trustme.CA().issue_cert("localhost", "127.0.0.1")
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    servers = f"""
  server {{ listen 127.0.0.1:{ports["plain"]} backlog=1024; root {folder}/www; tcp_nopush on; }}
  server {{ listen 127.0.0.1:{ports["tls"]} ssl; root {folder}/www;
    ssl_certificate {folder}/cert.pem; ssl_certificate_key {folder}/key.pem; }}"""
    with run_nginx(folder, servers, ports["plain"], processes="auto"):
        yield {"plain": f"http://127.0.0.1:{ports['plain']}", "tls": f"https://127.0.0.1:{ports['tls']}"}
