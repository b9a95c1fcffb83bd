"""What scripts/bench measures. Every pair runs alternately, so that a noisy machine disturbs both alike; the ratio of
two tools is the median of the ratios of their pairs. Nothing here is a test: read the ratios, not the seconds."""

from __future__ import annotations

import argparse
import os
import random
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import trustme

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.conftest import NGINX_CONFIG, free_port, wait_for_port  # noqa: E402

GIB = 1 << 30
ARIA2 = ["aria2c", "-q", "--no-conf", "--check-certificate=false", "--allow-overwrite=true"]
DLPOOL = [str(Path(sys.executable).parent / "dlpool"), "fetch", "-q"]


@dataclass(frozen=True)
class Run:
    """One run of a command: seconds of wall and processor (user and system), and peak memory in MB."""

    wall: float
    cpu: float
    peak: float


@dataclass(frozen=True)
class Row:
    """dlpool's command against a peer's, and what the ratio of wall time should be at most."""

    name: str
    mine: list[str]
    peer: list[str]
    goal: float
    cpu_goal: float | None = None


def run(command: list[str], out: Path) -> Run:
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    os.sync()
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peak = 0.0
    while (ended := os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)) is None:
        peak = max(peak, peak_memory(process.pid))
        time.sleep(0.01)
    assert ended is not None
    wall = time.monotonic() - began
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}")
    return Run(wall, usage.ru_utime + usage.ru_stime, peak)


def peak_memory(process: int) -> float:
    """Peak resident memory in MB, by VmHWM of proc_pid_status(5); ru_maxrss would count what the parent had at fork."""
    try:
        text = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0.0
    found = re.search(r"VmHWM:\s+(\d+) kB", text)
    return int(found[1]) / 1024 if found else 0.0


def compare(row: Row, out: Path, runs: int) -> None:
    """Run both alternately and print the medians."""
    if shutil.which(row.peer[0]) is None:
        print(f"{row.name:44} {row.peer[0]} is not installed")
        return
    pairs = []
    for number in range(runs):
        order = [row.mine, row.peer] if number % 2 == 0 else [row.peer, row.mine]
        results = {id(command): run(command, out) for command in order}
        pairs.append((results[id(row.mine)], results[id(row.peer)]))
    wall = statistics.median(mine.wall / peer.wall for mine, peer in pairs)
    cpu = statistics.median(mine.cpu / peer.cpu for mine, peer in pairs)
    mine_wall = statistics.median(mine.wall for mine, _ in pairs)
    peer_wall = statistics.median(peer.wall for _, peer in pairs)
    peak = max(mine.peak for mine, _ in pairs)
    cpu_text = f"{cpu:.2f}" + (f" (goal {row.cpu_goal})" if row.cpu_goal else "")
    print(
        f"{row.name:44} wall {mine_wall:6.2f} s / {peer_wall:6.2f} s = {wall:.2f} (goal {row.goal})  "
        f"cpu ratio {cpu_text}  peak {peak:.0f} MB",
        flush=True,
    )


def fill(path: Path, size: int) -> None:
    chance = random.Random(size)
    with path.open("wb") as file:
        for start in range(0, size, 1 << 20):
            file.write(chance.randbytes(min(1 << 20, size - start)))


@contextmanager
def nginx(folder: Path) -> Iterator[dict[str, str]]:
    """nginx with a plain, a TLS, and a partly slow server; their URLs."""
    www = folder / "www"
    ports = {name: free_port() for name in ("plain", "tls", "slow")}
    certificate = trustme.CA().issue_cert("localhost", "127.0.0.1")
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    servers = f"""
  map $connection $rate {{ default 10m; ~[1470]$ 512k; }}
  server {{ listen 127.0.0.1:{ports["plain"]}; root {www}; tcp_nopush on; }}
  server {{ listen 127.0.0.1:{ports["slow"]}; root {www}; limit_rate $rate; }}
  server {{ listen 127.0.0.1:{ports["tls"]} ssl; root {www};
    ssl_certificate {folder}/cert.pem; ssl_certificate_key {folder}/key.pem; }}"""
    config = NGINX_CONFIG.format(folder=folder, servers=servers).replace("worker_processes 1", "worker_processes auto")
    (folder / "nginx.conf").write_text(config)
    binary = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    assert binary is not None
    user = ["-g", "user root;"] if os.geteuid() == 0 else []
    process = subprocess.Popen([binary, "-c", folder / "nginx.conf", *user], stderr=subprocess.DEVNULL)
    try:
        wait_for_port(ports["plain"], process)
        scheme = {"plain": "http", "tls": "https", "slow": "http"}
        yield {name: f"{scheme[name]}://127.0.0.1:{port}" for name, port in ports.items()}
    finally:
        process.terminate()
        process.wait(10)


def large(urls: dict[str, str], folder: Path, out: Path) -> Iterator[Row]:
    fill(folder / "www" / "1g", GIB)
    url = f"{urls['plain']}/1g"
    aria2 = [*ARIA2, "-x4", "-s4", "-d", str(out), url]
    yield Row("1 GiB, 4 connections, --no-sync / aria2c", [*DLPOOL, url, f"{out}/", "--no-sync"], aria2, 0.6, 0.8)
    yield Row("1 GiB, 4 connections, durable / aria2c", [*DLPOOL, url, f"{out}/"], aria2, 0.9, 0.8)
    yield Row(
        "1 GiB, 4 connections, --no-sync / curl",
        [*DLPOOL, url, f"{out}/", "--no-sync"],
        ["curl", "-s", "-o", f"{out}/1g", url],
        0.8,
    )


def tls(urls: dict[str, str], folder: Path, out: Path) -> Iterator[Row]:
    fill(folder / "www" / "1g", GIB)
    url = f"{urls['tls']}/1g"
    yield Row(
        "1 GiB over TLS, 4 connections / aria2c",
        [*DLPOOL, url, f"{out}/", "--no-sync", "--insecure"],
        [*ARIA2, "-x4", "-s4", "-d", str(out), url],
        1.0,
    )


def slow(urls: dict[str, str], folder: Path, out: Path) -> Iterator[Row]:
    fill(folder / "www" / "100m", 100 << 20)
    url = f"{urls['slow']}/100m"
    yield Row(
        "100 MiB, 4 of 10 connections slow / aria2c",
        [*DLPOOL, url, f"{out}/"],
        [*ARIA2, "-x4", "-s4", "-k1M", "-d", str(out), url],
        1.0,
    )


def small(urls: dict[str, str], folder: Path, out: Path) -> Iterator[Row]:
    files = folder / "www" / "s"
    files.mkdir(exist_ok=True)
    for number in range(1000):
        fill(files / str(number), 64 * 1024 + number)
    (folder / "list").write_text("".join(f"{urls['plain']}/s/{number}\n" for number in range(1000)))
    yield Row(
        "1,000 files of 64 KiB, -j 8, --no-sync / aria2c",
        [*DLPOOL, "-i", f"{folder}/list", str(out), "-j", "8", "--no-sync"],
        [*ARIA2, "-j8", "-i", f"{folder}/list", "-d", str(out)],
        1.0,
    )


Measure = Callable[[dict[str, str], Path, Path], Iterator[Row]]
MEASURES: dict[str, Measure] = {"large": large, "tls": tls, "slow": slow, "small": small}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("measures", nargs="*", default=list(MEASURES), metavar="|".join(MEASURES))
    arguments = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    folder = Path(tempfile.mkdtemp(prefix="dlpool-bench-", dir=os.environ.get("BENCH_DIR")))
    folder.chmod(0o755)
    (folder / "www").mkdir()
    try:
        with nginx(folder) as urls:
            for name in arguments.measures:
                for row in MEASURES[name](urls, folder, folder / "out"):
                    compare(row, folder / "out", arguments.runs)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
