"""The rules for file names from origin servers, pushed jobs and upload clients. Pure.

A name must not be displayed or interpreted as another name on any system to which the
file may be copied. ``clean_file_name`` cleans a name from a server's header or a URL. A
name in a job or upload is rejected if ``name_fault`` finds a fault. Names in a user's
own command line or list are used unchanged.
"""

from __future__ import annotations

import re

from dlpool.usertext import UNSAFE

MAX_BYTES = 255  # of one name, in UTF-8: NAME_MAX of Linux file systems
# Invisible characters (Unicode: Default_Ignorable_Code_Point), except those that
# writing systems and emoji need: joiners (U+200C, U+200D) and variation selectors.
_INVISIBLE = (
    "\xad\u034f\u115f\u1160\u17b4\u17b5\u180e\u200b\u2060-\u2065\u3164\ufeff\uffa0"
    "\ufff0-\ufff8"
)
HIDDEN = UNSAFE + _INVISIBLE  # for a character class of re
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_HIDDEN = re.compile(f"[{HIDDEN}]")
_SURROGATE = re.compile("[\ud800-\udfff]")
# Device names of Windows, with any suffix (Naming Files, Paths, and Namespaces; the
# superscript digits are device numbers, too).
_DEVICE = re.compile(
    r"(CON|PRN|AUX|NUL|CONIN\$|CONOUT\$|(COM|LPT)[0-9\xb9\xb2\xb3]) *(\..*)?",
    re.IGNORECASE | re.DOTALL,
)


def name_fault(name: str) -> str:
    """Return what is wrong with a file name; ``""`` if the name is valid.

    The text completes a sentence that begins with "it". Surrogates, as in names that
    are not UTF-8, are accepted. Separators are not checked.
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
    """Return ``name`` without the characters and endings that ``name_fault`` rejects.

    Also removes surrogates. A device name of Windows gets the prefix ``_``. The result
    may be empty or too long.
    """
    base = _HIDDEN.sub("", name).rstrip(". ")
    return f"_{base}" if _DEVICE.fullmatch(base) else base
