"""The settings of uploads, and the profiles that preset them."""

from __future__ import annotations

from collections.abc import Mapping

from dlpool.config.declaration import setting
from dlpool.config.web import CONTENT_TYPES, WORDS
from dlpool.dataclass import dataclass
from dlpool.kinds import (
    COUNT,
    DAY_S,
    DURATION,
    MINUTE_S,
    PATH,
    RATIO,
    SIZE,
    SWITCH,
    choice,
)

PROFILES: dict[str, Mapping[str, str]] = {
    "default": {},
    "production": {
        "max_file_size": "10G",
        "max_chunk_size": "100M",
        "cleanup_interval": "1h",
        "retry_max_attempts": "5",
        "retry_initial_delay": "2s",
        "concurrent_uploads": "3",
        "enable_integrity_check": "yes",
        "enable_atomic_operations": "yes",
    },
    "throughput": {
        "max_chunk_size": "200M",
        "concurrent_uploads": "8",
        "retry_initial_delay": "500ms",
        "cleanup_interval": "30m",
    },
    "poor-network": {
        "max_chunk_size": "50M",
        "concurrent_uploads": "1",
        "retry_max_attempts": "10",
        "retry_initial_delay": "5s",
    },
}
# The settings that any profile sets.
PRESET = frozenset(name for preset in PROFILES.values() for name in preset)


@dataclass(frozen=True)
class UploadSettings:
    """``[upload]``: files that clients upload in chunks.

    Sizes are in bytes, times in seconds.
    """

    profile: str = setting(
        choice(*PROFILES),
        "default",
        'set of defaults for the settings marked "by profile"',
        reload=False,
    )
    upload_dir: str = setting(
        PATH, "./upload", "folder of the chunks until they are merged", reload=False
    )
    merged_dir: str = setting(
        PATH, "./merged", "folder of the complete files", reload=False
    )
    port: int = setting(
        COUNT, "18101", "TCP port of dlpool-web", low=1, high=65535, reload=False
    )
    max_file_size: int = setting(
        SIZE, "10G", "size above which files are refused", low=1, reload=False
    )
    max_chunk_size: int = setting(
        SIZE, "100M", "size above which chunks are refused", low=1, reload=False
    )
    cleanup_interval: float = setting(
        DURATION,
        "1h",
        "interval at which expired tasks are removed",
        low=0.1,
        reload=False,
        high=30 * DAY_S,
    )
    task_expiry: float = setting(
        DURATION,
        "168h",
        "time without data after which a task is removed, with its chunks",
        low=1,
        reload=False,
        high=366 * DAY_S,
    )
    retry_max_attempts: int = setting(
        COUNT, "3", "attempts of a client to send a chunk", low=1, reload=False
    )
    retry_initial_delay: float = setting(
        DURATION,
        "1s",
        "first backoff of a client; doubles",
        reload=False,
        high=5 * MINUTE_S,
    )
    concurrent_uploads: int = setting(
        COUNT, "5", "chunks that a client sends at once", low=1, high=64, reload=False
    )
    enable_integrity_check: bool = setting(
        SWITCH, "yes", "verify the digests that clients send", reload=False
    )
    enable_atomic_operations: bool = setting(
        SWITCH, "yes", "wait until data is on the disk", reload=False
    )
    disk_warn: float = setting(
        RATIO,
        "0.85",
        "share of a disk in use from which health reports a warning",
        reload=False,
    )
    disk_refuse: float = setting(
        RATIO,
        "0.95",
        "share of a disk in use from which new tasks are refused",
        reload=False,
        not_below="disk_warn",
    )
    owner_tasks: int | None = setting(
        COUNT,
        None,
        "uploads that one owner may have, including completed ones until they expire; "
        "all without a "
        "token, and those of admins, count as one owner's (default: no limit)",
        low=1,
        reload=False,
    )
    owner_bytes: int | None = setting(
        SIZE,
        None,
        "total size of one owner's uploads, including announced bytes; an upload of "
        "unknown size counts "
        "as max_file_size (default: no limit)",
        low=1,
        reload=False,
    )
    owner_files: int | None = setting(
        COUNT,
        None,
        "files (inodes) of one owner's uploads in upload_dir, one per chunk; an upload "
        "with an unknown "
        "number of chunks counts in thousands (default: no limit)",
        low=1,
        reload=False,
    )
    allowed_extensions: str | None = setting(
        WORDS,
        None,
        "file name extensions that are accepted, such as .zip,.bin (default: any)",
        reload=False,
    )
    allowed_content_types: str | None = setting(
        CONTENT_TYPES,
        None,
        "content types that are accepted, such as image/*,application/zip, or refused, "
        "such as "
        "!executable, by the first bytes of a file (default: any)",
        reload=False,
    )
    merge_conflict: str = setting(
        choice("refuse", "suffix"),
        "refuse",
        "if another task's file has the same name: refuse with 409, or add a suffix "
        "(NAME-1)",
        reload=False,
    )
    shared_files: str = setting(
        choice("no", "unowned", "yes"),
        "no",
        "merged files that everybody with a token may read: those uploaded as shared "
        "(no), also those "
        "uploaded without a token (unowned), or all (yes)",
        reload=False,
    )


def is_profile_setting(section: str, name: str) -> bool:
    """Return whether any upload profile sets the default of a setting."""
    return section == "upload" and name in PRESET
