"""The protocol of sd_notify(3): datagrams to the service manager, if there is one."""

from __future__ import annotations

import os
import socket
from contextlib import suppress


class SystemdNotifier:
    """systemd, or whoever set ``NOTIFY_SOCKET``; without one nothing is sent. Never
    raises."""

    def __init__(self, environment: dict[str, str] | None = None) -> None:
        given = dict(os.environ) if environment is None else environment
        address = given.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self.watchdog_s = _watchdog_s(given)
        self._status = ""

    def ready(self) -> None:
        """The service works from now on."""
        self._send("READY=1")

    def extend_timeout(self, more_s: float) -> None:
        """It needs so much more time to start, or to end, from now on."""
        self._send(_extension(more_s))

    def stopping(self, more_s: float) -> None:
        """It has begun to end, and needs so much time for that, from now on."""
        self._send(f"STOPPING=1\n{_extension(more_s)}")

    def reloading(self, monotonic_us: int) -> None:
        """It reads its configuration anew; ``ready`` says when that is done."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={monotonic_us}")

    def watchdog(self) -> None:
        """It is not stuck."""
        self._send("WATCHDOG=1")

    def status(self, text: str) -> None:
        """One line for ``systemctl status``; sent when it changes."""
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


def _watchdog_s(given: dict[str, str]) -> float | None:
    """Seconds between two signs of life: half of what is allowed; None where nobody
    waits for them."""
    if given.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    with suppress(ValueError):
        return int(given.get("WATCHDOG_USEC", "")) / 2_000_000
    return None
