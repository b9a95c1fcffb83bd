"""The check of file types: which types are accepted. Pure.

The extension of the name and the first bytes of the file decide.
"""

from __future__ import annotations

from collections.abc import Set

from dlpool.config import UploadSettings
from dlpool.config.web import REFUSED, split_words
from dlpool.storage.errors import UploadError
from dlpool.storage.executables import EXECUTABLE, executable_types

_UNKNOWN = "application/octet-stream"
_TEXT = "text/plain"


def check_extension(settings: UploadSettings, filename: str) -> None:
    """Raise UploadError if ``allowed_extensions`` does not allow the extension."""
    endings = tuple(
        f".{word.lower().lstrip('.')}"
        for word in split_words(settings.allowed_extensions)
    )
    if endings and not filename.lower().endswith(endings):
        raise UploadError(
            "extension_not_allowed",
            f"only files that end in {', '.join(endings)} are accepted",
        )


def check_content(settings: UploadSettings, head: bytes) -> None:
    """Raise UploadError if ``allowed_content_types`` does not allow the content.

    ``head``: the first bytes of the file.
    """
    listed = [word.lower() for word in split_words(settings.allowed_content_types)]
    if not listed:
        return
    refused = {_normalized(word[1:]) for word in listed if word.startswith(REFUSED)}
    allowed = {_normalized(word) for word in listed if not word.startswith(REFUSED)}
    programs = executable_types(head)
    for kind in sorted(
        programs | (_all_types(head) if refused - {EXECUTABLE} else frozenset())
    ):
        if _is_listed(kind, refused) or (kind in programs and EXECUTABLE in refused):
            raise UploadError(
                "content_not_allowed", f"the content is {kind}, which is not accepted"
            )
    if allowed and not any(
        _is_listed(kind, allowed) for kind in detect_types(head) | programs
    ):
        names = ", ".join(word for word in listed if not word.startswith(REFUSED))
        raise UploadError(
            "content_not_allowed",
            f"the content has none of the accepted types: {names}",
        )


def detect_types(head: bytes) -> frozenset[str]:
    """Return the media types of a file with these first bytes.

    Returns several types if their signatures match equally well.
    """
    matches = _matches(head)
    best = max((confidence for _, confidence in matches), default=0.0)
    return frozenset(
        kind for kind, confidence in matches if confidence == best
    ) or _without_signature(head)


def _all_types(head: bytes) -> frozenset[str]:
    """Return all media types whose signatures match, even weakly."""
    return frozenset(kind for kind, _ in _matches(head)) or _without_signature(head)


def _matches(head: bytes) -> list[tuple[str, float]]:
    """Return the media types whose signatures match, each with its confidence."""
    import puremagic  # imported here because only servers with a list of types need it

    try:
        matches = puremagic.magic_string(head)
    except (puremagic.PureError, ValueError):
        return []
    return [(match.mime_type or _UNKNOWN, match.confidence) for match in matches]


def _without_signature(head: bytes) -> frozenset[str]:
    return frozenset({_TEXT} if _is_text(head) else {_UNKNOWN})


def _is_listed(kind: str, listed: Set[str]) -> bool:
    """Return whether a media type is listed, by name or as a group like ``image/*``."""
    name = _normalized(kind)
    return name in listed or f"{name.partition('/')[0]}/*" in listed


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # not a character that is cut off at the end
            return False
        text = head[: error.start].decode()
    return all(character.isprintable() or character in "\t\n\r\f" for character in text)


def _normalized(kind: str) -> str:
    """Return a media type in lower case, without the ``x-`` of unregistered names.

    For example, application/x-gzip becomes application/gzip.
    """
    return kind.lower().replace("/x-", "/")
