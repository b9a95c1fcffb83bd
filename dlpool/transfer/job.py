"""What a download is asked to do, and how it ended. Values only."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from dlpool.errors import UsageError

ALGORITHMS = {
    "md5": 32,
    "sha1": 40,
    "sha256": 64,
    "sha512": 128,
    "blake2b": 128,
}  # name: hex digits


@dataclass(frozen=True)
class Checksum:
    """A digest of the whole file; ``algorithm`` as hashlib knows it, ``digest`` in
    lower-case hex."""

    algorithm: str
    digest: str

    @classmethod
    def parse(cls, text: str) -> Checksum:
        """From ``ALGO:HEX``. Raises UsageError."""
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
    """One URL to one file.

    ``target`` is the file, or with ``is_folder`` the folder in which the server or the
    URL names it. ``headers`` are sent to the URL's origin only; ``user`` is name and
    password. ``id`` and ``fence`` are those of a queue's job: what was published for it
    is recorded until the queue knows, so that a later run of the same job finds it.
    ``owner``: the user who pushed that job, for records. ``claim``: the random id of
    the job's first claim, as an ``id`` may be given to another job later.
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
    """A download that ended well. Sizes in bytes.

    ``received`` came over the network in this run, ``resumed_from`` was there before;
    ``checksum`` is the one that was verified. ``is_skipped``: the target existed and
    was left alone.
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
    """A moment of a download. ``done`` and ``size`` in bytes, ``size`` None while
    unknown.

    ``missing``: bytes that are counted as taken on the disk for it in advance: the
    number received so far, limited to what is still to come, less what is reserved on
    the disk already. ``is_kept``: a later run can go on from here.
    """

    path: Path
    done: int
    size: int | None
    connections: int
    phase: str  # "connecting", "downloading", "verifying", "scanning", "publishing"
    unreserved_bytes: int = 0
    is_resumable: bool = True


class Notify(Protocol):
    """Hears what happens in a download, from any of its threads: a fixed phrase and its
    figures. Must not block."""

    def __call__(self, event: str, /, **fields: object) -> None: ...


def ignore_event(event: str, /, **fields: object) -> None:
    """A Notify that hears nothing."""
