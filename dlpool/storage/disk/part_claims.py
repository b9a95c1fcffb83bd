"""The claims of final uploads on their parts.

A final upload records the ids of its parts when it is created (``claimed_parts``), and
then its own id in the record of each part (``claimant_of``). The claim holds as long as
the task of the final upload exists, in any state: removing the final upload releases
all its parts in one step. A completed final upload is removed after its parts.
"""

from __future__ import annotations

from dataclasses import replace

from dlpool.disk import exists
from dlpool.storage import states
from dlpool.storage.disk.layout import StoreLayout
from dlpool.storage.disk.task_record import TaskRecord, load_record

PARTS, _CLAIM = "parts", "claim"  # keys of TaskRecord.tus


def claimed_parts(record: TaskRecord) -> tuple[str, ...]:
    """Return the ids of the parts that a final upload has taken.

    Some of these parts may have been removed.
    """
    found = record.tus.get(PARTS)
    return (
        tuple(part for part in found if isinstance(part, str))
        if isinstance(found, list)
        else ()
    )


def without_parts(record: TaskRecord) -> TaskRecord:
    """Return a copy of a final upload's record without the ids of its parts."""
    return replace(
        record, tus={name: value for name, value in record.tus.items() if name != PARTS}
    )


def with_claim(record: TaskRecord, final: str) -> TaskRecord:
    """Return a copy of a part's record that names ``final`` as its claimant.

    ``final``: the id of the final upload.
    """
    return replace(record, tus={**record.tus, _CLAIM: final})


def claimant_of(layout: StoreLayout, record: TaskRecord) -> str | None:
    """Return the id of the final upload that has taken a part.

    None if the part is free. ``record``: the record of the part. Raises OSError. The
    caller need not lock the final upload: its task exists before it takes a part, and
    its id is never reused.
    """
    final = record.tus.get(_CLAIM)
    return (
        final
        if isinstance(final, str) and exists(layout.task_by_id(final).folder)
        else None
    )


def is_consumed(layout: StoreLayout, record: TaskRecord) -> bool:
    """Return whether a part belongs to a completed final upload.

    ``record``: the record of the part. Such a part is about to be removed. Raises
    OSError.
    """
    final = claimant_of(layout, record)
    found = None if final is None else load_record(layout.task_by_id(final).folder)
    return found is not None and found.status == states.COMPLETED
