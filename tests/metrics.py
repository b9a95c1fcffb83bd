"""What tests ask of a supervisor over HTTP, and how they read its metrics."""

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
    """A supervisor with a port for metrics of its own."""

    def __init__(self, folder: Path, url: str, settings: dict[str, dict[str, Any]] | None = None) -> None:
        self.port = free_port()
        super().__init__(folder, url, {"metrics": {"listen": f"127.0.0.1:{self.port}"}, **(settings or {})})

    def __enter__(self) -> Watched:
        self.start()
        return self

    def get(self, path: str) -> tuple[int, str]:
        """Status and body; 0 while nobody listens."""
        return get(self.port, path)

    def samples(self, name: str, **labels: str) -> list[float]:
        """The values of a metric whose labels are, among others, these; asked again while others are answered (503)."""
        status, text = self.get("/metrics")
        for _ in range(MOST_TRIES):
            if status != 503:
                break
            time.sleep(0.02)
            status, text = self.get("/metrics")
        return samples(text, name, **labels)

    def value(self, name: str, **labels: str) -> float:
        """Their sum; 0 if there is none."""
        return sum(self.samples(name, **labels))

    def wait_for(self, name: str, value: float, **labels: str) -> None:
        """Wait until it has that value."""
        wait_until(lambda: self.value(name, **labels) == value, PATIENCE_S)


def get(port: int, path: str, method: str = "GET", accept: str = "*/*") -> tuple[int, str]:
    """Status and body of an answer; 0 while nobody listens there."""
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
    """The values of a metric in what was scraped."""
    wanted = {f'{label}="{value}"' for label, value in labels.items()}
    found = ((match[1], set((match[2] or "").split(",")), match[3]) for match in _SAMPLE.finditer(text))
    return [float(value) for found_name, has, value in found if found_name == name and wanted <= has]
