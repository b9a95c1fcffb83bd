"""Authenticates each request, applies the request rate, and logs its response."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Mapping
from typing import Any

import falcon

from dlpool.config.web import ADMIN, parse_networks, split_words
from dlpool.observe.log import Logger
from dlpool.observe.tracing import TRACEPARENT, parse_traceparent
from dlpool.web import auditing
from dlpool.web.errors import HttpError
from dlpool.web.event_publisher import current_trace
from dlpool.web.principal import UNAUTHENTICATED, Principal
from dlpool.web.same_origin import is_cross_site, is_rebinding
from dlpool.web.wiring import WebServices

_OF_PROXIES = (
    "X-Forwarded-For",
    "Forwarded",
    "X-Real-IP",
    "X-Forwarded-Host",
    "X-Forwarded-Proto",
    "Via",
)


class AccessMiddleware:
    """Falcon middleware that controls access to resources.

    A resource declares in ``access`` which requests need a token or key. ``token``
    (default): all requests. ``open``: none. ``probe``: none, and no rate limit applies.
    ``scrape``: all requests except those from an address in ``scrape_from``. Requests
    with OPTIONS need no token. A resource declares in ``scopes`` the scopes for each
    method: the client needs one of them. A method without an entry needs admin.

    Sets in ``req.context``: ``client`` (address or name, for limits), ``address``,
    ``principal``, ``owner`` (None: all owners), and ``trace_id`` (None without a valid
    ``traceparent``).
    """

    def __init__(self, services: WebServices) -> None:
        self._services = services
        self._scrapers = parse_networks(services.settings.web.scrape_from)
        self._proxies = parse_networks(services.settings.web.trusted_proxies)
        self._names = {
            name.lower() for name in split_words(services.settings.web.hosts)
        }
        self._ids = f"{services.settings.web.prefix}/tasks/"

    def process_request(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Initialise the context of a request, before its body is read."""
        # Ignore trailing slashes, but not in the path of a task: an id may end in one.
        if req.path == self._ids or not req.path.startswith(self._ids):
            req.path = req.path.rstrip("/") or "/"
        req.context.begun = time.monotonic()
        req.context.client = req.context.address = self._address(req)
        self._set_principal(req, UNAUTHENTICATED)
        req.context.is_admitted = False
        req.context.trace_id = parse_traceparent(req.get_header(TRACEPARENT))
        current_trace.set(req.context.trace_id)  # until the next request of this thread
        resp.context.code = ""
        auditing.start_request(req)

    def process_resource(
        self,
        req: falcon.Request,
        _resp: falcon.Response,
        resource: object,
        params: dict[str, Any],
    ) -> None:
        """Check that the client may use the resource. Raises HttpError (401, 403, 429,
        503)."""
        auditing.plan_change(req, resource, params)
        if is_cross_site(
            req.method,
            req.get_header("Host"),
            req.get_header("Origin"),
            req.get_header("Sec-Fetch-Site"),
        ):
            raise HttpError(
                403,
                "foreign_origin",
                "cross-site request: changes are accepted only from pages of this "
                "server",
            )
        access = getattr(resource, "access", "token")
        if access == "probe":
            return
        self._admit(req, resource, access)
        req.context.is_admitted = True
        principal: Principal = req.context.principal
        if principal is not UNAUTHENTICATED and hasattr(
            resource, f"on_{req.method.lower()}"
        ):
            principal.require(required_scopes(resource, req.method))

    def _admit(self, req: falcon.Request, resource: object, access: str) -> None:
        """Count the request, and authenticate the client if needed. Raises
        HttpError (401, 403, 429, 503)."""
        if not self._services.authenticator.is_required and is_rebinding(
            req.get_header("Host"), self._names
        ):
            text = (
                "unknown Host, and no key is required: add the name to hosts in [web], "
                "or set "
                "a key"
            )
            raise HttpError(403, "foreign_host", text)
        self._services.client_limits.check_rate(req.context.address)
        if access == "open" or (req.method == "OPTIONS" and resource is not None):
            return
        if access == "scrape" and self._may_scrape(req):
            return
        principal = self._services.authenticator.authenticate(
            req.auth, req.get_header("X-Secret-Key")
        )
        self._set_principal(req, principal)
        if principal.user is not None:
            req.context.client = f"owner {principal.user}"

    @staticmethod
    def _set_principal(req: falcon.Request, principal: Principal) -> None:
        req.context.principal, req.context.owner = principal, principal.owner

    def handle_unknown_path(
        self, req: falcon.Request, resp: falcon.Response, **_params: str
    ) -> None:
        """Check a request for an unknown path like any other request, then raise
        HttpError (404)."""
        self.process_resource(req, resp, None, {})
        raise HttpError(404, "not_found", "no such path")

    def process_response(
        self,
        req: falcon.Request,
        resp: falcon.Response,
        resource: object,
        _req_succeeded: bool,
    ) -> None:
        """Count the response, write the audit events, and log the response.

        Called before the body is sent. Successful probes and some unauthenticated
        requests are not logged.
        """
        seconds = time.monotonic() - req.context.begun
        status = int(str(resp.status).partition(" ")[0])
        self._services.counters.count_request(seconds, resp.context.code)
        self._services.audit.finish_request(req, status, resp.context.code)
        if (
            resource is not None
            and getattr(resource, "access", "token") == "probe"
            and status < 400
        ):
            return
        # True if the request was refused before its key was checked, or needs no key.
        is_unauthenticated = req.context.principal is UNAUTHENTICATED
        if (
            status != 500
            and is_unauthenticated
            and not self._services.admits_log_line(status, resp.context.code)
        ):
            return
        log = bind_trace(self._services.log, req)
        fields = {
            "location": req.path,
            "status": status,
            "seconds": seconds,
            "label": resp.context.code or None,
            "client": req.context.address,
            "user_id": req.context.principal.user,
        }
        if status < 500:
            log.info("request_served", method=req.method, **fields)
        else:
            log.warning("request_served", method=req.method, **fields)

    def _address(self, req: falcon.Request) -> str:
        """Return the client's address. Behind trusted proxies, return the last address
        in X-Forwarded-For that is not a trusted proxy."""
        address = req.remote_addr or "127.0.0.1"
        for hop in reversed((req.get_header("X-Forwarded-For") or "").split(",")):
            if not hop.strip() or not self._is_among(address, self._proxies):
                break
            address = hop.strip()[:64]
        return address

    def _may_scrape(self, req: falcon.Request) -> bool:
        """Return whether the request is from an address in ``scrape_from``, and was not
        relayed by an untrusted proxy."""
        is_relayed = any(req.get_header(name) for name in _OF_PROXIES)
        is_by_proxy = req.get_header("X-Forwarded-For") and self._is_among(
            req.remote_addr or "", self._proxies
        )
        return self._is_among(req.context.address, self._scrapers) and (
            not is_relayed or bool(is_by_proxy)
        )

    @staticmethod
    def _is_among(address: str, wanted: Any) -> bool:
        try:
            found = ipaddress.ip_address(address)
        except ValueError:
            return False
        # With bind = ::, the addresses of IPv4 peers are IPv4-mapped IPv6 addresses.
        found = getattr(found, "ipv4_mapped", None) or found
        return any(found in network for network in wanted)


def bind_trace(log: Logger, req: falcon.Request) -> Logger:
    """Return a logger whose records contain the trace id of the request, if the request
    has one."""
    trace_id = request_trace_id(req)
    return log if trace_id is None else log.bind(trace_id=trace_id)


def request_trace_id(req: falcon.Request) -> str | None:
    """Return the trace id of the request, None if it has none."""
    trace_id: str | None = getattr(req.context, "trace_id", None)
    return trace_id


def required_scopes(resource: object, method: str) -> tuple[str, ...]:
    """Return the scopes for a method of a resource: a client needs one of them. Returns
    admin if the resource declares no scopes for the method."""
    declared: Mapping[str, tuple[str, ...]] = getattr(resource, "scopes", {})
    return declared.get(method, (ADMIN,))


def request_owner(req: falcon.Request) -> str | None:
    """Return the owner whose uploads the request may use. None allows the uploads of
    all owners: for admin, for keys without an owner, and without authentication."""
    owner: str | None = req.context.owner
    return owner
