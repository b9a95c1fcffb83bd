"""The errors of dlpool, grouped by what the caller must do.

The base classes say what happens next: retry the range, restart the file, fail the job,
repair the machine. Each class has a stable ``label`` for logs, metrics and records, and
an exit code for the command line. The module that calls a library translates the
library's errors, and keeps the original error as the cause.
"""

from __future__ import annotations

from typing import ClassVar


class DlpoolError(Exception):
    """The base class of the errors of dlpool. The message is for the user."""

    label: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1

    def __init_subclass__(
        cls, label: str | None = None, exit_code: int | None = None
    ) -> None:
        """Set the label and the exit code of a subclass; None: the value of its
        parent."""
        cls.label = label or cls.label
        cls.exit_code = exit_code or cls.exit_code


class UsageError(DlpoolError, label="usage", exit_code=2):
    """The caller made a mistake, for example an invalid or contradictory argument."""


class ConfigurationError(DlpoolError, label="configuration", exit_code=78):
    """The settings are invalid; the message has a line for each error."""


class InternalError(DlpoolError, label="internal"):
    """A defect of dlpool; ``__cause__`` is the unexpected exception."""

    @classmethod
    def of(cls, error: Exception) -> InternalError:
        """Return an InternalError whose cause is the unexpected exception ``error``."""
        defect = cls(f"unexpected {type(error).__name__}: {error}")
        defect.__cause__ = error
        return defect


class Cancelled(DlpoolError, label="cancelled", exit_code=130):
    """The caller cancelled the download or upload."""


class LostJob(Cancelled, label="lost"):
    """Another supervisor has claimed the job.

    The present supervisor must not publish the file and must not record a result.
    """


# --- retry the range; the other ranges continue ---


class RetryRange(DlpoolError, label="network", exit_code=4):
    """A request failed; it can be repeated after a wait, from the current position.

    ``retry_after_s``: the seconds that the server asked to wait, None if it named no
    time.

    ``is_capacity``: the cause may be a limit of connections at the server. The error
    does not count as a failure while another connection of the file makes progress.

    ``is_stale``: the server had closed an idle connection before dlpool reused it.

    ``is_own_network``: the local network may be down.

    ``is_away``: the server or the path to it is unavailable: waiting helps, an
    immediate retry does not.

    ``is_comparison``: dlpool aborted the connection because other connections were
    faster.

    ``is_final``: dlpool has already made all useful retries.
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
        """Return a copy of the error with ``advice`` appended to its message."""
        told = type(self)(f"{self}; {advice}")
        vars(told).update(vars(self))
        told.__cause__ = self.__cause__
        return told


class TimedOut(RetryRange, label="timeout"):
    """The server did not answer within the connect or read timeout."""

    is_capacity = True


class ConnectionBroken(RetryRange, label="connection"):
    """The connection was reset or closed too early."""

    is_capacity = True


class Unreachable(RetryRange, label="unreachable"):
    """No connection can be established, for example because the host refuses it."""

    is_capacity = True


class NameNotResolved(RetryRange, label="dns"):
    """The host name has no address, or the name server did not answer."""


class ShortBody(RetryRange, label="short_body"):
    """The body ended too early."""


class TooSlow(RetryRange, label="too_slow"):
    """The connection was slower than the minimum speed, or much slower than others."""

    is_capacity = True


class OutOfDescriptors(RetryRange, label="too_many_files", exit_code=3):
    """No file or socket can be opened because of a limit.

    dlpool retries, because other downloads will close their files and sockets.
    """

    is_capacity = True


class BadAnswer(RetryRange, label="protocol", exit_code=7):
    """The response is malformed or violates HTTP; a later response may be correct."""


class ContradictoryAnswer(BadAnswer):
    """The response contradicts itself, such as a 200 with a Content-Range."""


class UnexpectedContent(BadAnswer, label="unexpected_content"):
    """The response contains something else than the file, such as an error page.

    Bytes that dlpool fetched before this response are kept.
    """


class ScannerAway(RetryRange, label="scanner_away", exit_code=75):
    """The file is complete, but the malware scanner is not available."""


class Garbled(RetryRange, label="md5_mismatch", exit_code=11):
    """Uploaded bytes reached the server with a wrong checksum or size."""


class ServerTrouble(RetryRange, label="server_error", exit_code=8):
    """A temporary error status, such as 408, 500 or 502."""


class ServerBusy(ServerTrouble, label="server_busy"):
    """The server asks for fewer requests.

    The status was 429 or 503, or it was 400 or 403 with a ``Retry-After`` field.
    """

    is_capacity = True


class NotAdmitted(ServerBusy):
    """The server refuses an additional connection; existing connections continue."""


# --- restart the file ---


class RestartFile(DlpoolError, label="restart", exit_code=15):
    """The bytes transferred so far cannot be used.

    All threads stop, and the transfer of the file starts at its first byte.
    """


class RemoteChanged(RestartFile, label="remote_changed"):
    """The remote file is not the version that the download began with."""


class StreamBroken(RestartFile, label="stream_broken", exit_code=4):
    """A download that cannot use range requests was interrupted and must start again.

    ``cause`` is the error that interrupted the download.
    """

    def __init__(self, cause: RetryRange) -> None:
        super().__init__(str(cause))
        self.cause = cause


class MergedGone(RestartFile, label="merged_gone"):
    """The server reports an upload as complete, but the complete file was removed."""


# --- fail the job ---


class FailJob(DlpoolError, label="failed"):
    """The job has failed, and a retry would fail in the same way."""


class HttpRefused(FailJob, label="http_status", exit_code=8):
    """A final error status that has no class of its own, such as 400 or 451."""


class NotFound(FailJob, label="not_found", exit_code=10):
    """The server answered 404 or 410."""


class NoTask(NotFound):
    """The server does not know the upload."""


class AccessDenied(FailJob, label="access_denied", exit_code=6):
    """The server or a proxy denied access, for example with the status 401 or 403."""


class TlsFailed(FailJob, label="tls", exit_code=5):
    """The certificate of the server was rejected, or the TLS handshake failed."""


class ProtocolBroken(FailJob, label="protocol", exit_code=7):
    """A response without a usable file, such as the status 204 or a redirect loop."""


class ChecksumMismatch(FailJob, label="checksum", exit_code=11):
    """The file is complete, but its checksum is wrong."""


class PolicyRefused(FailJob, label="policy", exit_code=12):
    """A rule forbids the transfer.

    It is a local rule, for example for networks or sizes, or a rule of the upload
    server.
    """


class NotScanned(PolicyRefused, label="not_scanned"):
    """No malware scanner is configured, or the scanner refuses a file of this size."""


class ChunkTooLarge(PolicyRefused):
    """The server does not accept chunks of this size; it may accept smaller chunks."""


class Infected(FailJob, label="infected", exit_code=16):
    """The scanner found malware.

    ``signature``: the name of the malware, empty if unknown. ``quarantine``: the id of
    the file in the quarantine of this machine, None if the file is not there.
    """

    def __init__(
        self, message: str, signature: str = "", quarantine: str | None = None
    ) -> None:
        super().__init__(message)
        self.signature = signature
        self.quarantine = quarantine


class TargetExists(FailJob, label="target_exists", exit_code=13):
    """The target exists or belongs to another download, and must not be overwritten."""


class ForeignFile(FailJob, label="foreign_file", exit_code=13):
    """A file that dlpool did not create has the name of a part, state or lock file."""


class Conflict(FailJob, label="conflict", exit_code=13):
    """The server answered 409 to a request for an upload.

    The state of the upload forbids the request, or the file name is taken.
    """


class TaskClosed(Conflict):
    """The upload accepts no more data: its file is being merged, or was merged."""


class RemoteFull(FailJob, label="remote_no_space", exit_code=9):
    """The server answered 507: its disk is full."""


class DeadlineExceeded(FailJob, label="deadline", exit_code=4):
    """The time limit of the job has passed."""


class WaitTooLong(FailJob, label="retry_after", exit_code=8):
    """The server asked for a wait that is longer than the setting
    ``max_retry_after``."""


# --- repair the machine; nothing is lost ---


class LocalFault(DlpoolError, label="local_io", exit_code=3):
    """A local operation failed, usually file I/O."""


class FileChanged(LocalFault, label="file_changed"):
    """A file changed while it was uploaded."""


class NodeFault(LocalFault):
    """The machine or its file system has a fault that can affect other jobs, too."""


class NoSpace(NodeFault, label="no_space", exit_code=9):
    """The disk is full, or a quota is used up."""


class TooLarge(NoSpace):
    """The file would not fit even on an empty disk; a smaller file may fit."""


class NoRoom(NoSpace):
    """The file does not fit into the present free space; a smaller file may fit."""


class ReadOnly(NodeFault, label="read_only"):
    """The file system is read-only."""


class DiskFailed(NodeFault, label="disk_failed"):
    """The disk or the file system failed, or a network file system lost its server."""


class OutOfFiles(NodeFault, label="too_many_files"):
    """No file can be opened: a limit of this process or machine is reached."""


class NoThread(NodeFault, label="no_threads"):
    """No thread can be started: a limit of this process or machine is reached."""


class NotPermitted(LocalFault, label="permission"):
    """The operating system denied permission."""


class Locked(LocalFault, label="locked", exit_code=13):
    """Another download writes to the same target."""


# --- the queue ---


class QueueError(DlpoolError, label="redis", exit_code=20):
    """A Redis command failed."""


class QueueAway(QueueError):
    """Redis is unreachable, loading, or a replica: a later attempt may succeed."""


class QueueUnusable(QueueAway):
    """A key of the queue contains data that dlpool did not write.

    The queue works again when the key is removed.
    """


class QueueRefused(QueueError):
    """Redis rejects the password or a command, or dlpool cannot use this server."""


class NoSuchJob(DlpoolError, label="no_such_job", exit_code=21):
    """No job has that id, or its record has expired."""


class AlreadyRunning(DlpoolError, label="already_running", exit_code=75):
    """Another supervisor, or its Redis server, uses the same state folder."""
