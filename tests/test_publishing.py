"""Targets that exist, appear, or were published by a killed run; state files of other programs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dlpool import errors
from dlpool.transfer.http.remote_resource import RemoteResource
from dlpool.transfer.job import Job
from dlpool.transfer.target.file.output import FileOutput
from dlpool.transfer.target.protocol import TargetOptions
from tests.conftest import Fetcher, make_data
from tests.origin import Connection, File, Origin, Request
from tests.processes import ROOT, run

Serve = Callable[..., Origin]

SIZE = 1_000_003
DATA = make_data(SIZE)


def test_a_target_in_a_folder_is_skipped_overwritten_refused_or_renamed(
    serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    url = f"{serve(File(DATA)).url}/f"
    (tmp_path / "f").write_bytes(b"old")
    assert fetch(url, tmp_path, if_exists="skip").is_skipped
    with pytest.raises(errors.TargetExists):
        fetch(url, tmp_path, if_exists="fail")
    assert fetch(url, tmp_path, if_exists="rename").path == tmp_path / "f.1"
    assert (tmp_path / "f").read_bytes() == b"old"
    assert fetch(url, tmp_path).path == tmp_path / "f"
    assert sorted(os.listdir(tmp_path)) == ["f", "f.1"]


@pytest.mark.parametrize(
    ("if_exists", "when", "step"),
    [
        ("overwrite", "kill-after", "publish:replace:2"),
        ("skip", "kill-after", "publish:rename_noreplace:1"),
        ("fail", "kill-after", "publish:rename_noreplace:1"),
        ("rename", "kill-before", "publish:unlink:1"),
    ],
)
def test_a_download_to_a_folder_killed_after_its_publish_is_done(
    if_exists: str, when: str, step: str, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    options = ["--if-exists", if_exists, "--json", "-q", "--min-split-size", "256K"]
    with Origin(File(DATA, block=64 * 1024, pause_s=0.05)) as origin:
        arguments = ["fetch", f"{origin.url}/f", tmp_path / "out", *options]
        assert run(tmp_path / "log", when, step, "--", *arguments, module="tests.faults").code == -signal.SIGKILL
        ended = run(*arguments)
    assert (ended.code, ended.json["path"]) == (0, str(tmp_path / "out" / "f"))
    assert os.listdir(tmp_path / "out") == ["f"]
    assert (tmp_path / "out" / "f").read_bytes() == DATA


@pytest.mark.parametrize("if_exists", ["overwrite", "fail"])
def test_a_download_killed_between_a_link_and_the_removal_of_the_old_name_is_done(
    if_exists: str, tmp_path: Path
) -> None:
    """As where the file system cannot rename without replacing; the link is made by the test."""
    target, options = tmp_path / "f", ["--if-exists", if_exists, "--json", "-q", "--min-split-size", "256K"]
    with Origin(File(DATA, block=64 * 1024, pause_s=0.05)) as origin:
        arguments = ["fetch", f"{origin.url}/f", target, *options]
        step = "publish:replace:2" if if_exists == "overwrite" else "publish:rename_noreplace:1"
        killed = run(tmp_path / "log", "kill-before", step, "--", *arguments, module="tests.faults")
        assert killed.code == -signal.SIGKILL
        (tmp_path / "log").unlink()
        os.link(tmp_path / "f.part", target)
        ended = run(*arguments)
    assert (ended.code, ended.json["path"], ended.json["received"]) == (0, str(target), 0)
    assert os.listdir(tmp_path) == ["f"]
    assert target.read_bytes() == DATA


def test_skip_leaves_nothing_behind_when_the_target_appears_meanwhile(
    serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    file = File(DATA)

    def handle(request: Request, connection: Connection) -> None:
        (tmp_path / "f").write_bytes(b"mine")
        file(request, connection)

    assert fetch(f"{serve(handle).url}/f", tmp_path / "f", if_exists="skip").is_skipped
    assert os.listdir(tmp_path) == ["f"]
    assert (tmp_path / "f").read_bytes() == b"mine"


def test_renamed_names_near_the_limit_stay_within_it(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    target = tmp_path / ("x" * 237 + ".bin")
    target.write_bytes(b"old")
    outcome = fetch(f"{serve(File(DATA)).url}/f", target, if_exists="rename")
    assert outcome.path.name.endswith("x.1.bin")
    assert outcome.path.read_bytes() == DATA


def test_no_state_is_committed_beside_the_part_file_of_another(tmp_path: Path) -> None:
    from dlpool.transfer.chunks import Chunk
    from dlpool.transfer.scheduler import ChunkSnapshot

    job = Job("http://h/f", tmp_path / "f")

    def place() -> FileOutput:
        return FileOutput(
            job, job.target, TargetOptions("overwrite", resume=True, sync=False), notify=lambda *_a, **_k: None
        )

    first = place()
    first.enable_checkpoints(RemoteResource(size=100, etag='"v"'))
    (tmp_path / "f.part").unlink()
    second = place()
    second.part.preallocate(100, "truncate")
    with pytest.raises(errors.LocalFault, match="another program removed or replaced"):
        first.checkpoint(ChunkSnapshot([Chunk(0, 100, 100, 100)], 100))
    assert not (tmp_path / "f.part.meta").exists()
    first.close()
    assert (tmp_path / "f.part").exists()
    second.close()


# --- empty answers to a resume ---


@pytest.mark.parametrize("how", ["200 without validator", "416 to ranges"])
def test_an_empty_answer_without_validator_does_not_cost_what_was_committed(
    how: str, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    file = File(DATA, block=16 * 1024, pause_s=0.05)
    origin = serve(file)
    with pytest.raises(errors.DeadlineExceeded):
        fetch(f"{origin.url}/f", tmp_path / "f", deadline=0.5)

    def empty(request: Request, connection: Connection) -> None:
        if how == "416 to ranges" and request.range:
            connection.answer(416, {"Content-Range": "bytes */0"})
        else:
            connection.answer(200, {"Content-Type": "text/html"})

    origin.handler = empty
    with pytest.raises(errors.BadAnswer):
        fetch(f"{origin.url}/f", tmp_path / "f")
    file.pause_s = 0.0
    origin.handler = file
    assert fetch(f"{origin.url}/f", tmp_path / "f").resumed_from > 0
    assert (tmp_path / "f").read_bytes() == DATA


# --- the command line ---


def test_two_spellings_of_one_path_are_one_path(serve: Serve, tmp_path: Path) -> None:
    origin = serve(File(DATA))
    (tmp_path / "out" / "sub").mkdir(parents=True)
    (tmp_path / "list").write_text(f"{origin.url}/a x\n{origin.url}/b sub/../x\n")
    ended = run("fetch", "-i", tmp_path / "list", tmp_path / "out", "-j", "1")
    assert ended.code == 14
    assert "line 2 would overwrite" in ended.err


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["--checksum", ""], 2, "checksum"),
        (["--proxy", "http://"], 78, "proxy"),
        (["--proxy", "http://me:SECRET@[bad"], 78, "proxy"),
        (["--proxy", "http://h:99999"], 78, "proxy"),
        (["--proxy", "h:abc"], 78, "proxy"),
    ],
)
def test_empty_checksums_and_bad_proxies_are_said(
    arguments: list[str], code: int, sentence: str, tmp_path: Path
) -> None:
    ended = run("fetch", "http://127.0.0.1:1/f", tmp_path / "f", *arguments)
    assert ended.code == code
    assert sentence in ended.err
    assert "SECRET" not in ended.err
    assert len(ended.err.splitlines()) == 1


def test_a_user_name_in_any_bytes_is_sent(serve: Serve, tmp_path: Path) -> None:
    origin = serve(File(b"x"))
    command = [
        sys.executable,
        "-m",
        "dlpool",
        "fetch",
        f"{origin.url}/f",
        str(tmp_path / "f"),
        "--user",
        os.fsdecode(b"\xff\xfe:x"),
    ]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, timeout=60).returncode == 0
    assert origin.requests[0].headers["authorization"] == "Basic //46eA=="


def test_an_early_interruption_is_no_traceback() -> None:
    code = (
        "import os, signal\n"
        "import dlpool.cli.main as main\n"
        "main.build_parser = lambda *_: os.kill(os.getpid(), signal.SIGINT) or 1 / 0\n"
        "raise SystemExit(main.main(['fetch']))\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (130, "")
