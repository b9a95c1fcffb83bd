"""Uploads of 1 GiB: dlpool-web against nginx's dav module, and against a loop that only receives, hashes and writes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scripts.bench_bare import bare
from scripts.bench_upload import Bench, nginx
from scripts.benchmarks.measuring import Measure
from tests.web import WebServer

# nginx does not sync; clients are not to be slowed down by limits
SETTINGS: dict[str, dict[str, Any]] = {
    "upload": {"enable_atomic_operations": "no"},
    "web": {"request_rate": "100000/s", "request_burst": 100_000},
}


@contextmanager
def _servers(folder: Path) -> Iterator[Bench]:
    with nginx(folder) as dav, bare(folder) as loop, WebServer(folder / "web", SETTINGS) as web:
        yield Bench(folder, dav, loop, web)


def chunks(folder: Path) -> Iterator[Mapping[str, Measure]]:
    """Send the chunks by four processes of curl, each over one connection."""
    with _servers(folder) as bench:
        yield {
            "dlpool": lambda: bench.measure(bench.post()),
            "dlpool, as forms": lambda: bench.measure(bench.form()),
            "nginx dav": lambda: bench.measure(bench.put()),
            "limit": lambda: bench.measure(bench.put_bare()),
        }


def upload(folder: Path) -> Iterator[Mapping[str, Measure]]:
    """Send the file by ``dlpool upload``, which ends with the merge."""
    with _servers(folder) as bench:
        yield {"dlpool": lambda: bench.measure(bench.upload()), "nginx dav": lambda: bench.measure(bench.put())}
