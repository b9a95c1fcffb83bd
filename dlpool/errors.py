"""Every error of dlpool: what the caller does about it, its label, its exit code.

A *class* of the tree says what happens next (retry this range, begin the file anew,
fail the job, repair this machine); a *leaf* carries a stable ``label`` for logs,
metrics and records, and the exit code of the command line. Foreign exceptions are
translated once, in the module that touches the foreign library, with the cause kept.
"""

from __future__ import annotations

import copy
from typing import ClassVar


class DlpoolError(Exception):
    """Base of all errors that dlpool raises. The message is one sentence for the
    user."""

    label: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1

    def __init_subclass__(
        cls, label: str | None = None, exit_code: int | None = None
    ) -> None:
        """Name a leaf; what is not given is the parent's."""
        cls.label = label or cls.label
        cls.exit_code = exit_code or cls.exit_code


class UsageError(DlpoolError, label="usage", exit_code=2):
    """The caller asked for something that has no meaning."""


class ConfigurationError(DlpoolError, label="configuration", exit_code=78):
    """The settings cannot be used; the message names section, key and reason, a line
    each."""


class InternalError(DlpoolError, label="internal"):
    """A defect of dlpool; the cause is kept."""

    @classmethod
    def of(cls, error: Exception) -> InternalError:
        """The defect that shows as ``error``, which nothing foresaw."""
        defect = cls(f"unexpected {type(error).__name__}: {error}")
        defect.__cause__ = error
        return defect


class Cancelled(DlpoolError, label="cancelled", exit_code=130):
    """The caller ended the download; its part file and state stay for the next run."""


class LostJob(Cancelled, label="lost"):
    """Another supervisor has the job by now: nothing is published, no record is
    written."""


# --- this range again, from its position, after a backoff; the others go on
# ---------------------------------------


class RetryRange(DlpoolError, label="network", exit_code=4):
    """This range may be asked for again.

    ``retry_after_s``: how long the server asked us to wait, in seconds.
    ``is_capacity``: the server seems to admit no further connection, so a sibling that
    still makes progress shows that the file is not lost. ``is_stale``: an idle
    connection had died before we used it, which says nothing about the server.
    ``is_own_network``: it may be our own network that is away. ``is_away``: the server,
    or the way to it, is not there just now, or has no time: waiting helps, not trying.
    ``is_comparison``: only our own impatience ended it, as siblings did better.
    ``is_final``: every useful retry has been made already.
    """

    is_capacity: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        retry_after_s: float | None = None,
        is_stale: bool = False,
        is_own_network: bool = False,
        is_away: bool = False,
        is_comparison: bool = False,
        is_final: bool = False,
    ) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.is_stale = is_stale
        self.is_own_network = is_own_network
        self.is_away = is_away
        self.is_comparison = is_comparison
        self.is_final = is_final

    def explained(self, advice: str) -> RetryRange:
        """Return a copy of the error with ``advice`` added to its message."""
        told = copy.copy(self)
        told.args = (f"{self}; {advice}",)
        told.__cause__ = self.__cause__
        return told


class TimedOut(RetryRange, label="timeout"):
    """Nothing came within the connect or read time limit."""

    is_capacity = True


class ConnectionBroken(RetryRange, label="connection"):
    """Reset, EPIPE, or closed before an answer."""

    is_capacity = True


class Unreachable(RetryRange, label="unreachable"):
    """Refused, or no route to the host."""

    is_capacity = True


class NameNotResolved(RetryRange, label="dns"):
    """The host name has no address, or its name server did not answer."""


class ShortBody(RetryRange, label="short_body"):
    """The body ended before its announced length."""


class TooSlow(RetryRange, label="too_slow"):
    """The connection stayed below the minimum speed, or far below that of its
    siblings."""

    is_capacity = True


class OutOfDescriptors(RetryRange, label="too_many_files", exit_code=3):
    """This process or machine can open no further file or socket now; retried, as
    others will be closed."""

    is_capacity = True


class BadAnswer(RetryRange, label="protocol", exit_code=7):
    """The server broke HTTP in a way that another answer may not."""


class ContradictoryAnswer(BadAnswer):
    """A response that contradicts itself about its bytes, such as a 200 with the
    Content-Range of a part."""


class UnexpectedContent(BadAnswer, label="unexpected_content"):
    """Content that is not the file, such as a page or an error document. Bytes fetched
    before are kept."""


class ScannerAway(RetryRange, label="scanner_away", exit_code=75):
    """The file is complete, and the scanner for malware cannot be asked now."""


class Garbled(RetryRange, label="md5_mismatch", exit_code=11):
    """A chunk of an upload reached the server with other bytes than it was sent
    with."""


class ServerTrouble(RetryRange, label="server_error", exit_code=8):
    """A status that promises to pass: 408, 425, 500, 502, 504, 511, 520 to 524."""


class ServerBusy(ServerTrouble, label="server_busy"):
    """429 or 503: the server wants fewer requests."""

    is_capacity = True


class NotAdmitted(ServerBusy):
    """The server refuses a further connection while it sends the same file over
    others."""


# --- all threads stop, the file begins anew
# -----------------------------------------------------------------------


class RestartFile(DlpoolError, label="restart", exit_code=15):
    """What was fetched so far cannot become the file."""


class RemoteChanged(RestartFile, label="remote_changed"):
    """The remote is another version than the one begun with."""


class StreamBroken(RestartFile, label="stream_broken", exit_code=4):
    """A download without ranges broke off and can only begin again; ``cause`` says how
    it broke."""

    def __init__(self, cause: RetryRange) -> None:
        super().__init__(str(cause))
        self.cause = cause


class MergedGone(RestartFile, label="merged_gone"):
    """A server calls an upload complete, and the file that it made is not there any
    more."""


# --- no retry in this run
# -----------------------------------------------------------------------------------------


class FailJob(DlpoolError, label="failed"):
    """Another try would end the same way."""


class HttpRefused(FailJob, label="http_status", exit_code=8):
    """A final status without a class of its own, as 400 or 451."""


class NotFound(FailJob, label="not_found", exit_code=10):
    """404 or 410."""


class NoTask(NotFound):
    """A server does not know an upload, or not any more."""


class AccessDenied(FailJob, label="access_denied", exit_code=6):
    """401, 403 or 407."""


class TlsFailed(FailJob, label="tls", exit_code=5):
    """The peer's certificate or the handshake was refused."""


class ProtocolBroken(FailJob, label="protocol", exit_code=7):
    """An answer that has no meaning for a download: 204, 304, endless redirects."""


class ChecksumMismatch(FailJob, label="checksum", exit_code=11):
    """All bytes came, and they are not the right ones."""


class PolicyRefused(FailJob, label="policy", exit_code=12):
    """Rules forbid it: our own (network, redirect, size, path), or those of a server
    that takes uploads (413, 415)."""


class NotScanned(PolicyRefused, label="not_scanned"):
    """The scanner for malware does not check a file of this size, or none is
    configured."""


class ChunkTooLarge(PolicyRefused):
    """A server takes the file, but not in pieces of that size."""


class Infected(FailJob, label="infected", exit_code=16):
    """The scanner has found malware in the file, which is in quarantine, or removed.

    ``signature``: the name of what was found; ``quarantine``: the id there, None if the
    file was removed.
    """

    def __init__(
        self, message: str, signature: str = "", quarantine: str | None = None
    ) -> None:
        super().__init__(message)
        self.signature = signature
        self.quarantine = quarantine


class TargetExists(FailJob, label="target_exists", exit_code=13):
    """The target is there and ``if_exists`` is ``fail``."""


class ForeignFile(FailJob, label="foreign_file", exit_code=13):
    """A file that is not dlpool's has the name of a part or state file."""


class Conflict(FailJob, label="conflict", exit_code=13):
    """409: the state of an upload forbids it, or another file has its name."""


class TaskClosed(Conflict):
    """An upload takes nothing more, as its file is being made, or has been."""


class RemoteFull(FailJob, label="remote_no_space", exit_code=9):
    """507: the server's disk is full."""


class DeadlineExceeded(FailJob, label="deadline", exit_code=4):
    """The job's own time limit passed; part and state stay."""


class WaitTooLong(FailJob, label="retry_after", exit_code=8):
    """The server asked for a longer wait than ``max_retry_after``."""


# --- no retry, nothing lost: this machine is at fault
# -------------------------------------------------------------


class LocalFault(DlpoolError, label="local_io", exit_code=3):
    """Local file I/O failed."""


class FileChanged(LocalFault, label="file_changed"):
    """A file changed while it was sent."""


class NodeFault(LocalFault):
    """The whole file system is at fault, not the job: any other job here would meet the
    same."""


class NoSpace(NodeFault, label="no_space", exit_code=9):
    """The disk or the quota is full."""


class TooLarge(NoSpace):
    """The file is larger than its file system; other files may fit."""


class NoRoom(NoSpace):
    """The file does not fit now; smaller files may."""


class ReadOnly(NodeFault, label="read_only"):
    """The file system is read-only."""


class DiskFailed(NodeFault, label="disk_failed"):
    """The disk gave an I/O error, or a network file system lost its server."""


class OutOfFiles(NodeFault, label="too_many_files"):
    """No further file can be opened: this process, or this machine, has too many
    open."""


class NoThread(NodeFault, label="no_threads"):
    """This process can start no further thread, and needs one."""


class NotPermitted(LocalFault, label="permission"):
    """Permission denied."""


class Locked(LocalFault, label="locked", exit_code=13):
    """Another download writes to the same target."""


# --- the queue
# ----------------------------------------------------------------------------------------------------


class QueueError(DlpoolError, label="redis", exit_code=20):
    """Redis did not do what it was asked to."""


class QueueAway(QueueError):
    """Redis cannot be reached, is loading, or is only a replica: it may be back
    soon."""


class QueueUnusable(QueueAway):
    """A key of the queue holds something else than dlpool's: it is the queue's again
    when that has been removed."""


class QueueRefused(QueueError):
    """Redis wants another password, or forbids it."""


class NoSuchJob(DlpoolError, label="no_such_job", exit_code=21):
    """No job has that id, or it ended so long ago that it is forgotten."""


class AlreadyRunning(DlpoolError, label="already_running", exit_code=75):
    """Another supervisor works with the same state folder."""
