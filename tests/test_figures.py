"""The counts of the HTTP side, told by several processes."""

from __future__ import annotations

import random
import threading
from pathlib import Path

from dlpool.web.counters import SharedCounters
from tests.disks import needs_root, tmpfs


def test_what_one_has_told_no_other_one_takes_back(tmp_path: Path) -> None:
    each, moments, told = [SharedCounters(tmp_path) for _ in range(3)], random.Random(1), 0.0
    for count in range(1, 300):
        moments.choice(each).add("chunks")
        if moments.random() < 0.5:
            found = moments.choice(each).totals().get("chunks", 0)
            assert told <= found <= count
            told = found
    for one in each:
        one.flush()
    assert [one.totals() for one in each] == [{"chunks": 299}] * 3


def test_threads_that_tell_at_once_never_take_a_row_back(tmp_path: Path) -> None:
    counting, other = SharedCounters(tmp_path), SharedCounters(tmp_path)

    def count() -> None:
        for _ in range(100):
            counting.add("chunks")
            counting.totals()

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    seen = [other.totals().get("chunks", 0) for _ in range(200)]
    for thread in threads:
        thread.join()
    assert seen == sorted(seen)
    assert other.totals() == {"chunks": 400}


@needs_root
def test_on_a_full_disk_a_process_tells_at_least_its_own_counts(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk", "64k") as disk:
        one, other = SharedCounters(disk), SharedCounters(disk)
        one.add("chunks")
        other.add("chunks")
        assert (one.totals(), other.totals()) == ({"chunks": 1}, {"chunks": 2})
        (disk / "filler").write_bytes(bytes(64 * 1024 - 4096 * len(list(disk.glob("*.json")))))
        one.add("chunks")
        assert not one.flush()
        assert one.totals() == {"chunks": 3}
        (disk / "filler").unlink()
        assert one.flush()
        assert other.totals() == {"chunks": 3}
