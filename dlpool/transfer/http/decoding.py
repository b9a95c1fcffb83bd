"""Decode content codings of response bodies (RFC 9110 section 8.4.1).

Every request asks for ``identity``. If the server applies a coding nevertheless, the
body is not the file. The body is then requested as one stream and decoded in blocks,
with bounded memory. Exception: if the name or the media type shows that the encoded
file is meant, as with ``backup.tar.gz``, the body is stored as it is.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from enum import Enum
from urllib.parse import unquote, urlsplit

from dlpool.errors import BadAnswer, PolicyRefused, ProtocolBroken, ShortBody
from dlpool.transfer.http.answer import Answer
from dlpool.transfer.http.remote_resource import RemoteResource
from dlpool.transfer.http.source import Reply

BLOCK = 64 * 1024  # bytes of the encoded body that one step decodes
MAX_CODINGS = 4  # applied in sequence

_ALIASES = {"x-gzip": "gzip", "x-compress": "compress"}
# Values that servers send although they name no coding: the body is not encoded.
_NO_CODINGS = {
    "",
    "identity",
    "none",
    "binary",
    "7bit",
    "8bit",
    "utf-8",
    "utf8",
    "us-ascii",
    "iso-8859-1",
    "aws-chunked",
}
_NAMES = {
    "gzip": (".gz", ".tgz", ".taz", ".svgz", ".gzip", ".vgz"),
    "deflate": (".zz", ".zlib"),
    "compress": (".z",),
    "br": (".br",),
    "zstd": (".zst", ".tzst"),
}
_TYPES = {
    "gzip": {
        "application/gzip",
        "application/x-gzip",
        "application/gzip-compressed",
        "application/gzipped",
        "application/x-gunzip",
        "application/x-gzip-compressed",
        "application/x-tgz",
        "application/x-gtar-compressed",
        "application/x-compressed-tar",
        "application/tar+gzip",
        "gzip/document",
    },
    "deflate": {"application/zlib"},
    "compress": {"application/x-compress", "application/x-compressed"},
    "br": {"application/x-brotli"},
    "zstd": {"application/zstd", "application/x-zstd"},
}


class CodingAction(Enum):
    """How to store a body with a content coding."""

    KEEP = "stored as it is sent"
    DECODE = "decoded"


def codings(value: str | None) -> tuple[str, ...]:
    """Return the codings of a ``Content-Encoding``, in the order of application."""
    names = (value or "").lower().split(",")
    known = (_ALIASES.get(name.strip(), name.strip()) for name in names)
    return tuple(name for name in known if name not in _NO_CODINGS)


def coding_action(
    setting: str, resource: RemoteResource, urls: Iterable[str], file_name: str
) -> CodingAction:
    """Return how to store a body of ``resource``.

    ``setting`` is the value of ``content_encoding``. ``urls``: the requested URL and
    its redirects. ``file_name``: the name under which the file is saved. Raises
    PolicyRefused if the setting refuses encoded bodies, and ProtocolBroken for a coding
    that cannot be decoded.
    """
    applied = codings(resource.content_encoding)
    if not applied or setting == "keep":
        return CodingAction.KEEP
    message = (
        f"the server sent the file encoded as {', '.join(applied)[:80]} although the "
        f"request excluded that"
    )
    if setting == "refuse":
        raise PolicyRefused(
            f"{message}: content_encoding = refuse forbids that, auto would decode it"
        )
    names = [unquote(urlsplit(url).path) for url in urls]
    if is_encoded_file(applied[-1], resource, [*names, file_name]):
        return CodingAction.KEEP
    if len(applied) > MAX_CODINGS or not all(name in _STAGES for name in applied):
        raise ProtocolBroken(
            f"{message}, which dlpool cannot decode: content_encoding = keep stores it "
            f"encoded"
        )
    return CodingAction.DECODE


def is_encoded_file(
    coding: str, resource: RemoteResource, names: Iterable[str]
) -> bool:
    """Return whether a name or the media type shows that the encoded file is meant."""
    if resource.content_type in _TYPES.get(coding, ()):
        return True
    given = [*names, resource.server_name or ""]
    return any(name.lower().endswith(_NAMES.get(coding, ())) for name in given)


class DecodedReply(Reply):
    """A reply whose body is decoded. Used by one thread."""

    can_splice = False

    def __init__(self, reply: Reply) -> None:
        """Wrap a reply for which ``coding_action`` returned DECODE."""
        self.status, self.headers, self.url = reply.status, reply.headers, reply.url
        self._reply = reply
        self._has_end = (
            "Content-Length" in reply.headers or "Transfer-Encoding" in reply.headers
        )
        self._block = memoryview(bytearray(BLOCK))
        read: Read = self._read_encoded
        for name in reversed(codings(reply.headers.get("Content-Encoding"))):
            read = _STAGES[name](read).read
        self._read = read

    def read(self, view: memoryview) -> int:
        """Fill ``view`` with decoded bytes and return their number.

        0 at the end of the body. Raises ShortBody if the encoded data ends early,
        BadAnswer if it is invalid, and the errors of ``Reply.read``.
        """
        data = self._read(len(view))
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Close the reply."""
        self._reply.close()

    def _read_encoded(self, most: int) -> bytes:
        size = self._reply.read(self._block[:most])
        if not size and not self._has_end:
            raise ShortBody("the connection ended before the encoded body began")
        self._has_end = True
        return bytes(self._block[:size])


def decode_reply(reply: Reply, answer: Answer) -> tuple[Reply, Answer]:
    """Return the reply with its body decoded, and the answer without size and digest.

    Size and digest are left out because the server's values describe the encoded body.
    """
    resource = replace(answer.resource, size=None, digest=None, refuses_ranges=True)
    return DecodedReply(reply), replace(answer, resource=resource, length=None)


Read = Callable[[int], bytes]  # (size) -> at most size bytes; none at the end


class _Stage:
    """Decodes with zlib the bytes that ``read_encoded`` returns.

    Holds at most one block of input and one of output.
    """

    coding = ""

    def __init__(self, read_encoded: Read) -> None:
        self._read_encoded = read_encoded
        self._inflater = self._new_inflater()
        self._input = b""
        self._has_begun = False
        self._may_hold_more = False  # zlib may hold output beyond the requested size

    def read(self, most: int) -> bytes:
        """Return at most ``most`` decoded bytes; none at the end."""
        while True:
            if not self._input and not self._may_hold_more:
                self._input = self._read_encoded(BLOCK)
                if not self._input:
                    return self._finish()
            if data := self._step(most):
                return data

    def _finish(self) -> bytes:
        if self._has_begun and not self._inflater.eof:
            raise ShortBody(f"the {self.coding} coding of the body ended early")
        return b""

    def _step(self, most: int) -> bytes:
        if self._inflater.eof:
            self._handle_trailing_data()
        self._has_begun = True
        try:
            data = self._inflater.decompress(self._input, most)
        except zlib.error as error:
            raise BadAnswer(
                f"the {self.coding} coding of the body is broken ({error})"
            ) from error
        self._input = (
            self._inflater.unused_data
            if self._inflater.eof
            else self._inflater.unconsumed_tail
        )
        self._may_hold_more = len(data) == most and not self._inflater.eof
        return data

    def _handle_trailing_data(self) -> None:
        """Raise BadAnswer: bytes follow the end of the encoded data."""
        raise BadAnswer(
            f"the {self.coding} coding of the body ended, and more bytes followed"
        )

    def _new_inflater(self) -> zlib._Decompress:
        raise NotImplementedError


class _Gzip(_Stage):
    """gzip (RFC 1952): one member, or several in sequence."""

    coding = "gzip"

    def _new_inflater(self) -> zlib._Decompress:
        return zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)

    def _handle_trailing_data(self) -> None:
        self._inflater = self._new_inflater()


class _Deflate(_Stage):
    """deflate: the zlib format (RFC 1950), or the raw format (RFC 1951)."""

    coding = "deflate"

    def _new_inflater(self) -> zlib._Decompress:
        return zlib.decompressobj()

    def _step(self, most: int) -> bytes:
        if not self._has_begun and not _is_zlib(self._input):
            self._inflater = zlib.decompressobj(wbits=-zlib.MAX_WBITS)
        return super()._step(most)


def _is_zlib(data: bytes) -> bool:
    """Return whether ``data`` begins like a zlib header (RFC 1950 section 2.2).

    ``data`` may be only the first byte of the header.
    """
    return (
        data[0] & 0x0F == 8
        and data[0] >> 4 <= 7
        and (len(data) < 2 or (data[0] << 8 | data[1]) % 31 == 0)
    )


_STAGES: dict[str, type[_Stage]] = {"gzip": _Gzip, "deflate": _Deflate}
