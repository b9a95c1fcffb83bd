"""The WSGI application: its middleware, its routes, and the one shape of its errors."""

from __future__ import annotations

from typing import Any

import falcon

from dlpool.config import Settings
from dlpool.config.owned_paths import check_owned_paths
from dlpool.observe.http_server import NO_SNIFF
from dlpool.web import dashboard, files, jobs_api, monitoring, tus, uploads
from dlpool.web.error_handlers import add_error_handlers
from dlpool.web.janitor import Janitor
from dlpool.web.middleware import AccessMiddleware
from dlpool.web.wiring import WebServices


class WebResponse(falcon.Response):
    """A response as falcon makes it for every request, errors included, with the header
    fields that all have.

    ``nosniff`` (Fetch standard, X-Content-Type-Options): a browser takes the body for
    what its type says.
    """

    __slots__ = ()

    def __init__(self, options: falcon.ResponseOptions | None = None) -> None:
        super().__init__(options)
        self.set_header(*NO_SNIFF)


def create_app(settings: Settings) -> falcon.App[Any, Any]:
    """The application with these settings; any WSGI server with threads can serve it,
    in several processes.

    Each process makes its own: it has threads and locks, which no fork takes along.
    Raises ConfigurationError, LocalFault.
    """
    check_owned_paths(settings)
    return make_app(WebServices(settings))


def make_app(parts: WebServices) -> falcon.App[Any, Any]:
    """The application over these parts. Raises ConfigurationError, LocalFault."""
    gate = AccessMiddleware(parts)
    app: falcon.App[Any, Any] = falcon.App(
        middleware=[gate, tus.TusMiddleware()], response_type=WebResponse
    )
    add_error_handlers(app, parts.log)
    for part in (monitoring, uploads, files, tus, jobs_api, dashboard):
        part.add_routes(app, parts)
    app.add_sink(gate.handle_unknown_path)
    Janitor(parts).start()
    return app
