"""What a supervisor notes of its jobs: how many it holds, what it logs of them, and what is to be removed."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from dlpool.config import PathSettings
from dlpool.errors import LocalFault, QueueAway
from dlpool.jobs.confinement import Confinement
from dlpool.jobs.pushed_job import PushedJob
from dlpool.jobs.states import Disposition
from dlpool.jobs.transitions import FinishRequest
from dlpool.service import journal as journal_module
from dlpool.service.cleanup import MAX_FRAME_CHARACTERS, SEND_INTERVAL_S, split_into_frames
from dlpool.service.inflight import InFlightJob, InFlightPhase, InFlightTable, is_path_implied, job_frame
from dlpool.service.job_log import log_disposition, trace_id_of
from dlpool.service.journal import CleanupJournal
from dlpool.service.queue.redis_state import RedisState
from dlpool.service.wire.counters import WorkerCounters
from dlpool.service.wire.frames import CleanFrame, CleanupEntry
from dlpool.transfer.target.state import url_digest
from tests.bench import URL, Bench, job_of
from tests.fakes import Lines
from tests.interleaving import wait_for_lock


def held(name: str = "a", **fields: Any) -> InFlightJob:
    return InFlightJob(job_of(name, **fields), 0.0)


def table_of(capacity: int, *names: str) -> InFlightTable:
    table = InFlightTable()
    table.set_capacity(capacity)
    for name in names:
        assert table.add(held(name))
    return table


# --- how many are held ---


@pytest.mark.parametrize(
    ("capacity", "names", "room"), [(0, "", 0), (1, "", 1), (2, "a", 1), (2, "ab", 0), (2, "abc", 0), (3, "abc", 0)]
)
def test_free_slots_are_what_the_capacity_leaves(capacity: int, names: str, room: int) -> None:
    table = table_of(capacity, *names)
    assert (table.free_slots(), table.has_free_slot.is_set(), table.busy) == (room, room > 0, len(names))
    assert [str(lease_id) for lease_id in table.leases()] == [f"{name}.1" for name in names]


def test_a_new_table_has_no_free_slot() -> None:
    table = InFlightTable()
    assert table.free_slots() == 0
    table.add(held())
    table.remove("a.1")
    assert table.free_slots() == 0 and not table.has_free_slot.is_set()


def test_a_job_is_added_once() -> None:
    table = table_of(2)
    first = held()
    assert [table.add(first), table.add(first), table.add(held())] == [True, False, False]
    assert table.get("a.1") is first and table.busy == 1


def test_a_slot_is_free_while_a_job_waits_for_it_or_is_recorded_and_counts_once() -> None:
    table = table_of(2, "a", "b")
    one, other = table.all()
    steps: list[tuple[Callable[[], object], int]] = [
        (lambda: table.set_phase(one, InFlightPhase.AHEAD), 1),
        (lambda: table.set_phase(one, InFlightPhase.AHEAD), 1),
        (lambda: table.set_phase(one, InFlightPhase.RECORDING), 1),
        (lambda: table.remove("a.1"), 1),
        (lambda: table.remove("a.1"), 1),
        (lambda: table.set_phase(other, InFlightPhase.RECORDING), 2),
        (lambda: table.set_phase(other, InFlightPhase.WAITING), 1),
        (lambda: table.remove("b.1"), 2),
    ]
    for step, room in steps:
        step()
        assert (table.free_slots(), table.has_free_slot.is_set()) == (room, True)


def test_the_last_slot_is_taken_and_freed() -> None:
    table = table_of(1, "a")
    assert not table.has_free_slot.is_set()
    dropped = table.remove("a.1")
    assert dropped is not None and dropped.lease.job_id == "a" and table.has_free_slot.is_set()
    assert table.remove("a.1") is None
    table.set_capacity(0)
    assert not table.has_free_slot.is_set()


def test_a_job_frame_has_the_checksum_of_the_job() -> None:
    frame_of = {checksum: job_frame(held(), parsed(checksum)) for checksum in (None, "sha256:" + "0" * 64)}
    assert [frame.checksum for frame in frame_of.values()] == list(frame_of)


def parsed(checksum: str | None) -> Any:
    return PushedJob.parse(job_of(checksum=checksum).raw)


@pytest.mark.parametrize(
    ("path", "save_path", "is_so"),
    [
        ("/d/x", "x", True),
        ("/d/x", "/d/x", True),
        ("/d/x", "a/x", True),
        ("/d/y", "x", False),
        ("/d/x/", "x/", False),
        ("/d/x", "x/", False),
    ],
)
def test_a_save_path_implies_the_path_unless_the_server_named_it(path: str, save_path: str, is_so: bool) -> None:
    assert is_path_implied(path, save_path) == is_so


# --- locks ---


def a_table() -> InFlightTable:
    return table_of(3, "a", "b")


def a_link() -> RedisState:
    return RedisState(Lines(), lambda: None, lambda _: None)


LOCKED: dict[str, tuple[Callable[[], Any], Callable[[Any], object]]] = {
    "add": (a_table, lambda table: table.add(held("c"))),
    "set_phase AHEAD": (a_table, lambda table: table.set_phase(table.get("a.1"), InFlightPhase.AHEAD)),
    "set_phase RECORDING": (a_table, lambda table: table.set_phase(table.get("a.1"), InFlightPhase.RECORDING)),
    "remove": (a_table, lambda table: table.remove("a.1")),
    "all": (a_table, lambda table: table.all()),
    "set_capacity": (a_table, lambda table: table.set_capacity(1)),
    "free_slots": (a_table, lambda table: table.free_slots()),
    "counters add": (WorkerCounters, lambda counters: counters.add("x", 1)),
    "counters count_range": (WorkerCounters, lambda counters: counters.count_range(1.0)),
    "counters snapshot": (WorkerCounters, lambda counters: counters.snapshot()),
    "link lost": (a_link, lambda link: link.report_failure(QueueAway("away"))),
    "link beat": (a_link, lambda link: link.report_heartbeat()),
}


@pytest.mark.parametrize("name", LOCKED)
def test_operations_of_several_threads_exclude_each_other(name: str) -> None:
    make, operation = LOCKED[name]
    wait_for_lock(make(), operation)


@pytest.mark.parametrize("name", ["add", "remove", "entries", "compact"])
def test_operations_on_the_journal_exclude_each_other(tmp_path: Path, name: str) -> None:
    job = CleanupEntry("a", url_digest(URL), "a", None, False)
    arguments: dict[str, tuple[Any, ...]] = {"add": (job,), "remove": ([job],)}
    wait_for_lock(CleanupJournal(tmp_path), lambda journal: getattr(journal, name)(*arguments.get(name, ())))


# --- the summary of a run ---


ENDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "success": ("info", "job_succeeded", {"outcome": "success"}),
    "failed": ("error", "job_failed", {"outcome": "failure", "error": "m"}),
    "cancelled": ("info", "job_cancelled", {"reply": "OK"}),
    "pause": ("info", "job_paused", {"reply": "OK"}),
    "retry": ("warning", "job_retried", {"disposition": "retry", "reason": "m", "delay_s": 2.0}),
    "crash": ("warning", "job_retried", {"disposition": "crash", "reason": "m", "delay_s": 2.0}),
    "yield": ("info", "job_yielded", {"disposition": "yield", "reason": "m", "reply": "OK", "delay_s": 2.0}),
    "throttle": ("info", "job_throttled", {"disposition": "throttle", "reason": "m", "reply": "OK", "delay_s": 2.0}),
    "release": ("info", "job_released", {"disposition": "release", "reason": "m", "reply": "OK", "delay_s": 2.0}),
    "follow": ("info", "job_released", {"disposition": "follow", "reason": "m", "reply": "OK", "delay_s": 2.0}),
}


@pytest.mark.parametrize("outcome", ENDS)
@pytest.mark.parametrize("has_stack", [False, True])
def test_an_attempt_has_one_summary_line(tmp_path: Path, outcome: str, has_stack: bool) -> None:
    bench = Bench(tmp_path)
    one = bench.held(user_id="u")
    one.stack = "s" if has_stack else ""
    request = FinishRequest(
        one.lease, Disposition(outcome), note={"message": "m", "path": "p", "label": "l", "size": 3}, delay_s=2.0
    )
    log_disposition(bench.lines, one, request, "OK")
    level, event, fields = ENDS[outcome]
    always = {"job_id": "a", "attempt": 1, "trace_id": one.trace_id, "url": URL, "path": "/data/a", "user_id": "u"}
    stack = {"stack": "s"} if has_stack and outcome == "failed" else {}
    assert bench.lines.kept == [(level, event, always | {"label": "l", "size": 3} | fields | stack)]


@pytest.mark.parametrize("reply", ["FENCED", "GONE"])
def test_a_fenced_attempt_is_logged_as_such(tmp_path: Path, reply: str) -> None:
    bench = Bench(tmp_path)
    one = bench.held()
    log_disposition(bench.lines, one, FinishRequest(one.lease, Disposition.SUCCEED), reply)
    ((level, event, fields),) = bench.lines.kept
    assert (level, event, fields["reply"], fields["disposition"]) == ("warning", "job_fenced", reply, "success")
    assert "user_id" not in fields


def test_a_trace_id_is_the_clients_or_follows_from_the_job() -> None:
    assert trace_id_of("a", None) == trace_id_of("a", None) != trace_id_of("b", None)
    assert len(trace_id_of("a", None)) == 32


# --- what is to be removed ---


def job(name: str, fence: int = 1, **fields: Any) -> CleanupEntry:
    given: dict[str, Any] = {
        "url_sha256": url_digest(URL),
        "save_path": name,
        "path": None,
        "has_failed": True,
        **fields,
    }
    return CleanupEntry(name, fence=fence, **given)


def lines_of(folder: Path) -> list[bytes]:
    return (folder / "journal").read_bytes().splitlines()


def test_the_journal_survives_its_supervisor_and_truncated_lines(tmp_path: Path) -> None:
    journal = CleanupJournal(tmp_path)
    journal.add(job("a", trace_id="t"))
    journal.add(job("b", path="/x", has_failed=False))
    journal.add(job("b", fence=2))
    with (tmp_path / "journal").open("ab") as file:
        file.write(b'["cut","http')
    known = CleanupJournal(tmp_path).entries()
    assert known == {
        "a": job("a", trace_id="t"),
        "b": job("b", fence=2),
    }
    assert len(lines_of(tmp_path)) == 2  # each once


@pytest.mark.parametrize(
    "line", [b"[]", b"1", b'["a"]', b'["a","u","s",null,true,"x"]', b'["a","u","s",null,true,1,""]']
)
def test_a_line_is_an_entry_or_ignored(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "journal").write_bytes(line + b"\n")
    is_job = line.endswith(b'true,1,""]')
    assert list(CleanupJournal(tmp_path).entries()) == (["a"] if is_job else [])


def test_an_entry_of_a_later_attempt_stays_in_the_journal(tmp_path: Path) -> None:
    journal = CleanupJournal(tmp_path)
    for fence in (1, 2):
        journal.add(job("a", fence))
    journal.add(job("b"))
    journal.remove([job("a", 1), job("gone")])
    assert set(journal.entries()) == {"a", "b"}
    journal.remove([job("a", 2), job("b", 3)])
    assert journal.entries() == {}


def test_a_journal_of_mostly_old_lines_is_compacted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "COMPACT_LINES", 10)
    journal = CleanupJournal(tmp_path)
    journal.add(job("stays"))
    for number in range(13):
        journal.add(job(str(number)))
        journal.remove([job(str(number))])
        assert len(lines_of(tmp_path)) == number + 2
    journal.add(job("last"))
    journal.remove([job("last")])  # 15 lines, more than 10 and 4 for the job that stays
    assert [line[:8] for line in lines_of(tmp_path)] == [b'["stays"']
    journal.add(job("next"))
    assert len(lines_of(tmp_path)) == 2
    journal.remove([job("next")])
    journal.compact()
    assert len(lines_of(tmp_path)) == 1


def open_files(folder: Path) -> int:
    """How many files of the folder this process has open."""
    found = 0
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            found += os.readlink(f"/proc/self/fd/{name}").startswith(f"{folder}/")
    return found


def test_a_journal_keeps_one_file_open_even_if_it_cannot_be_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = CleanupJournal(tmp_path)
    for _ in range(3):
        journal.compact()
    assert open_files(tmp_path) == 1

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "refused")

    monkeypatch.setattr("dlpool.service.journal.disk.replace", refuse)
    with pytest.raises(Exception, match="journal"):
        journal.compact()
    assert open_files(tmp_path) == 1


# --- who removes it ---


def test_stale_files_are_removed_by_the_worker_that_ran_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path)
    monkeypatch.setattr("dlpool.service.cleanup.time", bench.clock)
    one, other = bench.worker(), bench.worker()
    bench.cleanup.enqueue([job("a")], other.handle.pid)
    bench.cleanup.enqueue([job("b")])
    bench.cleanup.send_requests()
    assert one.heard() == [CleanFrame([list(job("b"))])] and other.heard() == [CleanFrame([list(job("a"))])]
    assert set(one.handle.cleanup_requests) == {"b"} and set(other.handle.cleanup_requests) == {"a"}
    bench.cleanup.enqueue([job("c")])
    bench.clock.now += SEND_INTERVAL_S / 2
    bench.cleanup.send_requests()
    assert one.heard() == []
    bench.clock.now += SEND_INTERVAL_S / 2
    bench.cleanup.send_requests()
    bench.clock.now += SEND_INTERVAL_S
    bench.cleanup.send_requests()
    assert one.heard() == [CleanFrame([list(job("c"))])] and other.heard() == []
    bench.cleanup.enqueue([job("d")])
    bench.cleanup.send_requests(now=True)
    assert one.heard() == [CleanFrame([list(job("d"))])]


def test_stale_files_wait_for_a_worker(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.worker(is_ready=False)
    bench.cleanup.enqueue([job("a")])
    bench.cleanup.send_requests(now=True)
    worker = bench.worker()
    bench.cleanup.send_requests(now=True)
    assert worker.heard() == [CleanFrame([list(job("a"))])]


def sized(field: str, length: int) -> CleanupEntry:
    """An entry of which one field has that length, and the others are empty."""
    given: dict[str, Any] = {"url_sha256": "", "save_path": "", "path": None, field: "x" * length}
    return CleanupEntry("x", has_failed=True, **given)


@pytest.mark.parametrize("field", ["url_sha256", "save_path", "path"])
def test_clean_frames_are_not_too_large(field: str) -> None:
    short = sized(field, 0)
    half, rest = MAX_FRAME_CHARACTERS // 2, MAX_FRAME_CHARACTERS - MAX_FRAME_CHARACTERS // 2
    lengths = [half, rest, half, half + 1, MAX_FRAME_CHARACTERS + 1, 1, 1]
    told = list(split_into_frames([sized(field, length) for length in lengths]))
    sizes = [[len(getattr(one, field)) for one in portion] for portion in told]
    assert sizes == [[half, rest], [half], [half + 1], [MAX_FRAME_CHARACTERS + 1], [1, 1]]
    assert list(split_into_frames([])) == []
    assert len(list(split_into_frames([short] * 1000))) == 1


def test_without_workers_the_supervisor_removes_stale_files(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    paths = Confinement(PathSettings(download_dir=str(tmp_path / "data")))
    (tmp_path / "data").mkdir()
    for name in ("a", "b"):
        bench.cleanup.record_start(job(name))
        bench.cleanup.record_start(job(name))
    part = tmp_path / "data" / "a.part"
    bench.cleanup.enqueue([job("a"), job("out", save_path="/etc/x")])
    bench.cleanup.clean_up_here(paths)
    bench.cleanup.clean_up_here(paths)
    assert not part.exists()
    (line,) = bench.lines.kept
    assert (line.level, line.event, line.fields["job_id"]) == ("warning", "stale_file_not_removed", "out")
    assert set(bench.journal.entries()) == {"b"} and len(lines_of(tmp_path)) == 1


def test_a_journal_that_cannot_be_written_is_logged_and_fails_no_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path)

    def refuse(*_: object) -> None:
        raise LocalFault("no space")

    for name in ("add", "remove", "compact"):
        monkeypatch.setattr(bench.journal, name, refuse)
    bench.cleanup.record_start(job("a"))
    bench.cleanup.forget([job("a")])
    bench.cleanup.clean_up_here(Confinement(PathSettings(download_dir=str(tmp_path))))
    assert [(line.level, line.event) for line in bench.lines.kept] == [("warning", "journal_write_failed")] * 4
    assert bench.lines.kept[0].fields["job_id"] == "a"
