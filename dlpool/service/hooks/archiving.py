"""The operator's ``archive_command``: it stores each rotated, compressed log elsewhere,
one at a time, in nobody's way.

At least once: what has been stored is noted in ``dlpool.log.archived`` afterwards; who
is killed between the two, or finds the disk full, stores that log again. Nothing waits
for it: ``keep_days`` and its like remove logs, stored or not.
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
from dlpool.service.hooks import process
from dlpool.service.hooks.runner import command_environment

STOP_S = 2.0  # for a command that runs when the supervisor ends


def check_archive_command(settings: LoggingSettings) -> None:
    """See that the program is there. Raises ConfigurationError."""
    command = settings.archive_command
    if command is not None and shutil.which(shlex.split(command)[0]) is None:
        raise ConfigurationError(
            f"[logging] archive_command: there is no program "
            f"{shlex.split(command)[0]!r} that can be run"
        )


class LogArchiver:
    """``tend`` and ``stop`` by the main thread, neither raises; ``settings`` may be
    replaced at any time.

    A thread of its own looks for logs, runs the command, and ends when it has seen them
    all or one has failed.
    """

    def __init__(self, settings: LoggingSettings, live: Path, log: Logger) -> None:
        self.settings = settings
        self._rotation = Rotation(live)
        self._noted = live.with_name(f"{live.name}.archived")
        self._log = log
        self._thread: threading.Thread | None = None
        self._seen: list[Path] = []
        self._retry_at = float("-inf")
        self._stop_at = float("inf")

    def archive_new_logs(self) -> None:
        """Have new logs archived; called about once a second."""
        is_idle = self._thread is None or not self._thread.is_alive()
        if (
            self.settings.archive_command is None
            or not is_idle
            or time.monotonic() < self._retry_at
        ):
            return
        try:
            packed = self._rotation.compressed_logs()
            if packed and packed != self._seen:
                self._thread = threading.Thread(
                    target=self._serve, args=(packed,), name="archive", daemon=True
                )
                self._thread.start()
        except (OSError, RuntimeError) as error:  # RuntimeError: no more threads
            self._failed(error=error)

    def stop(self) -> None:
        """Give a command that runs ``STOP_S`` more, then end it; the next start
        archives what is left."""
        self._stop_at = time.monotonic() + STOP_S
        if self._thread is not None:
            self._thread.join(STOP_S + process.END_S + 1.0)

    def _serve(self, packed: list[Path]) -> None:
        try:
            if self._archive(packed):
                self._seen = packed
        except Exception as error:  # noqa: BLE001 - top of a thread
            self._failed(error=error)

    def _archive(self, packed: list[Path]) -> bool:
        """Whether all of them have been archived by now."""
        archived = self._read() & {path.name for path in packed}
        for path in packed:
            if path.name in archived:
                continue
            if not self._run(path):
                return False
            archived.add(path.name)
            self._note(archived)
        return True

    def _run(self, path: Path) -> bool:
        """Whether the log was archived, or nobody can any more."""
        settings, began = self.settings, time.monotonic()
        if (
            settings.archive_command is None
            or began >= self._stop_at
            or not path.exists()
        ):
            return not path.exists()
        program, *arguments = shlex.split(settings.archive_command)
        command = [
            str(Path(shutil.which(program) or program).absolute()),
            *arguments,
            str(path.absolute()),
        ]

        def must_end() -> str:
            if time.monotonic() - began >= settings.archive_timeout:
                return f"it took longer than {settings.archive_timeout:g} s"
            return "the supervisor ends" if time.monotonic() >= self._stop_at else ""

        result = process.run_command(command, b"", command_environment(), must_end)
        seconds = round(time.monotonic() - began, 3)
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

    def _read(self) -> set[str]:
        with suppress(FileNotFoundError):
            return set(self._noted.read_text(encoding="utf-8").splitlines())
        return set()

    def _note(self, names: set[str]) -> None:
        """Raises OSError. After a power cut an older state may be there, which is
        safe."""
        atomic_write(
            self._noted,
            "".join(f"{name}\n" for name in sorted(names)).encode(),
            sync=False,
        )
