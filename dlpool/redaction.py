"""The removal of secrets from text before it is logged: by field name, in URLs and
headers.

Pure.
"""

from __future__ import annotations

import re
from functools import lru_cache

REDACTED = "[redacted]"
_RAW_CHARS = 64 * 1024  # further characters of a text are dropped

# These two patterns are compiled when they are used: most programs start without.
# The name of a secret field contains one of these: a header, a setting, a JSON member.
_SECRET_WORDS = (
    r"passw|passphrase|pwd|authori[sz]ation|cookie|token|secret|credential|signature"
    r"|(?:api|access|account|customer|functions?|master|private|shared|subscription)"
    r"[-_ ]?key"
    r"|(?:^|[-_ ])auth(?:$|[-_ ])"
)
_URL = re.compile(r"://(\S*)")
# urllib3 messages contain "url: /path?query"
_BARE_QUERY = re.compile(r"(?<=\S)\?[^\s?=\"'<>]{1,200}=\S*")
# Secret header fields in a text, with their values up to the end of the line.
_SECRET_FIELD = (
    r"(?<![\w./-])((?:proxy-|x-)?authorization|(?:set-)?cookie2?|api_?key"
    r"|(?:[a-z0-9]{1,20}-){1,8}(?:auth|credentials?|key|passphrase|password|secret|signature|token)(?:-[a-z0-9]{1,20}){0,3}"
    r"|(?:access|api|auth|job|password|private|secret|token)-[a-z0-9]{1,20})([\"']?\s{0,8}[:=])[^\r\n]*"
)
# A text without any of these has no secret header field; this test is fast.
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
    """Return whether the value of a field named ``name`` must not be shown."""
    return re.search(_SECRET_WORDS, name[:200], re.IGNORECASE) is not None


def without_secrets(text: str) -> str:
    """Return ``text`` without secrets in its URLs and header lines.

    URLs lose user info, query and fragment; secret headers lose their values. Text
    beyond the first 64 KiB is dropped. A URL that this limit would cut is dropped
    completely, because user info in its first part cannot be recognized.
    """
    if len(text) > _RAW_CHARS:
        text = _cut_before_url(text[:_RAW_CHARS])
    if "://" in text:
        text = _URL.sub(lambda found: "://" + _address(found[1]), text)
    if "?" in text:
        text = _BARE_QUERY.sub("", text)
    lowered = text.lower()
    if any(hint in lowered for hint in _HINTS):
        text = re.sub(_SECRET_FIELD, rf"\1\2 {REDACTED}", text, flags=re.IGNORECASE)
    return text


def without_password(url: str) -> str:
    """Return a Redis URL without its password."""
    url = re.sub(r"(?<=[?&])password=[^&#]*&?", "", url, flags=re.IGNORECASE)
    match = re.fullmatch(r"([a-z+]+://)(.*)", url, re.DOTALL | re.IGNORECASE)
    if match is None:
        return url
    info, rest = split_user_info(match[2])
    user = info.partition(":")[0]
    return f"{match[1]}{user}@{rest}" if user else match[1] + rest


def split_user_info(text: str) -> tuple[str, str]:
    """Split a URL without its scheme into user info and the rest.

    A password may contain an unencoded slash, question mark or hash sign. If the text
    before the first of these characters has no ``@`` and ends in an invalid port, the
    user info extends to the last ``@`` of ``text``.
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
    """Return host and path; ``url`` is a URL whose scheme has been removed."""
    return re.split(r"[?#]", split_user_info(url)[1], maxsplit=1)[0]


def _cut_before_url(text: str) -> str:
    head, scheme_end, rest = text.rpartition("://")
    return head if scheme_end and not re.search(r"\s", rest) else text
