"""What a service manager hears on its socket."""

from __future__ import annotations

import socket
import threading


class Manager:
    """Listens at ``address``, as NOTIFY_SOCKET says it: a path, or @NAME. ``heard`` are the messages in their order."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.heard: list[dict[str, str]] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        threading.Thread(target=self._listen, daemon=True).start()

    def names(self) -> list[str]:
        """The names of all variables that were sent, in their order."""
        return [name for message in self.heard for name in message]

    def _listen(self) -> None:
        while True:
            text = self._socket.recv(65536).decode()
            self.heard.append(dict(line.split("=", 1) for line in text.splitlines()))
