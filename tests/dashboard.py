"""A dashboard for tests: a service, the HTTP side over its Redis, and a browser that is at the page."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.browser import Page
from tests.desk import running
from tests.fleet import Client, Supervisor
from tests.web import WebServer


@dataclass(frozen=True)
class Place:
    """A service, and the HTTP side over its Redis."""

    service: Supervisor
    client: Client
    web: WebServer


@contextmanager
def place_in(folder: Path, **own: object) -> Iterator[Place]:
    """``own``: settings of the supervisor."""
    nodes = {"node_id": "here", "max_concurrent_downloads": 3, "workers": 1, **own}
    with running(folder, supervisor=nodes) as (service, client):
        settings: dict[str, dict[str, Any]] = {"redis": {"url": service.url}, "paths": {"download_dir": service.out}}
        with WebServer(folder / "web", settings) as web:
            yield Place(service, client, web)


@contextmanager
def anew(page: Page, says: str = "Live") -> Iterator[Page]:
    """The page as a new visitor has it; at its end the console must have said nothing."""
    page.open()
    page.run("localStorage.clear(); sessionStorage.clear()")
    page.open()
    page.sees("#health", says)
    yield page
    assert page.console() == []
