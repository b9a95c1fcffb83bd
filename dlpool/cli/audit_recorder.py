"""Records the audit events of commands: what a command changes, and who runs it.

The import of this module imports no third-party library.
"""

from __future__ import annotations

import argparse
import os
import pwd
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from dlpool.config import Settings
from dlpool.errors import DlpoolError
from dlpool.jobs.audit_events import (
    DONE,
    LOCAL,
    AuditActor,
    AuditChange,
    event_fields,
    log_fields,
)

if TYPE_CHECKING:
    import redis

    from dlpool.jobs.keys import QueueKeys

BATCH = 100  # events per round trip
INTERRUPTED = "interrupted"  # the result after a signal or a defect
READS = ""  # the action of commands that change nothing
# The audit action of each command, or of each command and its argument ``action``.
# Every command must be here.
ACTIONS = {
    "push": "job.push",
    "jobs": READS,
    "job": READS,
    "events": READS,
    "stats": READS,
    "top": READS,
    "audit": READS,
    "health": READS,
    "doctor": READS,
    "cancel": "job.cancel",
    "pause": "job.pause",
    "resume": "job.resume",
    "retry": "job.retry",
    "promote": "job.promote",
    "priority": "job.priority",
    "purge": "job.forget",
    "failed list": READS,
    "failed retry": "failure.retry",
    "failed purge": "failure.remove",
    "queue pause": "queue.pause",
    "queue resume": "queue.resume",
    "queue stats": READS,
    "nodes list": READS,
    "nodes drain": "node.drain",
    "nodes resume": "node.resume",
    "nodes forget": "node.forget",
    "quarantine list": READS,
    "quarantine show": READS,
    "quarantine release": "quarantine.release",
    "quarantine delete": "quarantine.delete",
    "config check": READS,
    "config show": READS,
    "config convert": READS,
    "setup": READS,
    "fetch": READS,
    # changes files of the user, or other machines
    "upload": READS,
}


def action_of(arguments: argparse.Namespace) -> str:
    """Return the action of a command; "" if the command changes nothing.

    Raises KeyError for a command that is missing in ``ACTIONS``.
    """
    command: str = arguments.command
    return (
        ACTIONS[command]
        if command in ACTIONS
        else ACTIONS[f"{command} {arguments.action}"]
    )


def author() -> AuditActor:
    """Return the effective user, the host, and the user who called sudo, if any."""
    name = str(os.geteuid())
    with suppress(KeyError):
        name = pwd.getpwuid(os.geteuid()).pw_name
    sudo_user = os.environ.get("SUDO_USER", "") if os.geteuid() == 0 else ""
    return AuditActor(
        f"user {name}@{socket.gethostname()}"
        + (f" (sudo {sudo_user})" if sudo_user else ""),
        LOCAL,
    )


class AuditRecorder:
    """Writes the audit events of one command to the queue's stream and the local log.

    The local log is the log of the service on this machine; it need not exist. A failed
    write raises no error: the change has already been made. If the command succeeds
    but a write to Redis has failed, the recorder prints the number of lost events on
    standard error. With ``is_quiet`` it does not print. Not thread-safe.
    """

    def __init__(self, action: str, settings: Settings, *, is_quiet: bool) -> None:
        self.action = action
        self.settings = settings
        self._is_quiet = is_quiet
        self._author = author()
        self._pending: list[AuditChange] = []
        self._last: str | None = None
        self._lost = 0
        self._client: redis.Redis | None = None
        self._keys: QueueKeys | None = None

    @classmethod
    def of(cls, arguments: argparse.Namespace, settings: Settings) -> AuditRecorder:
        """Return the recorder of a command.

        Raises KeyError for a command that is missing in ``ACTIONS``.
        """
        return cls(
            action_of(arguments), settings, is_quiet=getattr(arguments, "quiet", False)
        )

    def attach(self, client: redis.Redis, keys: QueueKeys) -> None:
        """Set the Redis client and the keys of the queue that receives the events."""
        self._client, self._keys = client, keys

    def note(self, name: str, result: str = DONE, count: int = 1) -> None:
        """Record a change of ``count`` objects, or a failed attempt to change them.

        ``name`` is the name of the first object. ``result`` is ``DONE``, or
        ``UNCHANGED`` if there was nothing to change, or the label of an error.
        """
        if not self.action:
            return
        self._last = result
        self._pending.append(AuditChange(self.action, name, result, count=count))
        if len(self._pending) >= BATCH:
            self._flush()

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Write the recorded events when the block ends.

        Adds an event with the result of the block in two cases: no event has been
        recorded, or the block fails and the result of the last event is not this error.
        """
        result = INTERRUPTED
        try:
            yield
            result = DONE
        except DlpoolError as error:
            result = error.label
            raise
        finally:
            self._end(result)

    def _end(self, result: str) -> None:
        if self._last is None or result not in (DONE, self._last):
            self.note("", result)
        self._flush()
        if self._lost and result == DONE and not self._is_quiet:
            print(
                f"dlpool: warning: Redis has not stored {self._lost} audit events",
                file=sys.stderr,
            )

    def _flush(self) -> None:
        changes, self._pending = self._pending, []
        if not changes:
            return
        self._log(changes)
        if self._client is None or self._keys is None:
            return
        from dlpool.jobs.audit_stream import AuditWriter

        try:
            writer = AuditWriter(
                self._client, self._keys, self.settings.redis.audit_events
            )
            writer.add([event_fields(change, self._author) for change in changes])
        except DlpoolError:
            self._lost += len(changes)

    def _log(self, changes: list[AuditChange]) -> None:
        """Write the changes to the log of the service, if it exists and is writable."""
        folder = Path(self.settings.paths.log_dir)
        if not os.access(folder / "dlpool.log", os.W_OK):
            return
        from dlpool.observe.log import Log
        from dlpool.observe.processors import LogOrigin

        node = self.settings.supervisor.node_id or "cli"
        with suppress(DlpoolError):
            log = Log(
                folder,
                self.settings.logging,
                LogOrigin("dlpool-cli", node),
                is_required=False,
            )
            logger = log.logger("audit")
            for change in changes:
                logger.info("audit", **log_fields(change, self._author))
            log.close()


@contextmanager
def open_audit(
    arguments: argparse.Namespace, settings: Settings
) -> Iterator[AuditRecorder]:
    """Yield the recorder of a command that also works without Redis.

    If Redis cannot be reached, the recorder writes its events only to the local log.
    """
    from dlpool.jobs.connection import connect
    from dlpool.jobs.keys import QueueKeys

    recorder = AuditRecorder(action_of(arguments), settings, is_quiet=True)
    with ExitStack() as stack:
        with suppress(DlpoolError):
            client = connect(
                settings.redis, Path(settings.paths.state_dir), name="dlpool-cli"
            )
            stack.callback(client.close)
            recorder.attach(client, QueueKeys(settings.redis.group))
        with recorder.recording():
            yield recorder
