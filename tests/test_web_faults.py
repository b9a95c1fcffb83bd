"""What happens to uploads when workers are killed and disks are full or read-only, over HTTP; the others are served."""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import requests

from tests.conftest import make_data, wait_until
from tests.disks import needs_root, remount, tmpfs
from tests.web import RawClient, WebServer

CHUNK = 400_000
PATIENCE_S = 60.0


def post(server: WebServer, path: str, **options: Any) -> tuple[int, dict[str, Any]]:
    said = requests.post(f"{server.url}/{path}", timeout=20, **options)
    return said.status_code, said.json()


def insist(ask: Callable[[], tuple[int, dict[str, Any]]], final: tuple[int, ...] = (200,)) -> dict[str, Any]:
    """Ask until it is done: connections break with the workers, and nothing else may go wrong."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        assert time.monotonic() < deadline
        with suppress(requests.RequestException):
            status, said = ask()
            if status in final:
                return said
            assert status in (409, 429, 503), (status, said)
        time.sleep(0.02)


@contextmanager
def killing(server: WebServer, seed: int) -> Iterator[list[int]]:
    """Kill a worker every now and then, at moments that nobody chose."""
    moments, ended, killed = random.Random(seed), threading.Event(), []

    def run() -> None:
        while not ended.wait(moments.uniform(0.05, 0.3)):
            with suppress(psutil.Error, IndexError):
                victim = moments.choice(server.workers())
                victim.kill()
                killed.append(victim.pid)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield killed
    finally:
        ended.set()
        thread.join()


def test_workers_that_are_killed_lose_nothing_that_was_answered(tmp_path: Path) -> None:
    """In chunks, in merges, in records: whatever was answered with 200 stays, and what was not can be asked again."""
    with WebServer(tmp_path, {"web": {"processes": 3}}) as server:

        def upload(number: int) -> None:
            data, file_id = make_data(4 * CHUNK, number), f"task {number}"
            for index in range(4):
                piece = data[index * CHUNK : (index + 1) * CHUNK]
                form = {"file_id": file_id, "chunk_index": index, "md5": hashlib.md5(piece).hexdigest()}
                insist(lambda form=form, piece=piece: post(server, "upload_chunk", data=form, files={"chunk": piece}))  # type: ignore[misc]
                with suppress(requests.RequestException):
                    found = requests.get(f"{server.url}/upload_status?file_id={file_id}", timeout=20).json()
                    assert set(range(index + 1)) <= set(found["uploaded_chunks"])
            merge = {
                "file_id": file_id,
                "filename": f"{number}.bin",
                "total_chunks": 4,
                "expected_md5": hashlib.md5(data).hexdigest(),
            }
            said = insist(lambda: post(server, "merge_chunks", json=merge))
            assert said["size"] == len(data)
            assert (server.merged_dir / f"{number}.bin").read_bytes() == data

        count = 0
        with killing(server, 1) as killed, ThreadPoolExecutor(4) as pool:
            while len(killed) <= 5 or not count:
                list(pool.map(upload, range(count, count + 7)))
                count += 7
        wait_until(lambda: len(server.workers()) == 3)
        listed = insist(lambda: (200, requests.get(f"{server.url}/tasks", timeout=20).json()))
        assert {task["status"] for task in listed["tasks"]} == {"completed"} and listed["total"] == count
        for worker in server.workers():
            worker.kill()  # the next one sweeps at its start what they have left
        wait_until(lambda: not list(server.upload_dir.rglob("*.tmp")))
        names = sorted(path.name for path in server.merged_dir.iterdir())
        assert names == sorted(f"{number}.bin" for number in range(count))


@needs_root
def test_a_full_disk_is_507_and_what_is_there_stays(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk", "4m") as disk:
        upload = {"upload_dir": disk / "upload", "merged_dir": disk / "merged", "disk_warn": 0.99, "disk_refuse": 1}
        with WebServer(tmp_path / "web", {"upload": upload}) as server:
            form = {"file_id": "f", "chunk_index": 0}
            assert post(server, "upload_chunk", data=form, files={"chunk": bytes(1_500_000)})[0] == 200
            status, said = post(
                server, "upload_chunk", data={**form, "chunk_index": 1}, files={"chunk": bytes(4_000_000)}
            )
            assert (status, said["code"]) == (507, "no_space"), said
            merge = {"file_id": "f", "filename": "f", "total_chunks": 1}
            (disk / "filler").write_bytes(bytes(1_500_000))
            assert post(server, "merge_chunks", json=merge)[0] == 507
            assert requests.get(f"{server.url}/upload_status?file_id=f", timeout=10).json()["uploaded_chunks"] == [0]
            (disk / "filler").unlink()
            assert post(server, "merge_chunks", json=merge)[0] == 200
            assert not server.events("request_internal_error"), server.said()


@needs_root
def test_a_merge_that_fills_the_disk_leaves_the_chunks_and_nothing_else(tmp_path: Path) -> None:
    """Two merges that each have room when they begin, and not both: at least one is refused as it copies."""
    data = make_data(6_000_000)
    with tmpfs(tmp_path / "files", "11m") as files:
        upload = {"merged_dir": files / "merged", "disk_warn": 0.99, "disk_refuse": 1}
        with WebServer(tmp_path / "web", {"upload": upload}) as server:
            for name in ("a", "b"):
                form = {"file_id": name, "chunk_index": 0}
                assert post(server, "upload_chunk", data=form, files={"chunk": data})[0] == 200
            merges = [{"file_id": name, "filename": name, "total_chunks": 1} for name in ("a", "b")]
            with ThreadPoolExecutor(2) as pool:
                statuses = sorted(pool.map(lambda merge: post(server, "merge_chunks", json=merge)[0], merges))
            assert statuses in ([200, 507], [507, 507])
            made = [path for path in (files / "merged").iterdir() if path.is_file()]
            assert [path.read_bytes() for path in made] == [data] * statuses.count(200)
            remount(files, "size=16m")
            assert [post(server, "merge_chunks", json=merge)[0] for merge in merges] == [200, 200]
            assert [(files / "merged" / name).read_bytes() for name in ("a", "b")] == [data, data]


@needs_root
def test_a_record_that_finds_no_room_loses_no_chunk(tmp_path: Path) -> None:
    """The disk has room for the chunk alone, and not for what is noted of it."""
    with tmpfs(tmp_path / "disk", "8m,nr_inodes=20") as disk:
        upload = {"upload_dir": disk / "upload", "disk_warn": 0.99, "disk_refuse": 1}
        with WebServer(tmp_path / "web", {"upload": upload}) as server:
            sent, statuses = [], []
            for index in range(12):
                form = {"file_id": "f", "chunk_index": index}
                status, said = post(server, "upload_chunk", data=form, files={"chunk": b"%d" % index})
                statuses.append(status)
                sent += [index] if status == 200 else []
                assert status == 200 or (status, said["code"]) == (507, "no_space")
            assert {200, 507} == set(statuses)
            known = requests.get(f"{server.url}/upload_status?file_id=f", timeout=10).json()["uploaded_chunks"]
            assert set(sent) <= set(known)
            remount(disk, "nr_inodes=100")
            for index in set(range(12)) - set(sent):
                form = {"file_id": "f", "chunk_index": index}
                assert post(server, "upload_chunk", data=form, files={"chunk": b"%d" % index})[0] == 200
            merge = {"file_id": "f", "filename": "f", "total_chunks": 12}
            assert post(server, "merge_chunks", json=merge)[0] == 200
            assert (server.merged_dir / "f").read_bytes() == b"".join(b"%d" % index for index in range(12))
            assert not server.events("request_internal_error"), server.said()


@needs_root
def test_only_the_folder_of_files_is_read_only(tmp_path: Path) -> None:
    with (
        tmpfs(tmp_path / "files", "4m") as files,
        WebServer(tmp_path / "web", {"upload": {"merged_dir": files / "merged"}}) as server,
    ):
        form = {"file_id": "f", "chunk_index": 0}
        remount(files, "ro")
        assert post(server, "upload_chunk", data=form, files={"chunk": b"x"})[0] == 200
        merge = {"file_id": "f", "filename": "f", "total_chunks": 1}
        status, said = post(server, "merge_chunks", json=merge)
        assert (status, said["code"]) == (507, "read_only"), said
        assert requests.get(f"{server.url}/health", timeout=10).status_code == 503
        remount(files, "rw")
        assert post(server, "merge_chunks", json=merge)[0] == 200
        assert (files / "merged" / "f").read_bytes() == b"x"


@needs_root
def test_of_a_tus_upload_what_fits_on_a_full_disk_counts(tmp_path: Path) -> None:
    data = make_data(3_000_000)
    known = {"Tus-Resumable": "1.0.0", "Content-Type": "application/offset+octet-stream"}
    with tmpfs(tmp_path / "disk", "2m") as disk:
        upload = {"upload_dir": disk / "upload", "merged_dir": disk / "merged", "disk_warn": 0.99, "disk_refuse": 1}
        with WebServer(tmp_path / "web", {"upload": upload}) as server:

            def ask(method: str, path: str, body: bytes = b"", **headers: object) -> requests.Response:
                said = {**known, **{name.replace("_", "-"): str(value) for name, value in headers.items()}}
                return requests.request(method, server.root + path, data=body, headers=said, timeout=20)

            path = ask("POST", "/files", Content_Type="none", Upload_Defer_Length=1).headers["Location"]
            answer = ask("PATCH", path, data, Upload_Offset=0)
            assert (answer.status_code, answer.json()["code"]) == (507, "no_space")
            offset = int(ask("HEAD", path).headers["Upload-Offset"])
            assert 1_000_000 < offset < len(data)
            remount(disk, "size=16m")
            assert ask("PATCH", path, data[offset:], Upload_Offset=offset, Upload_Length=len(data)).status_code == 204
            assert (disk / "merged" / path.rpartition("/")[2]).read_bytes() == data


@needs_root
def test_no_new_tasks_on_a_disk_above_the_threshold_and_health_says_so(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk", "10m") as disk:
        upload = {"upload_dir": disk / "upload", "merged_dir": disk / "merged", "disk_warn": 0.3, "disk_refuse": 0.6}
        with WebServer(tmp_path / "web", {"upload": upload}) as server:
            seen = []
            for size in (1_000_000, 4_000_000, 7_000_000):
                (disk / "filler").write_bytes(bytes(size))
                health = requests.get(f"{server.url}/health", timeout=10)
                status, _ = post(
                    server, "upload_chunk", data={"file_id": f"f{size}", "chunk_index": 0}, files={"chunk": b"x"}
                )
                seen.append((health.status_code, health.json()["status"], status))
            assert seen == [(200, "healthy", 200), (200, "warning", 200), (503, "unhealthy", 507)]


@needs_root
def test_a_read_only_folder_is_no_500(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk", "4m") as disk:
        upload = {"upload_dir": disk / "upload", "merged_dir": disk / "merged"}
        with WebServer(tmp_path / "web", {"upload": upload}) as server:
            form = {"file_id": "f", "chunk_index": 0}
            assert post(server, "upload_chunk", data=form, files={"chunk": b"x"})[0] == 200
            remount(disk, "ro")
            status, said = post(server, "upload_chunk", data=form, files={"chunk": b"x"})
            assert (status, said["code"]) == (507, "read_only"), said
            assert requests.get(f"{server.url}/upload_status?file_id=f", timeout=10).json()["uploaded_chunks"] == [0]
            assert requests.get(f"{server.url}/health", timeout=10).status_code == 503
            remount(disk, "rw")
            assert post(server, "merge_chunks", json={"file_id": "f", "filename": "f", "total_chunks": 1})[0] == 200
            assert not server.events("request_internal_error"), server.said()


def test_expired_tasks_go_and_uploads_under_way_stay(tmp_path: Path) -> None:
    """The workers tidy up every 200 ms, and one of them at a time, while chunks come."""
    upload = {"cleanup_interval": "200ms", "task_expiry": "2s"}
    with WebServer(tmp_path, {"upload": upload, "web": {"processes": 3}}) as server:
        assert post(server, "upload_chunk", data={"file_id": "old", "chunk_index": 0}, files={"chunk": b"x"})[0] == 200
        begun, index = time.monotonic(), 0
        with RawClient(server.port) as slow:  # longer under way than a task may be idle
            slow.post(
                "/go-uploader/upload_chunk?file_id=slow&chunk_index=0",
                "Content-Type: application/octet-stream",
                "Content-Length: 100000",
                body=b"x" * 50_000,
            )
            while (
                time.monotonic() - begun < 4 or requests.get(f"{server.url}/tasks/old", timeout=10).status_code != 404
            ):
                assert time.monotonic() - begun < PATIENCE_S
                chunk = {"file_id": "new", "chunk_index": index}
                assert post(server, "upload_chunk", data=chunk, files={"chunk": b"%d" % index})[0] == 200
                index += 1
                time.sleep(0.05)
            assert slow.say(b"x" * 50_000).answer()[0] == 200
        assert post(server, "merge_chunks", json={"file_id": "new", "filename": "n", "total_chunks": index})[0] == 200
        assert (server.merged_dir / "n").read_bytes() == b"".join(b"%d" % number for number in range(index))
        assert server.events("cleanup_done") and not server.events("cleanup_failed")


def test_folders_that_vanish_are_made_again(tmp_path: Path) -> None:
    with WebServer(tmp_path) as server:
        server.upload_dir.rename(tmp_path / "away")
        server.merged_dir.rename(tmp_path / "away too")
        assert post(server, "upload_chunk", data={"file_id": "f", "chunk_index": 0}, files={"chunk": b"x"})[0] == 200
        assert post(server, "merge_chunks", json={"file_id": "f", "filename": "f", "total_chunks": 1})[0] == 200


def test_its_end_lets_requests_finish(tmp_path: Path) -> None:
    with WebServer(tmp_path, {"logging": {"level": "debug"}}) as server, RawClient(server.port) as slow:
        slow.post(
            "/go-uploader/upload_chunk?file_id=f&chunk_index=0",
            "Content-Type: application/octet-stream",
            "Content-Length: 10",
            body=b"12345",
        )
        wait_until(lambda: len(list(server.upload_dir.rglob("*.tmp"))) == 1)
        with ThreadPoolExecutor(1) as pool:
            ending = pool.submit(server.stop)
            wait_until(lambda: any("term" in said["dlpool.reason"] for said in server.events("gunicorn_message")))
            assert slow.say(b"67890").answer()[0] == 200
            assert ending.result() == 0
        assert server.errors.read_text().count("\n") == 1, server.said()
