"""The items of ``dlpool fetch``: one URL, or the lines of a list."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dlpool.dataclass import dataclass
from dlpool.engine.batch import BatchItem, ListUnreadable
from dlpool.errors import DlpoolError, UsageError
from dlpool.transfer.http.urls import check_header, split_credentials
from dlpool.transfer.job import Checksum, Job
from dlpool.transfer.target.names import encoded_in_utf8
from dlpool.usertext import NotText

_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_SPACE = " \t\n\v\f\r"  # ASCII only: a name may end in another space character
_JSON_FIELDS = {"url", "path", "checksum", "headers"}


@dataclass(frozen=True)
class ItemDefaults:
    """The values that all items of a command share.

    Relative target paths are resolved against ``folder``. An item without a path is
    saved in ``folder``.
    """

    folder: Path
    headers: Mapping[str, str]
    user: tuple[str, str] | None
    checksum: Checksum | None


def single_item(url: str, path: str | None, defaults: ItemDefaults) -> BatchItem:
    """Return the item of ``dlpool fetch URL [PATH]``. Raises UsageError."""
    if path == "-":
        raise UsageError(
            "dlpool writes files, not standard output: name a file instead of -"
        )
    refuse_url(path)
    return BatchItem(url, _job(url, path, defaults))


def items_from_lines(
    lines: Iterable[str], defaults: ItemDefaults, name: str = "the list"
) -> Iterator[BatchItem]:
    """Yield the items of a list, one per line; skip empty lines and ``#`` comments.

    A line is read only when its item is requested. ``name`` is the name of the list.
    The item of an invalid line has a UsageError. If the list is not text, the last item
    has the error ListUnreadable.
    """
    number = 0
    try:
        for number, line in enumerate(lines, 1):
            text = line.strip(_SPACE)
            if not text or text.startswith("#"):
                continue
            try:
                url, path, own_headers = _parsed(text, defaults)
                yield BatchItem(
                    url,
                    _job(url, None if path is None else _in_utf8(path), own_headers),
                    line=number,
                )
            except NotText:
                raise
            except DlpoolError as error:
                yield BatchItem(
                    "", None, UsageError(f"line {number}: {error}"), line=number
                )
    except NotText as error:
        yield BatchItem(
            "", None, ListUnreadable(f"cannot read {name}: {error}"), line=number + 1
        )


def parse_header(text: str) -> tuple[str, str]:
    """Return the name and the value of ``NAME: VALUE``. Raises UsageError."""
    name, colon, value = text.partition(":")
    if not colon:
        raise UsageError("a header is not of the form 'Name: value'")
    return _header(name.strip(), value.strip())


def refuse_url(path: str | None) -> None:
    """Raise UsageError for a PATH that looks like a URL."""
    if path is not None and _URL.match(path):
        raise UsageError("PATH looks like a URL; several URLs go into a list: -i FILE")


def _header(name: str, value: str) -> tuple[str, str]:
    if not _HEADER.fullmatch(name) or re.search(r"[\x00-\x08\x0a-\x1f\x7f]", value):
        raise UsageError(f"header {name[:40]!r} is not of the form 'Name: value'")
    check_header(name, value)
    return name, value


def _in_utf8(path: str) -> str:
    try:
        return encoded_in_utf8(path)
    except UnicodeEncodeError as error:
        raise UsageError(
            "the path has characters that no file name can contain"
        ) from error


def _job(url: str, path: str | None, defaults: ItemDefaults) -> Job:
    target = defaults.folder if path is None else defaults.folder / path
    is_folder = path is None or path.endswith("/") or os.path.isdir(target)
    split_credentials(url)
    try:
        if b"\0" in os.fsencode(target):
            raise UsageError("the path holds a NUL character")
    except UnicodeEncodeError as error:
        raise UsageError(
            "the path has characters that no file name can contain"
        ) from error
    return Job(
        url, target, is_folder, defaults.headers, defaults.user, defaults.checksum
    )


def _parsed(text: str, defaults: ItemDefaults) -> tuple[str, str | None, ItemDefaults]:
    if not text.startswith("{"):
        url, *rest = re.split(f"[{_SPACE}]+", text, maxsplit=1)
        if not url.isascii() and any("\udc80" <= letter <= "\udcff" for letter in url):
            raise UsageError(
                "the URL is not UTF-8: save the list in that encoding, or "
                "percent-encode the bytes"
            )
        path = rest[0] if rest else None
        refuse_url(path)
        return url, path, defaults
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"it is not JSON ({error})") from error
    return _from_json(fields, defaults)


def _from_json(
    fields: dict[str, Any], defaults: ItemDefaults
) -> tuple[str, str | None, ItemDefaults]:
    unknown = ", ".join(sorted(fields.keys() - _JSON_FIELDS))
    if unknown:
        raise UsageError(
            f"unknown field {unknown}; known are {', '.join(sorted(_JSON_FIELDS))}"
        )
    for name in ("url", "path", "checksum"):
        if not isinstance(fields.get(name), str | None):
            raise UsageError(f"{name} is not text")
    headers = {} if fields.get("headers") is None else fields["headers"]
    if not isinstance(headers, dict) or not all(
        isinstance(value, str) for value in headers.values()
    ):
        raise UsageError("headers is not an object of texts")
    if not fields.get("url"):
        raise UsageError("url is missing")
    own_headers = dict(_header(name, value) for name, value in headers.items())
    checksum = (
        Checksum.parse(fields["checksum"])
        if fields.get("checksum") is not None
        else defaults.checksum
    )
    return (
        fields["url"],
        fields.get("path"),
        ItemDefaults(
            defaults.folder,
            {**defaults.headers, **own_headers},
            defaults.user,
            checksum,
        ),
    )
