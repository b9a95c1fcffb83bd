"""The protocol of sd_notify(3): datagrams to the service manager."""

from __future__ import annotations

import os
import socket
from contextlib import suppress


class SystemdNotifier:
    """Sends the state of the service to systemd, or to the program that set
    ``NOTIFY_SOCKET``. Raises nothing.

    Without ``NOTIFY_SOCKET`` nothing is sent.
    """

    def __init__(self, environment: dict[str, str] | None = None) -> None:
        variables = dict(os.environ) if environment is None else environment
        address = variables.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self.watchdog_s = _watchdog_s(variables)
        self._status = ""

    def ready(self) -> None:
        """Report that the service has started, or has reloaded its configuration."""
        self._send("READY=1")

    def extend_timeout(self, more_s: float) -> None:
        """Extend the time limit of the start or stop, to ``more_s`` seconds from
        now."""
        self._send(_extension(more_s))

    def stopping(self, more_s: float) -> None:
        """Report that the service is stopping, and set the time limit of the stop to
        ``more_s`` seconds from now."""
        self._send(f"STOPPING=1\n{_extension(more_s)}")

    def reloading(self, monotonic_us: int) -> None:
        """Report that a reload of the configuration begins. ``ready`` reports its end.

        ``monotonic_us``: the present time by the monotonic clock, in microseconds.
        """
        self._send(f"RELOADING=1\nMONOTONIC_USEC={monotonic_us}")

    def watchdog(self) -> None:
        """Tell the watchdog of systemd that the service works."""
        self._send("WATCHDOG=1")

    def status(self, text: str) -> None:
        """Set the line that ``systemctl status`` shows; send it only if it has
        changed."""
        if text != self._status:
            self._status = text
            self._send(f"STATUS={text}")

    def _send(self, text: str) -> None:
        if not self._address:
            return
        with (
            suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock,
        ):
            sock.setblocking(False)
            sock.sendto(text.encode(), self._address)


def _extension(more_s: float) -> str:
    return f"EXTEND_TIMEOUT_USEC={round(more_s * 1_000_000)}"


def _watchdog_s(variables: dict[str, str]) -> float | None:
    """Return the seconds between two pings: half of the limit that systemd sets. Return
    None if the watchdog is off for this process."""
    if variables.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    with suppress(ValueError):
        return int(variables.get("WATCHDOG_USEC", "")) / 2_000_000
    return None
