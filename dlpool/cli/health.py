"""``dlpool health``: checks the health of a supervisor."""

from __future__ import annotations

import argparse
import http.client

from dlpool.cli.console import reporting_result, show_lines
from dlpool.config import MetricsSettings
from dlpool.errors import ConfigurationError, DlpoolError
from dlpool.kinds import split_address

ANSWER_S = 5.0  # timeout of the supervisor's answer
MAX_ANSWER = 64 * 1024  # bytes


class Unhealthy(DlpoolError):
    """The supervisor does not answer, or reports a failed check."""


def run(arguments: argparse.Namespace) -> int:
    """Print the checks, and return 0 if all succeed.

    Raises Unhealthy, ConfigurationError.
    """
    listen = arguments.address or _listen_of(arguments.config)
    status, text = request_health(
        listen, "/livez?verbose" if arguments.live else "/readyz?verbose"
    )
    if not text.endswith("ok\n"):
        raise Unhealthy(f"what answers at {listen} is no supervisor: it says {status}")
    if not arguments.quiet:
        with reporting_result():
            show_lines(text.splitlines())
    if status != http.client.OK:
        raise Unhealthy(
            f"the supervisor at {listen} is not "
            f"{'alive' if arguments.live else 'ready'}"
        )
    return 0


def request_health(listen: str, path: str) -> tuple[int, str]:
    """Return the status and the body of the supervisor's answer.

    ``listen`` is the address of the supervisor, ``path`` the path of the request.
    Raises Unhealthy.
    """
    host, port = split_address(listen)
    if host in ("", "0.0.0.0", "::"):  # listens at every address
        host = "localhost"
    connection = http.client.HTTPConnection(host, port, timeout=ANSWER_S)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read(MAX_ANSWER).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise Unhealthy(f"no supervisor answers at {listen}: {reason}") from error
    finally:
        connection.close()


def _listen_of(config: str | None) -> str:
    settings = MetricsSettings()
    if config is not None:
        from dlpool.config.layers import load

        settings = load(config)["metrics"]
    if not settings.listen:
        raise ConfigurationError(
            f"{config}: [metrics] listen is empty, so that the supervisor cannot be "
            f"asked"
        )
    return settings.listen
