"""The WSGI application: its middleware, its routes, and the one shape of its errors."""

from __future__ import annotations

from typing import Any

import falcon

from dlpool.config import Settings
from dlpool.web import dashboard, files, jobs_api, ops, tus, uploads
from dlpool.web.errors import add_error_handlers
from dlpool.web.gate import Gate
from dlpool.web.keeper import Keeper
from dlpool.web.parts import WebParts


def create_app(settings: Settings) -> falcon.App[Any, Any]:
    """The application with these settings; any WSGI server with threads can serve it, in several processes.

    Raises ConfigurationError, LocalFault.
    """
    parts = WebParts(settings)
    gate = Gate(parts)
    app: falcon.App[Any, Any] = falcon.App(middleware=[gate, tus.Protocol()])
    app.req_options.strip_url_path_trailing_slash = True
    add_error_handlers(app, parts.log)
    for part in (ops, uploads, files, tus, jobs_api, dashboard):
        part.add_routes(app, parts)
    app.add_sink(gate.nothing)
    Keeper(parts).start()
    return app
