"""Whether a request was made by a page of another site: cross-site request forgery, DNS
rebinding. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection
from urllib.parse import urlsplit

SAFE = ("GET", "HEAD", "OPTIONS")
_OWN = ("same-origin", "none")  # none: a person typed it, or it is no page


def is_cross_site(
    method: str, host: str | None, origin: str | None, fetch_site: str | None
) -> bool:
    """By Sec-Fetch-Site (W3C Fetch Metadata) where browsers send it, else by Origin
    against Host.

    Programs that are no browsers send neither, and are no page of anybody.
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
    """Whether ``HostState`` is a name that we are not asked by: a page of another site
    that points its name to us.

    An address cannot be made to point elsewhere, nor can localhost. Where there is no
    Host there is no browser.
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
