"""The dashboard: a page and its parts, out of the package. No data is in them; the page
asks the API for it."""

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
# No script or style but our own files, no other site in or around the page.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
PREFIX = b'data-uploads="/go-uploader"'  # in the page; it may be set otherwise
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


class Asset:
    """One file of the page, kept in memory."""

    access = "open"

    def __init__(self, name: str, data: bytes) -> None:
        self._type = TYPES[name.rpartition(".")[2]]
        self._data = data

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer with it."""
        resp.set_headers(HEADERS)
        if not set_etag(req, resp, self._data):
            resp.content_type = self._type
            resp.data = self._data

    on_head = on_get


def assets() -> dict[str, bytes]:
    """The files of the page, by name."""
    folder = resources.files("dlpool.web") / "static"
    return {
        one.name: one.read_bytes()
        for one in folder.iterdir()
        if one.name.rpartition(".")[2] in TYPES
    }


def add_routes(app: falcon.App[Any, Any], parts: WebServices) -> None:
    """Add ``/`` and ``/static/NAME``. Both are open: without a token the page shows
    nothing but a form for it."""
    for name, data in assets().items():
        if name == "index.html":
            data = data.replace(
                PREFIX, f'data-uploads="{parts.settings.web.prefix}"'.encode()
            )
        app.add_route(
            "/" if name == "index.html" else f"/static/{name}", Asset(name, data)
        )
