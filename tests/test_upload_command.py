"""``dlpool upload`` as a command: what it refuses at once, and how it tells what it does, wherever that goes."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from dlpool.config import TransferSettings
from dlpool.upload.api_client import UploadApiClient
from dlpool.upload.upload import FileUpload
from dlpool.upload.values import FileUploadRequest
from tests.conftest import Fetcher, make_data, wait_until
from tests.origin import Connection
from tests.processes import ROOT, Ended, finish, run, start
from tests.upload_origin import UploadOrigin

CHUNK = 64 * 1024
DATA = make_data(5 * CHUNK + 1000)
HASTY = ("--chunk-size", "64K", "--retries", "3", "--retry-delay", "10ms", "--retry-max-delay", "100ms")


@pytest.fixture
def origin() -> Iterator[UploadOrigin]:
    with UploadOrigin() as made:
        yield made


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.bin"
    path.write_bytes(DATA)
    return path


def upload(*arguments: object, **options: Any) -> Ended:
    return run("upload", *arguments, *HASTY, **options)


# --- what is refused at once ---


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["f", "http://h/api?token=hush"], "no query and no fragment"),
        (["f", "http://h/api#there"], "no query and no fragment"),
        (["f", "http://h/", "--token-file", "token", "-H", "authorization: mine"], "a header Authorization exclude"),
        (["f", "http://me:hush@h/", "--token-file", "token"], "a user in the URL exclude"),
        (["f", "http://h/", "--secret-key-file", "token", "-H", "X-Secret-Key: x"], "X-Secret-Key exclude"),
        (["f", "http://h/", "--name", ""], "--name is empty"),
        (["f", "http://h/", "--path", b"\xff"], "--path '\\udcff' is not text"),
        (["f", "http://h/", "--name", b"\xff"], "--name"),
        (["/proc/self/status", "http://h/"], "only such can be uploaded"),
    ],
)
def test_invalid_arguments_are_one_sentence_and_exit_2(
    arguments: list[str | bytes], sentence: str, tmp_path: Path
) -> None:
    (tmp_path / "f").touch()
    (tmp_path / "token").write_text("hush")
    command = [sys.executable, "-m", "dlpool", "upload", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8:backslashreplace"}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, timeout=60, check=False)
    err = ended.stderr.decode()
    assert ended.returncode == 2
    assert sentence in err
    assert "hush" not in err
    assert len(err.splitlines()) == 1


def test_a_wrong_address_is_named_with_a_hint(origin: UploadOrigin, file: Path) -> None:
    origin.fault = lambda *_: (404, {"error": "no such path", "code": "not_found"})
    ended = upload(file, origin.url)
    assert ended.code == 10
    assert f"{origin.url} is not where an upload API begins, as http://host:18101/go-uploader is" in ended.err


def test_spaces_around_the_address_do_not_count(origin: UploadOrigin, file: Path) -> None:
    assert upload(file, f"  {origin.api}/ ").code == 0


def test_a_slash_at_the_end_of_the_folder_makes_no_other_upload(origin: UploadOrigin, file: Path) -> None:
    first = upload(file, origin.api, "--path", "models", "--json").json
    again = upload(file, origin.api, "--path", "models/", "--json").json
    assert first["file_id"] == again["file_id"]
    assert again["sent"] == 0


# --- how it is told ---


def test_a_result_that_cannot_be_written_is_one_sentence_and_no_failure(origin: UploadOrigin, file: Path) -> None:
    with open("/dev/full", "w") as full:
        ended = upload(file, origin.api, "--json", "-q", stdout=full)
    assert ended.code == 0
    [line] = ended.err.splitlines()
    assert "No space left on device" in line
    assert origin.merged["model.bin"] == DATA


def test_a_failure_that_cannot_be_written_keeps_its_exit_code(origin: UploadOrigin, file: Path) -> None:
    origin.fault = lambda call, *_: (403, {"error": "no"}) if call == "chunk" else None
    with open("/dev/full", "w") as full:
        ended = upload(file, origin.api, "--json", stdout=full)
    assert ended.code == 6
    assert "No space left on device" in ended.err


@pytest.mark.parametrize("target", ["2>&-", "2>/dev/full", "2>&1 >/dev/null | true"])
def test_an_upload_continues_without_standard_streams(target: str, origin: UploadOrigin, file: Path) -> None:
    """The exit code is the upload's, and the JSON is nothing but JSON."""
    out = file.parent / "out"
    redirection = f"{target} >{out}" if "|" not in target else target
    command = f'"$0" -m dlpool upload "$1" "$2" {" ".join(HASTY)} --progress json --json -v {redirection}'
    shell = ["bash", "-o", "pipefail", "-c", command, sys.executable, str(file), origin.api]
    ended = subprocess.run(shell, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert origin.merged["model.bin"] == DATA
    if out.exists():
        assert json.loads(out.read_text())["status"] == "done"


def test_a_name_writes_nothing_on_the_terminal_but_itself(origin: UploadOrigin, tmp_path: Path) -> None:
    path = tmp_path / "a\x1b[2Jb\nc"
    path.write_bytes(DATA)
    ended = upload(path, origin.api)
    assert ended.code == 0
    assert "a\\x1b[2Jb\\nc" in ended.err
    assert "\x1b" not in ended.err
    ended = upload(tmp_path / "gone\x1b[2J", origin.api)
    assert "\x1b" not in ended.err


def test_interrupted_and_unstarted_files_are_listed(origin: UploadOrigin, tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a", "b", "c")]
    for path in paths:
        path.write_bytes(DATA + path.name.encode())

    def hang(call: str, fields: Mapping[str, str], _number: int, connection: Connection) -> None:
        if call == "chunk" and fields["filename"] == "b":
            connection.wait_for_client_to_go(60)
        if call == "status":  # each file is another task
            origin.stored.clear()

    origin.fault = hang
    process = start("upload", *paths, origin.api, *HASTY, "--json")
    wait_until(lambda: any(fields.get("filename") == "b" for _, fields in origin.calls))
    process.send_signal(signal.SIGINT)
    ended = finish(process)
    assert ended.code == 130
    found = ended.json
    assert [one["status"] for one in found["files"]] == ["done", "interrupted", "not_begun"]
    assert [one["file"] for one in found["files"]] == [str(path) for path in paths]
    assert (found["done"], found["failed"], found["interrupted"], found["not_begun"]) == (1, 0, 1, 1)
    assert "files not started: 1" in ended.err


def test_the_progress_of_an_upload_never_decreases(origin: UploadOrigin, file: Path, fetch: Fetcher) -> None:
    """Chunks are lost when their last byte has come."""
    failing = threading.Event()

    def lose(call: str, _fields: Mapping[str, str], number: int, connection: Connection) -> None:
        if call == "chunk" and number <= 4:
            failing.wait(0.1)
            connection.reset()

    origin.fault = lose
    connections = fetch.client(network="any")
    server = UploadApiClient(connections, origin.api, {})
    settings = TransferSettings(retry_delay=0.2, retry_max_delay=0.2)
    upload = FileUpload(FileUploadRequest(file, connections=1, chunk_size=CHUNK), server, connections, settings)
    running = threading.Thread(target=upload.run)
    running.start()
    done = []
    while running.is_alive():
        done.append(upload.progress().done)
        running.join(0.005)
    assert origin.merged["model.bin"] == DATA
    assert done == sorted(done)


def test_a_bar_shows_the_phase_while_nothing_is_sent(origin: UploadOrigin, file: Path) -> None:
    seen = threading.Event()

    def wait(call: str, *_: object) -> None:
        if call == "merge":
            seen.wait(30)

    origin.fault = wait
    main_end, other_end = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    process = start("upload", file, origin.api, *HASTY, stderr=other_end, env=environment)
    os.close(other_end)
    shown = b""
    with suppress(OSError):  # the terminal's other end has closed
        while data := os.read(main_end, 65536):
            shown += data
            if b"merging" in shown:
                seen.set()
    os.close(main_end)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert b"merging" in shown
