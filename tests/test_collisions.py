"""Several downloads for one name: numbered, refused before anything starts, or named; never one file for two URLs."""

from __future__ import annotations

import os
import re
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from dlpool import DownloadEngine, DownloadTask, download_many
from dlpool.config import TransferSettings
from dlpool.engine.names import DuplicateItem, NameRegistry, NameRequest, RealFolders
from dlpool.errors import TargetExists
from dlpool.transfer.target.file.partfile import PartFile
from tests.conftest import make_data, wait_until
from tests.disks import exfat, needs_root
from tests.origin import Connection, File, Origin, Request
from tests.processes import run, start

Serve = Callable[..., Origin]
LATE_S = 60.0
KIB = 1024


def content_of(path: str) -> bytes:
    """Each URL has a content of its own, of a size of its own."""
    number = int(re.findall(r"\d+", path)[0])
    return make_data(40 * KIB + number, seed=number + 1)


def by_query(**headers: str) -> Callable[[Request, Connection], None]:
    """Serve ``content_of`` of the URL; ``{}`` in a header is the query's last letters."""

    def handle(request: Request, connection: Connection) -> None:
        own = {name: value.format(request.path[-1]) for name, value in headers.items()}
        connection.answer(200, {**own, "ETag": f'"{request.path}"'}, content_of(request.path))

    return handle


def contents(folder: Path) -> list[bytes]:
    return sorted(path.read_bytes() for path in folder.iterdir())


def write_list(path: Path, origin: Origin, lines: list[str]) -> Path:
    path.write_text("".join(f"{origin.url}/{line}\n" for line in lines))
    return path


LISTS = {
    "queries": ["a?id=1", "a?id=2", "a?id=3"],
    "folders": ["1/a", "2/a", "3/a"],
    "paths": ["1 x", "2 x", "3 ./x"],
    "an unnamed one and a path": ["1/x", "2 x", "3 ./x"],
    "no names": ["1/", "2/", "3/"],
    "percent-encoded": ["1/%C3%A4", "2/ä", "3/a%CC%88"],
    "objects": ["1 x", "2 x", "3 x"],
}


@pytest.mark.parametrize("jobs", [1, 3, 16])
@pytest.mark.parametrize("name", LISTS)
def test_rename_numbers_the_names_at_any_parallelism(name: str, jobs: int, serve: Serve, tmp_path: Path) -> None:
    origin, lines = serve(by_query()), LISTS[name]
    more = [line.replace("1", "4") for line in lines[:1]] + [line.replace("2", "5") for line in lines[1:2]]
    source = write_list(tmp_path / "list", origin, [*lines, *more])
    ended = run("fetch", "-i", source, tmp_path / "out", "-j", jobs, "--if-exists", "rename")
    assert ended.code == 0, ended.err
    wanted = [content_of(f"/{line.split()[0]}") for line in [*lines, *more]]
    assert contents(tmp_path / "out") == sorted(wanted)


@pytest.mark.parametrize("mode", ["overwrite", "skip", "fail"])
@pytest.mark.parametrize("name", LISTS)
def test_without_rename_a_list_with_collisions_is_refused_before_anything_starts(
    name: str, mode: str, serve: Serve, tmp_path: Path
) -> None:
    origin = serve(by_query())
    source = write_list(tmp_path / "list", origin, [*LISTS[name], "9 other"])
    ended = run("fetch", "-i", source, tmp_path / "out", "-j", 4, "--if-exists", mode)
    assert ended.code == 14
    for line in (2, 3):
        assert f"line {line} would overwrite" in ended.err
    assert "the file of line 1" in ended.err
    assert "no download was started" in ended.err
    assert "--if-exists rename" in ended.err
    assert not (tmp_path / "out").exists()
    assert len(origin.requests) <= 3, "at most one question for each URL without its query"


def test_the_refusal_is_there_as_json(serve: Serve, tmp_path: Path) -> None:
    source = write_list(tmp_path / "list", serve(by_query()), LISTS["paths"])
    told = run("fetch", "-i", source, tmp_path / "out", "--json", "-q").json
    assert (told["exit_code"], told["done"], told["failed"]) == (14, 0, 2)
    assert [(entry["line"], entry["error"]["label"]) for entry in told["files"]] == [
        (2, "target_exists"),
        (3, "target_exists"),
    ]


@pytest.mark.parametrize("mode", ["overwrite", "rename"])
def test_names_that_the_server_gives_are_no_collisions(mode: str, serve: Serve, tmp_path: Path) -> None:
    """The URLs alone have one name."""
    origin = serve(by_query(**{"Content-Disposition": 'attachment; filename="n{}"'}))
    source = write_list(tmp_path / "list", origin, LISTS["queries"])
    ended = run("fetch", "-i", source, tmp_path / "out", "--if-exists", mode)
    assert ended.code == 0, ended.err
    assert sorted(os.listdir(tmp_path / "out")) == ["n1", "n2", "n3"]
    assert len(origin.requests) <= 4


@pytest.mark.parametrize("jobs", [1, 4])
def test_one_name_from_the_server_is_a_named_collision_of_its_entry(jobs: int, serve: Serve, tmp_path: Path) -> None:
    origin = serve(by_query(**{"Content-Disposition": "attachment; filename=same"}))
    source = write_list(tmp_path / "list", origin, ["1/a", "2/b", "3/c"])
    ended = run("fetch", "-i", source, tmp_path / "out", "-j", jobs)
    assert ended.code == 14
    assert ended.err.count("would overwrite") == 2
    [content] = contents(tmp_path / "out")
    assert content in [content_of(f"/{number}") for number in (1, 2, 3)]
    ended = run("fetch", "-i", source, tmp_path / "out2", "-j", jobs, "--if-exists", "rename")
    assert ended.code == 0, ended.err
    assert contents(tmp_path / "out2") == sorted(content_of(f"/{number}") for number in (1, 2, 3))


@pytest.mark.parametrize("jobs", [1, 4])
def test_a_list_from_a_pipe_names_each_collision(jobs: int, serve: Serve, tmp_path: Path) -> None:
    origin = serve(by_query())
    process = start("fetch", "-i", "-", tmp_path / "out", "-j", jobs, stdin=subprocess.PIPE)
    _, err = process.communicate("".join(f"{origin.url}/{line}\n" for line in LISTS["paths"]), timeout=LATE_S)
    assert process.returncode == 14
    assert err.count("would overwrite") == 2
    assert len(list((tmp_path / "out").iterdir())) == 1
    assert len(origin.requests) == 1


@pytest.mark.parametrize("jobs", [1, 4])
@pytest.mark.parametrize("line", ["a?id=1", "1 x"])
def test_a_duplicate_url_is_fetched_once_and_reported(line: str, jobs: int, serve: Serve, tmp_path: Path) -> None:
    origin = serve(by_query())
    source = write_list(tmp_path / "list", origin, [line, "2/b", line, line])
    ended = run("fetch", "-i", source, tmp_path / "out", "-j", jobs)
    assert ended.code == 0, ended.err
    assert ended.err.count("is the same as line") == 2
    assert "2 of 2 files done" in ended.err
    assert len(list((tmp_path / "out").iterdir())) == 2
    told = run("fetch", "-i", source, tmp_path / "out2", "--json", "-q").json
    assert sorted(entry["status"] for entry in told["files"]) == ["done", "done", "skipped", "skipped"]


def test_download_many_reports_collisions_and_skips_duplicates(serve: Serve, tmp_path: Path) -> None:
    origin = serve(by_query())
    urls = [f"{origin.url}/{path}" for path in ("1/a", "2/a", "1/a", "3/b")]
    found = download_many(urls, tmp_path, max_workers=1)
    assert (found.done, [failed.url for failed in found.failed]) == (2, [urls[1]])
    renamed = download_many(urls, tmp_path / "r", 3, transfer=TransferSettings(if_exists="rename"))
    assert renamed.failed == ()


# --- the engine ---


@pytest.mark.parametrize("workers", [1, 4])
def test_tasks_of_an_engine_never_share_a_file(workers: int, serve: Serve, tmp_path: Path) -> None:
    origin = serve(by_query())
    with DownloadEngine(workers) as engine:
        tasks = [engine.download(f"{origin.url}/{number}", tmp_path, "x") for number in (1, 2, 3)]
        for task in tasks:
            assert task.wait(LATE_S)
    done = [task for task in tasks if task.status == "completed"]
    assert len(done) == 1
    assert (tmp_path / "x").read_bytes() == content_of(done[0].url.rpartition("/")[2])
    assert all("would overwrite" in str(task.error) for task in tasks if task.status == "failed")


@pytest.mark.parametrize("workers", [1, 4])
def test_tasks_of_an_engine_are_numbered(workers: int, serve: Serve, tmp_path: Path) -> None:
    origin = serve(by_query())
    with DownloadEngine(workers, transfer=TransferSettings(if_exists="rename")) as engine:
        tasks = [engine.download(f"{origin.url}/{number}", tmp_path, "x.bin") for number in range(6)]
        for task in tasks:
            assert task.wait(LATE_S)
            assert task.status == "completed", task.error
    assert sorted(os.listdir(tmp_path)) == sorted(["x.bin", *(f"x.{number}.bin" for number in range(1, 6))])
    for number, task in enumerate(tasks):
        assert Path(str(task.file_path)).read_bytes() == content_of(str(number))


@pytest.mark.parametrize("end", ["failed", "cancelled"])
def test_the_name_of_a_task_without_a_file_is_free_again(end: str, serve: Serve, tmp_path: Path) -> None:
    hold = threading.Event()

    def handle(request: Request, connection: Connection) -> None:
        if request.path == "/1":
            if end == "cancelled":
                hold.wait(LATE_S)
            connection.answer(404, {}, b"")
        else:
            by_query()(request, connection)

    origin = serve(handle)
    with DownloadEngine(2) as engine:
        first = engine.download(f"{origin.url}/1", tmp_path, "x")
        if end == "cancelled":
            wait_until(lambda: len(origin.requests) == 1)
            assert first.cancel()
        assert first.wait(LATE_S)
        hold.set()
        assert first.status == end
        second = engine.download(f"{origin.url}/2", tmp_path, "x")
        assert second.wait(LATE_S)
    assert second.status == "completed", second.error


# --- another process ---


def test_rename_takes_the_next_name_where_another_process_has_the_lock(serve: Serve, tmp_path: Path) -> None:
    origin = serve(by_query())
    part = PartFile(tmp_path / "x", sync=False)
    try:
        ended = run("fetch", f"{origin.url}/1", tmp_path / "x", "--if-exists", "rename")
        assert ended.code == 0, ended.err
        assert (tmp_path / "x.1").read_bytes() == content_of("1")
        assert (tmp_path / "x.part").exists()
    finally:
        part.close()


def test_rename_leaves_the_unfinished_file_of_another_url_alone(serve: Serve, tmp_path: Path) -> None:
    """What several lines of a list have begun, each line finds again."""
    data = {f"/{number}": make_data(2_000_000, seed=number) for number in (1, 2)}
    files = {path: File(content, etag=f'"{path}"', block=16 * KIB, pause_s=0.01) for path, content in data.items()}
    origin = serve(lambda request, connection: files[request.path](request, connection))
    source = write_list(tmp_path / "list", origin, ["1 x", "2 x"])
    command = ["fetch", "-i", source, tmp_path / "out", "--if-exists", "rename", "-c", "1", "-j", "2"]
    process = start(*command)
    wait_until(
        lambda: all(
            (tmp_path / "out" / f"{name}.part").exists() and (tmp_path / "out" / f"{name}.part").stat().st_blocks > 1000
            for name in ("x", "x.1")
        )
    )
    process.terminate()
    process.communicate(timeout=LATE_S)
    assert len(list((tmp_path / "out").glob("*.part.meta"))) == 2
    asked = len(origin.requests)
    reversed_source = write_list(tmp_path / "list", origin, ["2 x", "1 x"])
    assert run("fetch", "-i", reversed_source, *command[3:]).code == 0
    assert contents(tmp_path / "out") == sorted(data.values())
    assert all(request.range is not None and request.range.start > 0 for request in origin.requests[asked:])


# --- file systems that ignore case or composition ---


@needs_root
@pytest.mark.parametrize("jobs", [1, 4])
def test_names_that_differ_in_case_are_one_file_if_the_file_system_ignores_case(
    jobs: int, serve: Serve, tmp_path: Path
) -> None:
    """Through FUSE one file has another inode number for each spelling."""
    origin = serve(by_query())
    with exfat(tmp_path / "disk", 64 * KIB * KIB) as folder:
        lines = ["1 A.bin", "2 a.bin", "3 a.BIN", "4 b.bin"]
        source = write_list(tmp_path / "list", origin, lines)
        ended = run("fetch", "-i", source, folder / "d", "-j", jobs)
        assert ended.code == 14
        assert ended.err.count("on this file system that is") == 2
        assert len(os.listdir(folder / "d")) == 2
        assert (folder / "d" / "b.bin").read_bytes() == content_of("4")
        assert (folder / "d" / "A.bin").read_bytes() in [content_of(str(number)) for number in (1, 2, 3)]
        ended = run("fetch", "-i", source, folder / "r", "-j", jobs, "--if-exists", "rename")
        assert ended.code == 0, ended.err
        assert contents(folder / "r") == sorted(content_of(str(number)) for number in (1, 2, 3, 4))
    plain = run("fetch", "-i", source, tmp_path / "plain", "-j", jobs)
    assert plain.code == 0, "elsewhere they are four"
    assert len(os.listdir(tmp_path / "plain")) == 4


# --- the registry ---


def wanted(task: str, url: str = "u", *, of_list: bool = False) -> NameRequest:
    return NameRequest(task, url, task, of_list)


def test_a_name_is_one_tasks_until_that_has_failed(tmp_path: Path) -> None:
    names = NameRegistry()
    names.reserve(tmp_path / "x", wanted("1", "a"))
    names.reserve(tmp_path / "x", wanted("1", "a"))
    with pytest.raises(TargetExists, match=r"2 would overwrite .*/x, the file of 1"):
        names.reserve(tmp_path / "." / "x", wanted("2", "b"))
    names.release("1", is_completed=False)
    names.reserve(tmp_path / "x", wanted("2", "b"))
    names.release("2", is_completed=True)
    with pytest.raises(TargetExists):
        names.reserve(tmp_path / "x", wanted("3", "c"))


def test_links_to_one_folder_are_one_folder(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "l").symlink_to("d")
    names = NameRegistry()
    names.reserve(tmp_path / "d" / "x", wanted("1", "a"))
    with pytest.raises(TargetExists):
        names.reserve(tmp_path / "l" / "x", wanted("2", "b"))


@pytest.mark.parametrize(
    "path", ["d/x", "l/x", "d/link", "d/../d/x", "l/..", "missing/x", "d/loop/x", "d", "x", "d/x/y", "out/x", "/x", "/"]
)
def test_paths_are_resolved_as_the_library_does(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "x").touch()
    (tmp_path / "d" / "link").symlink_to("x")
    (tmp_path / "d" / "loop").symlink_to("loop")
    (tmp_path / "l").symlink_to("d")
    (tmp_path / "out").symlink_to(tmp_path)
    folders = RealFolders()
    for _ in range(2):
        assert folders.resolve(path) == os.path.realpath(path)
        assert folders.resolve(f"{tmp_path}/{path}") == os.path.realpath(f"{tmp_path}/{path}")


def test_a_link_to_a_folder_that_changes_is_resolved_again(tmp_path: Path) -> None:
    link, folders = tmp_path / "l", RealFolders()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        link.unlink(missing_ok=True)
        link.symlink_to(name)
        assert folders.resolve(f"{link}/x") == str(tmp_path / name / "x")


def test_two_tasks_for_one_url_share_a_name_but_not_in_a_list(tmp_path: Path) -> None:
    names = NameRegistry()
    names.reserve(tmp_path / "x", wanted("1"))
    names.reserve(tmp_path / "x", wanted("2"))
    with pytest.raises(DuplicateItem):
        names.reserve(tmp_path / "x", wanted("3", of_list=True))
    names.release("1", is_completed=False)
    with pytest.raises(TargetExists):
        names.reserve(tmp_path / "x", wanted("4", "other"))
    names.release("2", is_completed=False)
    names.reserve(tmp_path / "x", wanted("4", "other"))


def test_names_that_look_alike_are_different_files_here(tmp_path: Path) -> None:
    names = NameRegistry()
    alike = ["A.bin", "a.bin", "ä", "a\u0308", "Ä", "straße", "STRASSE", "x", "x.", "x "]
    for number, name in enumerate(alike):
        names.reserve(tmp_path / "new" / name, wanted(str(number), str(number)))
    assert not list((tmp_path / "new").iterdir()), "nothing is left of the questions"
    for number in range(len(alike)):
        names.release(str(number), is_completed=False)
    for number, name in enumerate(reversed(alike)):
        names.reserve(tmp_path / "new" / name, wanted(str(number), str(number)))


def test_many_threads_want_one_name_and_one_gets_it(tmp_path: Path) -> None:
    names, winners = NameRegistry(), list[int]()
    start_all = threading.Barrier(8)

    def want(number: int) -> None:
        start_all.wait()
        for turn in range(50):
            try:
                names.reserve(tmp_path / str(turn), wanted(f"{number} {turn}", str(number)))
                winners.append(turn)
            except TargetExists:
                pass

    threads = [threading.Thread(target=want, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(winners) == list(range(50))


def test_a_task_of_a_paused_download_keeps_its_name(serve: Serve, tmp_path: Path) -> None:
    origin = serve(File(make_data(2_000_000), block=16 * KIB, pause_s=0.01))
    with DownloadEngine(1) as engine:
        task: DownloadTask = engine.download(f"{origin.url}/1", tmp_path, "x")
        wait_until(lambda: task.downloaded_size > 0)
        assert task.pause()
        other = engine.download(f"{origin.url}/2", tmp_path, "x")
        assert other.wait(LATE_S)
        assert other.status == "failed"
        assert task.resume()
        assert task.wait(LATE_S)
        assert task.status == "completed", task.error
