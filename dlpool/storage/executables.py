"""Detect programs and scripts by the first bytes of a file. Pure.

The same bytes may start files of several formats: the result contains all of these
formats. Callers use the result to refuse files, so a doubtful case counts as a program.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

EXECUTABLE = "executable"  # in the settings: all these types
HEAD_SIZE = 4096  # bytes from which the type is detected
ELF, MACH_O = "application/x-elf", "application/x-mach-binary"
PE, DOS = "application/vnd.microsoft.portable-executable", "application/x-dosexec"
JAVA, DEX, WASM, SCRIPT = (
    "application/java-vm",
    "application/x-dex",
    "application/wasm",
    "text/x-script",
)
SHORTCUT = "application/x-ms-shortcut"

_PREFIXES: Mapping[bytes, str] = {
    b"\x7fELF": ELF,
    b"\xfe\xed\xfa\xce": MACH_O,  # mach-o/loader.h, both byte orders, 32 and 64 bits
    b"\xce\xfa\xed\xfe": MACH_O,
    b"\xfe\xed\xfa\xcf": MACH_O,
    b"\xcf\xfa\xed\xfe": MACH_O,
    b"\xbe\xba\xfe\xca": MACH_O,  # mach-o/fat.h
    b"\xca\xfe\xba\xbf": MACH_O,
    b"\xbf\xba\xfe\xca": MACH_O,
    b"dex\n": DEX,
    b"\0asm": WASM,
    b"L\0\0\0\x01\x14\x02\0\0\0\0\0\xc0\0\0\0\0\0\0F": SHORTCUT,
}
_FAT = b"\xca\xfe\xba\xbe"  # a Mach-O file for several machines, or a Java class
_JAVA_MAJOR = 45  # the lowest class version; no Mach-O file is for that many machines
_SCRIPTS = (
    b"#!",
    b"<?php",
    b"<?=",
    b"<%",
    b"<script",
    b"@echo",
    b"@rem",
    b"@setlocal",
    b"<job",
    b"<package",
    b"<hta:",
)
_MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")


def executable_types(head: bytes) -> frozenset[str]:
    """Return the program types that a file with these first bytes may have.

    Empty for other files.
    """
    found = {kind for prefix, kind in _PREFIXES.items() if head.startswith(prefix)}
    if head.startswith(_FAT):
        count = int.from_bytes(head[4:8], "big")
        found.add(MACH_O if count < _JAVA_MAJOR else JAVA)
    if head[:2] in (b"MZ", b"ZM") and not _is_short_text(head):
        found.add(PE if _has_pe_header(head) else DOS)
    if _is_script(head):
        found.add(SCRIPT)
    return frozenset(found)


def _has_pe_header(head: bytes) -> bool:
    """Return whether the DOS header points to a PE header.

    Returns True if the DOS header points beyond the given bytes.
    """
    if len(head) < 64:
        return False
    (offset,) = struct.unpack_from("<I", head, 60)
    return bool(head[offset : offset + 4] == b"PE\0\0" or offset + 4 > len(head))


def _is_short_text(head: bytes) -> bool:
    """Return whether the bytes are a complete ASCII text, shorter than 4 KiB.

    A text that starts with ``MZ`` is not a program: as a DOS header it would point
    beyond the end of the file.
    """
    return len(head) < HEAD_SIZE and all(
        byte in b"\t\n\r\f" or 32 <= byte < 127 for byte in head
    )


def _is_script(head: bytes) -> bool:
    """Return whether the bytes are the beginning of a script.

    A byte order mark, white space and case are ignored.
    """
    mark = next((mark for mark in _MARKS if head.startswith(mark)), b"")
    text = head[len(mark) :]
    if text[1:4:2] == b"\0\0" or text[0:3:2] == b"\0\0":  # UTF-16
        text = text.replace(b"\0", b"")
    return text.lstrip(b" \t\r\n\f\v").lower().startswith(_SCRIPTS)
