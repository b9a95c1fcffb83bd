"""The headers of ``dlpool upload``, and the secrets among them."""

from __future__ import annotations

import argparse
from pathlib import Path

from dlpool.cli.headers import read_headers
from dlpool.errors import LocalFault, UsageError
from dlpool.transfer.http.urls import check_header, split_credentials
from dlpool.usertext import NotText, read_text


def access_headers(arguments: argparse.Namespace) -> dict[str, str]:
    """Return the headers of the options, including the token and the secret key.

    Raises UsageError, or LocalFault for a file that cannot be read.
    """
    headers = read_headers(arguments)
    given = {name.lower() for name in headers}
    if arguments.token_file is not None:
        if "authorization" in given:
            raise UsageError(
                "--token-file and a header Authorization exclude each other"
            )
        if split_credentials(arguments.url.strip())[1] is not None:
            raise UsageError("--token-file and a user in the URL exclude each other")
        headers["Authorization"] = f"Bearer {_secret(arguments.token_file)}"
    if arguments.secret_key_file is not None:
        if "x-secret-key" in given:
            raise UsageError(
                "--secret-key-file and a header X-Secret-Key exclude each other"
            )
        headers["X-Secret-Key"] = _secret(arguments.secret_key_file)
    return headers


def _secret(path: str) -> str:
    """Return the text of a file without surrounding space.

    Raises UsageError, LocalFault. Error messages do not contain the text.
    """
    try:
        secret = read_text(Path(path)).strip()
        check_header("secret", secret)
    except OSError as error:
        raise LocalFault(f"cannot read {path}: {error.strerror}") from error
    except (NotText, UsageError) as error:
        raise UsageError(
            f"{path} contains characters that a header cannot have"
        ) from error
    if not secret:
        raise UsageError(f"{path} is empty: it should contain a secret")
    return secret
