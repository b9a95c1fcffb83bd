"""Header fields of a response: parsing, and access by name."""

from __future__ import annotations

import email.parser
import http.client
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO

MAX_HEADER_BYTES = 64 * 1024
MAX_FIELDS = 100
CUT_HEADER = "the connection ended within the header"

# RFC 9112 section 5. The spaces around a value are stripped afterwards: to match them
# here takes quadratic time.
_FIELD = re.compile(r"^([!#$%&'*+.^_`|~0-9A-Za-z-]+):([^\r\n]*)\r?\n", re.MULTILINE)
# The same with spaces before the colon, which section 5.1 tells a recipient to remove.
_LENIENT_FIELD = re.compile(
    r"^([!#$%&'*+.^_`|~0-9A-Za-z-]+)[ \t]*:([^\r\n]*)\r?\n", re.MULTILINE
)
# fields that occur once
_SINGLE = {
    "content-length",
    "content-range",
    "content-type",
    "date",
    "etag",
    "last-modified",
    "location",
    "retry-after",
}
_FOLD = re.compile(r"\r?\n[ \t]+")


class HeaderFields(Mapping[str, str]):
    """Header fields with case-insensitive names.

    Repeated fields are joined as one list (RFC 9110 section 5.3). A field such as
    ``Content-Length`` is not a list: equal values, which a proxy has repeated, count
    once.
    """

    def __init__(self, fields: Iterable[tuple[str, str]]) -> None:
        self._values = values = dict[str, list[str]]()
        for given, value in fields:
            name = given.lower()
            if name in values:
                values[name].append(value)
            else:
                values[name] = [value]

    def __getitem__(self, name: str) -> str:
        return _join_values(name.lower(), self._values[name.lower()])

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def get(self, name: str, default: Any = None) -> Any:
        values = self._values.get(name.lower())
        return (
            default
            if values is None
            else values[0]
            if len(values) == 1
            else _join_values(name.lower(), values)
        )

    def get_all(self, name: str, default: Any = None) -> Any:
        """Return the values of a repeated field as a list; cookies need this."""
        return self._values.get(name.lower(), default)


def _join_values(name: str, values: list[str]) -> str:
    return ", ".join(dict.fromkeys(values) if name in _SINGLE else values)


def read_fields(lines: BinaryIO, *, is_lenient: bool = False) -> HeaderFields:
    """Read the header fields up to the empty line.

    The e-mail parser treats the first line that is not a field as the end of the
    header. With ``is_lenient`` such a line is skipped, as browsers do, and the fields
    after it are read. They may contain the length or the coding of the body, which is
    needed to detect a truncated body. Raises HTTPException for too many fields or a
    truncated header.
    """
    read: list[bytes] = []
    while (line := lines.readline(MAX_HEADER_BYTES + 1)) not in (b"\r\n", b"\n"):
        if not line:
            raise http.client.RemoteDisconnected(CUT_HEADER)
        read.append(line)
        if len(read) > MAX_FIELDS:
            raise http.client.HTTPException(
                f"the header has more than {MAX_FIELDS} fields"
            )
    text = b"".join(read).decode("iso-8859-1")
    fields = _parse_fields(_FIELD, text)
    if len(fields) != len(read):  # folded, without a name, with a stray CR
        parser = email.parser.Parser(_class=http.client.HTTPMessage)
        parsed = parser.parsestr(text, headersonly=True)
        fields = [
            (name, _FOLD.sub(" ", value).rstrip(" \t"))
            for name, value in parsed.items()
        ]
        if is_lenient:
            fields += _parse_fields(_LENIENT_FIELD, str(parsed.get_payload()))
    return HeaderFields(fields)


def parse_usual_fields(text: str) -> list[tuple[str, str]]:
    """Return the fields of a header; leave out lines not of the form ``NAME:VALUE``."""
    return _parse_fields(_FIELD, text)


def _parse_fields(form: re.Pattern[str], text: str) -> list[tuple[str, str]]:
    return [(name, value.strip(" \t")) for name, value in form.findall(text)]
