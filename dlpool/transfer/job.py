"""The order for one download, its result and its progress. Values only."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from dlpool.errors import UsageError

# name: hex digits
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

    ``target``: the file, or with ``is_folder`` the folder in which the server or the
    URL names it. ``headers`` are sent to the URL's origin only; ``user``: name and
    password. ``id`` and ``fence`` belong to a job of the queue: what was published for
    it is recorded until the queue knows, so that a later run of the job finds it.
    ``owner``: the user who pushed the job. ``claim``: the random id of the job's first
    claim, because ``id`` may be given to another job later.
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
    before. ``checksum``: the verified one. ``is_skipped``: the target existed and was
    not changed.
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
    bytes that count as taken on the disk in advance: as many as have been received,
    limited to those still to be received, less those reserved on the disk.
    ``is_resumable``: a later run can resume the download.
    """

    path: Path
    done: int
    size: int | None
    connections: int
    phase: str  # "connecting", "downloading", "verifying", "scanning", "publishing"
    unreserved_bytes: int = 0
    is_resumable: bool = True


class Notify(Protocol):
    """Receives events from any thread of a download; must not block.

    An event has a fixed name and fields.
    """

    def __call__(self, event: str, /, **fields: object) -> None: ...


def ignore_event(event: str, /, **fields: object) -> None:
    """Ignore an event."""


def accept_target(path: Path) -> None:
    """Accept a target."""


def authorize() -> None:
    """Permit publishing."""


@dataclass(frozen=True)
class TransferCallbacks:
    """The functions that a transfer calls, from any of its threads.

    ``check_target`` is called with each target that is tried; it raises to refuse it.
    ``authorize_publish`` is called when the file is verified and locked, before it is
    published; it may block, and raises to forbid publishing.
    """

    notify: Notify = ignore_event
    check_target: Callable[[Path], None] = accept_target
    authorize_publish: Callable[[], None] = authorize
