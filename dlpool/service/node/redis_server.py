"""The Redis of a supervisor: the server that its settings name, one that ``auto``
finds, or a private one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dlpool.config import RedisSettings
from dlpool.errors import QueueRefused
from dlpool.jobs import embedded_socket
from dlpool.jobs.connection import (
    AUTO,
    EMBEDDED,
    auto_address,
    connect,
    effective_url,
    is_redis,
    shown_server,
)
from dlpool.observe.log import Logger
from dlpool.service.node.embedded_redis import (
    EmbeddedRedis,
    has_data,
    is_server_running,
)


class RedisServer:
    """The Redis of a supervisor. Used by the main thread. ``settings``: those to
    connect with, never ``auto``."""

    def __init__(self, settings: RedisSettings, state_dir: Path, log: Logger) -> None:
        """Start a private server if the settings ask for it, or if ``auto`` finds
        none.

        Raises ConfigurationError, LocalFault, QueueRefused for a server that requires a
        password, and the errors of ``EmbeddedRedis.start``.
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
        """The URL for messages, without a password."""
        return shown_server(effective_url(self.settings, self._state_dir))

    @property
    def client_url(self) -> str:
        """The URL for clients on this machine: the TCP address of a private server, if
        it listens at one."""
        own = self._embedded
        return (
            f"redis://{own.listen}"
            if own is not None and own.listen
            else self.display_url
        )

    def restart_if_exited(self) -> None:
        """Restart the private server if it has exited."""
        if self._embedded is not None and not self._embedded.is_alive():
            self._log.error("embedded_redis_ended", error="it is started again")
            self._start()

    def stop(self) -> None:
        """Stop a private server. Safe to call twice."""
        if self._embedded is not None:
            self._embedded.stop()

    def _found(self) -> RedisSettings:
        """Resolve ``auto`` and return the settings for the server that it found. Raises
        QueueRefused."""
        address = auto_address(self.settings)
        found = replace(self.settings, url=f"redis://{address}")
        private = replace(
            self.settings,
            url=EMBEDDED,
            username=None,
            password=None,
            password_file=None,
        )
        if is_server_running(
            self._state_dir
            # by the server of a killed supervisor of this folder, which may listen
            # there
        ):
            return private
        client = connect(found, self._state_dir)
        try:
            if not is_redis(client):
                return private
        except QueueRefused as error:
            raise QueueRefused(
                f"{error}; url = auto found it: give them, or set url = embedded"
            ) from error
        finally:
            client.close()
        if has_data(self._state_dir):
            self._log.warning(
                "embedded_data_unused",
                reason=f"a Redis answers at {address}, and is used; what was queued in "
                f"the private one is still in "
                f"{embedded_socket.embedded_dir(self._state_dir)}: url = embedded in "
                f"[redis] works on it",
            )
        return found

    def _start(self) -> None:
        wanted = self.settings.embedded_listen
        self._embedded = EmbeddedRedis.start(self._state_dir, listen=wanted)
        if wanted and not self._embedded.listen:
            self._log.warning(
                "embedded_redis_hidden",
                reason=f"{wanted} is taken by another program: clients on this machine "
                f"reach the queue by dlpool push, "
                f"or by {self._embedded.url}; set embedded_listen to a free port",
            )
