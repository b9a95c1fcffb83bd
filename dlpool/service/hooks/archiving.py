"""The operator's ``archive_command``, which stores compressed logs elsewhere, one log
at a time.

The archiver runs the command for a log, and then adds the name of the log to
``dlpool.log.archived``. If the archiver crashes before it has added the name, or cannot
write the name because the disk is full, it archives the log again. Settings such as
``keep_days`` remove logs even if they were not archived.
"""

from __future__ import annotations

import shlex
import shutil
import threading
import time
from contextlib import suppress
from pathlib import Path

from dlpool.config import LoggingSettings
from dlpool.disk import atomic_write
from dlpool.errors import ConfigurationError
from dlpool.observe.log import Logger
from dlpool.observe.rotation import Rotation
from dlpool.service.hooks.process import TERMINATE_S, run_command
from dlpool.service.hooks.runner import command_environment

STOP_S = 2.0  # for a command that runs when the supervisor stops


def check_archive_command(settings: LoggingSettings) -> None:
    """Raise ConfigurationError if the program of ``archive_command`` cannot be
    found."""
    command = settings.archive_command
    if command is not None and shutil.which(shlex.split(command)[0]) is None:
        raise ConfigurationError(
            f"[logging] archive_command: cannot find executable program "
            f"{shlex.split(command)[0]!r}"
        )


class LogArchiver:
    """The archiver, which runs ``archive_command`` for new logs in a thread. Used by
    the main thread.

    The thread ends when all logs are archived, or when the command fails. No method
    raises. ``settings`` may be replaced at any time.
    """

    def __init__(self, settings: LoggingSettings, live: Path, log: Logger) -> None:
        self.settings = settings
        self._rotation = Rotation(live)
        self._list = live.with_name(f"{live.name}.archived")
        self._log = log
        self._thread: threading.Thread | None = None
        self._archived: list[Path] = []
        self._retry_at = float("-inf")
        self._stop_at = float("inf")

    def archive_new_logs(self) -> None:
        """Start to archive new logs, if there are any; called about once a second."""
        is_idle = self._thread is None or not self._thread.is_alive()
        if (
            self.settings.archive_command is None
            or not is_idle
            or time.monotonic() < self._retry_at
        ):
            return
        try:
            logs = self._rotation.compressed_logs()
            if logs and logs != self._archived:
                self._thread = threading.Thread(
                    target=self._serve, args=(logs,), name="archive", daemon=True
                )
                self._thread.start()
        except (OSError, RuntimeError) as error:  # RuntimeError: no more threads
            self._failed(error=error)

    def stop(self) -> None:
        """Wait up to ``STOP_S`` seconds for a running command, then stop it.

        The next start of the service archives the remaining logs.
        """
        self._stop_at = time.monotonic() + STOP_S
        if self._thread is not None:
            self._thread.join(STOP_S + TERMINATE_S + 1.0)

    def _serve(self, logs: list[Path]) -> None:
        try:
            if self._archive(logs):
                self._archived = logs
        except Exception as error:  # noqa: BLE001 - top of a thread
            self._failed(error=error)

    def _archive(self, logs: list[Path]) -> bool:
        """Archive the logs that are not archived yet, until the command fails. Return
        whether all are archived."""
        archived = self._read_list() & {path.name for path in logs}
        for path in logs:
            if path.name in archived:
                continue
            if not self._run(path):
                return False
            archived.add(path.name)
            self._write_list(archived)
        return True

    def _run(self, path: Path) -> bool:
        """Archive one log. Return True if it was archived or no longer exists."""
        settings, started_at = self.settings, time.monotonic()
        if (
            settings.archive_command is None
            or started_at >= self._stop_at
            or not path.exists()
        ):
            return not path.exists()
        program, *arguments = shlex.split(settings.archive_command)
        command = [
            str(Path(shutil.which(program) or program).absolute()),
            *arguments,
            str(path.absolute()),
        ]

        def stop_reason() -> str:
            if time.monotonic() - started_at >= settings.archive_timeout:
                return f"it took longer than {settings.archive_timeout:g} s"
            return "the supervisor stops" if time.monotonic() >= self._stop_at else ""

        result = run_command(command, b"", command_environment(), stop_reason)
        seconds = round(time.monotonic() - started_at, 3)
        if result.failure:
            self._failed(
                path=path, reason=result.failure, stderr=result.stderr, seconds=seconds
            )
            return False
        self._log.info("log_archived", path=path, seconds=seconds)
        return True

    def _failed(self, **fields: object) -> None:
        self._retry_at = time.monotonic() + self.settings.archive_retry_delay
        self._log.warning("log_not_archived", **fields)

    def _read_list(self) -> set[str]:
        with suppress(FileNotFoundError):
            return set(self._list.read_text(encoding="utf-8").splitlines())
        return set()

    def _write_list(self, names: set[str]) -> None:
        """Write the names of the archived logs. Raises OSError.

        The file is not synced: if the machine crashes, some logs are archived again.
        """
        atomic_write(
            self._list,
            "".join(f"{name}\n" for name in sorted(names)).encode(),
            sync=False,
        )
