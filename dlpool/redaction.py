"""What no log may hold: secrets by their names, and those inside of URLs and header
lines. Pure."""

from __future__ import annotations

import re
from functools import lru_cache

REDACTED = "[redacted]"
_RAW_CHARS = 64 * 1024

# What the name of a secret field contains: of a header, of a setting, of a member of
# JSON.
_SECRET_WORDS = (
    r"passw|passphrase|pwd|authori[sz]ation|cookie|token|secret|credential|signature"
    r"|(?:api|access|account|customer|functions?|master|private|shared|subscription)[-_ ]?key"
    r"|(?:^|[-_ ])auth(?:$|[-_ ])"
)
_SECRET_NAME = re.compile(_SECRET_WORDS, re.IGNORECASE)
_URL = re.compile(r"://(\S*)")
_BARE_QUERY = re.compile(
    r"(?<=\S)\?[^\s?=\"'<>]{1,200}=\S*"
)  # urllib3 says "url: /path?query"
# The header fields that are secret, where a text has one with its value: up to the end
# of the line.
_SECRET_FIELD = re.compile(
    r"(?<![\w./-])((?:proxy-|x-)?authorization|(?:set-)?cookie2?|api_?key"
    r"|(?:[a-z0-9]{1,20}-){1,8}(?:auth|credentials?|key|passphrase|password|secret|signature|token)(?:-[a-z0-9]{1,20}){0,3}"
    r"|(?:access|api|auth|job|password|private|secret|token)-[a-z0-9]{1,20})([\"']?\s{0,8}[:=])[^\r\n]*",
    re.IGNORECASE,
)
_HINTS = (
    "auth",
    "cookie",
    "key",
    "passw",
    "secret",
    "token",
    "credential",
    "signature",
    "passphrase",
)


@lru_cache(maxsize=4096)
def is_secret(name: str) -> bool:
    """Whether what is called so must not be shown."""
    return _SECRET_NAME.search(name[:200]) is not None


def without_secrets(text: str) -> str:
    """``text`` less user info, query and fragment of each URL in it, and less the
    values of secret headers.

    Only the first 64 KiB of it: an address that the end cuts is left out, as its user
    info could not be told.
    """
    if len(text) > _RAW_CHARS:
        text = _cut_before_url(text[:_RAW_CHARS])
    if "://" in text:
        text = _URL.sub(lambda found: "://" + _address(found[1]), text)
    if "?" in text:
        text = _BARE_QUERY.sub("", text)
    lowered = text.lower()
    if any(hint in lowered for hint in _HINTS):
        text = _SECRET_FIELD.sub(rf"\1\2 {REDACTED}", text)
    return text


def without_password(url: str) -> str:
    """The URL of a Redis less its password."""
    url = re.sub(r"(?<=[?&])password=[^&#]*&?", "", url, flags=re.IGNORECASE)
    match = re.fullmatch(r"([a-z+]+://)(.*)", url, re.DOTALL | re.IGNORECASE)
    if match is None:
        return url
    info, rest = split_user_info(match[2])
    user = info.partition(":")[0]
    return f"{match[1]}{user}@{rest}" if user else match[1] + rest


def split_user_info(text: str) -> tuple[str, str]:
    """Return the user info of a URL that has lost its scheme, and what follows it.

    Also where a password has a slash, question mark or hash that ought to be
    percent-encoded: then what ends the authority is no port, and the user info goes up
    to the last ``@``.
    """
    authority = re.split(r"[/?#]", text, maxsplit=1)[0]
    info, is_found, place = authority.rpartition("@")
    if is_found:
        return info, place + text[len(authority) :]
    port = (
        authority.rpartition(":")[2]
        if ":" in authority and not authority.startswith("[")
        else ""
    )
    if port and not _is_port(port):
        info, _, rest = text.rpartition("@")
        return info, rest
    return "", text


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 5 and int(text) < 65536


def _address(url: str) -> str:
    """Host and path of a URL that has lost its scheme."""
    return re.split(r"[?#]", split_user_info(url)[1], maxsplit=1)[0]


def _cut_before_url(text: str) -> str:
    head, scheme_end, rest = text.rpartition("://")
    return head if scheme_end and not re.search(r"\s", rest) else text
