"""What every request passes: who asks, how often, and a line in the log when it is
answered."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Mapping
from typing import Any

import falcon

from dlpool.config.scopes import ADMIN
from dlpool.config.web import parse_networks, split_words
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
    """Falcon's middleware. A resource says in ``access`` who may ask without a
    token:

    ``token`` (the default) nobody, ``open`` everybody, ``probe`` everybody and at any
    rate, ``scrape`` the configured addresses. What a server can do (OPTIONS) everybody
    may ask. In ``scopes`` it says by method which scopes a token or key needs, one of
    them; where it says nothing of a method that is admin. ``req.context`` gets
    ``client``, an address or the owner, ``caller``, and ``owner``, None where nobody is
    asked, and ``trace_id``, None without a valid ``traceparent``.
    """

    def __init__(self, parts: WebServices) -> None:
        self._parts = parts
        self._scrapers = parse_networks(parts.settings.web.scrape_from)
        self._proxies = parse_networks(parts.settings.web.trusted_proxies)
        self._names = {name.lower() for name in split_words(parts.settings.web.hosts)}
        self._ids = f"{parts.settings.web.prefix}/tasks/"

    def process_request(self, req: falcon.Request, resp: falcon.Response) -> None:
        """A request has come; its body is still with the client."""
        if req.path == self._ids or not req.path.startswith(
            self._ids
        ):  # an id may end in a slash
            req.path = req.path.rstrip("/") or "/"
        req.context.begun = time.monotonic()
        req.context.client = req.context.address = self._address(req)
        self._know(req, UNAUTHENTICATED)
        req.context.is_admitted = False
        req.context.trace_id = parse_traceparent(req.get_header(TRACEPARENT))
        current_trace.set(
            req.context.trace_id
        )  # for this thread, until its next request
        resp.context.code = ""
        auditing.start_request(req)

    def process_resource(
        self,
        req: falcon.Request,
        _resp: falcon.Response,
        resource: object,
        params: dict[str, Any],
    ) -> None:
        """It is known what it wants. Raises Refusal (401, 403, 429, 503)."""
        auditing.plan_change(req, resource, params)
        if is_cross_site(
            req.method,
            req.get_header("Host"),
            req.get_header("Origin"),
            req.get_header("Sec-Fetch-Site"),
        ):
            raise HttpError(
                403, "foreign_origin", "a page of another site asked for a change"
            )
        access = getattr(resource, "access", "token")
        if access == "probe":
            return
        self._admit(req, resource, access)
        req.context.is_admitted = True
        caller: Principal = req.context.caller
        if caller is not UNAUTHENTICATED and hasattr(
            resource, f"on_{req.method.lower()}"
        ):
            caller.require(required_scopes(resource, req.method))

    def _admit(self, req: falcon.Request, resource: object, access: str) -> None:
        """Raise Refusal unless the client may ask for the resource, by its key and its
        rate."""
        if not self._parts.authenticator.is_required and is_rebinding(
            req.get_header("Host"), self._names
        ):
            text = (
                "nobody is asked for a key here, and this is no name of ours: add it "
                "to hosts "
                "in [web], or set a key"
            )
            raise HttpError(403, "foreign_host", text)
        self._parts.client_limits.check_rate(req.context.address)
        if access == "open" or (req.method == "OPTIONS" and resource is not None):
            return
        if access == "scrape" and self._may_scrape(req):
            return
        caller = self._parts.authenticator.authenticate(
            req.auth, req.get_header("X-Secret-Key")
        )
        self._know(req, caller)
        if caller.user is not None:
            req.context.client = f"owner {caller.user}"

    @staticmethod
    def _know(req: falcon.Request, caller: Principal) -> None:
        req.context.caller, req.context.owner = caller, caller.owner

    def handle_unknown_path(
        self, req: falcon.Request, resp: falcon.Response, **_params: str
    ) -> None:
        """No resource has this address; who asks passes the gate all the same. Raises
        Refusal (401, 403, 404, 429)."""
        self.process_resource(req, resp, None, {})
        raise HttpError(404, "not_found", "there is nothing at this address")

    def process_response(
        self,
        req: falcon.Request,
        resp: falcon.Response,
        resource: object,
        _req_succeeded: bool,
    ) -> None:
        """It is answered, but for the body."""
        seconds = time.monotonic() - req.context.begun
        status = int(str(resp.status).partition(" ")[0])
        self._parts.counters.count_request(seconds, resp.context.code)
        self._parts.audit.finish_request(req, status, resp.context.code)
        if (
            resource is not None
            and getattr(resource, "access", "token") == "probe"
            and status < 400
        ):
            return
        is_strange = (
            req.context.caller is UNAUTHENTICATED
        )  # refused before its key was checked, or what needs none
        if (
            status != 500
            and is_strange
            and not self._parts.admits_log_line(status, resp.context.code)
        ):
            return
        log = bind_trace(self._parts.log, req)
        fields = {
            "location": req.path,
            "status": status,
            "seconds": seconds,
            "label": resp.context.code or None,
            "client": req.context.address,
            "user_id": req.context.caller.user,
        }
        if status < 500:
            log.info("request_served", method=req.method, **fields)
        else:
            log.warning("request_served", method=req.method, **fields)

    def _address(self, req: falcon.Request) -> str:
        """The client's; behind a trusted proxy what that says, from the right."""
        address = req.remote_addr or "127.0.0.1"
        for hop in reversed((req.get_header("X-Forwarded-For") or "").split(",")):
            if not hop.strip() or not self._is_among(address, self._proxies):
                break
            address = hop.strip()[:64]
        return address

    def _may_scrape(self, req: falcon.Request) -> bool:
        """Whether it comes from an address that needs no token; all clients of a proxy
        that is not trusted have its."""
        is_relayed = any(req.get_header(name) for name in _OF_PROXIES)
        is_told = req.get_header("X-Forwarded-For") and self._is_among(
            req.remote_addr or "", self._proxies
        )
        return self._is_among(req.context.address, self._scrapers) and (
            not is_relayed or bool(is_told)
        )

    @staticmethod
    def _is_among(address: str, wanted: Any) -> bool:
        try:
            found = ipaddress.ip_address(address)
        except ValueError:
            return False
        found = (
            getattr(found, "ipv4_mapped", None) or found
        )  # as IPv4 peers are called where bind = ::
        return any(found in network for network in wanted)


def bind_trace(log: Logger, req: falcon.Request) -> Logger:
    """Return a logger whose records have the trace id that came with the request, if
    one did."""
    trace_id = request_trace_id(req)
    return log if trace_id is None else log.bind(trace_id=trace_id)


def request_trace_id(req: falcon.Request) -> str | None:
    """Return the trace id that came with the request."""
    trace_id: str | None = getattr(req.context, "trace_id", None)
    return trace_id


def required_scopes(resource: object, method: str) -> tuple[str, ...]:
    """Return the scopes one of which a method of a resource needs: admin, if the
    resource does not say."""
    declared: Mapping[str, tuple[str, ...]] = getattr(resource, "scopes", {})
    return declared.get(method, (ADMIN,))


def request_owner(req: falcon.Request) -> str | None:
    """Whose request it is; None where nobody is asked, and for the scope admin."""
    owner: str | None = req.context.owner
    return owner
