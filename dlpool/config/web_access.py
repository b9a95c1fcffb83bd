"""Checks whether dlpool-web may start with its bind and auth settings.

Imports no third-party library.
"""

from __future__ import annotations

from pathlib import Path

from dlpool.config import WebSettings
from dlpool.config.keysfile import read_keys
from dlpool.config.web import is_loopback, split_words
from dlpool.errors import ConfigurationError
from dlpool.usertext import NotText, read_text

MIN_BYTES = {"secret_key": 16, "jwt_key": 32}  # HS256: RFC 7518, section 3.2


def check_web_access(web: WebSettings) -> None:
    """Check the bind and auth settings of dlpool-web.

    Raises ConfigurationError, with a line for each reason why dlpool-web must not
    start. Public keys are not checked, because the check needs a third-party library.
    """
    problems = [
        *_key_problems("secret_key", web.secret_key, web.secret_key_file),
        *_key_problems("jwt_key", web.jwt_key, web.jwt_key_file, web.jwt_algorithms),
    ]
    problems += _file_problems(web.keys_file)
    is_open = not is_loopback(web.bind)
    has_key = any(
        (
            web.secret_key,
            web.secret_key_file,
            web.jwt_key,
            web.jwt_key_file,
            web.jwks_url,
            web.keys_file,
        )
    )
    if is_open and web.auth == "off":
        problems.append(
            f"bind = {web.bind} can be reached by others, and auth = off: set auth = "
            f"auto and a key"
        )
    elif (is_open or web.auth == "on") and not has_key:
        reason = (
            f"bind = {web.bind} can be reached by others" if is_open else "auth = on"
        )
        problems.append(
            f"{reason}, and no key is given: set jwt_key_file or secret_key_file"
        )
    if problems:
        raise ConfigurationError("\n".join(f"[web] {problem}" for problem in problems))


def read_key(text: str | None, file: str | None) -> str | None:
    """Return a key from ``text`` or from ``file``; None if neither is set.

    Raises ConfigurationError for an empty or unreadable file.
    """
    if file is None:
        return text or None
    try:
        found = read_text(Path(file)).strip()
    except (OSError, NotText) as error:
        raise ConfigurationError(
            f"{file}: {getattr(error, 'strerror', None) or 'it is not UTF-8'}"
        ) from error
    if not found:
        raise ConfigurationError(f"{file}: it is empty")
    return found


def _file_problems(path: str | None) -> list[str]:
    """Return the problems of the file of named keys."""
    if path is None:
        return []
    try:
        return [f"keys_file = {problem}" for problem in read_keys(path).problems]
    except ConfigurationError as error:
        return [f"keys_file = {error}"]


def _key_problems(
    name: str, text: str | None, file: str | None, algorithms: str = "HS256"
) -> list[str]:
    """Return the problems of a key: an unreadable or empty file, or a short secret."""
    shown = name if file is None else f"{name}_file"
    try:
        key = read_key(text, file)
    except ConfigurationError as error:
        return [f"{shown} = {error}"]
    if (
        key is None
        or not split_words(algorithms)[0].startswith("HS")
        or len(key.encode()) >= MIN_BYTES[name]
    ):
        return []
    return [f"{shown} has fewer than {MIN_BYTES[name]} bytes: take a longer secret"]
