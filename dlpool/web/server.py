"""gunicorn, set by our settings: its log is ours, and its workers are those of
``worker``."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from typing import Any

from gunicorn.app.base import BaseApplication  # type: ignore[import-untyped]
from gunicorn.glogging import Logger as GunicornLogger  # type: ignore[import-untyped]

from dlpool.config import WebSettings
from dlpool.observe.log import Log
from dlpool.web.capacity import FILES_A_THREAD
from dlpool.web.gunicorn_adapter import WebWorker
from dlpool.web.monitoring import probe_paths


class GunicornLog(GunicornLogger):  # type: ignore[misc]
    """Puts what gunicorn says into our log. Requests are logged by the application."""

    target: Log

    def setup(self, _cfg: Any) -> None:
        """Nothing: the log is there."""
        self.loglevel = 0
        self._logger = self.target.logger("web")

    def critical(self, msg: str, *args: Any, **_kwargs: Any) -> None:
        """What ends the server."""
        self._fail(_text(msg, args))

    def error(self, msg: str, *args: Any, **_kwargs: Any) -> None:
        """What a worker did not survive."""
        self._fail(_text(msg, args))

    def exception(self, msg: str, *args: Any, **_kwargs: Any) -> None:
        """The same, with what was raised."""
        error = sys.exc_info()[1]
        if not isinstance(
            error, OSError
        ):  # else a client that does not take its answer
            self._fail(_text(msg, args), error)

    def warning(self, msg: str, *args: Any, **_kwargs: Any) -> None:
        """What goes on."""
        self._warn(_text(msg, args))

    def info(self, msg: str, *args: Any, **_kwargs: Any) -> None:
        """The course of its processes."""
        self._say(_text(msg, args))

    def debug(self, msg: str, *args: Any, **_kwargs: Any) -> None:
        """Nothing."""

    def _fail(self, text: str, error: BaseException | None = None) -> None:
        self._logger.error("gunicorn_error", reason=text, error=error)

    def _warn(self, text: str) -> None:
        self._logger.warning("gunicorn_warning", reason=text)

    def _say(self, text: str) -> None:
        self._logger.debug("gunicorn_message", reason=text)

    def access(self, resp: Any, req: Any, environ: Any, request_time: Any) -> None:
        """Nothing: see ``gate``."""

    def reopen_files(self) -> None:
        """Our log follows its name by itself."""
        self.target.reopen()

    def close_on_exec(self) -> None:
        """Python's files are so already."""


class GunicornServer(BaseApplication):  # type: ignore[misc]
    """gunicorn, set by our settings, at a listening descriptor.

    ``load`` makes the application, in each worker, and what is called for requests that
    it never sees.
    """

    def __init__(
        self,
        listener: int,
        settings: WebSettings,
        log: Log,
        processes: int,
        load: Callable[[], tuple[Any, Callable[[int, str, str, str], None]]],
    ) -> None:
        self._load = load
        self._worker: Any = type(
            "Worker",
            (WebWorker,),
            {"settings": settings, "probes": probe_paths(settings.prefix)},
        )
        self._options = {
            "bind": f"fd://{listener}",
            "workers": processes,
            "threads": settings.threads,
            "worker_class": self._worker,
            "logger_class": type("Log", (GunicornLog,), {"target": log}),
            "worker_connections": _connections(settings.threads),
            "keepalive": 15,
            "graceful_timeout": 30,
            "proc_name": "dlpool-web",
            "forwarded_allow_ips": "",
            "limit_request_line": 8190,
            "control_socket_disable": True,
        }
        super().__init__()

    def load_config(self) -> None:
        """Tell gunicorn; one of an older version need not know all of it."""
        for name, value in self._options.items():
            if name in self.cfg.settings:
                self.cfg.set(name, value)

    def load(self) -> Any:
        """The application."""
        app, refused = self._load()
        self._worker.refused = staticmethod(refused)
        return app


def _connections(threads: int) -> int:
    """How many connections a process may have, so that there are files left for what it
    does."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(2 * threads, min(1000 + threads, soft - FILES_A_THREAD * threads))


def _text(message: object, arguments: tuple[Any, ...]) -> str:
    try:
        return str(message) % arguments if arguments else str(message)
    except (TypeError, ValueError):
        return str(message)
