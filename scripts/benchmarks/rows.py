"""What is measured: each row prepares its servers and yields the tools that it compares."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from scripts.bench_servers import paced_server
from scripts.benchmarks import jobs, uploads
from scripts.benchmarks.measuring import Measure, Outputs, Run, measure_command
from scripts.benchmarks.peers import DLPOOL, Command, installed, list_of_files, one_file
from scripts.benchmarks.servers import GIB, KIB, MIB, fill, nginx

# what a fetch of one byte costs at least in Python: the interpreter, http.client, ssl
BARE_FETCH = (
    "import sys, http.client, ssl; host, path = sys.argv[1:]; link = http.client.HTTPConnection(host);"
    "link.request('GET', path); open('/dev/null', 'wb').write(link.getresponse().read())"
)
LIMIT = "limit"  # the name of a measure that shows what the machine allows


@dataclass(frozen=True)
class Ask:
    """What a row is to reach: at most ``goal`` times the ``quantity`` of ``peer``.

    Without a peer, at most ``goal`` seconds. ``is_rate``: at least ``goal`` times the speed of the peer instead.
    ``limit``: what is known to be possible on this kind of machine, as a text.
    """

    goal: float
    peer: str = ""
    limit: str = ""
    quantity: str = "wall"
    is_rate: bool = False


Setup = Callable[[Path], AbstractContextManager[Mapping[str, Measure]]]


@dataclass(frozen=True)
class Row:
    """A row of the table; ``setup`` starts its servers in a folder and yields a measure for each tool."""

    name: str
    title: str
    asks: tuple[Ask, ...]
    setup: Setup


ROWS: dict[str, Row] = {}


def row(name: str, title: str, *asks: Ask) -> Callable[[Callable[[Path], Iterator[Mapping[str, Measure]]]], None]:
    """Add a row, whose set-up is the decorated generator function."""

    def add(function: Callable[[Path], Iterator[Mapping[str, Measure]]]) -> None:
        ROWS[name] = Row(name, title, asks, contextmanager(function))

    return add


def measured(
    commands: Mapping[str, Command], outputs: Outputs, expect: Mapping[str, int] | None = None
) -> dict[str, Measure]:
    """Return measures of the installed commands; ``expect``: number and total size of the files that each writes."""

    def measure(command: Command) -> Run:
        out = outputs.new()
        done = measure_command(command(out), is_ok=lambda: expect is None or _counts(out) == expect)
        outputs.delete_large(out)
        return done

    return {name: partial(measure, command) for name, command in installed(commands).items()}


def _counts(folder: Path) -> dict[str, int]:
    sizes = [entry.stat().st_size for entry in folder.iterdir()]
    return {"files": len(sizes), "bytes": sum(sizes)}


@row("help", "`dlpool --help`", Ask(1.7, "argparse", "1.4"))
def _help(folder: Path) -> Iterator[Mapping[str, Measure]]:
    commands: dict[str, Command] = {
        "dlpool": lambda _out: [DLPOOL[0], "--help"],
        "argparse": lambda _out: [sys.executable, "-c", "import argparse"],
    }
    yield measured(commands, Outputs(folder))


@row("byte", "1 byte, seconds", Ask(0.12, "", "`limit`: interpreter, http.client, ssl"))
def _byte(folder: Path) -> Iterator[Mapping[str, Measure]]:
    with nginx(folder) as urls:
        fill(folder / "www" / "1", 1)
        commands = one_file(f"{urls['plain']}/1")
        host = urls["plain"].removeprefix("http://")
        bare: Command = lambda _out: [sys.executable, "-c", BARE_FETCH, host, "/1"]  # noqa: E731
        yield measured(commands, Outputs(folder), {"files": 1, "bytes": 1}) | measured({LIMIT: bare}, Outputs(folder))


def _gibibyte(folder: Path, scheme: str, options: tuple[str, ...]) -> Iterator[Mapping[str, Measure]]:
    with nginx(folder) as urls:
        fill(folder / "www" / "1g", GIB)
        commands = one_file(f"{urls[scheme]}/1g", options=options)
        yield measured(commands, Outputs(folder), {"files": 1, "bytes": GIB})


@row(
    "plain",
    "1 GiB, HTTP, without sync",
    Ask(0.34, "aria2", "0.26 (splice alone)"),
    Ask(0.55, "curl", "0.45", quantity="cpu"),
)
def _plain(folder: Path) -> Iterator[Mapping[str, Measure]]:
    yield from _gibibyte(folder, "plain", ("--no-sync",))


@row("durable", "1 GiB, HTTP, synced", Ask(0.38, "aria2", "0.25 (dd and fdatasync)"))
def _durable(folder: Path) -> Iterator[Mapping[str, Measure]]:
    yield from _gibibyte(folder, "plain", ())


@row("tls", "1 GiB, TLS, without sync", Ask(1.05, "curl", "0.75"))
def _tls(folder: Path) -> Iterator[Mapping[str, Measure]]:
    yield from _gibibyte(folder, "tls", ("--no-sync", "--insecure"))


def _list(folder: Path, count: int, size: int) -> Iterator[Mapping[str, Measure]]:
    with nginx(folder) as urls:
        names = [str(number) for number in range(count)]
        for number in range(count):
            fill(folder / "www" / str(number), size + number % 1000)
        expect = {"files": count, "bytes": sum(size + number % 1000 for number in range(count))}
        yield measured(list_of_files(urls["plain"], names, folder), Outputs(folder), expect)


@row("list64k", "1,000 files of 64 KiB, 8 at once", Ask(0.6, "aria2", "0.12 (Python sockets)"))
def _list64k(folder: Path) -> Iterator[Mapping[str, Measure]]:
    yield from _list(folder, 1000, 64 * KIB)


@row("list4k", "10,000 files of 4 KiB, 8 at once", Ask(0.6, "aria2", "0.37"))
def _list4k(folder: Path) -> Iterator[Mapping[str, Measure]]:
    yield from _list(folder, 10_000, 4 * KIB)


@row("stragglers", "100 MiB, 4 of 10 connections 20 times slower", Ask(0.75, "aria2", "0.45"))
def _stragglers(folder: Path) -> Iterator[Mapping[str, Measure]]:
    path = fill(folder / "100m", 100 * MIB)
    with paced_server(path, fast=10 * MIB, slow=512 * KIB) as server:
        commands = one_file(server.url)
        # axel stays with its slow connections to the end, which takes ten times as long
        plain = {name: commands[name] for name in ("dlpool", "aria2")}
        yield {
            name: _begun(measure, lambda: server.begin("ssffsffsff"))
            for name, measure in measured(plain, Outputs(folder), {"files": 1, "bytes": 100 * MIB}).items()
        }


@row("latency", "100 MiB, round trip 100 ms, 8 connections of 4 MiB/s", Ask(0.97, "aria2", "0.90"))
def _latency(folder: Path) -> Iterator[Mapping[str, Measure]]:
    path = fill(folder / "100m", 100 * MIB)
    with paced_server(path, fast=4 * MIB, rtt_s=0.1) as server:
        commands = one_file(server.url, connections=8, options=("-c", "8"))
        far = {name: _prefixed(server.prefix, commands[name]) for name in ("dlpool", "aria2", "axel")}
        yield {
            name: _begun(measure, server.begin)
            for name, measure in measured(far, Outputs(folder), {"files": 1, "bytes": 100 * MIB}).items()
        }


def _begun(measure: Measure, begin: Callable[[], None]) -> Measure:
    def run() -> Run:
        begin()
        return measure()

    return run


def _prefixed(prefix: tuple[str, ...], command: Command) -> Command:
    return lambda out: [*prefix, *command(out)]


@row("checksum", "SHA-256 of 1 GiB while fetching, seconds", Ask(1.2, "", "`limit`: openssl alone"))
def _checksum(folder: Path) -> Iterator[Mapping[str, Measure]]:
    with nginx(folder) as urls:
        path = fill(folder / "www" / "1g", GIB)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        commands = one_file(f"{urls['plain']}/1g", options=("--no-sync", "--checksum", f"sha256:{digest}"))
        aria2 = commands["aria2"]
        commands = {
            "dlpool": commands["dlpool"],
            "aria2": lambda out: [*aria2(out), f"--checksum=sha-256={digest}"],
            "curl and sha256sum": lambda out: [
                "sh",
                "-c",
                f"curl -sf {urls['plain']}/1g -o {out}/f && sha256sum {out}/f",
            ],
        }
        openssl: Command = lambda _out: ["openssl", "dgst", "-sha256", str(path)]  # noqa: E731
        yield measured(commands, Outputs(folder)) | measured({LIMIT: openssl}, Outputs(folder))


row("jobs", "service: 2,000 jobs of 64 KiB, seconds", Ask(1.5, "dramatiq", "2.5 (a bare loop)", is_rate=True))(
    jobs.setup
)
row("chunks", "upload of 1 GiB in chunks of 8 MiB", Ask(0.65, "nginx dav", "0.78", is_rate=True))(uploads.chunks)
row("upload", "`dlpool upload` of 1 GiB with merge, seconds", Ask(3.0, "", "1.1 (nginx dav)"))(uploads.upload)
