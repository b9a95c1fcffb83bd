"""What one process of dlpool-web can take: merges, open files, requests that are none."""

from __future__ import annotations

import fcntl
import os
import socket
import threading
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from dlpool.config import WebSettings
from dlpool.storage.errors import UploadError
from dlpool.web.client_limits import ClientLimits
from dlpool.web.errors import HttpError, http_error
from tests.conftest import wait_until
from tests.web import RawClient, WebServer

OCTETS = {"Content-Type": "application/octet-stream"}


def post(server: WebServer, path: str, **options: Any) -> tuple[int, dict[str, Any]]:
    said = requests.post(f"{server.url}/{path}", timeout=20, **options)
    return said.status_code, said.json()


def test_however_many_merges_are_asked_for_there_are_places_for_others(tmp_path: Path) -> None:
    admission = ClientLimits(tmp_path, replace(WebSettings(), threads=8, client_uploads=100))
    merging = []

    def merge(number: int) -> None:
        with admission.merge_slot(str(number)):
            merging.append(number)
            ended.wait(20)

    ended = threading.Event()
    threads = [threading.Thread(target=merge, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: refusal_of(admission.merge_slot("more", timeout_s=0)) == (503, "busy"))
        with ExitStack() as stack:
            for _ in range(3):
                stack.enter_context(admission.body_slot("client"))
            assert refusal_of(admission.body_slot("client")) == (503, "busy")
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert sorted(merging) == [0, 1, 2]
    assert refusal_of(admission.merge_slot("more")) is None


def test_one_file_takes_one_turn_however_often_it_is_asked_for(tmp_path: Path) -> None:
    admission = ClientLimits(tmp_path, WebSettings())
    with admission.merge_slot("a"):
        for _ in range(50):
            assert refusal_of(admission.merge_slot("a", timeout_s=0)) == (409, "task_merging")
        with ExitStack() as stack:
            for number in range(len(os.sched_getaffinity(0)) - 1):
                stack.enter_context(admission.merge_slot(f"b{number}", timeout_s=0))
            assert refusal_of(admission.merge_slot("c", timeout_s=0)) == (503, "busy")
    assert refusal_of(admission.merge_slot("a", timeout_s=0)) is None


def test_half_of_the_places_are_never_taken_by_downloads(tmp_path: Path) -> None:
    admission = ClientLimits(tmp_path, replace(WebSettings(), threads=8, client_uploads=100))
    with ExitStack() as stack:
        for _ in range(3):
            admission.enter_send("client", stack)
        with pytest.raises(HttpError, match="the server is busy"), ExitStack() as further:
            admission.enter_send("another", further)
        for _ in range(3):
            stack.enter_context(admission.body_slot("client"))
    with ExitStack() as stack:
        admission.enter_send("another", stack)


def refusal_of(wanted: AbstractContextManager[object]) -> tuple[int, str] | None:
    """How it is refused; None if it is not."""
    try:
        with wanted:
            return None
    except HttpError as error:
        return error.status, error.code
    except UploadError as error:
        return http_error(error).status, error.code


def test_with_too_many_connections_open_a_worker_waits_and_lives(tmp_path: Path) -> None:
    with WebServer(tmp_path, {"web": {"processes": 1}}) as server, ExitStack() as stack:
        [worker] = server.workers()
        most = worker.num_fds() + 10
        worker.rlimit(psutil.RLIMIT_NOFILE, (most, most))
        for _ in range(30):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=20))
            sock.sendall(b"GET /")  # a head that does not end
        for _ in range(3):
            assert requests.get(f"{server.root}/livez", timeout=20).text == "ok\n"
        stack.close()
        wait_until(lambda: _is_healthy(server))
        assert [one.pid for one in server.workers()] == [worker.pid]
        assert not server.events("gunicorn_error"), server.said()


def _is_healthy(server: WebServer) -> bool:
    try:
        return requests.get(f"{server.url}/health", timeout=20).status_code == 200
    except requests.RequestException:
        return False


def test_what_is_no_request_is_logged_and_counted(tmp_path: Path) -> None:
    with WebServer(tmp_path, {"web": {"processes": 1}}) as server:
        with RawClient(server.port) as client:
            assert client.say("GET / HTTP/9.9 x\r\n\r\n").answer()[1]["code"] == "bad_request"
        wait_until(lambda: len(server.events("request_unreadable")) == 1)
        [said] = server.events("request_unreadable")
        assert (said["http.response.status_code"], said["error.code"], said["client.address"]) == (
            400,
            "bad_request",
            "127.0.0.1",
        )
        counts = requests.get(f"{server.url}/metrics", headers={"Accept": "application/json"}, timeout=10).json()
        assert counts["counts"]["error bad_request"] == 1


def test_an_id_may_end_in_a_slash(tmp_path: Path) -> None:
    with WebServer(tmp_path) as server:
        for file_id in ("abc", "abc/"):
            assert (
                post(server, "upload_chunk", data={"file_id": file_id, "chunk_index": 0}, files={"chunk": b"x"})[0]
                == 200
            )
        assert requests.get(f"{server.url}/tasks/abc%2F", timeout=10).json()["task_id"] == "abc/"
        assert requests.delete(f"{server.url}/tasks/abc%2F", timeout=10).json()["task_id"] == "abc/"
        listed = requests.get(f"{server.url}/tasks/", timeout=10).json()
        assert [task["task_id"] for task in listed["tasks"]] == ["abc"]
        assert requests.get(f"{server.url}/health/", timeout=10).status_code == 200


def test_a_chunk_needs_a_length(tmp_path: Path) -> None:
    with WebServer(tmp_path) as server:
        path = "/go-uploader/upload_chunk?file_id=f&chunk_index=0"
        assert requests.post(server.root + path, data=b"bytes", headers=OCTETS, timeout=10).status_code == 200
        with RawClient(server.port) as client:
            status, said = client.post(path, "Content-Type: application/octet-stream").answer()
        assert (status, said["code"]) == (411, "length_required")
        assert requests.get(f"{server.url}/tasks/f", timeout=10).json()["chunks"][0]["size"] == 5
        with RawClient(server.port) as client:
            client.post(path, "Content-Type: application/octet-stream", "Content-Length: 0")
            assert client.answer()[0] == 200


def test_a_number_that_lost_its_digits_is_no_id(tmp_path: Path) -> None:
    with WebServer(tmp_path) as server:
        merge = {"file_id": 123456789012345678901, "filename": "f", "total_chunks": 1}
        status, said = post(server, "merge_chunks", json=merge)
        assert (status, said["code"]) == (400, "bad_field") and "send it as a text" in said["error"]


def test_a_secret_may_have_any_letters(tmp_path: Path) -> None:
    secret = "ein langes Geheimnis mit ü"
    with WebServer(tmp_path, {"web": {"secret_key": secret, "auth": "on"}}) as server:
        for key, status in ((secret.encode(), 200), (secret.encode("latin-1"), 401)):
            answer = requests.get(f"{server.url}/tasks", headers={"X-Secret-Key": key}, timeout=10)
            assert answer.status_code == status


def test_leftovers_go_with_the_first_turn_however_late_it_comes(tmp_path: Path) -> None:
    """Another process tidies up just when this one begins."""
    server = WebServer(tmp_path)
    left = server.upload_dir / "tmp" / "left.tmp"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"x")
    keeper = tmp_path / "state" / "web" / "janitor.lock"
    keeper.parent.mkdir(parents=True)
    with server, keeper.open("w") as lock:
        server.kill()
        left.write_bytes(b"x")
        fcntl.flock(lock, fcntl.LOCK_EX)
        server.start()
        for _ in range(5):
            assert requests.get(f"{server.url}/health", timeout=10).ok and left.exists()
        fcntl.flock(lock, fcntl.LOCK_UN)
        wait_until(lambda: not left.exists())
