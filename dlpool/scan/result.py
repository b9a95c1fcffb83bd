"""What a scanner says of a file. Pure."""

from __future__ import annotations

from dataclasses import dataclass

MAX_DETAIL = 200  # characters of a signature or reason
CLEAN, INFECTED = "clean", "infected"
TOO_LARGE = "too_large"  # the scanner does not check a file of this size, now or later
# the scanner gave no answer that can be used; another try may get one
UNAVAILABLE = "unavailable"
# not malware: clamd with AlertExceedsMax has not looked at all of the file
LIMITS = "Heuristics.Limits.Exceeded"
_FOUND, _ERROR = " FOUND", " ERROR"


@dataclass(frozen=True)
class ScanResult:
    """``outcome`` is one of the constants; ``detail`` the signature of an infected
    file, else the reason in words."""

    outcome: str
    detail: str = ""


def read_answer(answer: bytes, *, is_complete: bool) -> ScanResult:
    """Return what clamd's answer to INSTREAM means (clamd(8)): an answer in any other
    form is none.

    ``is_complete``: the scanner had received all of the file when it answered. Before
    that it cannot know that the file is clean.
    """
    text = answer.decode("utf-8", "replace")
    if not text.endswith("\0") or "\0" in text[:-1]:
        return _unusable(text.rstrip("\0"))
    text = text[:-1]
    if text.startswith("stream: ") and text.endswith(_FOUND):
        return infected_result(text[len("stream: ") : -len(_FOUND)])
    if text == "INSTREAM size limit exceeded. ERROR":
        return ScanResult(TOO_LARGE, "it is larger than the scanner's StreamMaxLength")
    if text == "stream: OK" and is_complete:
        return ScanResult(CLEAN)
    return _unusable(text)


def infected_result(signature: str) -> ScanResult:
    """Return the verdict on a file that matches a signature."""
    name = printable_line(signature) or "unnamed"
    if name.startswith(LIMITS):
        return ScanResult(TOO_LARGE, f"it is above a limit of the scanner ({name})")
    return ScanResult(INFECTED, name)


def printable_line(text: str) -> str:
    """Return the text of a foreign program as one line of printable characters."""
    head = " ".join(text[: 4 * MAX_DETAIL].split())[:MAX_DETAIL]
    return "".join(letter if letter.isprintable() else "?" for letter in head)


def _unusable(text: str) -> ScanResult:
    said = printable_line(text)
    return ScanResult(
        UNAVAILABLE,
        f"it answered {said!r}"
        if said
        else "it closed the connection without an answer",
    )
