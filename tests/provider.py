"""A provider of tokens: its keys, its key set at a URL, and whatever else it answers there."""

from __future__ import annotations

import base64
import json
import socketserver
import ssl
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


class Provider:
    """A context: serves a key set at ``url``; ``heads`` are the requests that came.

    ``answer`` is the whole answer, or is called with the connection. ``context``: of TLS, for https.
    """

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.heads: list[bytes] = []
        self.answer: bytes | Callable[[Any], None] = b""
        self.context = context
        provider = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                provider._handle(self.request)

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        """Where the key set is."""
        return f"{'https' if self.context else 'http'}://127.0.0.1:{self.port}/keys?a=1"

    def serve(self, *keys: dict[str, Any], headers: str = "") -> None:
        """Answer with these keys from here on."""
        self.answer = answered(json.dumps({"keys": keys}).encode(), headers=headers)

    def _handle(self, connection: Any) -> None:
        try:
            if self.context is not None:
                connection = self.context.wrap_socket(connection, server_side=True)
            head = b""
            while b"\r\n\r\n" not in head and (data := connection.recv(4096)):
                head += data
            self.heads.append(head)
            if callable(self.answer):
                self.answer(connection)
            else:
                connection.sendall(self.answer)
            connection.close()
        except OSError:
            return

    def __enter__(self) -> Provider:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


def answered(body: bytes, status: str = "200 OK", headers: str = "") -> bytes:
    """An answer with a length."""
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body


def number(value: int) -> str:
    """A Base64urlUInt (RFC 7518, section 2)."""
    data = value.to_bytes((value.bit_length() + 7) // 8, "big")
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def jwk(key: PrivateKey, kid: str | None = "k1", **more: Any) -> dict[str, Any]:
    """The public half of a key as a JSON web key."""
    named = {} if kid is None else {"kid": kid}
    public = key.public_key().public_numbers()
    if isinstance(public, rsa.RSAPublicNumbers):
        return {"kty": "RSA", "n": number(public.n), "e": number(public.e), **named, **more}
    curve = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}[public.curve.name]
    return {"kty": "EC", "crv": curve, "x": number(public.x), "y": number(public.y), **named, **more}


def token(key: Any, algorithm: str, kid: str | None = "k1", header: dict[str, Any] | None = None, **claims: Any) -> str:
    """A token of the provider for dlpool."""
    head = {**({} if kid is None else {"kid": kid}), **(header or {})}
    return jwt.encode({"sub": "alice", "aud": "dlpool", "exp": time.time() + 600, **claims}, key, algorithm, head)
