"""Target, part file and state file of one download: opened, committed, published and closed."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dlpool import disk, errors
from dlpool.transfer.chunks import Chunk
from dlpool.transfer.http.remote_resource import RemoteResource
from dlpool.transfer.job import Checksum, Job
from dlpool.transfer.scheduler import ChunkSnapshot
from dlpool.transfer.target import names
from dlpool.transfer.target.file import selection
from dlpool.transfer.target.file.output import FileOutput
from dlpool.transfer.target.file.partfile import PartFile
from dlpool.transfer.target.file.partopen import MARK
from dlpool.transfer.target.file.publish import has_mark, set_mark
from dlpool.transfer.target.file.statefile import StateFile
from dlpool.transfer.target.protocol import TargetOptions, TargetPresent
from dlpool.transfer.target.state import PublishRecord, SavedState
from tests.conftest import open_descriptors

URL = "http://h/f"
RESOURCE = RemoteResource(size=100, etag='"v"')
NO_VALIDATOR = RemoteResource(size=100)
SHA256 = Checksum("sha256", "0" * 64)


CLAIM = "0123456789abcdef"
OF_QUEUE = Job(URL, Path("f"), id="j1", claim=CLAIM)


class Outputs:
    """Opens outputs in one folder, and records their events."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.events: list[tuple[str, dict[str, object]]] = []

    def __call__(self, name: str = "f", *, url: str = URL, **options: Any) -> FileOutput:
        claim = CLAIM if options.get("id") else None
        asked = {key: options.pop(key) for key in ("id", "fence", "checksum") & options.keys()}
        job = Job(url, self.folder / name, claim=claim, **asked)
        given: dict[str, Any] = {"if_exists": "overwrite", "resume": True, "sync": False} | options
        options_given = TargetOptions(*(given.pop(key) for key in ("if_exists", "resume", "sync")))
        return FileOutput(job, job.target, options_given, notify=self._note, **given)

    def begun(self, name: str = "f", *, chunks: list[Chunk] | None = None, length: int = 40, **options: Any) -> None:
        """Leave a download of 100 bytes that was stopped after 40."""
        resource = options.pop("resource", RESOURCE)
        output = self(name, **options)
        output.enable_checkpoints(resource)
        if length:
            output.part.locked_writer().write(0, memoryview(b"x" * length))
        output.checkpoint(ChunkSnapshot(chunks or [Chunk(0, 100, 40, 40)], 40))
        output.close()

    def published(self, record: PublishRecord, name: str = "f", url: str = URL) -> None:
        """Leave the state of a download that was killed while it was published."""
        state = SavedState.for_published(Job(url, self.folder / name), RESOURCE, record, "2026-01-01T00:00:00Z")
        StateFile.for_target(self.folder / name, sync=False).commit(state)

    @property
    def files(self) -> list[str]:
        return sorted(os.listdir(self.folder))

    def _note(self, event: str, /, **fields: object) -> None:
        self.events.append((event, fields))


@pytest.fixture
def made(tmp_path: Path) -> Outputs:
    return Outputs(tmp_path)


def unmarkable(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a file system without extended attributes."""

    def refuse(*_: object, **__: object) -> Any:
        raise OSError(errno.EOPNOTSUPP, "not supported")

    for name in ("setxattr", "getxattr"):
        monkeypatch.setattr(os, name, refuse)


def failing(number: int = errno.EIO) -> Any:
    def fail(*_: object, **__: object) -> Any:
        raise OSError(number, os.strerror(number))

    return fail


# --- what an earlier run left ---


def test_a_new_download_has_nothing(made: Outputs) -> None:
    output = made()
    found = (output.saved, output.unverifiable, output.has_other_query, output.has_failed, output.has_state)
    assert found == (None, None, False, False, False)
    assert made.events == []
    output.close()
    assert made.files == []


@pytest.mark.parametrize(
    ("url", "has_other_query"), [(URL, False), (f"{URL}#part", False), (f"{URL}?sign=2", True), ("http://me@h/f", True)]
)
def test_an_earlier_run_of_the_same_resource_is_continued(url: str, has_other_query: bool, made: Outputs) -> None:
    made.begun()
    output = made(url=url)
    assert output.saved is not None
    assert [tuple(span) for span in output.saved.missing_spans] == [(40, 100)]
    assert (output.has_other_query, output.part.length, made.events) == (has_other_query, 40, [])
    assert output.has_state
    output.close()
    assert made.files == ["f.part", "f.part.meta"]


UNTOUCHED = Chunk(60, 100, 60, 60)


@pytest.mark.parametrize(
    ("chunks", "length", "is_used"),
    [
        ([Chunk(0, 100, 40, 40)], 40, True),
        ([Chunk(0, 100, 40, 40)], 39, False),
        ([Chunk(0, 100, 40, 40)], 100, True),
        ([Chunk(0, 100, 40, 40)], 101, False),
        ([Chunk(0, 60, 40, 40), UNTOUCHED], 40, True),
        ([Chunk(0, 60, 40, 40), Chunk(60, 100, 61, 61)], 60, False),
        ([Chunk(0, 60, 0, 0), UNTOUCHED], 0, True),
    ],
)
def test_a_part_file_has_at_least_what_the_state_says_and_at_most_the_size(
    chunks: list[Chunk], length: int, is_used: bool, made: Outputs
) -> None:
    made.begun(chunks=chunks, length=length)
    output = made()
    assert (output.saved is not None) is is_used
    assert output.part.length == (length if is_used else 0)
    said = "longer than the file" if length > 100 else "shorter than it says"
    assert [(event, said in str(fields["reason"])) for event, fields in made.events] == (
        [] if is_used else [("state_unusable", True)]
    )
    output.close()


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("another URL", "it is of another URL"), ("no JSON", "it is not JSON"), ("no resume", None), ("no state", None)],
)
def test_what_cannot_be_used_is_dropped(kind: str, reason: str | None, made: Outputs) -> None:
    made.begun(url="http://h/other" if kind == "another URL" else URL)
    state = made.folder / "f.part.meta"
    if kind == "no JSON":
        state.write_bytes(b"x" * 10)
    elif kind == "no state":
        state.unlink()
    output = made(resume=kind != "no resume")
    assert (output.saved, output.part.length, output.has_state) == (None, 0, False)
    target = str(made.folder / "f")
    said = [] if reason is None else [("state_unusable", {"reason": reason, "path": target})]
    assert made.events == said
    output.close()
    assert made.files == []


@pytest.mark.parametrize(
    ("resource", "checksum", "is_used"),
    [
        (RESOURCE, None, True),
        (NO_VALIDATOR, SHA256, True),
        (replace(NO_VALIDATOR, digest=("sha256", "0" * 64)), None, True),
        (replace(NO_VALIDATOR, etag='W/"v"'), None, False),
        (NO_VALIDATOR, None, False),
    ],
)
def test_bytes_that_nothing_can_prove_are_kept_until_there_is_an_answer(
    resource: RemoteResource, checksum: Checksum | None, is_used: bool, made: Outputs
) -> None:
    made.begun(resource=resource, checksum=checksum)
    output = made(checksum=checksum)
    assert (output.saved is not None) is is_used
    assert (output.unverifiable is None) is is_used
    assert output.part.length == 40
    output.drop_unverifiable()
    assert output.part.length == (40 if is_used else 0)
    assert output.unverifiable is None
    assert output.has_state is is_used
    output.close()
    assert made.files == (["f.part", "f.part.meta"] if is_used else [])


def test_a_predecessor_stays_on_disk_if_there_is_no_answer(made: Outputs) -> None:
    made.begun(resource=NO_VALIDATOR)
    made().close()
    assert made.files == ["f.part", "f.part.meta"]
    assert (made.folder / "f.part").stat().st_size == 40


@pytest.mark.parametrize("is_complete", [True, False])
def test_a_part_file_that_was_about_to_be_published_is_the_one_that_is_recorded(
    is_complete: bool, made: Outputs
) -> None:
    part = PartFile(made.folder / "f", sync=False)
    part.locked_writer().write(0, memoryview(b"x" * 100))
    made.published(PublishRecord(part.inode + (not is_complete), 100))
    part.close()
    output = made()
    assert (output.saved is not None) is is_complete
    reason = "the part file is not the one that was about to be published"
    assert [fields["reason"] for _, fields in made.events] == [reason] * (not is_complete)
    output.close()


@pytest.mark.parametrize("length", [99, 100])
def test_a_part_file_that_was_about_to_be_published_has_the_recorded_size(length: int, made: Outputs) -> None:
    part = PartFile(made.folder / "f", sync=False)
    part.locked_writer().write(0, memoryview(b"x" * length))
    made.published(PublishRecord(part.inode, 100))
    part.close()
    output = made()
    assert (output.saved is not None) is (length == 100)
    output.close()


@pytest.mark.parametrize("has_state", [True, False])
@pytest.mark.parametrize("length", [0, 40])
@pytest.mark.parametrize("is_ours", [True, False])
def test_a_temporary_file_of_a_killed_run_goes_where_there_are_traces_of_one(
    is_ours: bool, length: int, has_state: bool, made: Outputs
) -> None:
    made.begun(length=40)
    if not has_state:
        (made.folder / "f.part.meta").unlink()
    os.truncate(made.folder / "f.part", length)
    temporary = made.folder / "f.part.meta.tmp"
    temporary.write_bytes(b'{"version":1,' if is_ours else b"precious")
    made().close()
    assert temporary.exists() is not (is_ours and (has_state or length > 0))


# --- whose files they are ---


@pytest.mark.parametrize("has_part", [True, False])
def test_a_foreign_state_is_refused_unless_the_part_file_is_ours(has_part: bool, made: Outputs) -> None:
    if has_part:
        PartFile(made.folder / "f", sync=False).close()
    (made.folder / "f.part.meta").write_bytes(b"precious")
    before = open_descriptors(made.folder)
    if has_part:
        made().close()
        assert made.files == []
    else:
        with pytest.raises(errors.ForeignFile, match=r"f\.part\.meta was not made by dlpool"):
            made()
        assert made.files == ["f.part.meta"]
    assert open_descriptors(made.folder) == before


def test_a_state_of_ours_without_a_part_file_is_taken(made: Outputs) -> None:
    made.begun()
    (made.folder / "f.part").unlink()
    output = made()
    assert output.saved is None
    output.close()
    assert made.files == []


def test_a_part_file_that_is_ours_stays_where_the_opening_fails(made: Outputs, monkeypatch: pytest.MonkeyPatch) -> None:
    made.begun()
    with monkeypatch.context() as patch, pytest.raises(errors.DiskFailed):
        patch.setattr(os, "ftruncate", failing())
        made(resume=False)
    assert "f.part" in made.files
    made().close()


@pytest.mark.parametrize("step", ["begin_anew", "discard"])
def test_without_a_mark_a_placeholder_says_whose_the_part_file_is(
    step: str, made: Outputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    unmarkable(monkeypatch)
    output = made()
    assert not output.part.is_marked
    assert made.files == ["f.part", "f.part.meta"]
    output.enable_checkpoints(RESOURCE)
    output.checkpoint(ChunkSnapshot([Chunk(0, 100, 0, 0)], 0))
    output.restart("changed") if step == "begin_anew" else output.discard()
    assert b"placeholder" in (made.folder / "f.part.meta").read_bytes()
    output.close()
    assert made.files == []


@pytest.mark.parametrize("has_state", [True, False])
def test_discarded_bytes_leave_nothing(has_state: bool, made: Outputs) -> None:
    if has_state:
        made.begun()
    output = made()
    output.discard()
    assert made.files == ["f.part"]
    output.close()
    assert made.files == []


def test_what_is_another_downloads_by_now_is_not_discarded(made: Outputs) -> None:
    made.begun()
    output = made()
    (made.folder / "f.part").unlink()
    (made.folder / "f.part").write_bytes(b"another's")
    output.discard()
    with pytest.raises(errors.LocalFault):
        output.restart("changed")
    assert made.files == ["f.part", "f.part.meta"]
    output.close()
    assert made.files == ["f.part", "f.part.meta"]


def test_the_lock_ends_with_a_close_that_fails_to_remove(made: Outputs, monkeypatch: pytest.MonkeyPatch) -> None:
    output = made()
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", failing())
        output.close()
    assert made.files == ["f.part"]
    made().close()
    assert made.files == []


# --- begun again ---


@pytest.mark.parametrize("if_exists", ["overwrite", "skip"])
def test_begun_again_nothing_is_left_of_before(if_exists: str, made: Outputs) -> None:
    made.begun()
    output = made(if_exists=if_exists)
    (made.folder / "f").touch()
    (made.folder / "f").chmod(0o600)
    inode = output.part.inode
    output.restart("the remote file has changed")
    assert (output.saved, output.unverifiable, output.part.length, output.has_state) == (None, None, 0, False)
    assert output.part.inode != inode
    has_mode = (made.folder / "f.part").stat().st_mode & 0o777 == 0o600
    assert has_mode is (if_exists == "overwrite")
    fields = {"reason": "the remote file has changed", "path": str(made.folder / "f")}
    assert made.events == [("download_restarted", fields)]
    output.close()
    assert made.files == ["f"]


def test_begun_again_the_predecessor_is_forgotten(made: Outputs) -> None:
    made.begun(resource=NO_VALIDATOR)
    output = made()
    output.restart("changed")
    assert output.unverifiable is None
    output.close()


def test_after_a_restart_the_state_is_of_the_new_version(made: Outputs) -> None:
    made.begun()
    output = made()
    output.enable_checkpoints(RESOURCE)
    output.checkpoint(ChunkSnapshot([Chunk(0, 100, 40, 40)], 40))
    output.restart("changed")
    output.enable_checkpoints(RemoteResource(size=50, etag='"w"'))
    output.part.locked_writer().write(0, memoryview(b"y" * 10))
    output.checkpoint(ChunkSnapshot([Chunk(0, 50, 10, 10)], 10))
    output.close()
    again = made()
    assert again.saved is not None
    assert (again.saved.size, again.saved.etag, again.saved.attempts) == (50, '"w"', 1)
    again.close()


# --- checkpoints ---


def test_a_checkpoint_says_what_is_on_disk(made: Outputs) -> None:
    made.begun()
    output = made(url=f"{URL}?sign=2")
    output.enable_checkpoints(RESOURCE)
    output.part.locked_writer().write(40, memoryview(b"y" * 20))
    for position in (50, 60):
        output.checkpoint(ChunkSnapshot([Chunk(0, 100, position, position)], position), errors.ShortBody("it was cut"))
    output.close()
    again = made(url=f"{URL}?sign=2")
    assert again.saved is not None
    assert [tuple(span) for span in again.saved.missing_spans] == [(60, 100)]
    assert (again.saved.attempts, again.saved.last_error) == (2, "short_body: it was cut")
    assert not again.has_other_query, "the last one that was used"
    again.close()
    made.begun()
    last = made()
    assert last.saved is not None
    assert (last.saved.attempts, last.saved.last_error) == (3, None)
    last.close()


def test_bytes_are_forced_to_disk_before_the_state_says_so(made: Outputs, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    output = made(sync=True)
    output.enable_checkpoints(RESOURCE)
    monkeypatch.setattr(os, "fdatasync", lambda _: order.append("data"))
    real = disk.atomic_write

    def write(*arguments: Any, **options: Any) -> None:
        order.append(f"state, sync {options['sync']}")
        real(*arguments, **options)

    monkeypatch.setattr(disk, "atomic_write", write)
    output.checkpoint(ChunkSnapshot([Chunk(0, 100, 0, 0)], 0))
    assert order == ["data", "state, sync True"]
    output.close()


@pytest.mark.parametrize("step", ["checkpoint", "prepare", "publish"])
def test_after_a_failed_sync_or_commit_the_output_is_broken(
    step: str, made: Outputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = made(sync=True)
    output.enable_checkpoints(RESOURCE)
    output.checkpoint(ChunkSnapshot([Chunk(0, 100, 0, 0)], 0))
    assert not output.has_failed
    snapshot = ChunkSnapshot([Chunk(0, 100, 0, 0)], 0)
    steps: dict[str, Callable[[], None]] = {
        "checkpoint": lambda: output.checkpoint(snapshot),
        "prepare": lambda: output.prepare(RESOURCE, remote_time=False),
        "publish": lambda: output.publish(RESOURCE, snapshot),
    }
    with monkeypatch.context() as patch, pytest.raises(errors.DiskFailed):
        patch.setattr(os, "fdatasync" if step != "publish" else "fsync", failing())
        steps[step]()
    assert output.has_failed
    output.close()


# --- publishing ---


@pytest.mark.parametrize("if_exists", ["overwrite", "fail"])
@pytest.mark.parametrize("remote_time", [True, False])
@pytest.mark.parametrize("modified", ["Tue, 01 Oct 2024 10:00:00 GMT", None])
def test_before_it_is_published_a_file_is_complete_on_disk(
    modified: str | None, remote_time: bool, if_exists: str, made: Outputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, order = made(if_exists=if_exists), list[object]()
    for name in ("close_writers", "copy_permissions", "sync_data", "report_delayed_errors"):
        monkeypatch.setattr(output.part, name, lambda name=name: order.append(name))
    monkeypatch.setattr(output.part, "set_modified", order.append)
    output.prepare(RemoteResource(size=1, last_modified=modified), remote_time=remote_time)
    permissions = ["copy_permissions"] if if_exists == "overwrite" else []
    time = [1727776800.0] if remote_time and modified else []
    assert order == ["close_writers", *permissions, *time, "sync_data", "report_delayed_errors"]
    output.close()


class Killed(BaseException):
    """The process is killed here."""


DONE = ChunkSnapshot([Chunk(0, 100, 100, 100)], 100)


def complete(made: Outputs, *, has_state: bool, **options: Any) -> FileOutput:
    output = made(**options)
    output.enable_checkpoints(RESOURCE)
    output.part.locked_writer().write(0, memoryview(b"x" * 100))
    if has_state:
        output.checkpoint(ChunkSnapshot([Chunk(0, 100, 40, 40)], 40))
    return output


@pytest.mark.parametrize("job", [None, "j1"])
@pytest.mark.parametrize("can_mark", [True, False])
@pytest.mark.parametrize("has_state", [True, False])
def test_what_is_published_is_recorded_first_where_a_later_run_needs_it(
    has_state: bool, can_mark: bool, job: str | None, made: Outputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = complete(made, has_state=has_state, id=job, fence=7 if job else None)
    monkeypatch.setattr(output, "_rename", failing_with(Killed()))
    if not can_mark:
        monkeypatch.setattr(output.part, "mark_published", lambda _: False)
    with pytest.raises(Killed):
        output.publish(RESOURCE, DONE)
    saved = StateFile.for_target(made.folder / "f", sync=False).load()
    is_in_state = has_state or (job is not None and not can_mark)
    claim = (7, CLAIM) if job else (None, None)
    expected = PublishRecord(output.part.inode, 100, job, *claim) if is_in_state else None
    assert (saved.publishing if saved else None) == expected
    assert has_mark(made.folder / "f.part", OF_QUEUE) is (job is not None and can_mark and not has_state)
    output.part.close()


def failing_with(error: BaseException) -> Any:
    def fail(*_: object, **__: object) -> Any:
        raise error

    return fail


@pytest.mark.parametrize("job", [None, "j1"])
@pytest.mark.parametrize("has_state", [True, False])
def test_a_state_stays_after_publishing_only_for_the_job_of_a_queue(
    has_state: bool, job: str | None, made: Outputs
) -> None:
    output = complete(made, has_state=has_state, id=job)
    output.publish(RESOURCE, DONE)
    output.close()
    assert made.files == ["f", "f.part.meta"] if job and has_state else ["f"]
    assert output.has_state is bool(job and has_state)
    assert has_mark(made.folder / "f", OF_QUEUE) is (job is not None and not has_state)


def test_a_record_for_want_of_a_mark_need_not_outlive_the_loss_of_power(
    made: Outputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = complete(made, has_state=False, id="j1", sync=True)
    synced: list[int] = []
    monkeypatch.setattr(output.part, "mark_published", lambda _: False)
    monkeypatch.setattr(output, "_rename", failing_with(Killed()))
    monkeypatch.setattr(os, "fsync", synced.append)
    with pytest.raises(Killed):
        output.publish(RESOURCE, DONE)
    assert synced == []
    output.part.close()


def test_no_record_is_written_beside_the_part_file_of_another(made: Outputs, monkeypatch: pytest.MonkeyPatch) -> None:
    output = complete(made, has_state=False, id="j1")
    monkeypatch.setattr(output.part, "mark_published", lambda _: False)
    (made.folder / "f.part").unlink()
    with pytest.raises(errors.LocalFault, match="another program removed or replaced"):
        output.publish(RESOURCE, DONE)
    assert made.files == []
    output.close()


def test_a_placeholder_goes_when_the_file_is_published(made: Outputs, monkeypatch: pytest.MonkeyPatch) -> None:
    unmarkable(monkeypatch)
    for job in (None, "j1"):
        output = complete(made, has_state=False, id=job)
        output.publish(RESOURCE, DONE)
        output.close()
        assert made.files == (["f", "f.part.meta"] if job else ["f"])


@pytest.mark.parametrize(
    ("if_exists", "files", "raised"),
    [
        ("overwrite", ["f"], None),
        ("skip", ["f"], TargetPresent),
        ("fail", ["f", "f.part", "f.part.meta"], errors.TargetExists),
        ("rename", ["f", "f.1"], None),
    ],
)
def test_a_target_that_appears_meanwhile_is_treated_as_asked(
    if_exists: str, files: list[str], raised: type[Exception] | None, made: Outputs
) -> None:
    output = complete(made, has_state=True, if_exists=if_exists)
    (made.folder / "f").write_bytes(b"mine")
    if raised is None:
        output.publish(RESOURCE, DONE)
    else:
        with pytest.raises(raised) as caught:
            output.publish(RESOURCE, DONE)
        assert getattr(caught.value, "is_published", False) is False
    output.close()
    assert made.files == files
    assert (made.folder / "f").read_bytes() == (b"x" * 100 if if_exists == "overwrite" else b"mine")
    assert output.path.name == ("f.1" if if_exists == "rename" else "f")
    assert output.path.read_bytes() == (b"x" * 100 if raised is None else b"mine")


# --- names that are taken ---


@pytest.mark.parametrize("if_exists", ["overwrite", "skip", "fail", "rename"])
@pytest.mark.parametrize("exists", [True, False])
def test_a_target_that_exists_is_treated_as_asked(exists: bool, if_exists: str, made: Outputs) -> None:
    if exists:
        (made.folder / "f").write_bytes(b"mine")
        (made.folder / "f").chmod(0o600)
    if exists and if_exists in ("skip", "fail"):
        with pytest.raises(TargetPresent if if_exists == "skip" else errors.TargetExists) as caught:
            made(if_exists=if_exists)
        if isinstance(caught.value, TargetPresent):
            assert (caught.value.path, caught.value.is_published) == (made.folder / "f", False)
            assert str(caught.value) == str(made.folder / "f")
        assert made.files == ["f"]
        return
    output = made(if_exists=if_exists)
    assert output.path.name == ("f.1" if exists and if_exists == "rename" else "f")
    has_mode = output.part.path.stat().st_mode & 0o777 == 0o600
    assert has_mode is (exists and if_exists == "overwrite")
    output.close()


def test_each_name_that_is_tried_must_be_admitted(made: Outputs) -> None:
    tried: list[str] = []

    def check_target(path: Path) -> None:
        tried.append(path.name)
        if path.name in ("f", "f.1"):
            raise errors.TargetExists("taken in this list")

    output = made(if_exists="rename", check_target=check_target)
    assert (output.path.name, tried) == ("f.2", ["f", "f.1", "f.2"])
    output.close()
    with pytest.raises(errors.TargetExists, match="taken in this list"):
        made(check_target=check_target)
    assert made.files == []


@pytest.mark.parametrize(
    ("begun", "wanted"),
    [
        ({}, "f"),
        ({"f": URL}, "f"),
        ({"f": "http://h/other", "f.1": URL}, "f.1"),
        ({"f": "http://h/other"}, "f.1"),
        ({"f": "http://h/other", "f.1": "http://h/another"}, "f.2"),
        ({"f": f"{URL}?sign=1", "f.1": URL}, "f.1"),
        ({"f": f"{URL}?sign=1"}, "f"),
        ({"f": "http://h/other", "f.1": f"{URL}?sign=1"}, "f.1"),
        ({"f": None}, "f"),
        ({"f": None, "f.1": URL}, "f.1"),
    ],
)
def test_rename_prefers_the_unfinished_file_of_the_same_url(
    begun: dict[str, str | None], wanted: str, made: Outputs
) -> None:
    """None: a part file without a state."""
    for name, url in begun.items():
        made.begun(name, url=url or URL)
        if url is None:
            (made.folder / f"{name}.part.meta").unlink()
    output = made(if_exists="rename")
    assert output.path.name == wanted
    assert (output.saved is not None) is (begun.get(wanted) is not None)
    output.close()


def test_rename_passes_over_what_another_download_has(made: Outputs) -> None:
    first = made(if_exists="rename")
    second = made(if_exists="rename")
    assert (first.path.name, second.path.name) == ("f", "f.1")
    first.close()
    second.close()
    assert made.files == []


def test_a_name_that_was_published_before_it_was_locked_is_passed_over(
    made: Outputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = open_descriptors(made.folder)

    def late(target: Path, **options: Any) -> PartFile:
        if target.name == "f":
            target.write_bytes(b"mine")
        return PartFile(target, **options)

    monkeypatch.setattr(selection, "PartFile", late)
    output = made(if_exists="rename")
    assert (output.path.name, made.files) == ("f.1", ["f", "f.1.part"])
    output.close()
    assert open_descriptors(made.folder) == before


def test_an_error_after_the_lock_leaves_neither_part_file_nor_lock(
    made: Outputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, real = open_descriptors(made.folder), selection._exists

    def is_there(path: Path) -> bool:
        if (made.folder / "f.part").exists() and path.name == "f":
            raise errors.DiskFailed("cannot look")
        return real(path)

    with monkeypatch.context() as patch, pytest.raises(errors.DiskFailed):
        patch.setattr(selection, "_exists", is_there)
        made(if_exists="rename")
    assert (made.files, open_descriptors(made.folder)) == ([], before)


def test_the_series_of_names_has_an_end(made: Outputs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "MAX_NUMBERED_NAMES", 3)
    for name in ("f", "f.1", "f.2"):
        (made.folder / name).touch()
    with pytest.raises(errors.TargetExists, match="exists already, and so do"):
        made(if_exists="rename")
    (made.folder / "f.2").unlink()
    output = made(if_exists="rename")
    assert output.path.name == "f.2"
    output.close()


# --- published by a run that was killed ---


def killed_after_publishing(made: Outputs, name: str, content: bytes = b"x" * 100, **record: Any) -> None:
    """Leave a target, and the state of ``f`` that records it, changed by ``record``."""
    (made.folder / name).write_bytes(content)
    status = (made.folder / name).stat()
    url = record.pop("url", URL)
    made.published(replace(PublishRecord(status.st_ino, status.st_size), **record), url=url)


@pytest.mark.parametrize("if_exists", ["overwrite", "skip", "fail", "rename"])
@pytest.mark.parametrize("name", ["f", "f.1"])
def test_a_file_that_a_killed_run_published_is_found(name: str, if_exists: str, made: Outputs) -> None:
    if name == "f.1":
        if if_exists != "rename":
            return
        (made.folder / "f").write_bytes(b"mine")
    killed_after_publishing(made, name)
    os.link(made.folder / name, made.folder / "f.part")  # as where it was published by a link
    with pytest.raises(TargetPresent) as caught:
        made(if_exists=if_exists)
    assert (caught.value.path, caught.value.is_published) == (made.folder / name, True)
    assert made.files == sorted({"f", name})


@pytest.mark.parametrize(
    ("changes", "job", "is_found"),
    [
        ({}, None, True),
        ({"url": f"{URL}?sign=2"}, None, False),
        ({"url": "http://h/other"}, None, False),
        ({"size": 99}, None, False),
        ({"inode": 1}, None, False),
        ({"job": "j1"}, None, False),
        ({"job": "j1", "claim": CLAIM}, "j1", True),
        ({"job": "j1", "claim": CLAIM}, "j2", False),
        ({"job": "j1", "claim": "another"}, "j1", False),
        ({"job": "j1"}, "j1", False),
        ({}, "j1", False),
    ],
)
def test_only_what_the_record_names_was_published(
    changes: dict[str, Any], job: str | None, is_found: bool, made: Outputs
) -> None:
    killed_after_publishing(made, "f", **changes)
    if is_found:
        with pytest.raises(TargetPresent) as caught:
            made(if_exists="skip", id=job)
        assert caught.value.is_published
        assert made.files == (["f", "f.part.meta"] if job else ["f"]), "the state of a queue's job stays"
        return
    with pytest.raises(TargetPresent) as caught:
        made(if_exists="skip", id=job)
    assert not caught.value.is_published
    assert made.files == ["f", "f.part.meta"]


def test_another_file_that_has_the_name_of_the_part_file_stays(made: Outputs) -> None:
    killed_after_publishing(made, "f")
    (made.folder / "f.part").write_bytes(b"precious")
    with pytest.raises(TargetPresent):
        made()
    assert made.files == ["f", "f.part"]


@pytest.mark.parametrize("sync", [True, False])
def test_the_name_of_a_killed_run_is_made_durable(sync: bool, made: Outputs, monkeypatch: pytest.MonkeyPatch) -> None:
    killed_after_publishing(made, "f")
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_ino))
    with pytest.raises(TargetPresent):
        made(sync=sync)
    assert (made.folder.stat().st_ino in synced) is sync


@pytest.mark.parametrize(
    ("job", "resume", "is_found"), [("j1", True, True), ("j2", True, False), (None, True, False), ("j1", False, False)]
)
def test_a_file_with_the_mark_of_the_job_was_published_for_it(
    job: str | None, resume: bool, is_found: bool, made: Outputs
) -> None:
    with open(made.folder / "f", "wb") as file:
        assert set_mark(file.fileno(), OF_QUEUE)
    if is_found:
        with pytest.raises(TargetPresent) as caught:
            made(id=job, resume=resume)
        assert caught.value.is_published
    else:
        made(id=job, resume=resume).close()
    assert made.files == ["f"]


@pytest.mark.parametrize("content", [b"x", b'{"version":1,"placeholder":true}'])
def test_a_state_that_says_nothing_of_the_target_is_left_to_the_opening(content: bytes, made: Outputs) -> None:
    (made.folder / "f").write_bytes(b"mine")
    (made.folder / "f.part.meta").write_bytes(content)
    PartFile(made.folder / "g", sync=False).close()
    (made.folder / "g.part").rename(made.folder / "f.part")
    assert os.getxattr(made.folder / "f.part", MARK)
    made().close()
    assert made.files == ["f"]
