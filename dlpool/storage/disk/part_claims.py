"""Whose the parts of a final upload are: the final's, from the moment at which it takes
them.

A final upload notes the ids of its parts when it begins (``parts_of``), and then its
own id in the record of each part (``claimant_of``). That claim holds exactly as long as
the task of the final one is there, in whatever state. So a final that is removed has
given back all of its parts in one step, and one that is completed is not removed before
its parts are.
"""

from __future__ import annotations

from dataclasses import replace

from dlpool.disk import exists
from dlpool.storage import states
from dlpool.storage.disk.layout import StoreLayout
from dlpool.storage.disk.task_record import TaskRecord, load_record

PARTS, _CLAIM = "parts", "claim"


def claimed_parts(record: TaskRecord) -> tuple[str, ...]:
    """The ids of the parts that a final upload took and that may still be there."""
    found = record.tus.get(PARTS)
    return (
        tuple(part for part in found if isinstance(part, str))
        if isinstance(found, list)
        else ()
    )


def without_parts(record: TaskRecord) -> TaskRecord:
    """The record of a final upload whose parts are removed."""
    return replace(
        record, tus={name: value for name, value in record.tus.items() if name != PARTS}
    )


def with_claim(record: TaskRecord, final: str) -> TaskRecord:
    """The record of a part that the upload ``final`` takes."""
    return replace(record, tus={**record.tus, _CLAIM: final})


def claimant_of(layout: StoreLayout, record: TaskRecord) -> str | None:
    """The id of the final upload that has taken this part; None if there is none, or
    none any more. Raises OSError.

    No lock of the final one is needed: it is there before it takes a part, and its id
    is never used again.
    """
    final = record.tus.get(_CLAIM)
    return (
        final
        if isinstance(final, str) and exists(layout.task_by_id(final).folder)
        else None
    )


def is_consumed(layout: StoreLayout, record: TaskRecord) -> bool:
    """Whether the final upload that took this part is completed: then the part is about
    to be removed.

    Raises OSError.
    """
    final = claimant_of(layout, record)
    noted = None if final is None else load_record(layout.task_by_id(final).folder)
    return noted is not None and noted.status == states.COMPLETED
