"""One round of a download: what it commits, when it ends, and what is left if something ends it."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dlpool import disk_errors, errors
from dlpool.config import TransferSettings
from dlpool.transfer.attempt import CHECKPOINT_BYTES, CHECKPOINT_S, COALESCE_S, Checkpoint, TransferAttempt
from dlpool.transfer.scheduler import ChunkSnapshot
from dlpool.transfer.speed_monitor import SpeedMonitor
from dlpool.transfer.target.file.output import FileOutput
from dlpool.transfer.target.file.statefile import StateFile
from dlpool.transfer.transfer import Transfer
from tests.conftest import Fetcher, make_data, sha256, wait_until
from tests.origin import Connection, File, Origin, Request

Serve = Callable[..., Origin]

KIB = 1024
SIZE = 300_000
DATA = make_data(SIZE)


# --- checkpoints ---


@pytest.mark.parametrize(
    ("written", "ended", "age_s", "is_due"),
    [
        (1000, 3, 3600.0, False),
        (1001, 3, CHECKPOINT_S, True),
        (1001, 3, CHECKPOINT_S - 0.01, False),
        (1000 + CHECKPOINT_BYTES, 3, 0.0, True),
        (999 + CHECKPOINT_BYTES, 3, 0.0, False),
        (1001, 4, COALESCE_S, True),
        (1001, 4, COALESCE_S - 0.01, False),
        (1001, 3, COALESCE_S, False),
    ],
)
def test_a_checkpoint_is_due_after_time_bytes_or_ended_chunks(
    written: int, ended: int, age_s: float, is_due: bool
) -> None:
    committed = Checkpoint(at=50.0, written=1000, ended_chunks=3)
    assert committed.is_next_due(written, ended, 50.0 + age_s) is is_due


class Turning:
    """A round whose scheduler, output and clock are the test's: only its checkpoints are looked at."""

    def __init__(self) -> None:
        self.now = 50.0
        self.bytes = 0
        self.fault: Exception | None = None
        self.commits: list[int] = []
        self.scheduler = SimpleNamespace(
            written=lambda: self.bytes,
            finished_chunks=0,
            snapshot=lambda: ChunkSnapshot([], self.bytes),
        )
        self.stopped: Exception | None = None
        context = SimpleNamespace(
            clock=lambda: self.now,
            scheduler=self.scheduler,
            scope=SimpleNamespace(cancel=lambda error: setattr(self, "stopped", error)),
            settings=TransferSettings(),
            client=None,
            source=None,
        )
        self.round = TransferAttempt(
            cast(Any, context), None, cast(Any, None), deadline=None, is_single=False, delay_s=0.0
        )
        target = SimpleNamespace(checkpoint=self._commit)
        self.plan = cast(Any, SimpleNamespace(target=target, has_ranges=True))

    def _commit(self, snapshot: ChunkSnapshot, error: Exception | None) -> None:
        self.commits.append(snapshot.written)
        if self.fault is not None:
            raise self.fault

    def turn(self, written: int, seconds: float, ended: int = 0) -> None:
        self.bytes, self.now = written, self.now + seconds
        self.scheduler.finished_chunks += ended
        self.round._checkpoint_if_due(self.plan)


def test_each_checkpoint_counts_from_the_one_before() -> None:
    turning = Turning()
    turning.turn(10, CHECKPOINT_S)
    turning.turn(20, CHECKPOINT_S - 0.1)
    turning.turn(30, COALESCE_S - 0.1, ended=1)
    assert turning.commits == [10, 30]
    turning.turn(40, COALESCE_S)
    assert turning.commits == [10, 30], "the ended chunk is committed"
    turning.turn(40, CHECKPOINT_S)
    turning.turn(40, CHECKPOINT_S)
    assert turning.commits == [10, 30, 40]


def test_without_ranges_nothing_is_committed() -> None:
    turning = Turning()
    turning.plan.has_ranges = False
    turning.turn(10, CHECKPOINT_S)
    assert turning.commits == []


def fault(number: int) -> errors.LocalFault:
    return disk_errors.local_fault("write the state", OSError(number, os.strerror(number)))


@pytest.mark.parametrize(("number", "goes_on"), [(errno.EMFILE, True), (errno.ENFILE, True), (errno.EIO, False)])
def test_without_a_descriptor_a_checkpoint_is_tried_again_later(number: int, goes_on: bool) -> None:
    turning = Turning()
    turning.fault = fault(number)
    turning.turn(10, CHECKPOINT_S)
    assert turning.stopped is (None if goes_on else turning.fault)
    if not goes_on:
        return
    turning.turn(20, CHECKPOINT_S - 0.1)
    assert turning.commits == [10], "not at once"
    turning.turn(20, 0.1)
    assert turning.commits == [10, 20]


def test_the_last_checkpoint_is_not_tried_again() -> None:
    turning = Turning()
    turning.fault = fault(errno.EMFILE)
    turning.bytes = 10
    turning.round._checkpoint(turning.plan, errors.Cancelled("stopped"))
    assert turning.stopped is turning.fault


# --- connections ---


@pytest.mark.parametrize(
    ("size", "connections", "extra", "most"),
    [
        (64 * KIB - 1, 4, {}, 1),
        (128 * KIB - 1, 4, {}, 1),
        (128 * KIB, 4, {}, 2),
        (256 * KIB, 3, {}, 3),
        (256 * KIB, 4, {"Accept-Ranges": "none"}, 1),
    ],
)
def test_a_file_has_as_many_connections_as_it_is_worth(
    size: int, connections: int, extra: dict[str, str], most: int, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    data = make_data(size)
    outcome = fetch(f"{serve(File(data, extra=extra)).url}/f", tmp_path / "f", connections=connections)
    assert outcome.connections == most
    assert (tmp_path / "f").read_bytes() == data


def test_a_file_without_ranges_has_one_connection(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    outcome = fetch(f"{serve(File(DATA, serves_ranges=False)).url}/f", tmp_path / "f", connections=4)
    assert outcome.connections == 1


# --- the end ---


def ending(transfer: Transfer, step: str, do: Callable[[], object]) -> Transfer:
    """Call ``do`` when the transfer reports ``step``, or asks whether it may publish."""
    real = transfer._callbacks.notify

    def notify(event: str, /, **fields: object) -> None:
        if event == step:
            do()
        real(event, **fields)

    transfer._callbacks = replace(transfer._callbacks, notify=notify)
    if step == "permit":
        transfer._callbacks = replace(transfer._callbacks, authorize_publish=cast(Any, do))
    return transfer


def failing_with(error: BaseException) -> Callable[[], object]:
    def fail() -> object:
        raise error

    return fail


@pytest.mark.parametrize("step", ["permit", "body_complete"])
@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (errors.LostJob("another has it"), errors.LostJob),
        (ValueError("a defect"), errors.InternalError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_whatever_ends_it_the_bytes_are_committed_and_it_is_said(
    error: BaseException, raised: type[BaseException], step: str, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    origin = serve(File(DATA))
    transfer = ending(fetch.transfer(f"{origin.url}/f", tmp_path / "f"), step, failing_with(error))
    with pytest.raises(raised) as caught:
        transfer.run()
    assert raised is not errors.InternalError or caught.value.__cause__ is error
    assert sorted(os.listdir(tmp_path)) == ["f.part", "f.part.meta"]
    again = fetch(f"{origin.url}/f", tmp_path / "f")
    assert (again.resumed_from, again.size) == (SIZE, SIZE)
    assert (tmp_path / "f").read_bytes() == DATA


def test_the_state_says_what_ended_it(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    transfer = fetch.transfer(f"{serve(File(DATA)).url}/f", tmp_path / "f")
    with pytest.raises(errors.LostJob):
        ending(transfer, "permit", failing_with(errors.LostJob("another has it"))).run()
    saved = StateFile.for_target(tmp_path / "f", sync=False).load()
    assert saved is not None
    assert saved.last_error == "lost: another has it"
    assert saved.missing_spans == []


def test_a_run_that_brings_nothing_leaves_the_state_as_it_was(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    file = File(DATA)
    origin = serve(file)
    with pytest.raises(errors.LostJob):
        ending(fetch.transfer(f"{origin.url}/f", tmp_path / "f"), "permit", failing_with(errors.LostJob("gone"))).run()
    before = (tmp_path / "f.part.meta").read_bytes()
    with pytest.raises(errors.LostJob):
        ending(
            fetch.transfer(f"{origin.url}/f", tmp_path / "f"), "job_started", failing_with(errors.LostJob("gone"))
        ).run()
    assert (tmp_path / "f.part.meta").read_bytes() == before


def test_after_a_wrong_checksum_nothing_is_kept(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    with pytest.raises(errors.ChecksumMismatch, match=f"the sha256 of the file is {sha256(DATA)}, wanted is 0{{64}}"):
        fetch(f"{serve(File(DATA)).url}/f", tmp_path / "f", checksum=f"sha256:{'0' * 64}")
    assert os.listdir(tmp_path) == []
    assert fetch.named("checksum_verified") == []


def test_what_is_said_of_a_download(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    outcome = fetch(f"{serve(File(DATA)).url}/f", tmp_path / "f", checksum=f"sha256:{sha256(DATA)}", connections=1)
    target = tmp_path / "f"
    assert [event for event in fetch.events if event[0] != "range_fetched"] == [
        ("job_started", {"path": str(target), "size": SIZE, "has_ranges": True, "resumed_from": 0}),
        ("body_complete", {"size": SIZE}),
        ("checksum_verified", {"checksum": f"sha256:{sha256(DATA)}"}),
        ("job_succeeded", vars(outcome)),
    ]


@pytest.mark.parametrize("length", [0, SIZE - 1, SIZE + 1])
@pytest.mark.parametrize("has_size", [True, False])
def test_a_part_file_that_another_program_changed_is_not_published(
    has_size: bool, length: int, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    def handle(_: Request, connection: Connection) -> None:
        connection.answer(200, body=DATA, length=False)
        connection.hang_up()

    url = f"{serve(File(DATA) if has_size else handle).url}/f"
    change = lambda: os.truncate(tmp_path / "f.part", length)  # noqa: E731 - it is handed over
    with pytest.raises(errors.InternalError, match=f"{length} bytes in the part file, {SIZE} written"):
        ending(fetch.transfer(url, tmp_path / "f"), "body_complete", change).run()
    assert not (tmp_path / "f").exists()


def test_a_checksum_that_nobody_wants_is_not_computed(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    outcome = fetch(f"{serve(File(DATA)).url}/f", tmp_path / "f", checksum=f"sha256:{'0' * 64}", verify=False)
    assert outcome.checksum is None


def test_a_stop_during_the_permission_ends_it_and_one_during_the_publishing_does_not(
    serve: Serve, fetch: Fetcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{serve(File(DATA)).url}/f"
    early = fetch.transfer(url, tmp_path / "f")
    with pytest.raises(errors.Cancelled):
        ending(early, "permit", early.cancel).run()
    late, real = fetch.transfer(url, tmp_path / "f"), FileOutput.publish

    def publish(place: FileOutput, *arguments: Any) -> None:
        late.cancel()
        real(place, *arguments)

    monkeypatch.setattr(FileOutput, "publish", publish)
    assert late.run().size == SIZE
    assert (tmp_path / "f").read_bytes() == DATA


def test_the_phases_follow_each_other(
    serve: Serve, fetch: Fetcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    file = File(DATA)

    def handle(request: Request, connection: Connection) -> None:
        seen.append(transfer.progress().phase)
        file(request, connection)

    transfer = fetch.transfer(f"{serve(handle).url}/f", tmp_path / "f", connections=1)
    real_notify, real_publish = transfer._callbacks.notify, FileOutput.publish

    def notify(event: str, /, **fields: object) -> None:
        seen.append(transfer.progress().phase)
        real_notify(event, **fields)

    def publish(place: FileOutput, *arguments: Any) -> None:
        seen.append(transfer.progress().phase)
        real_publish(place, *arguments)

    monkeypatch.setattr(FileOutput, "publish", publish)
    transfer._callbacks = replace(transfer._callbacks, notify=notify)
    transfer.run()
    assert list(dict.fromkeys(seen)) == ["connecting", "downloading", "verifying", "publishing"]


def test_a_defect_of_the_speed_monitor_ends_the_download(
    serve: Serve, fetch: Fetcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(*_: object) -> None:
        raise ValueError("a defect")

    monkeypatch.setattr(SpeedMonitor, "check", check)

    def silent(_: Request, connection: Connection) -> None:
        connection.wait_for_client_to_go(30.0)

    with pytest.raises(errors.InternalError, match="a defect"):
        fetch(f"{serve(silent).url}/f", tmp_path / "f")


def test_a_target_that_exists_is_no_defect_also_if_the_server_names_it(
    serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    (tmp_path / "f").write_bytes(b"mine")
    outcome = fetch(f"{serve(File(DATA)).url}/f", tmp_path, if_exists="skip")
    assert (outcome.is_skipped, outcome.path, outcome.size) == (True, tmp_path / "f", 4)


def test_nobody_writes_after_the_end(
    serve: Serve, fetch: Fetcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that is in flight when the download is stopped is waited for before its state is committed."""
    from dlpool.transfer.target.file.partwriter import PartWriter

    order: list[str] = []
    began, real_write, real_checkpoint = threading.Event(), PartWriter.write, FileOutput.checkpoint

    def write(writer: PartWriter, position: int, data: memoryview) -> None:
        began.set()
        wait_until(lambda: transfer._scheduler.scope.error is not None)
        real_write(writer, position, data)
        order.append("written")

    def checkpoint(place: FileOutput, *arguments: Any) -> None:
        order.append("committed")
        real_checkpoint(place, *arguments)

    monkeypatch.setattr(PartWriter, "write", write)
    monkeypatch.setattr(FileOutput, "checkpoint", checkpoint)
    transfer = fetch.transfer(f"{serve(File(DATA)).url}/f", tmp_path / "f", connections=3)

    def cancel() -> None:
        began.wait(20.0)
        transfer.cancel()

    canceller = threading.Thread(target=cancel)
    canceller.start()
    with pytest.raises(errors.Cancelled):
        transfer.run()
    canceller.join(20.0)
    assert order[-1:] in (["committed"], ["written"])
    assert "written" not in order[order.index("committed") :] if "committed" in order else True
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("dlpool-connection")] == []
