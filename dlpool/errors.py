"""Every error of dlpool: what the caller does about it, its label, its exit code.

A *class* of the tree says what happens next (retry this range, begin the file anew, fail the job, repair this
machine); a *leaf* carries a stable ``label`` for logs, metrics and records, and the exit code of the command line.
Foreign exceptions are translated once, in the module that touches the foreign library, with the cause kept.
"""

from __future__ import annotations

from typing import ClassVar


class DlpoolError(Exception):
    """Base of all errors that dlpool raises. The message is one sentence for the user."""

    label: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1


class UsageError(DlpoolError):
    """The caller asked for something that has no meaning."""

    label = "usage"
    exit_code = 2


class ConfigurationError(DlpoolError):
    """The settings cannot be used; the message names section, key and reason, a line each."""

    label = "configuration"
    exit_code = 78


class InternalError(DlpoolError):
    """A defect of dlpool; the cause is kept."""

    label = "internal"

    @classmethod
    def of(cls, error: Exception) -> InternalError:
        """The defect that shows as ``error``, which nothing foresaw."""
        defect = cls(f"unexpected {type(error).__name__}: {error}")
        defect.__cause__ = error
        return defect


class Cancelled(DlpoolError):
    """The caller ended the download; its part file and state stay for the next run."""

    label = "cancelled"
    exit_code = 130


# --- this range again, from its position, after a backoff; the others go on ---------------------------------------


class RetryRange(DlpoolError):
    """This range may be asked for again.

    ``retry_after_s``: how long the server asked us to wait, in seconds.
    ``is_capacity``: the server seems to admit no further connection, so a sibling that still makes progress
    shows that the file is not lost.
    ``is_stale``: an idle connection had died before we used it, which says nothing about the server.
    ``is_own_network``: it may be our own network that is away.
    ``is_comparison``: only our own impatience ended it, as siblings did better.
    """

    label = "network"
    exit_code = 4
    is_capacity: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        retry_after_s: float | None = None,
        is_stale: bool = False,
        is_own_network: bool = False,
        is_comparison: bool = False,
    ) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.is_stale = is_stale
        self.is_own_network = is_own_network
        self.is_comparison = is_comparison


class TimedOut(RetryRange):
    """Nothing came within the connect or read time limit."""

    label = "timeout"
    is_capacity = True


class ConnectionBroken(RetryRange):
    """Reset, EPIPE, or closed before an answer."""

    label = "connection"
    is_capacity = True


class Unreachable(RetryRange):
    """Refused, or no route to the host."""

    label = "unreachable"
    is_capacity = True


class NameNotResolved(RetryRange):
    """The host name has no address, or its name server did not answer."""

    label = "dns"


class ShortBody(RetryRange):
    """The body ended before its announced length."""

    label = "short_body"


class TooSlow(RetryRange):
    """The connection stayed below the minimum speed, or far below that of its siblings."""

    label = "too_slow"
    is_capacity = True


class BadAnswer(RetryRange):
    """The server broke HTTP in a way that another answer may not."""

    label = "protocol"
    exit_code = 7


class ServerTrouble(RetryRange):
    """A status that promises to pass: 408, 425, 500, 502, 504, 511, 520 to 524."""

    label = "server_error"
    exit_code = 8


class ServerBusy(ServerTrouble):
    """429 or 503: the server wants fewer requests."""

    label = "server_busy"
    is_capacity = True


# --- all threads stop, the file begins anew -----------------------------------------------------------------------


class RestartFile(DlpoolError):
    """What was fetched so far cannot become the file."""

    label = "restart"
    exit_code = 15


class RemoteChanged(RestartFile):
    """The remote is another version than the one begun with."""

    label = "remote_changed"


class StreamBroken(RestartFile):
    """A download without ranges broke off and can only begin again; ``cause`` says how it broke."""

    label = "stream_broken"
    exit_code = 4

    def __init__(self, cause: RetryRange) -> None:
        super().__init__(str(cause))
        self.cause = cause


# --- no retry in this run -----------------------------------------------------------------------------------------


class FailJob(DlpoolError):
    """Another try would end the same way."""

    label = "failed"


class HttpRefused(FailJob):
    """A final status without a class of its own, as 400 or 451."""

    label = "http_status"
    exit_code = 8


class NotFound(FailJob):
    """404 or 410."""

    label = "not_found"
    exit_code = 10


class AccessDenied(FailJob):
    """401, 403 or 407."""

    label = "access_denied"
    exit_code = 6


class TlsFailed(FailJob):
    """The peer's certificate or the handshake was refused."""

    label = "tls"
    exit_code = 5


class ProtocolBroken(FailJob):
    """An answer that has no meaning for a download: 204, 304, endless redirects."""

    label = "protocol"
    exit_code = 7


class ChecksumMismatch(FailJob):
    """All bytes came, and they are not the right ones."""

    label = "checksum"
    exit_code = 11


class PolicyRefused(FailJob):
    """Our own rules forbid it: network, redirect, size, path."""

    label = "policy"
    exit_code = 12


class TargetExists(FailJob):
    """The target is there and ``if_exists`` is ``fail``."""

    label = "target_exists"
    exit_code = 13


class DeadlineExceeded(FailJob):
    """The job's own time limit passed; part and state stay."""

    label = "deadline"
    exit_code = 4


class WaitTooLong(FailJob):
    """The server asked for a longer wait than ``max_retry_after``."""

    label = "retry_after"
    exit_code = 8


# --- no retry, nothing lost: this machine is at fault -------------------------------------------------------------


class LocalFault(DlpoolError):
    """Local file I/O failed."""

    label = "local_io"
    exit_code = 3


class NodeFault(LocalFault):
    """The whole file system is at fault, not the job: any other job here would meet the same."""


class NoSpace(NodeFault):
    """The disk or the quota is full."""

    label = "no_space"
    exit_code = 9


class ReadOnly(NodeFault):
    """The file system is read-only."""

    label = "read_only"


class DiskFailed(NodeFault):
    """The disk gave an I/O error, or a network file system lost its server."""

    label = "disk_failed"


class NotPermitted(LocalFault):
    """Permission denied."""

    label = "permission"


class Locked(LocalFault):
    """Another download writes to the same target."""

    label = "locked"
    exit_code = 13


# --- the queue ----------------------------------------------------------------------------------------------------


class QueueError(DlpoolError):
    """Redis did not do what it was asked to."""

    label = "redis"
    exit_code = 20


class QueueAway(QueueError):
    """Redis cannot be reached, is loading, or is only a replica: it may be back soon."""


class QueueRefused(QueueError):
    """Redis wants another password, or forbids it."""


class NoSuchJob(DlpoolError):
    """No job has that id, or it ended so long ago that it is forgotten."""

    label = "no_such_job"
    exit_code = 21


class AlreadyRunning(DlpoolError):
    """Another supervisor works with the same state folder."""

    label = "already_running"
    exit_code = 75
