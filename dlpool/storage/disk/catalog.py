"""An immutable catalog of all tasks, by owner and state, with counters.

A change does not modify a catalog: ``with_changes`` returns a new catalog.
"""

from __future__ import annotations

import base64
import heapq
from bisect import bisect_left, bisect_right, insort
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import field

from dlpool.dataclass import dataclass
from dlpool.storage.disk.capacity import assumed_chunks
from dlpool.storage.errors import UploadError
from dlpool.storage.names import folder_name, is_folder_name
from dlpool.storage.states import COMPLETED, STATES
from dlpool.storage.values import TaskCounts, TaskPage, TaskSummary

_ALL_OWNERS = object()
_Key = tuple[object, str]  # owner and state; a task without owner has the owner None
_FEW = 100  # changes to insert one by one; with more, the list is sorted again
NOTHING = TaskCounts()


def add_task(counts: TaskCounts, summary: TaskSummary, sign: int = 1) -> TaskCounts:
    """Return the counts with a task added (``sign`` 1) or subtracted (-1)."""
    is_completed, size = summary.status == COMPLETED, max(summary.file_size, 0)
    expects_chunks = not (is_completed or summary.is_final)
    own = (
        1,
        size if is_completed else summary.stored,
        1 + summary.files,
        summary.chunks,
        size,
        size if is_completed or not summary.is_final else 0,
        int(expects_chunks and summary.file_size < 0),
        (summary.total_chunks or assumed_chunks(summary.chunks))
        if expects_chunks
        else 0,
    )
    return TaskCounts(
        *(have + sign * more for have, more in zip(counts, own, strict=True))
    )


@dataclass(frozen=True)
class TaskCatalog:
    """A snapshot of all tasks. Threads may share it.

    ``summaries``: the tasks by folder name; None for a folder that belongs to no task.
    """

    summaries: Mapping[str, TaskSummary | None] = field(default_factory=dict)
    _sort_keys: Mapping[_Key, Sequence[str]] = field(default_factory=dict)
    _counts: Mapping[_Key, TaskCounts] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<TaskCatalog of {len(self.summaries)} tasks>"

    def with_changes(
        self, changes: Mapping[str, TaskSummary | None], gone: Iterable[str] = ()
    ) -> TaskCatalog:
        """Return a new catalog with the changes.

        ``changes``: the new summary of each changed task, by folder name; None for a
        folder that belongs to no task. ``gone``: names of folders that no longer exist.
        """
        summaries, counts = dict(self.summaries), dict(self._counts)
        removed: dict[_Key, set[str]] = defaultdict(set)
        added: dict[_Key, list[str]] = defaultdict(list)
        for name in (*gone, *changes):
            for key, summary in _with_keys(summaries.pop(name, None)):
                removed[key].add(sort_key(summary, name))
                counts[key] = add_task(counts[key], summary, -1)
        for name, changed in changes.items():
            for key, summary in _with_keys(changed):
                added[key].append(sort_key(summary, name))
                counts[key] = add_task(counts.get(key, NOTHING), summary)
        summaries.update(changes)
        sort_keys = dict(self._sort_keys)
        for key in removed.keys() | added.keys():
            sort_keys[key] = _merged(sort_keys.get(key, ()), removed[key], added[key])
            if not sort_keys[key]:
                del sort_keys[key], counts[key]
        return TaskCatalog(summaries, sort_keys, counts)

    def page(
        self, owner: str | None, wanted: Iterable[str], after: str, limit: int
    ) -> TaskPage:
        """Return at most ``limit`` tasks of ``owner``.

        ``owner``: None for the tasks of all owners. ``wanted``: the states of the
        returned tasks. ``after``: the sort key behind which the page starts.
        """
        whose = _ALL_OWNERS if owner is None else owner
        lists = [
            self._sort_keys.get((whose, state), ()) for state in sorted(set(wanted))
        ]
        parts = [_following(keys, after, limit + 1) for keys in lists]
        found = list(heapq.merge(*parts))[: limit + 1]
        names = [key.partition("\0")[2] for key in found[:limit]]
        tasks = [
            summary for name in names if (summary := self.summaries[name]) is not None
        ]
        return TaskPage(
            tasks,
            sum(map(len, lists)),
            make_cursor(found[limit - 1]) if len(found) > limit else "",
        )

    def counts(self) -> dict[str, TaskCounts]:
        """Return the counts of all tasks, by state."""
        return {
            state: self._counts.get((_ALL_OWNERS, state), NOTHING) for state in STATES
        }

    def counts_of(self, owner: str | None) -> TaskCounts:
        """Return the counts of the tasks of ``owner``.

        ``owner`` None: the counts of the tasks without an owner.
        """
        return TaskCounts.sum_of(
            self._counts.get((owner, state), NOTHING) for state in STATES
        )


def _merged(keys: Sequence[str], removed: set[str], added: list[str]) -> Sequence[str]:
    """Return the sorted keys, without ``removed`` and with ``added`` keys."""
    if len(removed) + len(added) > _FEW:
        return sorted([*(key for key in keys if key not in removed), *added])
    found = list(keys)
    for key in removed:
        del found[bisect_left(found, key)]
    for key in added:
        insort(found, key)
    return found


def _following(keys: Sequence[str], after: str, limit: int) -> Sequence[str]:
    start = bisect_right(keys, after)
    return keys[start : start + limit]


def _with_keys(summary: TaskSummary | None) -> Iterator[tuple[_Key, TaskSummary]]:
    """Yield a task with each key under which it is listed."""
    if summary is not None:
        yield (_ALL_OWNERS, summary.status), summary
        yield (summary.owner, summary.status), summary


def sort_key(summary: TaskSummary, name: str) -> str:
    """Return the sort key of a task: its id and the name of its folder.

    Several owners may have tasks of the same id.
    """
    return f"{summary.file_id}\0{name}"


def make_cursor(key: str) -> str:
    """Return the cursor of the page that starts behind a sort key.

    The cursor stays valid if the task with this key is removed.
    """
    return base64.urlsafe_b64encode(b"1" + key.encode()).decode().rstrip("=")


def read_cursor(cursor: str) -> str:
    """Return the sort key behind which a page starts, empty for the first page.

    Raises UploadError (bad_cursor).
    """
    if not cursor:
        return ""
    try:
        key = base64.b64decode(cursor + "=" * (-len(cursor) % 4), b"-_", validate=True)[
            1:
        ].decode()
        file_id, _, name = key.partition("\0")
        folder_name(file_id)
    except (UploadError, ValueError) as error:
        raise _bad_cursor() from error
    if make_cursor(key) != cursor or not is_folder_name(name):
        raise _bad_cursor()
    return key


def _bad_cursor() -> UploadError:
    return UploadError(
        "bad_cursor",
        "the cursor does not belong to this list: start again without a cursor",
    )
