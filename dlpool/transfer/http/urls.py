"""URLs and header fields as they are sent and as they are displayed. Pure.

``split_credentials`` decides which URL schemes are accepted: http and https.
"""

from __future__ import annotations

import re
import socket
from base64 import b64encode
from collections.abc import Mapping
from contextlib import suppress
from urllib.parse import unquote, urlsplit

from dlpool.config import NetworkSettings
from dlpool.errors import UsageError
from dlpool.redaction import split_user_info
from dlpool.transfer.http.policy import NetworkPolicy
from dlpool.version import __version__

# Header fields that dlpool sets itself.
_OWN_HEADERS = {
    "range",
    "if-range",
    "accept-encoding",
    "content-length",
    "transfer-encoding",
    "connection",
}
# The name and the value of a header field (RFC 9110 section 5).
_HEADER_NAME = re.compile(r"[^:\s][^:\r\n]*")
_HEADER_VALUE = re.compile(r"(?:\S[^\r\n]*)?")
# A URL that needs no normalisation.
_PLAIN_URL = re.compile(
    r"https?://[a-z0-9.-]+(?::(?:[0-9]{1,4}|[1-5][0-9]{4}))?/[!\x22$-~]*"
)
_URL = re.compile(
    r"(https?)://([^/?#]*)(/[^?#]*)?(\?[^#]*)?(?:#.*)?", re.IGNORECASE | re.DOTALL
)
# Bytes that a request line cannot contain (RFC 9112 section 3); all others are sent
# unchanged.
_UNSENDABLE = re.compile(rb"[^!-~]")
_NOT_IN_HOST = re.compile(r"[\x00-\x20\x7f\\]")
# Characters of host and port: a name has at most 253 (RFC 1035 section 2.3.4).
# Normalising other characters, as urlsplit and IDNA do, takes a time that is quadratic
# in its length.
MAX_AUTHORITY = 512
_SITE = re.compile(r"[^/?#]*//")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")


def display_url(url: str) -> str:
    """Return a URL for messages: without user info and query, at most 300 characters.

    Accepts any text.
    """
    match = _SITE.match(url.strip())
    scheme, rest = (
        (match[0], match.string[match.end() :])
        if match is not None
        else ("", url.strip())
    )
    shown = scheme + re.split(r"[?#]", split_user_info(rest)[1], maxsplit=1)[0]
    return shown if len(shown) <= 300 else f"{shown[:297]}..."


def split_credentials(url: str) -> tuple[str, tuple[str, str] | None]:
    """Split a URL into the URL as it is sent and its user info.

    The URL that is sent has neither user info nor fragment. The user info is name and
    password, or None; a user without a password gets an empty one, as in curl. Scheme
    and host are normalised, an IDN to its ASCII form. Path and query stay byte for
    byte, because a signature may cover them; only controls, spaces and bytes above 0x7e
    are percent-encoded. Raises UsageError for an invalid URL.
    """
    if _PLAIN_URL.fullmatch(url):
        return url, None
    match = _URL.fullmatch(url.lstrip())
    if match is None:
        raise UsageError(f"{display_url(url)!r} is not an http or https URL")
    scheme, authority, path, query = match.groups(default="")
    info, _, host_and_port = authority.rpartition("@")
    try:
        if len(host_and_port) > MAX_AUTHORITY or (
            len(info) > MAX_AUTHORITY and not info.isascii()
        ):
            raise ValueError(
                "the host, or a user's name that is not ASCII, is too long"
            )
        urlsplit(url)  # raises ValueError for an invalid URL
        if "\\" in info or _NOT_IN_HOST.search(host_and_port):
            raise ValueError(
                "a host has an invalid character (URL parsers disagree on a backslash)"
            )
        return (
            f"{_site(scheme, host_and_port)}{_sendable((path or '/') + query)}",
            _user(info),
        )
    except ValueError as error:
        raise UsageError(f"{display_url(url)!r} is not a URL") from error


def resolve_location(base: str, location: str) -> str:
    """Resolve a ``Location`` against the URL ``base`` of its response.

    Follows RFC 3986 section 5.2, except that dot segments are removed only from a
    relative path: a complete URL or path stays byte for byte. Raises UsageError for an
    invalid base.
    """
    location = (
        location.encode("latin-1").decode("utf-8", "surrogateescape").partition("#")[0]
    )
    match = _URL.fullmatch(base)
    if match is None:
        raise UsageError(f"{display_url(base)!r} is not an http or https URL")
    scheme, authority, path, query = match.groups(default="")
    site = f"{scheme}://{authority}"
    if _SCHEME.match(location):
        return location
    if location.startswith("//"):
        return f"{scheme}:{location}"
    if location.startswith("/"):
        return site + location
    if location.startswith("?"):
        return site + path + location
    relative, mark, query_text = location.partition("?")
    return site + (
        _resolved(path, relative) + mark + query_text if relative else path + query
    )


def _resolved(path: str, relative: str) -> str:
    """Resolve a relative path against the base ``path``.

    Dot segments of the base stay if ``relative`` has no ``..``.
    """
    names = path.rpartition("/")[0].split("/")
    segments = relative.split("/")
    if ".." in segments:
        segments, names = names[1:] + segments, [""]
    for segment in segments:
        if segment == "..":
            del names[max(1, len(names) - 1) :]
        elif segment != ".":
            names.append(segment)
    return "/".join(names) + ("/" if segments[-1] in (".", "..") else "")


def _site(scheme: str, host_and_port: str) -> str:
    """Return scheme, host and port, normalised by the library ``requests``.

    Raises ValueError for an invalid host or port.
    """
    # imports requests; a usual URL needs no normalisation
    from dlpool.transfer.http.unusual_urls import prepared_url

    site, _, path = prepared_url(f"{scheme}://{host_and_port}/").rpartition("/")
    if path or not urlsplit(site).hostname:
        raise ValueError("it has no host")
    _ = urlsplit(site).port
    return site


def _sendable(target: str) -> str:
    """Return path and query for a request line.

    Bytes that a request line must not contain are percent-encoded.
    """
    data = target.encode("utf-8", "surrogateescape")
    return _UNSENDABLE.sub(lambda found: b"%%%02X" % found[0][0], data).decode("ascii")


def _user(info: str) -> tuple[str, str] | None:
    """Return name and password of a URL's user info; None if it is empty."""
    name, _, password = info.partition(":")
    if not info:
        return None
    return unquote(name, errors="surrogateescape"), unquote(
        password, errors="surrogateescape"
    )


def check_header(name: str, value: str) -> None:
    """Raise UsageError for a header field that cannot or must not be sent."""
    if name.lower() in _OWN_HEADERS:
        raise UsageError(f"header {name} is set by dlpool itself and cannot be given")
    is_latin = isinstance(value, str) and (value.isascii() or max(value) < "\u0100")
    if not (
        is_latin and _HEADER_NAME.fullmatch(name) and _HEADER_VALUE.fullmatch(value)
    ):
        raise UsageError(f"header {name[:80]!r} has characters that no header can have")


def basic_auth(name: str, password: str) -> str:
    """Return the value of ``Authorization`` (RFC 7617), in UTF-8. Raises UsageError."""
    try:
        return "Basic " + b64encode(
            f"{name}:{password}".encode(errors="surrogateescape")
        ).decode("ascii")
    except UnicodeEncodeError as error:
        raise UsageError(
            "the user name or password has characters that cannot be sent"
        ) from error


def request_headers(
    settings: NetworkSettings, given: Mapping[str, str]
) -> dict[str, str]:
    """Return dlpool's header fields, replaced or completed by the user's (``given``).

    Raises the UsageError of ``check_header``.
    """
    agent = settings.user_agent or f"dlpool/{__version__}"
    fields = {"User-Agent": agent, "Accept": "*/*", "Accept-Encoding": "identity"}
    names = {name.lower() for name in given}
    for name, value in (*given.items(), ("User-Agent", agent)):
        check_header(name, value)
    return {
        name: value for name, value in fields.items() if name.lower() not in names
    } | dict(given)


def request_target(url: str) -> str:
    """Return the target in origin-form (RFC 9112 section 3.2.1).

    ``url`` must be a URL that ``split_credentials`` returned.
    """
    return url[url.index("/", url.index("//") + 2) :]


def authority(url: str) -> str:
    """Return host and port of ``url`` in lower case.

    ``url`` must be a URL that ``split_credentials`` returned.
    """
    return url.split("/", 3)[2].lower()


def merge_cookies(given: str | None, stored: str | None) -> str | None:
    """Return the ``Cookie`` value that joins the user's and the server's cookies.

    A cookie from the server replaces the user's cookie of the same name. Pairs are
    separated by semicolons (RFC 6265 section 4.2). Returns None without cookies.
    """
    if not given or not stored:
        return given or stored
    names = {_cookie_name(pair) for pair in stored.split(";")}
    kept = [
        pair.strip()
        for pair in given.split(";")
        if pair.strip() and _cookie_name(pair) not in names
    ]
    return "; ".join((*kept, stored))


def _cookie_name(pair: str) -> str:
    return pair.partition("=")[0].strip()


def check_proxied_host(url: str, settings: NetworkSettings) -> None:
    """Raise PolicyRefused if a proxied URL names a forbidden address.

    The proxy resolves names, so only addresses in the URL can be checked. ``localhost``
    is treated as an address (RFC 6761 section 6.3).
    """
    host = (urlsplit(url).hostname or "").rstrip(".").lower()
    if host == "localhost" or host.endswith(".localhost"):
        host = "127.0.0.1"
    with suppress(OSError):
        host = socket.inet_ntoa(socket.inet_aton(host))
    with suppress(ValueError):
        NetworkPolicy.of(settings).check(host)
