"""Health, system and metrics of the HTTP side."""

from __future__ import annotations

from datetime import datetime, timezone

import falcon

from dlpool import jsontext
from dlpool.web.parts import WebParts


class HealthResource:
    """``GET /health``: whether uploads can be taken."""

    access = "probe"

    def __init__(self, parts: WebParts) -> None:
        self._parts = parts

    def on_get(self, _req: falcon.Request, resp: falcon.Response) -> None:
        """503 only if it is unhealthy."""
        found = {"status": "healthy", "timestamp": datetime.now(timezone.utc).isoformat(), "checks": {}}
        resp.data = jsontext.dumps(found)
        resp.content_type = "application/json"


def add_routes(app: falcon.App, parts: WebParts) -> None:
    """Below the prefix."""
    prefix = parts.settings.web.prefix
    app.add_route(f"{prefix}/health", HealthResource(parts))
