"""Where a job's file may go, whatever the job or the server says, and disks that are full or read-only."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import wait_until
from tests.desk import DATA, Desk, desk_of, running
from tests.disks import needs_root, remount, tmpfs
from tests.fleet import Client, Supervisor
from tests.origin import File

Service = tuple[Supervisor, Client]
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``node/out`` is where downloads go, it and ``second`` are allowed, ``outside`` is not."""
    folder = tmp_path_factory.mktemp("paths")
    for name in ("second", "outside"):
        (folder / name).mkdir()
    return folder


@pytest.fixture(scope="module")
def shared(folders: Path) -> Iterator[Service]:
    roots = f"{folders / 'node' / 'out'}:{folders / 'second'}"
    with running(folders, paths={"allowed_roots": roots}) as both:
        yield both


@pytest.fixture
def desk(shared: Service) -> Iterator[Desk]:
    with desk_of(*shared) as one:
        one.folder.mkdir()
        yield one


def outside(folders: Path) -> list[str]:
    return sorted(str(path.relative_to(folders)) for path in (folders / "outside").rglob("*"))


Path_ = Callable[[Desk, Path], str]
REFUSED: dict[str, tuple[Path_, str]] = {
    "dots": (lambda desk, _: "../../outside/f", "outside of"),
    "dots inside of the path": (lambda desk, _: f"{desk.name}/../../../outside/f", "outside of"),
    "many dots": (lambda desk, _: "../" * 50 + "tmp/dlpool-f", "outside of"),
    "absolute": (lambda desk, folders: str(folders / "outside" / "f"), "outside of"),
    "a folder that begins as an allowed one": (lambda desk, folders: f"{folders}/second-not/f", "outside of"),
    "a device": (lambda desk, _: "/dev/null", "outside of"),
    "the state folder": (lambda desk, folders: f"{folders}/node/state/sids.json", "outside of"),
    "the log": (lambda desk, folders: f"{folders}/node/log/dlpool.log", "outside of"),
    "a hard link to the settings": (lambda desk, _: f"{desk.name}/hard", "itself uses (the settings file"),
    "NUL": (lambda desk, _: f"{desk.name}/a\0b", "control characters"),
    "line end": (lambda desk, _: f"{desk.name}/a\nb", "control characters"),
    "escape": (lambda desk, _: f"{desk.name}/\x1b[2Jb", "control characters"),
    "delete": (lambda desk, _: f"{desk.name}/\x7fb", "control characters"),
    "a long name": (lambda desk, _: f"{desk.name}/{'x' * 250}", "longer than"),
    "a long name in another script": (lambda desk, _: f"{desk.name}/{'漢' * 84}", "longer than"),
    "a long path": (lambda desk, _: f"{desk.name}/{'/'.join(['d' * 100] * 45)}", "longer than"),
    "our own suffix": (lambda desk, _: f"{desk.name}/f.part", "keeps for unfinished files"),
    "our state's suffix": (lambda desk, _: f"{desk.name}/f.part.meta", "keeps for unfinished files"),
    "a link out of the root": (lambda desk, _: f"{desk.name}/link", "outside of"),
    "a dangling link out of the root": (lambda desk, _: f"{desk.name}/dangling", "outside of"),
    "below a link out of the root": (lambda desk, _: f"{desk.name}/parent/new/f", "outside of"),
    "a folder by a link": (lambda desk, _: f"{desk.name}/parent/", "outside of"),
    "a file as a folder": (lambda desk, _: f"{desk.name}/file/f", "is a file, not a folder"),
    "a pipe": (lambda desk, _: f"{desk.name}/pipe", "not a regular file"),
    "links in a circle": (lambda desk, _: f"{desk.name}/circle", "not a regular file"),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED.keys())
def test_a_path_that_must_not_be_is_a_failure_with_its_reason_and_nothing_is_written(
    case: tuple[Path_, str], desk: Desk, folders: Path
) -> None:
    make, reason = case
    victim = folders / "outside" / "victim"
    victim.write_text("precious")
    (desk.folder / "link").symlink_to(victim)
    (desk.folder / "dangling").symlink_to(folders / "outside" / "new")
    (desk.folder / "parent").symlink_to(folders / "outside")
    (desk.folder / "circle").symlink_to("circle")
    (desk.folder / "file").write_text("x")
    os.mkfifo(desk.folder / "pipe")
    os.link(desk.service.ini, desk.folder / "hard")
    before = desk.files()
    desk.push(save_path=make(desk, folders))
    message = desk.client.wait_for_failure(desk.url())["error_message"]
    assert reason in message
    assert "\n" not in message
    assert "\0" not in message
    assert outside(folders) == ["outside/victim"]
    assert victim.read_text() == "precious"
    assert desk.files() == before
    assert desk.origin.requests == []


def test_dots_that_stay_inside_are_resolved(desk: Desk) -> None:
    desk.push(save_path=f"{desk.name}/a/../b/./f")
    desk.client.wait_for(desk.url())
    assert (desk.folder / "b" / "f").read_bytes() == DATA


def test_an_absolute_path_below_the_download_folder_is_allowed(desk: Desk) -> None:
    desk.push(save_path=str(desk.folder / "f"))
    desk.client.wait_for(desk.url())
    assert (desk.folder / "f").read_bytes() == DATA


def test_each_allowed_root_may_be_written_to(desk: Desk, folders: Path) -> None:
    target = folders / "second" / desk.name / "f"
    desk.push("a", save_path=str(target))
    (desk.folder / "second").symlink_to(folders / "second")
    desk.push("b", save_path=f"{desk.name}/second/{desk.name}/g")
    desk.client.wait_for(desk.url("a"), desk.url("b"))
    assert target.read_bytes() == DATA
    assert target.with_name("g").read_bytes() == DATA


def test_percent_signs_in_a_path_are_no_code(desk: Desk, folders: Path) -> None:
    name = "%2e%2e%2f%2e%2e%2foutside%2ff"
    desk.push(save_path=f"{desk.name}/{name}")
    desk.client.wait_for(desk.url())
    wait_until(lambda: name in desk.files())


@pytest.mark.parametrize("ending", ["", "/", "/."])
def test_a_folder_as_path_takes_the_name_of_the_server(ending: str, desk: Desk) -> None:
    desk.serve(File(DATA, extra={"Content-Disposition": 'attachment; filename="its-name.bin"'}))
    desk.push(save_path=f"{desk.name}{ending}")
    desk.client.wait_for(desk.url())
    assert (desk.folder / "its-name.bin").read_bytes() == DATA


def test_a_path_that_ends_in_a_slash_is_a_new_folder(desk: Desk) -> None:
    desk.push("from-url.bin", save_path=f"{desk.name}/new/er/")
    desk.client.wait_for(desk.url("from-url.bin"))
    assert (desk.folder / "new" / "er" / "from-url.bin").read_bytes() == DATA


EVIL_NAMES = {
    "dots": "../../outside/f",
    "backslashes": "..\\\\..\\\\outside\\\\f",
    "absolute": "/etc/dlpool-f",
    "encoded": "%2e%2e%2f%2e%2e%2foutside%2ff",
    "hidden": ".bashrc",
    "our own suffix": "f.part",
    "our state's suffix": "f.part.meta",
    "only dots": "..",
    "long": "x" * 4000,
    "control characters": "a\x01b\x1bc",
}


@pytest.mark.parametrize("name", EVIL_NAMES.values(), ids=EVIL_NAMES.keys())
@pytest.mark.parametrize("form", ['filename="{}"', "filename*=UTF-8''{}"], ids=["plain", "extended"])
def test_a_name_from_a_server_stays_in_its_folder(form: str, name: str, desk: Desk, folders: Path) -> None:
    desk.serve(File(DATA, extra={"Content-Disposition": f"attachment; {form.format(name)}"}))
    desk.push(save_path=f"{desk.name}/")
    desk.client.wait_for(desk.url())
    wait_until(lambda: len(desk.files()) == 1)
    (made,) = desk.folder.iterdir()
    assert made.read_bytes() == DATA
    assert not made.name.startswith(".")
    assert made.name.isprintable()
    assert not outside(folders) or outside(folders) == ["outside/victim"]


@pytest.mark.parametrize("if_exists", ["overwrite", "rename", "skip", "fail"])
def test_a_name_from_a_server_that_is_a_link_out_of_the_root_is_not_followed(
    if_exists: str, desk: Desk, folders: Path
) -> None:
    victim = folders / "outside" / "victim"
    victim.write_text("precious")
    (desk.folder / "its-name").symlink_to(victim)
    desk.serve(File(DATA, extra={"Content-Disposition": 'attachment; filename="its-name"'}))
    desk.push(save_path=f"{desk.name}/", if_exists=if_exists)
    assert "outside of" in desk.client.wait_for_failure(desk.url())["error_message"]
    assert outside(folders) == ["outside/victim"]
    assert victim.read_text() == "precious"


# --- disks ---


@pytest.fixture
def small(tmp_path: Path) -> Iterator[tuple[Desk, Path]]:
    """A service whose downloads go to a small file system of its own."""
    with (
        tmpfs(tmp_path / "disk", "8m") as disk,
        running(tmp_path, paths={"download_dir": disk}, supervisor={"fault_delay": "500ms", "min_free": 0}) as both,
        desk_of(*both) as desk,
    ):
        yield desk, disk


def see_a_fault_and_mend(desk: Desk, mend: Callable[[], object], most_attempts: int = 1) -> list[str]:
    """Push jobs that a disk refuses until it is mended; each is done then, none had failed. Returns their URLs."""
    urls = [desk.push(number, id=f"{desk.name}-{number}") for number in range(8)]
    wait_until(lambda: bool(desk.service.events("node_fault")), 30)  # a second one only if two jobs meet it at once
    mend()
    desk.client.wait_for(*urls)
    assert desk.client.redis.exists(desk.client.keys.failed) == 0
    assert all(desk.client.ends(f"{desk.name}-{number}") == 1 for number in range(8))
    done = [line for line in desk.service.records() if line["event.action"] == "job_succeeded"]
    assert max(line["dlpool.attempt"] for line in done) <= most_attempts
    return urls


@needs_root
def test_jobs_wait_for_space_on_a_full_disk_and_none_fails(small: tuple[Desk, Path]) -> None:
    desk, disk = small
    with (disk / "ballast").open("wb") as ballast:
        ballast.write(b"x" * 7 * MIB + b"x" * 900 * 1024)
    data = os.urandom(700_000)
    desk.serve(File(data))
    # One that finds no room while a small write still succeeds has had an attempt.
    see_a_fault_and_mend(desk, (disk / "ballast").unlink, most_attempts=3)
    wait_until(lambda: len(list((disk / desk.name).iterdir())) == 8)
    assert all((disk / desk.name / str(number)).read_bytes() == data for number in range(8))
    assert desk.service.events("node_fault")[0]["error.code"] == "no_space"


@needs_root
def test_jobs_wait_while_the_file_system_is_read_only(small: tuple[Desk, Path]) -> None:
    desk, disk = small
    remount(disk, "ro")
    # One that ends while the disk is mended meets a small write that succeeds, and has had an attempt.
    see_a_fault_and_mend(desk, lambda: remount(disk, "rw"), most_attempts=2)
    assert desk.service.events("node_fault")[0]["error.code"] == "read_only"


@needs_root
def test_the_list_keeps_its_jobs_while_the_disk_is_at_fault(tmp_path: Path) -> None:
    slots = 2
    settings = {"max_concurrent_downloads": slots, "fault_delay": "1h"}
    with (
        tmpfs(tmp_path / "disk", "8m") as disk,
        running(tmp_path, paths={"download_dir": disk}, supervisor=settings) as both,
        desk_of(*both) as desk,
    ):
        remount(disk, "ro")
        for number in range(20):
            desk.push(number)
        wait_until(lambda: bool(desk.service.events("job_released")))
        assert 20 - desk.waiting() <= slots + 1  # one may be reserved
        assert desk.service.stop() == 0
        keys, redis = desk.client.keys, desk.client.redis
        assert {keys.delayed.encode()} <= set(desk.client.leftovers())
        assert desk.waiting() + redis.zcard(keys.delayed) + redis.llen(keys.ready("normal")) == 20
        assert desk.client.redis.exists(keys.failed) == 0
