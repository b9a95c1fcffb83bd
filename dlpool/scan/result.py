"""The result of a scan, and how it is read from the answer of clamd. Pure."""

from __future__ import annotations

from dlpool.dataclass import dataclass

MAX_DETAIL = 200  # characters of a signature or reason
CLEAN, INFECTED = "clean", "infected"
TOO_LARGE = "too_large"  # the scanner never accepts a file of this size
# the scanner gave no usable answer; a retry may succeed
UNAVAILABLE = "unavailable"
# not malware: clamd with AlertExceedsMax has not scanned the complete file
LIMITS = "Heuristics.Limits.Exceeded"
_FOUND, _ERROR = " FOUND", " ERROR"


@dataclass(frozen=True)
class ScanResult:
    """The result of a scan.

    ``outcome`` is ``CLEAN``, ``INFECTED``, ``TOO_LARGE`` or ``UNAVAILABLE``. ``detail``
    is the signature of an infected file, or the reason why a file was not scanned.
    """

    outcome: str
    detail: str = ""


def read_answer(answer: bytes, *, is_complete: bool) -> ScanResult:
    """Return the result that clamd's answer to INSTREAM means, see clamd(8).

    An unknown answer is ``UNAVAILABLE``. ``is_complete``: the complete file was sent
    before the answer arrived; otherwise "OK" is not trusted.
    """
    text = answer.decode("utf-8", "replace")
    if not text.endswith("\0") or "\0" in text[:-1]:
        return _unavailable(text.rstrip("\0"))
    text = text[:-1]
    if text.startswith("stream: ") and text.endswith(_FOUND):
        return infected_result(text[len("stream: ") : -len(_FOUND)])
    if text == "INSTREAM size limit exceeded. ERROR":
        return ScanResult(TOO_LARGE, "it is larger than the scanner's StreamMaxLength")
    if text == "stream: OK" and is_complete:
        return ScanResult(CLEAN)
    return _unavailable(text)


def infected_result(signature: str) -> ScanResult:
    """Return the result for a file that matches a signature.

    The result is ``TOO_LARGE`` if the signature only reports a limit of the scanner.
    """
    name = printable_line(signature) or "unnamed"
    if name.startswith(LIMITS):
        return ScanResult(TOO_LARGE, f"it is above a limit of the scanner ({name})")
    return ScanResult(INFECTED, name)


def printable_line(text: str) -> str:
    """Return the output of another program as one line of at most ``MAX_DETAIL``
    printable characters."""
    line = " ".join(text[: 4 * MAX_DETAIL].split())[:MAX_DETAIL]
    return "".join(letter if letter.isprintable() else "?" for letter in line)


def _unavailable(text: str) -> ScanResult:
    answer = printable_line(text)
    return ScanResult(
        UNAVAILABLE,
        f"it answered {answer!r}"
        if answer
        else "it closed the connection without an answer",
    )
