"""Make TLS contexts from the network settings."""

from __future__ import annotations

import ssl
from pathlib import Path

import urllib3

from dlpool.config import NetworkSettings
from dlpool.errors import ConfigurationError


def tls_context(settings: NetworkSettings) -> ssl.SSLContext:
    """Return a context that trusts the configured, system or bundled CAs.

    With this context, a connection that closes without close_notify is an error; by
    default, Python ignores the missing close_notify. Raises ConfigurationError if the
    configured certificates or the key cannot be used.
    """
    try:
        context = ssl.create_default_context(cafile=settings.cacert)
    except OSError as error:
        raise ConfigurationError(
            f"cacert {settings.cacert} cannot be used: {error}"
        ) from error
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
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
    return context


def _has_ca_folder() -> bool:
    """Return whether OpenSSL's CA folder has files.

    The certificate count of an SSL context does not include this folder.
    """
    folder = ssl.get_default_verify_paths().capath
    return bool(folder and Path(folder).is_dir() and any(Path(folder).iterdir()))
