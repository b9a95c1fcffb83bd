"""Which kinds of files are taken: by the ending of the name, and by the first bytes."""

from __future__ import annotations

from collections.abc import Set

from dlpool.config import UploadSettings
from dlpool.config.web import REFUSED, split_words
from dlpool.storage.errors import UploadError
from dlpool.storage.executables import EXECUTABLE, executable_types

_UNKNOWN = "application/octet-stream"
_TEXT = "text/plain"


def check_extension(settings: UploadSettings, filename: str) -> None:
    """Raise Refusal (415) for an ending that is not on the list."""
    endings = tuple(
        f".{word.lower().lstrip('.')}"
        for word in split_words(settings.allowed_extensions)
    )
    if endings and not filename.lower().endswith(endings):
        raise UploadError(
            415,
            "extension_not_allowed",
            f"only files that end in {', '.join(endings)} are taken",
        )


def check_content(settings: UploadSettings, head: bytes) -> None:
    """Raise Refusal (415) for first bytes of a kind that is refused, or is not on the
    list."""
    listed = [word.lower() for word in split_words(settings.allowed_content_types)]
    if not listed:
        return
    refused = {_plain(word[1:]) for word in listed if word.startswith(REFUSED)}
    allowed = {_plain(word) for word in listed if not word.startswith(REFUSED)}
    programs = executable_types(head)
    for kind in sorted(
        programs | (_all_kinds(head) if refused - {EXECUTABLE} else frozenset())
    ):
        if _is_listed(kind, refused) or (kind in programs and EXECUTABLE in refused):
            raise UploadError(
                415, "content_not_allowed", f"the content is {kind}, which is not taken"
            )
    if allowed and not any(
        _is_listed(kind, allowed) for kind in detect_types(head) | programs
    ):
        names = ", ".join(word for word in listed if not word.startswith(REFUSED))
        raise UploadError(
            415,
            "content_not_allowed",
            f"the content is of another kind than what is taken: {names}",
        )


def detect_types(head: bytes) -> frozenset[str]:
    """The media types that the first bytes of a file tell; several where their
    signatures are equal."""
    matches = _matches(head)
    best = max((confidence for _, confidence in matches), default=0.0)
    return frozenset(
        kind for kind, confidence in matches if confidence == best
    ) or _without_signature(head)


def _all_kinds(head: bytes) -> frozenset[str]:
    """The media types that the first bytes may be of, however weak the signature is: a
    file may have several."""
    return frozenset(kind for kind, _ in _matches(head)) or _without_signature(head)


def _matches(head: bytes) -> list[tuple[str, float]]:
    """The media types whose signatures the first bytes have, and how certain each
    is."""
    import puremagic  # only who sets a list needs it

    try:
        matches = puremagic.magic_string(head)
    except (puremagic.PureError, ValueError):
        return []
    return [(match.mime_type or _UNKNOWN, match.confidence) for match in matches]


def _without_signature(head: bytes) -> frozenset[str]:
    return frozenset({_TEXT} if _is_text(head) else {_UNKNOWN})


def _is_listed(kind: str, listed: Set[str]) -> bool:
    """Return whether a media type is on a list, by its name or as ``image/*``."""
    name = _plain(kind)
    return name in listed or f"{name.partition('/')[0]}/*" in listed


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # no character that the end has cut
            return False
        text = head[: error.start].decode()
    return all(character.isprintable() or character in "\t\n\r\f" for character in text)


def _plain(kind: str) -> str:
    """Without what tells a registered type from an older name of the same:
    application/x-gzip, application/gzip."""
    return kind.lower().replace("/x-", "/")
