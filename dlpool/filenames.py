"""The one policy of file names that others choose: origins, job pushers, clients of
uploads. Pure.

A name must be what it looks like on every system that a file may get to. Names that
dlpool derives from what a server or a URL says are made so by ``clean_file_name``;
names that a job or an upload gives are refused by ``name_fault``; names on a user's own
command line and in a user's own list are taken as they are.
"""

from __future__ import annotations

import re

from dlpool.usertext import UNSAFE

MAX_BYTES = 255  # of one name, in UTF-8: NAME_MAX of Linux file systems
# Characters that nobody sees (Unicode: Default_Ignorable_Code_Point), but for those
# that writing systems and emoji need: joiners (U+200C, U+200D) and variation selectors.
_INVISIBLE = "\xad\u034f\u115f\u1160\u17b4\u17b5\u180e\u200b\u2060-\u2065\u3164\ufeff\uffa0\ufff0-\ufff8"
HIDDEN = UNSAFE + _INVISIBLE  # as of a character class of re
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_HIDDEN = re.compile(f"[{HIDDEN}]")
_SURROGATE = re.compile("[\ud800-\udfff]")
# Devices of Windows, with any ending (Naming Files, Paths, and Namespaces; the
# superscript digits count there, too).
_DEVICE = re.compile(
    r"(CON|PRN|AUX|NUL|CONIN\$|CONOUT\$|(COM|LPT)[0-9\xb9\xb2\xb3]) *(\..*)?",
    re.IGNORECASE | re.DOTALL,
)


def name_fault(name: str) -> str:
    """Return what is wrong with one name, as a phrase that continues "it ...", "" if
    nothing is.

    Surrogates, as in names that are not UTF-8, are no fault here; nor are separators,
    ``.`` and ``..``.
    """
    if _CONTROL.search(name):
        return "has control characters"
    if _HIDDEN.search(_SURROGATE.sub("", name)):
        return "has characters that cannot be seen or that turn the direction of text"
    if name.endswith((".", " ")):
        return "ends in a dot or a space, which some systems drop"
    if _DEVICE.fullmatch(name):
        return "is the name of a device on Windows"
    if len(name.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        return f"is longer than {MAX_BYTES} bytes"
    return ""


def clean_file_name(name: str) -> str:
    """Return ``name`` without what ``name_fault`` finds, and without surrogates. It may
    be empty, or too long."""
    base = _HIDDEN.sub("", name).rstrip(". ")
    return f"_{base}" if _DEVICE.fullmatch(base) else base
