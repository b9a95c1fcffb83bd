"""Make TLS contexts from the network settings, and resume TLS sessions."""

from __future__ import annotations

import ssl
import time
from pathlib import Path
from typing import ClassVar

from dlpool.config import NetworkSettings
from dlpool.errors import ConfigurationError

MAX_SESSIONS = 64  # of a context; then they are forgotten
# A resumed connection does not verify the certificate again, so that a session is
# resumed for this number of seconds at most.
MAX_SESSION_S = 600.0


class ResumingSocket(ssl.SSLSocket):
    """A TLS socket that resumes the session of an earlier connection to its server.

    A resumed handshake (RFC 8446 section 2.2) transfers and verifies no certificate. So
    each context keeps its own sessions, by server name and port: a context with other
    settings verifies the certificate itself. A server that does not know the session
    makes a complete handshake.
    """

    sessions: ClassVar[dict[tuple[str | None, int], ssl.SSLSession]]

    def do_handshake(self, block: bool = False) -> None:
        """Make the handshake, with the kept session of the server if it is recent.

        If the handshake fails, forgets the session: a retry is made without it.
        """
        key = self._server()
        session = self.sessions.get(key)
        if session is not None and time.time() - session.time < MAX_SESSION_S:
            self.session = session
        try:
            super().do_handshake(block)
        except OSError:
            self.sessions.pop(key, None)
            raise

    def keep_session(self) -> None:
        """Keep the session for later connections.

        Call it after a response: with TLS 1.3 the server sends its session tickets
        after the handshake.
        """
        session = self.session
        if session is not None and (session.has_ticket or session.id):
            if len(self.sessions) >= MAX_SESSIONS:
                self.sessions.clear()
            self.sessions[self._server()] = session

    def _server(self) -> tuple[str | None, int]:
        """Return the name for which the certificate is verified, and the port."""
        return self.server_hostname, self.getpeername()[1]


def tls_context(settings: NetworkSettings) -> ssl.SSLContext:
    """Return a context that trusts the configured, system or bundled CAs.

    Its sockets resume the sessions of earlier sockets of the same context. A connection
    that closes without close_notify is an error; by default, Python ignores the missing
    close_notify. With the setting ``insecure``, the context verifies no certificate.
    Raises ConfigurationError if the configured certificates or the key cannot be used.
    """
    try:
        context = ssl.create_default_context(cafile=settings.cacert)
    except OSError as error:
        raise ConfigurationError(
            f"cacert {settings.cacert} cannot be used: {error}"
        ) from error
    context.sslsocket_class = type("ContextSocket", (ResumingSocket,), {"sessions": {}})
    context.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
    try:
        if settings.cert:
            context.load_cert_chain(settings.cert, settings.key)
    except OSError as error:
        raise ConfigurationError(
            f"cert {settings.cert} (key {settings.key}) cannot be used: {error}"
        ) from error
    if (
        settings.cacert is None
        and not context.cert_store_stats()["x509_ca"]
        and not _has_ca_folder()
    ):
        # imported only where the system has no certificates
        from requests.utils import DEFAULT_CA_BUNDLE_PATH

        context.load_verify_locations(DEFAULT_CA_BUNDLE_PATH)
    if settings.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        import urllib3  # which would warn at each request

        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
    return context


def _has_ca_folder() -> bool:
    """Return whether OpenSSL's CA folder has files.

    The certificate count of an SSL context does not include this folder.
    """
    folder = ssl.get_default_verify_paths().capath
    return bool(folder and Path(folder).is_dir() and any(Path(folder).iterdir()))
