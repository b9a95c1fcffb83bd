"""Who may come in by dlpool-web: whether it would start with these settings, told without its libraries."""

from __future__ import annotations

import ipaddress
from pathlib import Path

from dlpool.config import WebSettings
from dlpool.config.web import words
from dlpool.errors import ConfigurationError

LEAST_BYTES = {"secret_key": 16, "jwt_key": 32}  # of HS algorithms; those of web/auth.py, as a test shows


def check_door(web: WebSettings) -> None:
    """Raise ConfigurationError, a line for each reason why dlpool-web would refuse to start.

    Whether a public key is one is not looked at: that takes a library.
    """
    problems = [*_key_problems("secret_key", web.secret_key, web.secret_key_file),
                *_key_problems("jwt_key", web.jwt_key, web.jwt_key_file, web.jwt_algorithms)]  # fmt: skip
    is_open = not _is_loopback(web.bind)
    has_key = any((web.secret_key, web.secret_key_file, web.jwt_key, web.jwt_key_file))
    if is_open and web.auth == "off":
        problems.append(f"bind = {web.bind} can be reached by others, and auth = off: set auth = auto and a key")
    elif (is_open or web.auth == "on") and not has_key:
        reason = f"bind = {web.bind} can be reached by others" if is_open else "auth = on"
        problems.append(f"{reason}, and no key is given: set jwt_key_file or secret_key_file")
    if problems:
        raise ConfigurationError("\n".join(f"[web] {problem}" for problem in problems))


def _key_problems(name: str, text: str | None, file: str | None, algorithms: str = "HS256") -> list[str]:
    """What is wrong with a key; nothing if there is none."""
    if file is not None:
        name = f"{name}_file"
        try:
            text = Path(file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            return [f"{name} = {file}: {getattr(error, 'strerror', None) or 'it is not UTF-8'}"]
        if not text:
            return [f"{name} = {file}: it is empty"]
    least = LEAST_BYTES[name.removesuffix("_file")]
    if not text or not words(algorithms)[0].startswith("HS") or len(text.encode()) >= least:
        return []
    return [f"{name} has fewer than {least} bytes: take a longer secret"]


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
