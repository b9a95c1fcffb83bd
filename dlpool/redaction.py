"""What no log may hold: secrets by their names, and those inside of URLs and header lines. Pure."""

from __future__ import annotations

import re
from functools import lru_cache

REDACTED = "[redacted]"
_RAW_CHARS = 64 * 1024

_SECRET_NAME = re.compile(
    r"passw|passphrase|pwd|authori[sz]ation|cookie|token|secret|credential|api[-_ ]?key|(?:^|[-_ ])auth(?:$|[-_ ])",
    re.IGNORECASE,
)
_URL = re.compile(r"://(\S*)")
_BARE_QUERY = re.compile(r"(?<=\S)\?[^\s?=\"'<>]{1,200}=\S*")  # urllib3 says "url: /path?query"
_HEADER = re.compile(r"((?:authorization|cookie2?)[\"']?\s*[:=])[^\r\n]*", re.IGNORECASE)


@lru_cache(maxsize=4096)
def is_secret(name: str) -> bool:
    """Whether what is called so must not be shown."""
    return _SECRET_NAME.search(name[:200]) is not None


def without_secrets(text: str) -> str:
    """``text`` less user info, query and fragment of each URL in it, and less the values of secret headers.

    Only the first 64 KiB of it: an address that the end cuts is left out, as its user info could not be told.
    """
    if len(text) > _RAW_CHARS:
        text = _cut_before_url(text[:_RAW_CHARS])
    if "://" in text:
        text = _URL.sub(lambda found: "://" + _address(found[1]), text)
    if "?" in text:
        text = _BARE_QUERY.sub("", text)
    lowered = text.lower()
    return _HEADER.sub(rf"\1 {REDACTED}", text) if "cookie" in lowered or "authorization" in lowered else text


def without_password(url: str) -> str:
    """The URL of a Redis less its password."""
    url = re.sub(r"(?<=[?&])password=[^&#]*&?", "", url)
    match = re.fullmatch(r"([a-z+]+://)([^/?#]*)@(.*)", url, re.DOTALL)
    if match is None:
        return url
    user = match[2].partition(":")[0]
    return f"{match[1]}{user}@{match[3]}" if user else f"{match[1]}{match[3]}"


def _address(url: str) -> str:
    """Host and path of a URL that has lost its scheme."""
    authority, slash, path = re.split(r"[?#]", url, maxsplit=1)[0].partition("/")
    return authority.rpartition("@")[2] + slash + path


def _cut_before_url(text: str) -> str:
    head, scheme_end, rest = text.rpartition("://")
    return head if scheme_end and not re.search(r"\s", rest) else text
