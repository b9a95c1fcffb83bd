"""Requests of tests to the HTTP server of a supervisor, and parsing of its metrics."""

from __future__ import annotations

import http.client
import re
import time
from pathlib import Path
from typing import Any

from tests.conftest import free_port, wait_until
from tests.fleet import Supervisor

_SAMPLE = re.compile(r"^([a-z_:]+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)
PATIENCE_S = 30.0
MOST_TRIES = 100


class Watched(Supervisor):
    """A supervisor with its own port for metrics."""

    def __init__(self, folder: Path, url: str, settings: dict[str, dict[str, Any]] | None = None) -> None:
        self.port = free_port()
        super().__init__(folder, url, {"metrics": {"listen": f"127.0.0.1:{self.port}"}, **(settings or {})})

    def __enter__(self) -> Watched:
        self.start()
        return self

    def get(self, path: str) -> tuple[int, str]:
        """Return status and body; 0 while the port is closed."""
        return get(self.port, path)

    def samples(self, name: str, **labels: str) -> list[float]:
        """Return the values of the series with these labels; retry while other clients are served (503)."""
        status, text = self.get("/metrics")
        for _ in range(MOST_TRIES):
            if status != 503:
                break
            time.sleep(0.02)
            status, text = self.get("/metrics")
        return samples(text, name, **labels)

    def value(self, name: str, **labels: str) -> float:
        """Return the sum of the values; 0 without a series."""
        return sum(self.samples(name, **labels))

    def wait_for(self, name: str, value: float, **labels: str) -> None:
        """Wait until the sum has this value."""
        wait_until(lambda: self.value(name, **labels) == value, PATIENCE_S)


def get(port: int, path: str, method: str = "GET", accept: str = "*/*") -> tuple[int, str]:
    """Return status and body of an answer; 0 while the port is closed."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    try:
        connection.request(method, path, headers={"Accept": accept})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    except (ConnectionError, http.client.HTTPException):
        return 0, ""
    finally:
        connection.close()


def samples(text: str, name: str, **labels: str) -> list[float]:
    """Return the values of a metric in a scrape."""
    wanted = {f'{label}="{value}"' for label, value in labels.items()}
    found = ((match[1], set((match[2] or "").split(",")), match[3]) for match in _SAMPLE.finditer(text))
    return [float(value) for found_name, has, value in found if found_name == name and wanted <= has]
