"""The Redis server that a supervisor uses.

It is the configured server, the server that ``url = auto`` finds, or a private server.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dlpool.config import RedisSettings
from dlpool.errors import QueueRefused
from dlpool.jobs.connection import (
    AUTO,
    EMBEDDED,
    auto_address,
    connect,
    effective_url,
    is_redis,
    shown_server,
)
from dlpool.jobs.embedded_socket import embedded_dir
from dlpool.observe.log import Logger
from dlpool.service.node.embedded_redis import (
    EmbeddedRedis,
    has_data,
    is_server_running,
)


class RedisServer:
    """The Redis server of a supervisor. Used by the main thread.

    ``settings``: the settings to connect with; their URL is never ``auto``.
    """

    def __init__(self, settings: RedisSettings, state_dir: Path, log: Logger) -> None:
        """Start a private server if the settings ask for it, or if ``auto`` finds no
        server.

        Raises ConfigurationError, LocalFault, QueueRefused, and the errors of
        ``EmbeddedRedis.start``.
        """
        self.settings = settings
        self._state_dir = state_dir
        self._log = log
        self._embedded: EmbeddedRedis | None = None
        if settings.url == AUTO:
            self.settings = self._found()
        if self.settings.url == EMBEDDED:
            self._start()

    def __repr__(self) -> str:
        return f"<RedisServer {self.display_url}>"

    @property
    def display_url(self) -> str:
        """Return the server's URL without user and password, to be shown in
        messages."""
        return shown_server(effective_url(self.settings, self._state_dir))

    @property
    def client_url(self) -> str:
        """Return the URL for clients on this machine. If a private server has a TCP
        address, the URL contains this address."""
        own = self._embedded
        return (
            f"redis://{own.listen}"
            if own is not None and own.listen
            else self.display_url
        )

    def restart_if_exited(self) -> None:
        """Restart the private server if it has exited. Raises the errors of
        ``EmbeddedRedis.start``."""
        if self._embedded is not None and not self._embedded.is_alive():
            self._log.error("embedded_redis_exited", error="it is restarted")
            self._start()

    def stop(self) -> None:
        """Stop the private server, if there is one."""
        if self._embedded is not None:
            self._embedded.stop()

    def _found(self) -> RedisSettings:
        """Find the server for ``url = auto``, and return the settings to connect with.

        Raises QueueRefused, ConfigurationError, LocalFault.
        """
        address = auto_address(self.settings)
        found = replace(self.settings, url=f"redis://{address}")
        private = replace(
            self.settings,
            url=EMBEDDED,
            username=None,
            password=None,
            password_file=None,
        )
        if is_server_running(self._state_dir):
            # of a killed supervisor; it may listen at that address
            return private
        client = connect(found, self._state_dir)
        try:
            if not is_redis(client):
                return private
        except QueueRefused as error:
            raise QueueRefused(
                f"{error}; url = auto found this server: set a password, or url = "
                f"embedded"
            ) from error
        finally:
            client.close()
        if has_data(self._state_dir):
            self._log.warning(
                "embedded_data_unused",
                reason=f"Redis at {address} is used; jobs queued in the private one "
                f"are still in "
                f"{embedded_dir(self._state_dir)}: set url = embedded in [redis] to "
                f"run them",
            )
        return found

    def _start(self) -> None:
        wanted = self.settings.embedded_listen
        self._embedded = EmbeddedRedis.start(self._state_dir, listen=wanted)
        if wanted and not self._embedded.listen:
            self._log.warning(
                "embedded_listen_in_use",
                reason=f"another program uses {wanted}: clients on this machine reach "
                f"the queue with dlpool push, "
                f"or at {self._embedded.url}; set embedded_listen to a free port",
            )
