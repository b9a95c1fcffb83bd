"""dlpool-web starts with what it can have: few threads, few files, no working directory; else one sentence says why."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests

from dlpool.config import Settings, WebSettings
from dlpool.errors import LocalFault
from dlpool.web import capacity
from dlpool.web.capacity import (
    BASE_FILES,
    FILES_A_THREAD,
    OTHER_THREADS,
    ServerCapacity,
    by_files,
    by_threads,
    fit_to_limits,
)
from dlpool.web.lingering_close import LingeringCloser
from dlpool.web.request_pools import ElasticExecutor
from tests.conftest import wait_until
from tests.disks import needs_root, ramfs
from tests.processes import ROOT, Ended, finish
from tests.uploads import md5, merge, send_all, store_in
from tests.web import WebServer

OWN = 1 + OTHER_THREADS
CAPABILITIES = "-sys_resource,-sys_admin"  # with these a process is above the limit of processes (setrlimit(2))


# --- how many fit: pure ---


@pytest.mark.parametrize(
    ("processes", "threads", "spare", "expected"),
    [
        (4, 32, 4 * (OWN + 32), (4, 32)),
        (4, 32, 10_000, (4, 32)),
        (4, 32, 4 * (OWN + 32) - 1, (4, 31)),
        (4, 32, 4 * (OWN + 10), (4, 10)),
        (4, 32, 3 * (OWN + 8), (3, 8)),
        (4, 32, OWN + 15, (1, 15)),
        (4, 32, OWN + 4, (1, 4)),
        (1, 4, OWN + 4, (1, 4)),
        (2, 4, OWN + 4, (1, 4)),
    ],
)
def test_threads_are_dealt_to_as_many_processes_as_have_some(
    processes: int, threads: int, spare: int, expected: tuple[int, int]
) -> None:
    found = by_threads(processes, threads, spare)
    assert (found.processes, found.threads) == expected
    assert found.processes * (OWN + found.threads) <= spare
    assert bool(found.notes) == (expected != (processes, threads))


@pytest.mark.parametrize("spare", range(OWN + 4))
def test_too_few_threads_are_one_sentence_that_says_what_to_raise(spare: int) -> None:
    with pytest.raises(
        LocalFault, match=f"only {spare} more threads are allowed, and it needs {OWN + 4}: raise .*ulimit -u"
    ):
        by_threads(4, 32, spare)


@pytest.mark.parametrize(
    ("threads", "limit", "expected"),
    [
        (32, resource.RLIM_INFINITY, 32),
        (32, 1 << 20, 32),
        (32, BASE_FILES + FILES_A_THREAD * 32, 32),
        (32, BASE_FILES + FILES_A_THREAD * 32 - 1, 31),
        (32, 256, 18),
        (32, 64, 4),
        (32, 56, 4),
        (4, 56, 4),
    ],
)
def test_threads_are_as_many_as_may_have_files_open(threads: int, limit: int, expected: int) -> None:
    found = by_files(threads, limit)
    assert found.threads == expected
    assert bool(found.notes) == (expected != threads)


@pytest.mark.parametrize("limit", [0, 3, 20, 55])
def test_too_few_files_are_one_sentence_that_says_what_to_raise(limit: int) -> None:
    with pytest.raises(LocalFault, match=f"may open only {limit} files, and it needs 56: raise .*ulimit -n"):
        by_files(32, limit)


def test_all_parts_get_the_number_of_threads_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "spare_threads", lambda _wanted: 2 * (OWN + 10))
    settings, found = fit_to_limits(replace(Settings(), web=WebSettings(processes=4, threads=32)))
    assert settings.web.threads == found.threads < 32
    assert found == ServerCapacity(2, 10, found.notes)
    assert len(found.notes) == 1


def test_looking_how_many_threads_there_may_be_leaves_none() -> None:
    looked = "import threading; from dlpool.web.capacity import spare_threads; n = spare_threads(50)"
    code = f"{looked}; print(n, threading.active_count())"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == ["50", "1"]


# --- a real server ---


def started(folder: Path, limits: list[str], **web: Any) -> tuple[WebServer, subprocess.Popen[bytes]]:
    """A server below limits, and its process."""
    server = WebServer(folder, {"web": {"processes": 2, "threads": 16, **web}})
    command = [*limits, sys.executable, "-m", "dlpool.cli.web", "-c", str(server.ini)]
    with server.errors.open("ab") as errors:
        server.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors)
    return server, server.process


def few_threads(count: int) -> list[str]:
    """As a user of its own, as the limit counts all threads of one, who nevertheless may read what root may."""
    user = ["setpriv", "--ruid", str(2_000_000 + os.getpid()), "--euid", "0", "--bounding-set", CAPABILITIES]
    return [*user, "--inh-caps", "-all", "prlimit", f"--nproc={count}:{count}"]


def few_files(count: int) -> list[str]:
    return ["prlimit", f"--nofile={count}:{count}"]


@needs_root
@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (few_threads(13), "more threads are allowed"),
        (few_threads(25), "more threads are allowed"),
        (few_files(64), "may open only 64 files"),
        (few_files(128), "may open only 128 files"),
    ],
    ids=["13 threads", "25 threads", "64 files", "128 files"],
)
def test_with_few_threads_or_files_it_serves_and_says_so(limits: list[str], said: str, tmp_path: Path) -> None:
    server, process = started(tmp_path, limits)
    try:
        wait_until(lambda: process.poll() is not None or healthy(server), 60)
        assert process.poll() is None, server.said()
        for number in range(3):
            answer = requests.post(
                f"{server.url}/upload_chunk?file_id=f&chunk_index={number}",
                data=b"abc",
                timeout=20,
                headers={"Content-Type": "application/octet-stream"},
            )
            assert answer.status_code == 200
        body: dict[str, Any] = {"file_id": "f", "filename": "f.bin", "total_chunks": 3}
        assert requests.post(f"{server.url}/merge_chunks", json=body, timeout=20).status_code == 200
        assert (server.merged_dir / "f.bin").read_bytes() == b"abc" * 3
        assert server.stop() == 0
    finally:
        server.kill()
    assert server.errors.read_text().count("warning: ") == 1
    assert said in server.events("web_limited")[0]["dlpool.reason"]
    assert not server.events("gunicorn_error")


def healthy(server: WebServer) -> bool:
    try:
        return requests.get(f"{server.url}/health", timeout=5).status_code == 200
    except requests.RequestException:
        return False


@needs_root
@pytest.mark.parametrize(
    "limits",
    [few_threads(1), few_threads(8), few_files(12), few_files(40)],
    ids=["1 thread", "8 threads", "12 files", "40 files"],
)
def test_with_too_few_it_does_not_start_and_says_what_to_raise(limits: list[str], tmp_path: Path) -> None:
    server, process = started(tmp_path, limits)
    assert process.wait(60) == 3
    said = server.errors.read_text()
    assert said.startswith("dlpool-web: cannot start dlpool-web: ")
    assert len(said.splitlines()) == 1
    assert "raise the limit" in said


def web_in_a_deleted_folder(tmp_path: Path, **environment: str) -> subprocess.Popen[str]:
    (tmp_path / "gone").mkdir()
    script = 'cd gone && rmdir ../gone && exec "$0" -m dlpool.cli.web'
    given = {name: value for name, value in os.environ.items() if not name.startswith("DLPOOL_")}
    return subprocess.Popen(
        ["bash", "-c", script, sys.executable],
        cwd=tmp_path,
        env={**given, **environment},
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_in_a_deleted_folder_relative_paths_are_one_sentence(tmp_path: Path) -> None:
    ended: Ended = finish(web_in_a_deleted_folder(tmp_path, PYTHONPATH=str(ROOT)))
    assert ended.code == 3
    assert ended.err == (
        "dlpool-web: the working directory has been deleted, and upload_dir = ./upload is relative to it: "
        "change to another one\n"
    )


def test_in_a_deleted_folder_absolute_paths_are_enough(tmp_path: Path) -> None:
    server = WebServer(tmp_path / "web")
    process = web_in_a_deleted_folder(
        tmp_path,
        PYTHONPATH=str(ROOT),
        DLPOOL_UPLOAD_PORT=str(server.port),
        DLPOOL_WEB_PROCESSES="1",
        DLPOOL_UPLOAD_UPLOAD_DIR=str(tmp_path / "u"),
        DLPOOL_UPLOAD_MERGED_DIR=str(tmp_path / "m"),
        DLPOOL_PATHS_STATE_DIR=str(tmp_path / "s"),
        DLPOOL_PATHS_LOG_DIR=str(tmp_path / "l"),
    )
    try:
        wait_until(lambda: process.poll() is not None or healthy(server), 60)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert finish(process).err.count("http://") == 1
    finally:
        process.kill()
        process.wait()


@needs_root
def test_on_a_file_system_without_figures_it_is_healthy_and_takes_uploads(tmp_path: Path) -> None:
    with ramfs(tmp_path / "disk") as disk:
        settings: Any = {"upload": {"upload_dir": disk / "u", "merged_dir": disk / "m"}}
        with WebServer(tmp_path / "web", settings) as server:
            answer = requests.get(f"{server.url}/health", timeout=10)
            assert (answer.status_code, answer.json()["status"]) == (200, "healthy")
            assert requests.get(f"{server.url}/system", timeout=10).status_code == 200
            sent = requests.post(
                f"{server.url}/upload_chunk?file_id=f&chunk_index=0&file_size=1000",
                data=b"abc",
                headers={"Content-Type": "application/octet-stream"},
                timeout=10,
            )
            assert sent.status_code == 200
            assert requests.get(f"{server.url}/metrics", timeout=10).status_code == 200


# --- threads that are refused while it runs ---


def refuse(*_: object, **__: object) -> None:
    raise RuntimeError("can't start new thread")


@pytest.mark.parametrize("expected", [None, md5(b"abcdef")])
def test_a_merge_without_threads_is_right(
    expected: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_in(tmp_path)
    send_all(store, [b"abc", b"def"])
    monkeypatch.setattr("threading.Thread.start", refuse)
    assert merge(store, 2, expected_md5=expected).md5 == md5(b"abcdef")
    assert (tmp_path / "merged" / "file.bin").read_bytes() == b"abcdef"


def test_a_pool_that_may_not_grow_does_all_work_with_the_threads_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    with ElasticExecutor(max_workers=8) as pool:
        first = pool.submit(os.getpid)
        assert first.result(20) == os.getpid()
        monkeypatch.setattr("threading.Thread.start", refuse)
        work: list[Callable[[], int]] = [lambda number=number: number for number in range(20)]  # type: ignore[misc]
        found: list[Future[int]] = [pool.submit(one) for one in work]
        assert [one.result(20) for one in found] == list(range(20))


def test_a_pool_that_may_not_have_one_thread_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("threading.Thread.start", refuse)
    with ElasticExecutor(max_workers=8) as pool, pytest.raises(RuntimeError):
        pool.submit(os.getpid)


def test_without_a_thread_a_connection_is_closed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    ours, theirs = socket.socketpair()
    monkeypatch.setattr("threading.Thread.start", refuse)
    LingeringCloser().close(ours)
    theirs.settimeout(20)
    assert theirs.recv(1) == b""
    assert ours.fileno() == -1
    theirs.close()
