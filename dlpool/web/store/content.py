"""Which kinds of files are taken: by the ending of the name, and by the first bytes."""

from __future__ import annotations

from dlpool.config import UploadSettings
from dlpool.config.web import words
from dlpool.web.refusal import Refusal

_UNKNOWN = "application/octet-stream"
_TEXT = "text/plain"


def check_name(settings: UploadSettings, filename: str) -> None:
    """Raise Refusal (415) for an ending that is not on the list."""
    endings = tuple(f".{word.lower().lstrip('.')}" for word in words(settings.allowed_extensions))
    if endings and not filename.lower().endswith(endings):
        raise Refusal(415, "extension_not_allowed", f"only files that end in {', '.join(endings)} are taken")


def check_head(settings: UploadSettings, head: bytes) -> None:
    """Raise Refusal (415) for first bytes of a kind that is not on the list."""
    allowed = {_plain(word) for word in words(settings.allowed_content_types)}
    if allowed and not allowed & {_plain(kind) for kind in kinds_of(head)}:
        names = settings.allowed_content_types
        raise Refusal(415, "content_not_allowed", f"the content is of another kind than what is taken: {names}")


def kinds_of(head: bytes) -> set[str]:
    """The media types that the first bytes of a file tell; several where their signatures are equal."""
    import puremagic  # only who sets a list needs it

    try:
        matches = puremagic.magic_string(head)
    except (puremagic.PureError, ValueError):
        return {_TEXT} if _is_text(head) else {_UNKNOWN}
    best = max(match.confidence for match in matches)
    return {match.mime_type or _UNKNOWN for match in matches if match.confidence == best}


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # no character that the end has cut
            return False
        text = head[: error.start].decode()
    return all(character.isprintable() or character in "\t\n\r\f" for character in text)


def _plain(kind: str) -> str:
    """Without what tells a registered type from an older name of the same: application/x-gzip, application/gzip."""
    return kind.lower().replace("/x-", "/")
