"""Parses forms with size limits: multipart/form-data (RFC 7578, streamed), urlencoded,
and JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol
from urllib.parse import parse_qsl

import multipart  # type: ignore[import-untyped]

from dlpool import jsontext
from dlpool.web.body import BrokenBody, RequestBody
from dlpool.web.errors import HttpError

MAX_PARTS = 16
MAX_HEADERS = 8  # of a part
MAX_HEADER = 4096  # bytes
MULTIPART = "multipart/form-data"
URLENCODED = "application/x-www-form-urlencoded"
JSON = "application/json"


class FileSink(Protocol):
    """Receives the bytes of a file."""

    def write(self, data: bytes, /) -> object:
        """Write bytes."""
        ...


SWITCHES = ("shared",)  # fields that may be true or false in JSON
_SWITCHES = {
    "true": True,
    "1": True,
    "yes": True,
    "": False,
    "false": False,
    "0": False,
    "no": False,
}
OpenFile = Callable[[dict[str, str]], FileSink]


class MultipartForm:
    """Reads a form with at most one file. Used by one thread.

    ``file_name``: the name of the file's field, None if the form has no file.
    ``open_file`` is called with the fields that precede the file, and returns the sink
    of the file. ``field_size``: the maximum number of bytes of all fields together,
    without the file. The constructor raises HttpError (400) for a ``content_type``
    without a valid boundary.
    """

    def __init__(
        self,
        content_type: str,
        field_size: int,
        file_name: str | None,
        open_file: OpenFile,
    ) -> None:
        self.fields: dict[str, str] = {}
        self.has_file = False
        self._left = field_size
        self._file_name = file_name
        self._open_file = open_file
        self._name = ""
        self._text = bytearray()
        self._sink: FileSink | None = None
        boundary = multipart.parse_options_header(content_type)[1].get("boundary", "")
        if not 1 <= len(boundary) <= 70:  # RFC 2046, section 5.1.1
            raise _bad("the Content-Type has no boundary of 1 to 70 characters")
        self._parser = multipart.PushMultipartParser(
            boundary,
            max_header_size=MAX_HEADER,
            max_header_count=MAX_HEADERS,
            max_segment_count=MAX_PARTS,
        )

    def read(self, body: RequestBody) -> dict[str, str]:
        """Read the form and return its fields without the file. Raises HttpError,
        BrokenBody, BodyTooSlow, and the errors of ``open_file`` and its sink."""
        try:
            for event in self._events(body):
                self._take(event)
            self._parser.close()
        except multipart.MultipartError as error:
            raise _bad(
                str(error.args[0]) if error.args else "not multipart/form-data"
            ) from error
        return self.fields

    def _events(
        self, body: RequestBody
    ) -> Iterator[multipart.MultipartSegment | bytes | bytearray | None]:
        for data in body.blocks():
            if not self._parser.closed:  # bytes after the last boundary are ignored
                yield from self._parser.parse(data)

    def _take(
        self, event: multipart.MultipartSegment | bytes | bytearray | None
    ) -> None:
        if isinstance(event, multipart.MultipartSegment):
            self._begin(event.name)
        elif event is None:
            self._end()
        elif self._sink is not None:
            self._sink.write(bytes(event) if isinstance(event, bytearray) else event)
        else:
            self._left -= len(event)
            if self._left < 0:
                raise HttpError(
                    413, "form_too_large", "the fields of the form are too long"
                )
            self._text += event

    def _begin(self, name: str) -> None:
        if name in self.fields or (name == self._file_name and self.has_file):
            raise _bad(f"the field {name[:100]!r} is repeated")
        self._name, self._sink = name, None
        if name == self._file_name:
            self.has_file = True
            self._sink = self._open_file(self.fields)

    def _end(self) -> None:
        if self._sink is None:
            self.fields[self._name] = _decoded(bytes(self._text), self._name)
        self._sink = None
        self._text.clear()


def read_fields(
    body: RequestBody, content_type: str, field_size: int
) -> dict[str, str]:
    """Read a form without files: multipart, urlencoded or JSON. Raises HttpError,
    BrokenBody, BodyTooSlow."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind == MULTIPART:
        return MultipartForm(content_type, field_size, None, _no_file).read(body)
    data = body.read_all()
    if kind == JSON:
        return json_fields(data)
    if kind in (URLENCODED, ""):
        return urlencoded_fields(_decoded(data, "the form"))
    raise HttpError(
        415,
        "unsupported_type",
        f"the Content-Type must be {JSON}, {URLENCODED} or {MULTIPART}",
    )


def urlencoded_fields(text: str) -> dict[str, str]:
    """Parse the fields of a query or form. Raises HttpError (400)."""
    fields: dict[str, str] = {}
    try:
        pairs = parse_qsl(
            text, keep_blank_values=True, errors="strict", max_num_fields=2 * MAX_PARTS
        )
    except UnicodeDecodeError as error:
        raise _bad("not UTF-8") from error
    except ValueError as error:
        raise _bad(str(error)) from error
    for name, value in pairs:
        if name in fields:
            raise _bad(f"the field {name[:100]!r} is repeated")
        fields[name] = value
    return fields


def json_fields(data: bytes) -> dict[str, str]:
    """Parse a JSON object of texts and numbers, with booleans in the fields
    ``SWITCHES``. Return the values as texts, without fields that are null. Raises
    HttpError (400)."""
    fields = {}
    given = json_object(data)
    if len(given) > 2 * MAX_PARTS:
        raise HttpError(
            400, "bad_json", f"the body has more than {2 * MAX_PARTS} fields"
        )
    for name, value in given.items():
        if isinstance(value, bool) and name in SWITCHES:
            fields[name] = str(value).lower()
            continue
        if isinstance(value, bool) or not isinstance(value, str | int | float | None):
            raise HttpError(
                400, "bad_field", f"{name[:100]!r} must be a text or a number"
            )
        if isinstance(value, float) and abs(value) >= 2**53:  # not exact
            raise HttpError(
                400,
                "bad_field",
                f"{name[:100]!r} is too large for a number: send it as a text",
            )
        if value is not None:
            fields[name] = str(value)
    return fields


def json_object(data: bytes) -> dict[str, Any]:
    """Parse a JSON object whose texts can be encoded in UTF-8. Raises HttpError
    (400)."""
    try:
        jsontext.check_bounds(data)
        found = jsontext.loads(data)
        json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise HttpError(
            400, "bad_json", "the body has a lone surrogate in a text"
        ) from error
    except (ValueError, RecursionError) as error:
        raise HttpError(400, "bad_json", f"the body is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise HttpError(400, "bad_json", "the body is not a JSON object")
    return found


def required_text(fields: dict[str, str], name: str) -> str:
    """Return a required field. Raises HttpError (400) if it is absent or empty."""
    if not fields.get(name):
        raise HttpError(400, "missing_field", f"the field {name} is missing")
    return fields[name]


def optional_number(fields: dict[str, str], name: str) -> int | None:
    """Return a field as a whole number, None if absent or empty. Raises HttpError
    (400) if it is invalid."""
    text = fields.get(name, "").strip()
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise HttpError(
            400,
            "bad_field",
            f"{name} is {text[:40]!r}: it must be a whole number, 0 or more",
        )
    return int(text)


def parse_switch(fields: Mapping[str, str], name: str) -> bool:
    """Return a field as a boolean: true for ``true``, ``1``, ``yes``; false for
    ``false``, ``0``, ``no``, empty, absent.

    Raises HttpError (400) for any other text.
    """
    text = fields.get(name, "").strip().lower()
    if text not in _SWITCHES:
        raise HttpError(
            400, "bad_field", f"{name} is {text[:40]!r}: it must be true or false"
        )
    return _SWITCHES[text]


def required_number(fields: dict[str, str], name: str) -> int:
    """Return a required field as a whole number. Raises HttpError (400) if it is
    absent, empty or invalid."""
    required_text(fields, name)
    number = optional_number(fields, name)
    if number is None:
        raise HttpError(400, "missing_field", f"the field {name} is missing")
    return number


def _no_file(_fields: dict[str, str]) -> FileSink:
    raise BrokenBody("unexpected file")


def _decoded(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _bad(f"{name[:100]} is not UTF-8") from error


def _bad(text: str) -> HttpError:
    return HttpError(400, "bad_form", f"invalid form: {text}")
