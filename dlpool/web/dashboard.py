"""Serves the dashboard: static files of the package. The page loads its data from the
API."""

from __future__ import annotations

from importlib import resources
from typing import Any

import falcon

from dlpool.web.jobs_api import set_etag
from dlpool.web.wiring import WebServices

TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
# Only scripts and styles of this server, no content of other sites, no embedding in
# other pages.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# The attribute in the page that gets the configured prefix.
PREFIX = b'data-uploads="/go-uploader"'
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


class Asset:
    """A static file, kept in memory."""

    access = "open"

    def __init__(self, name: str, data: bytes) -> None:
        self._type = TYPES[name.rpartition(".")[2]]
        self._data = data

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer with the file, or with status 304."""
        resp.set_headers(HEADERS)
        if not set_etag(req, resp, self._data):
            resp.content_type = self._type
            resp.data = self._data

    on_head = on_get


def assets() -> dict[str, bytes]:
    """Return the static files by name."""
    folder = resources.files("dlpool.web") / "static"
    return {
        one.name: one.read_bytes()
        for one in folder.iterdir()
        if one.name.rpartition(".")[2] in TYPES
    }


def add_routes(app: falcon.App[Any, Any], services: WebServices) -> None:
    """Add ``/`` and ``/static/NAME``, which need no token: without a token the page
    shows only the sign-in form."""
    for name, data in assets().items():
        if name == "index.html":
            data = data.replace(
                PREFIX, f'data-uploads="{services.settings.web.prefix}"'.encode()
            )
        app.add_route(
            "/" if name == "index.html" else f"/static/{name}", Asset(name, data)
        )
