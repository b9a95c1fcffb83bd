"""URLs and header fields as they are sent, and as they may be shown. Pure."""

from __future__ import annotations

import re
import socket
from base64 import b64encode
from collections.abc import Mapping
from contextlib import suppress
from urllib.parse import urlsplit

import requests
import urllib3
from requests.utils import check_header_validity, get_auth_from_url

from dlpool import __version__
from dlpool.config import NetworkSettings
from dlpool.errors import UsageError
from dlpool.transfer.policy import check_address

# Header fields on which a right answer depends.
_OWN_HEADERS = {"range", "if-range", "accept-encoding", "content-length", "transfer-encoding", "connection"}
# A URL that needs no rewriting.
_PLAIN_URL = re.compile(
    r"https?://[a-z0-9.-]+(?::(?:[0-9]{1,4}|[1-5][0-9]{4}))?/(?:[A-Za-z0-9._~/?=&+-]|%[0-9A-F]{2})*"
)


def shown_url(url: str) -> str:
    """A URL for messages: no user info, no query, and not longer than a line can be. Takes any text."""
    shown = re.sub(r"^([^/?#]*//)?[^/?#]*@", r"\1", re.split(r"[?#]", url.strip(), maxsplit=1)[0])
    return shown if len(shown) <= 300 else f"{shown[:297]}..."


def without_user(url: str) -> tuple[str, tuple[str, str] | None]:
    """A URL as requests sends it, less user info and fragment, and the user info. Raises UsageError."""
    if _PLAIN_URL.fullmatch(url) and "/." not in url:
        return url, None
    if not re.match(r"\s*https?://", url, re.IGNORECASE):
        raise UsageError(f"{shown_url(url)!r} is not an http or https URL")
    request = requests.PreparedRequest()
    try:
        urlsplit(url)  # as it was given: others read it, too
        request.prepare_url(url, None)
        parts = urlsplit(request.url or "")
        _ = parts.port
    except (requests.RequestException, urllib3.exceptions.HTTPError, ValueError) as error:
        raise UsageError(f"{shown_url(url)!r} is not a URL") from error
    user = get_auth_from_url(request.url or "")
    netloc = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=netloc, fragment="").geturl(), user if any(user) else None


def check_header(name: str, value: str) -> None:
    """Raise UsageError for a header field that cannot or must not be sent."""
    if name.lower() in _OWN_HEADERS:
        raise UsageError(f"header {name} is set by dlpool itself and cannot be given")
    try:
        check_header_validity((name, value))
        value.encode("latin-1")
    except (requests.exceptions.InvalidHeader, UnicodeError) as error:
        raise UsageError(f"header {name[:80]!r} has characters that no header can have") from error


def basic_auth(name: str, password: str) -> str:
    """The value of Authorization (RFC 7617), in UTF-8. Raises UsageError."""
    try:
        return "Basic " + b64encode(f"{name}:{password}".encode(errors="surrogateescape")).decode("ascii")
    except UnicodeEncodeError as error:
        raise UsageError("the user name or password has characters that cannot be sent") from error


def own_and_given(settings: NetworkSettings, given: Mapping[str, str]) -> dict[str, str]:
    """Our header fields and the user's, which replace ours. Raises UsageError for what cannot be sent."""
    agent = settings.user_agent or f"dlpool/{__version__}"
    fields = {"User-Agent": agent, "Accept": "*/*", "Accept-Encoding": "identity"}
    names = {name.lower() for name in given}
    for name, value in (*given.items(), ("User-Agent", agent)):
        check_header(name, value)
    return {name: value for name, value in fields.items() if name.lower() not in names} | dict(given)


def check_literal(url: str, policy: str) -> None:
    """Behind a proxy the address is not ours to see, unless the URL names it, in whichever spelling."""
    host = (urlsplit(url).hostname or "").rstrip(".")
    with suppress(OSError):
        host = socket.inet_ntoa(socket.inet_aton(host))
    with suppress(ValueError):
        check_address(host, policy)
