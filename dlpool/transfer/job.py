"""The order for one download, its result and its progress. Values only."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import field
from pathlib import Path
from typing import Any, Protocol

from dlpool.dataclass import dataclass
from dlpool.errors import UsageError

# hashlib's names, and the number of hexadecimal digits of each digest
ALGORITHMS = {"md5": 32, "sha1": 40, "sha256": 64, "sha512": 128, "blake2b": 128}


@dataclass(frozen=True)
class Checksum:
    """A digest of the complete file.

    ``algorithm``: hashlib's name; ``digest``: lower-case hex.
    """

    algorithm: str
    digest: str

    @classmethod
    def parse(cls, text: str) -> Checksum:
        """Parse ``ALGORITHM:HEX``. Raises UsageError."""
        algorithm, _, digest = text.strip().partition(":")
        digits = ALGORITHMS.get(algorithm.lower())
        if digits is None:
            raise UsageError(
                f"checksum {text[:80]!r} does not begin with one of "
                f"{', '.join(ALGORITHMS)} and a colon"
            )
        if not re.fullmatch(rf"[0-9a-fA-F]{{{digits}}}", digest):
            raise UsageError(
                f"checksum {text[:80]!r} has not the {digits} hexadecimal digits of "
                f"{algorithm.lower()}"
            )
        return cls(algorithm.lower(), digest.lower())

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.digest}"


@dataclass(frozen=True)
class Job:
    """The order to download one URL to one file.

    ``target``: the file; with ``is_folder`` a folder, in which the server or the URL
    names the file. ``headers``: sent to the URL's origin; other origins get only
    harmless ones. ``user``: name and password for the URL. ``checksum``: the digest
    that the file must have, None for no check.

    The other fields are set only for a job of the queue. ``owner``: the user who pushed
    the job. ``id``: the job's id. ``fence``: the fencing token of the job's present
    claim. ``claim``: a random id from the job's first claim; it distinguishes the job
    from a later job with the same ``id``. When the file is published, a state file or
    an extended attribute records the job. By this record, a later run of the job
    recognizes the published file.
    """

    url: str
    target: Path
    is_folder: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)
    user: tuple[str, str] | None = None
    checksum: Checksum | None = None
    id: str | None = None
    fence: int | None = None
    owner: str | None = None
    claim: str | None = None


@dataclass(frozen=True)
class TransferResult:
    """The result of a successful download. Sizes in bytes.

    ``received`` bytes came over the network in this run, ``resumed_from`` bytes existed
    before. ``checksum``: the verified checksum, None if none was verified.
    ``is_skipped``: the target existed, was not published by this job, and was kept.
    """

    path: Path
    size: int
    received: int = 0
    resumed_from: int = 0
    seconds: float = 0.0
    retries: int = 0
    restarts: int = 0
    connections: int = 0
    checksum: str | None = None
    is_skipped: bool = False

    def as_json(self) -> dict[str, Any]:
        return vars(self) | {"path": str(self.path)}


@dataclass(frozen=True)
class Progress:
    """The progress of a download at one moment.

    ``done`` and ``size`` in bytes, ``size`` None while unknown. ``unreserved_bytes``:
    disk space to set aside for missing bytes that have no reserved blocks; at most
    ``done``. ``is_resumable``: a later run can resume the download.
    """

    path: Path
    done: int
    size: int | None
    connections: int
    phase: str  # "connecting", "downloading", "verifying", "scanning", "publishing"
    unreserved_bytes: int = 0
    is_resumable: bool = True


class Notify(Protocol):
    """A function that any thread of a download calls for an event.

    The function must not block. An event has a fixed name and fixed fields.
    """

    def __call__(self, event: str, /, **fields: object) -> None: ...


def ignore_event(event: str, /, **fields: object) -> None:
    """Ignore an event; the default of ``TransferCallbacks.notify``."""


def accept_target(path: Path) -> None:
    """Accept any target; the default of ``TransferCallbacks.check_target``."""


def authorize() -> None:
    """Permit publishing; the default of ``TransferCallbacks.authorize_publish``."""


@dataclass(frozen=True)
class TransferCallbacks:
    """The functions that a transfer calls, from any of its threads.

    ``check_target`` is called with the path of each target that is tried; it raises to
    refuse the path. ``authorize_publish`` is called when the file is verified and
    locked, before it is published; it may block, and raises to forbid publishing.
    """

    notify: Notify = ignore_event
    check_target: Callable[[Path], None] = accept_target
    authorize_publish: Callable[[], None] = authorize
