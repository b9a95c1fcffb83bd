"""Creates the WSGI application: middleware, routes and error handlers."""

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
    """A response with ``X-Content-Type-Options: nosniff`` (Fetch standard), so that
    browsers do not guess another content type."""

    __slots__ = ()

    def __init__(self, options: falcon.ResponseOptions | None = None) -> None:
        super().__init__(options)
        self.set_header(*NO_SNIFF)


def create_app(settings: Settings) -> falcon.App[Any, Any]:
    """Create the application for any WSGI server with threads and one or more
    processes.

    Call it in each process after the fork, because threads and locks do not survive a
    fork. Raises ConfigurationError, LocalFault.
    """
    check_owned_paths(settings)
    return make_app(WebServices(settings))


def make_app(services: WebServices) -> falcon.App[Any, Any]:
    """Create the application from existing services, and start its janitor. Raises
    ConfigurationError, LocalFault."""
    access = AccessMiddleware(services)
    app: falcon.App[Any, Any] = falcon.App(
        middleware=[access, tus.TusMiddleware()], response_type=WebResponse
    )
    add_error_handlers(app, services.log)
    for module in (monitoring, uploads, files, tus, jobs_api, dashboard):
        module.add_routes(app, services)
    app.add_sink(access.handle_unknown_path)
    Janitor(services).start()
    return app
