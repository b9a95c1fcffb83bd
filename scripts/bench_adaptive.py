"""What scripts/bench adaptive measures: connections = auto against the best of a sweep of fixed numbers, on nginx.

The sweep is run once to find the best; that one and auto then run alternately, and the ratio is the median of the
ratios of their pairs. Where there is a limit, the best takes some seconds: to learn takes one or two.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from scripts.benchmarks.measuring import measure_command
from scripts.benchmarks.peers import DLPOOL
from scripts.benchmarks.servers import fill
from tests.conftest import free_port, run_nginx

SWEEP = (1, 2, 4, 8, 16)
GOAL = 1.25
MIB = 1 << 20


@dataclass(frozen=True)
class Server:
    """A server of nginx's, by its directives, and how much is fetched from it, in bytes."""

    name: str
    directives: str
    size: int


SERVERS = (
    Server("4 MiB/s a connection", "limit_rate 4m;", 512 * MIB),
    Server("unlimited", "", 1024 * MIB),
    Server("two connections only, 16 MiB/s each", "limit_conn all 2; limit_rate 16m;", 192 * MIB),
)


@contextmanager
def nginx(folder: Path) -> Iterator[list[str]]:
    """nginx with all servers; the URL of each one's file."""
    ports = [free_port() for _ in SERVERS]
    servers = "limit_conn_zone $server_port zone=all:1m;\n" + "\n".join(
        f"server {{ listen 127.0.0.1:{port}; root {folder}/www; {server.directives} }}"
        for port, server in zip(ports, SERVERS, strict=True)
    )
    with run_nginx(folder, servers, ports[0]):
        yield [f"http://127.0.0.1:{port}/{server.size}" for port, server in zip(ports, SERVERS, strict=True)]


def measure(server: Server, url: str, out: Path, runs: int) -> None:
    def seconds(connections: int | str) -> float:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        return measure_command([*DLPOOL, url, f"{out}/", "--no-sync", "-c", str(connections)]).wall

    sweep = {number: seconds(number) for number in SWEEP}
    best = min(sweep, key=lambda number: sweep[number])
    pairs = []
    for turn in range(runs):
        order = ("auto", best) if turn % 2 == 0 else (best, "auto")
        taken = {connections: seconds(connections) for connections in order}
        pairs.append((taken["auto"], taken[best]))
    ratio = statistics.median(mine / other for mine, other in pairs)
    mine, other = (statistics.median(values) for values in zip(*pairs, strict=True))
    shown = "  ".join(f"{number}: {sweep[number]:.2f}" for number in SWEEP)
    print(
        f"{server.name:36} auto {mine:6.2f} s / {best} connections {other:6.2f} s = {ratio:.2f} (goal {GOAL})  "
        f"sweep {shown}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="dlpool-bench-", dir=os.environ.get("BENCH_DIR")))
    folder.chmod(0o755)
    (folder / "www").mkdir()
    try:
        for server in SERVERS:
            fill(folder / "www" / str(server.size), server.size)
        with nginx(folder) as urls:
            for server, url in zip(SERVERS, urls, strict=True):
                measure(server, url, folder / "out", arguments.runs)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
