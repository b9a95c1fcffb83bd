"""Detects requests from pages of other sites: cross-site request forgery and DNS
rebinding. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection
from urllib.parse import urlsplit

SAFE = ("GET", "HEAD", "OPTIONS")
_OWN = ("same-origin", "none")  # none: typed by the user, or not from a page


def is_cross_site(
    method: str, host: str | None, origin: str | None, fetch_site: str | None
) -> bool:
    """Return whether a request that may change data is from a page of another origin.

    Uses Sec-Fetch-Site (W3C Fetch Metadata), or else compares Origin with Host. Clients
    other than browsers send neither Sec-Fetch-Site nor Origin.
    """
    if method in SAFE:
        return False
    if fetch_site is not None:
        return fetch_site not in _OWN
    if origin is None:
        return False
    try:
        return urlsplit(origin).netloc.lower() != (host or "").lower()
    except ValueError:
        return True


def is_rebinding(host: str | None, names: Collection[str]) -> bool:
    """Return whether ``Host`` is a name that another site may have pointed to this
    server.

    ``names``: the trusted names. Addresses and localhost cannot be rebound. Returns
    False without ``Host``, because browsers always send it.
    """
    if not host:
        return False
    name = re.sub(r":[0-9]*$", "", host).strip("[]").rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost") or name in names:
        return False
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return True
    return False
