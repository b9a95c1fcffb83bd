"""An index of all tasks: by owner and state, with counters. Immutable; made from an
earlier one and the changes."""

from __future__ import annotations

import base64
import heapq
from bisect import bisect_left, bisect_right, insort
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from dlpool.storage.disk.capacity import assumed_chunks
from dlpool.storage.disk.task_summary import TaskSummary
from dlpool.storage.errors import UploadError
from dlpool.storage.names import folder_name, is_folder_name
from dlpool.storage.states import COMPLETED, STATES


class TaskCounts(NamedTuple):
    """What tasks take.

    - ``bytes``: of their chunks, and of the files that were merged from them, which
      stay when the task is removed
    - ``files``: entries in the folders of tasks, with the folders
    - ``chunks``, ``file_size``: the sums of those of the summaries
    - ``announced``: bytes that the tasks are to have, or have if they are completed;
      ``unsized``: tasks of which that is not known; ``places``: chunks that the tasks
      are to have, in thousands where they do not say it. Of a final tus upload the
      parts count instead.
    """

    tasks: int = 0
    bytes: int = 0
    files: int = 0
    chunks: int = 0
    file_size: int = 0
    declared_bytes: int = 0
    unknown_sizes: int = 0
    expected_chunks: int = 0

    def plus(self, summary: TaskSummary, sign: int = 1) -> TaskCounts:
        """Return the counts with that task added, or with ``sign`` -1 removed."""
        is_completed, size = summary.status == COMPLETED, max(summary.file_size, 0)
        has_places = not (is_completed or summary.is_final)
        own = (
            1,
            size if is_completed else summary.stored,
            1 + summary.files,
            summary.chunks,
            size,
            size if is_completed or not summary.is_final else 0,
            int(has_places and summary.file_size < 0),
            (summary.total_chunks or assumed_chunks(summary.chunks))
            if has_places
            else 0,
        )
        return TaskCounts(
            *(have + sign * more for have, more in zip(self, own, strict=True))
        )

    @classmethod
    def sum_of(cls, counts: Iterable[TaskCounts]) -> TaskCounts:
        """Return the sum of some counts."""
        return cls(*map(sum, zip(cls(), *counts, strict=True)))


_EVERYBODY = object()
_Key = tuple[object, str]  # owner and state; tasks that nobody owns have the owner None
MAX_PAGE = 1000
_FEW = 100  # changes that are made one by one
NOTHING = TaskCounts()


class TaskPage(NamedTuple):
    """Some tasks, by id. ``total``: of all pages. ``last``: the place of the last one,
    empty if none follows."""

    tasks: list[TaskSummary]
    total: int
    last_key: str


@dataclass(frozen=True)
class TaskCatalog:
    """All tasks at one time. Threads may share it.

    ``summaries``: by the name of the folder; None for a folder to which no id leads.
    """

    summaries: Mapping[str, TaskSummary | None] = field(default_factory=dict)
    _ids: Mapping[_Key, Sequence[str]] = field(default_factory=dict)
    _counts: Mapping[_Key, TaskCounts] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<Catalog of {len(self.summaries)} tasks>"

    def with_changes(
        self, changes: Mapping[str, TaskSummary | None], gone: Iterable[str] = ()
    ) -> TaskCatalog:
        """Return the catalog after ``changes``, by the name of the folder, and without
        the folders in ``gone``."""
        summaries, counts = dict(self.summaries), dict(self._counts)
        removed: dict[_Key, set[str]] = defaultdict(set)
        added: dict[_Key, list[str]] = defaultdict(list)
        for name in (*gone, *changes):
            for key, summary in _keyed(summaries.pop(name, None)):
                removed[key].add(sort_key(summary, name))
                counts[key] = counts[key].plus(summary, -1)
        for name, changed in changes.items():
            for key, one in _keyed(changed):
                added[key].append(sort_key(one, name))
                counts[key] = counts.get(key, NOTHING).plus(one)
        summaries.update(changes)
        ids = dict(self._ids)
        for key in removed.keys() | added.keys():
            ids[key] = _merged(ids.get(key, ()), removed[key], added[key])
            if not ids[key]:
                del ids[key], counts[key]
        return TaskCatalog(summaries, ids, counts)

    def page(
        self, owner: str | None, wanted: Iterable[str], after: str, limit: int
    ) -> TaskPage:
        """Return at most ``limit`` tasks of the owner in the ``wanted`` states behind
        the place ``after``."""
        whose = _EVERYBODY if owner is None else owner
        lists = [self._ids.get((whose, state), ()) for state in sorted(set(wanted))]
        parts = [_following(ids, after, limit + 1) for ids in lists]
        found = list(heapq.merge(*parts))[: limit + 1]
        names = [place.partition("\0")[2] for place in found[:limit]]
        tasks = [
            summary for name in names if (summary := self.summaries[name]) is not None
        ]
        return TaskPage(
            tasks, sum(map(len, lists)), found[limit - 1] if len(found) > limit else ""
        )

    def counts(self) -> dict[str, TaskCounts]:
        """Return what all tasks take, by state."""
        return {
            state: self._counts.get((_EVERYBODY, state), NOTHING) for state in STATES
        }

    def counts_of(self, owner: str | None) -> TaskCounts:
        """Return what the tasks of the owner take; None: what those take that nobody
        owns."""
        return TaskCounts.sum_of(
            self._counts.get((owner, state), NOTHING) for state in STATES
        )


def _merged(ids: Sequence[str], removed: set[str], added: list[str]) -> Sequence[str]:
    """Return sorted ids after a change."""
    if len(removed) + len(added) > _FEW:
        return sorted([*(one for one in ids if one not in removed), *added])
    found = list(ids)
    for one in removed:
        del found[bisect_left(found, one)]
    for one in added:
        insort(found, one)
    return found


def _following(ids: Sequence[str], after: str, most: int) -> Sequence[str]:
    begin = bisect_right(ids, after)
    return ids[begin : begin + most]


def _keyed(summary: TaskSummary | None) -> Iterator[tuple[_Key, TaskSummary]]:
    """Yield a task with each key under which it is listed."""
    if summary is not None:
        yield (_EVERYBODY, summary.status), summary
        yield (summary.owner, summary.status), summary


def sort_key(summary: TaskSummary, name: str) -> str:
    """Return what tasks are sorted by: the id, and for the same id of several owners
    the name of the folder."""
    return f"{summary.file_id}\0{name}"


def make_cursor(place: str) -> str:
    """Return the cursor of the page that begins behind the task there, whether or not
    it exists by then."""
    return base64.urlsafe_b64encode(b"1" + place.encode()).decode().rstrip("=")


def read_cursor(cursor: str) -> str:
    """Return the place behind which the page of a cursor begins, empty for the first
    page. Raises Refusal (400)."""
    if not cursor:
        return ""
    try:
        place = base64.b64decode(
            cursor + "=" * (-len(cursor) % 4), b"-_", validate=True
        )[1:].decode()
        file_id, _, name = place.partition("\0")
        folder_name(file_id)
    except (UploadError, ValueError) as error:
        raise _bad_cursor() from error
    if make_cursor(place) != cursor or not is_folder_name(name):
        raise _bad_cursor()
    return place


def _bad_cursor() -> UploadError:
    return UploadError(
        400,
        "bad_cursor",
        "the cursor is not one of this list: begin again without a cursor",
    )
