"""Compares published files with the digests that clients expect.

A file is read only if the record of the merge lacks the kind of digest that the client
expects.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

from dlpool.config import UploadSettings
from dlpool.storage.digests import (
    MD5,
    SHA256,
    FileDigests,
    composite_sha256,
    new_hash,
)
from dlpool.storage.disk.file_locks import release
from dlpool.storage.disk.os_errors import translate_os_errors
from dlpool.storage.disk.safe_open import open_file_below
from dlpool.storage.disk.task_record import TaskRecord
from dlpool.storage.errors import UploadError
from dlpool.storage.names import split_folders
from dlpool.storage.upload_requests import MergeRequest
from dlpool.storage.values import MergeResult

_BUFFER = 256 * 1024


def read_digests(
    descriptor: int, size: int, chunk_sizes: Sequence[int] | None
) -> FileDigests:
    """Read an open file of ``size`` bytes, and return a digest.

    The digest is the composite SHA-256 of chunks with the sizes ``chunk_sizes``, or the
    MD5 if ``chunk_sizes`` is None. Raises OSError.
    """
    if chunk_sizes is None:
        return FileDigests(md5=_hash_next(descriptor, MD5, size).hex())
    found = [_hash_next(descriptor, SHA256, one) for one in chunk_sizes]
    return FileDigests(composite_sha256=composite_sha256(found))


def _hash_next(descriptor: int, algorithm: str, size: int) -> bytes:
    """Return the digest of the next ``size`` bytes, or fewer at the end of the file."""
    digest, left = new_hash(algorithm), size
    while left and (data := os.read(descriptor, min(left, _BUFFER))):
        digest.update(data)
        left -= len(data)
    return digest.digest()


def check_digests(expected: FileDigests, found: FileDigests) -> None:
    """Raise UploadError if a digest differs from the one that the client expects."""
    if expected.md5 and expected.md5 != found.md5:
        text = "the merged file has another md5 than expected_md5"
        raise UploadError("file_md5_mismatch", text, md5=found.md5)
    composite = found.composite_sha256
    if expected.composite_sha256 and expected.composite_sha256 != composite:
        text = "the merged file has another digest than expected_composite_sha256"
        raise UploadError("file_sha256_mismatch", text, composite_sha256=composite)


def earlier_result(
    settings: UploadSettings,
    record: TaskRecord,
    result: MergeResult,
    request: MergeRequest,
) -> MergeResult:
    """Return the result of an earlier merge, with the digest that the client uses.

    Raises UploadError if the request asks for another file, if a digest differs, or if
    the file cannot be read.
    """
    path = request.relative_path
    has_path = path is None or split_folders(path) == split_folders(
        result.relative_path
    )
    if (request.filename, request.total_chunks) != (
        record.filename,
        record.total_chunks,
    ) or not has_path:
        raise UploadError(
            "task_completed", f"the task has been merged already, as {result.path!r}"
        )
    expected = request.expected_digests
    is_known = result.composite_sha256 if expected.composite_sha256 else result.md5
    if not is_known:
        result = _with_digest(settings, record, result, expected)
    if settings.enable_integrity_check:
        check_digests(expected, FileDigests(result.md5, result.composite_sha256))
    return result


def _with_digest(
    settings: UploadSettings,
    record: TaskRecord,
    result: MergeResult,
    expected: FileDigests,
) -> MergeResult:
    """Read the published file, and add the missing digest to the result.

    The composite SHA-256 is added if one is expected, otherwise the MD5. Compares
    nothing.
    """
    sizes = [entry[1] for entry in record.chunks] if expected.composite_sha256 else None
    name = result.path.rpartition("/")[2]
    with translate_os_errors("read the file"):
        descriptor = open_file_below(
            settings.merged_dir, f"{result.relative_path}/{name}".lstrip("/")
        )
        try:
            found = read_digests(descriptor, result.size, sizes)
        finally:
            release(descriptor)
    return replace(
        result,
        md5=result.md5 or found.md5,
        composite_sha256=result.composite_sha256 or found.composite_sha256,
    )
