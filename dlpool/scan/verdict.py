"""What a scanner says of a file. Pure."""

from __future__ import annotations

from dataclasses import dataclass

MAX_DETAIL = 200  # characters of a signature or reason
CLEAN, INFECTED = "clean", "infected"
TOO_LARGE = "too_large"  # the scanner does not check a file of this size, now or later
UNAVAILABLE = "unavailable"  # the scanner gave no answer that can be used; another try may get one
LIMITS = "Heuristics.Limits.Exceeded"  # not malware: clamd with AlertExceedsMax has not looked at all of the file
_FOUND, _ERROR = " FOUND", " ERROR"


@dataclass(frozen=True)
class Verdict:
    """``outcome`` is one of the constants; ``detail`` the signature of an infected file, else the reason in words."""

    outcome: str
    detail: str = ""


def read_answer(answer: bytes, *, is_complete: bool) -> Verdict:
    """Return what clamd's answer to INSTREAM means (clamd(8)): an answer in any other form is none.

    ``is_complete``: the scanner had received all of the file when it answered. Before that it cannot know that the
    file is clean.
    """
    text = answer.decode("utf-8", "replace")
    if not text.endswith("\0") or "\0" in text[:-1]:
        return _unusable(text.rstrip("\0"))
    text = text[:-1]
    if text.startswith("stream: ") and text.endswith(_FOUND):
        return found(text[len("stream: ") : -len(_FOUND)])
    if text == "INSTREAM size limit exceeded. ERROR":
        return Verdict(TOO_LARGE, "it is larger than the scanner's StreamMaxLength")
    if text == "stream: OK" and is_complete:
        return Verdict(CLEAN)
    return _unusable(text)


def found(signature: str) -> Verdict:
    """Return the verdict on a file that matches a signature."""
    name = plain(signature) or "unnamed"
    if name.startswith(LIMITS):
        return Verdict(TOO_LARGE, f"it is above a limit of the scanner ({name})")
    return Verdict(INFECTED, name)


def plain(text: str) -> str:
    """Return the text of a foreign program as one line of printable characters."""
    head = " ".join(text[: 4 * MAX_DETAIL].split())[:MAX_DETAIL]
    return "".join(letter if letter.isprintable() else "?" for letter in head)


def _unusable(text: str) -> Verdict:
    said = plain(text)
    return Verdict(UNAVAILABLE, f"it answered {said!r}" if said else "it closed the connection without an answer")
