"""What happens to uploads is in the queue's stream of events; no upload waits for Redis, or fails with it."""

from __future__ import annotations

import hashlib
import os
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests

from dlpool.cli.main import main
from dlpool.config import LoggingSettings
from dlpool.errors import QueueAway
from dlpool.jobs.event_stream import KEPT, EventReader, EventWriter
from dlpool.jobs.keys import QueueKeys
from dlpool.observe.log import Log
from dlpool.observe.processors import LogOrigin
from dlpool.storage import values
from dlpool.storage.disk import merger
from dlpool.storage.disk.backend import DiskBackend
from dlpool.storage.values import UploadEvent
from dlpool.web import event_publisher
from dlpool.web.counters import SharedCounters
from dlpool.web.event_publisher import MOST, UploadEventPublisher, event_fields
from tests.conftest import free_port, wait_until
from tests.processes import ROOT
from tests.redis_server import RedisServer
from tests.uploads import merge, send, store_in
from tests.web import WebServer

MD5 = hashlib.md5(b"abcdef").hexdigest()
TUS = {"Tus-Resumable": "1.0.0"}
TRACE = "0af7651916cd43dd8448eb211c80319c"


@dataclass(frozen=True)
class Site:
    """A server and its Redis."""

    server: WebServer
    redis: RedisServer

    def events(self, upload_id: str) -> list[dict[str, Any]]:
        """What the stream says of an upload."""
        with self.redis.client() as client:
            found = [one.as_json() for one in EventReader(client, QueueKeys()).last(1000)]
        return [one for one in found if one.get("upload_id") == upload_id]

    def wait_for(self, upload_id: str, *names: str) -> list[dict[str, Any]]:
        """The events of an upload, once they are these."""
        wait_until(lambda: [one["event"] for one in self.events(upload_id)] == list(names))
        return self.events(upload_id)

    def send(self, upload_id: str, index: int, data: bytes, **headers: str) -> requests.Response:
        query = f"file_id={upload_id}&chunk_index={index}&total_chunks=2&file_size=6"
        given = {"Content-Type": "application/octet-stream", **headers}
        return requests.post(f"{self.server.url}/upload_chunk?{query}", data=data, timeout=20, headers=given)

    def merge(self, upload_id: str, **fields: Any) -> requests.Response:
        body = {"file_id": upload_id, "filename": f"{upload_id}.bin", "total_chunks": 2, **fields}
        return requests.post(f"{self.server.url}/merge_chunks", json=body, timeout=20)

    def ask(self, method: str, path: str, **options: Any) -> requests.Response:
        return requests.request(method, self.server.root + path, timeout=20, **options)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    with RedisServer(folder / "redis") as redis:
        settings: Any = {"redis": {"url": redis.url}}
        with WebServer(folder / "web", settings) as server:
            yield Site(server, redis)


def test_an_upload_is_told_from_its_start_to_its_end_and_only_once(site: Site) -> None:
    for _ in range(2):
        assert site.send("whole", 0, b"abc", traceparent=f"00-{TRACE}-b7ad6b7169203331-01").status_code == 200
        assert site.send("whole", 1, b"def").status_code == 200
    for _ in range(2):
        assert site.merge("whole", relative_path="a/b").status_code == 200
    assert site.send("whole", 0, b"abc").status_code == 409
    started, completed = site.wait_for("whole", "upload_started", "upload_completed")
    assert {name: started[name] for name in ("protocol", "size", "trace_id")} == {
        "protocol": "chunked",
        "size": "6",
        "trace_id": TRACE,
    }
    assert "job_id" not in started
    assert re.fullmatch(r"\d+-\d+", started["id"])
    assert completed["filename"] == "whole.bin"
    note = completed["note"]
    assert (note["path"], note["size"], note["md5"]) == ("a/b/whole.bin", 6, MD5)
    assert note["seconds"] >= 0


def test_a_merge_that_fails_is_told_with_its_reason_and_then_that_it_succeeded(site: Site) -> None:
    site.send("mended", 0, b"abc")
    site.send("mended", 1, b"def")
    assert site.merge("mended", expected_md5="0" * 32).status_code == 400
    assert site.merge("mended", expected_md5=MD5).status_code == 200
    _, failed, _ = site.wait_for("mended", "upload_started", "upload_failed", "upload_completed")
    assert failed["note"]["label"] == "file_md5_mismatch"
    assert "md5" in failed["note"]["message"]


def test_pausing_resuming_and_deleting_are_told(site: Site) -> None:
    site.send("steered", 0, b"abc")
    for _ in range(2):
        site.ask("POST", "/go-uploader/tasks/steered/pause")
    site.ask("POST", "/go-uploader/tasks/steered/resume")
    assert site.ask("DELETE", "/go-uploader/tasks/steered").status_code == 200
    assert site.ask("DELETE", "/go-uploader/tasks/steered").status_code == 404
    told = site.wait_for("steered", "upload_started", "upload_paused", "upload_resumed", "upload_deleted")
    assert told[-1]["note"] == {"status": "uploading"}


def test_a_batch_and_a_cleanup_are_told(site: Site) -> None:
    for name in ("batched", "cleaned"):
        site.send(name, 0, b"abc")
    site.ask("POST", "/go-uploader/tasks/batch", json={"action": "delete", "ids": ["batched", "absent"]})
    site.ask("POST", "/go-uploader/tasks/cleaned/pause")
    site.ask("POST", "/go-uploader/tasks/cleanup", params={"status": "paused", "older_than": "0"})
    site.wait_for("batched", "upload_started", "upload_deleted")
    site.wait_for("cleaned", "upload_started", "upload_paused", "upload_deleted")
    assert site.events("absent") == []


def test_what_is_refused_is_not_told(site: Site) -> None:
    assert site.send("", 0, b"abc").status_code == 400
    assert site.send("refused", 7, b"abc").status_code == 400
    assert site.merge("refused").status_code == 404
    site.send("after", 0, b"abc")
    site.wait_for("after", "upload_started")
    assert site.events("refused") == []


def test_uploads_by_tus_are_told(site: Site) -> None:
    begun = site.ask(
        "POST", "/files", headers={**TUS, "Upload-Length": "6", "Upload-Metadata": "filename dHVzLmJpbg=="}
    )
    location = begun.headers["Location"]
    headers = {**TUS, "Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}
    assert site.ask("PATCH", location, data=b"abcdef", headers=headers).status_code == 204
    started, completed = site.wait_for(location.rpartition("/")[2], "upload_started", "upload_completed")
    assert (started["protocol"], started["filename"], started["size"]) == ("tus", "tus.bin", "6")
    assert completed["note"]["path"] == "tus.bin"
    ended = site.ask("POST", "/files", headers={**TUS, "Upload-Length": "6"}).headers["Location"]
    assert site.ask("DELETE", ended, headers=TUS).status_code == 204
    site.wait_for(ended.rpartition("/")[2], "upload_started", "upload_deleted")


def test_an_upload_that_expires_is_told(tmp_path: Path, redis_server: RedisServer) -> None:
    settings: Any = {"redis": {"url": redis_server.url}, "upload": {"task_expiry": 1, "cleanup_interval": "200ms"}}
    with WebServer(tmp_path, settings) as server:
        site = Site(server, redis_server)
        site.send("old", 0, b"abc")
        told = site.wait_for("old", "upload_started", "upload_expired")
    assert told[-1]["note"] == {"status": "uploading"}


def test_dlpool_events_shows_them(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site.send("seen", 0, b"abc")
    site.send("seen", 1, b"def")
    site.merge("seen")
    site.wait_for("seen", "upload_started", "upload_completed")
    assert main(["events", "--last", "2", "--redis-url", site.redis.url]) == 0
    _, started, completed = capsys.readouterr().out.splitlines()
    assert started.split("\t")[2:4] == ["upload_started", "seen"]
    assert "protocol=chunked" in started
    assert completed.split("\t")[2:4] == ["upload_completed", "seen"]
    assert completed.endswith("seen.bin")


def test_the_stream_is_capped_as_the_transitions_cap_it(redis_server: RedisServer) -> None:
    kept = re.search(r"EVENTS_KEPT = (\d+)", (ROOT / "dlpool" / "jobs" / "lua" / "shared.lua").read_text())
    assert kept is not None and int(kept[1]) == KEPT
    with redis_server.client() as client:
        writer = EventWriter(client, QueueKeys())
        for _ in range(13):
            writer.add([{"event": "upload_started", "upload_id": "x"}] * 1000)
        assert KEPT <= client.xlen(QueueKeys().events) < 12_000


# --- Redis is away ---


@pytest.mark.parametrize("how", ["absent", "stopped"])
def test_without_redis_uploads_are_as_quick_and_complete_and_the_events_are_counted(how: str, tmp_path: Path) -> None:
    """A Redis that hangs holds nobody up either: all of this takes less than one of its time limits."""
    with RedisServer(tmp_path / "redis") as redis:
        url = redis.url if how == "stopped" else f"redis://127.0.0.1:{free_port()}"
        with WebServer(tmp_path / "web", {"redis": {"url": url}}) as server:
            site = Site(server, redis)
            os.kill(redis.pid, signal.SIGSTOP)
            try:
                for number in range(20):
                    name = f"u{number}"
                    assert site.send(name, 0, b"abc").status_code == site.send(name, 1, b"def").status_code == 200
                    assert site.merge(name).status_code == 200
                wait_until(lambda: lost(server) == 40, 60)
            finally:
                os.kill(redis.pid, signal.SIGCONT)
            assert {one["error.type"] for one in server.events("upload_events_lost")} == {"QueueAway"}
            assert 1 <= len(server.events("upload_events_lost")) <= len(server.workers())
            if how == "stopped":
                wait_until(lambda: bool(site.send("later", 0, b"abc")) and told(server) > 0)


def figure(server: WebServer, outcome: str) -> float:
    text = requests.get(f"{server.url}/metrics", timeout=20).text
    found = re.search(rf'^dlpool_upload_events_total{{outcome="{outcome}"}} (.*)$', text, re.MULTILINE)
    assert found is not None
    return float(found[1])


def lost(server: WebServer) -> float:
    return figure(server, "lost")


def told(server: WebServer) -> float:
    return figure(server, "published")


# --- without a server ---


@dataclass
class Writer:
    """Stands for Redis: keeps what comes, or raises."""

    error: Exception | None = None
    entries: list[dict[str, str]] = field(default_factory=list)

    def add(self, entries: list[dict[str, str]]) -> None:
        if self.error is not None:
            raise self.error
        self.entries += entries


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path / "log", LoggingSettings(), LogOrigin("dlpool-web", "n", version="1"))


def event(number: int = 0) -> UploadEvent:
    return UploadEvent("upload_started", f"u{number}", "chunked", None, "", -1)


def announcer(writer: Any, folder: Path, log: Log) -> tuple[UploadEventPublisher, SharedCounters]:
    figures = SharedCounters(folder / "figures")
    return UploadEventPublisher(writer, figures, log.logger("web")), figures


def test_events_keep_their_order_over_several_round_trips(tmp_path: Path, log: Log) -> None:
    writer = Writer()
    told_to, figures = announcer(writer, tmp_path, log)
    for number in range(MOST):
        told_to(event(number))
    told_to.close()
    assert [one["upload_id"] for one in writer.entries] == [f"u{number}" for number in range(MOST)]
    assert figures.totals()["events published"] == MOST


@pytest.mark.parametrize("error", [QueueAway("away"), RuntimeError("a defect")])
def test_a_failure_is_logged_once_and_each_lost_event_counted(
    error: Exception, tmp_path: Path, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_publisher, "RETRY_S", 0.0)
    writer = Writer(error)
    told_to, figures = announcer(writer, tmp_path, log)
    for number in range(5):
        told_to(event(number))
        wait_until(lambda number=number: figures.totals().get("events lost") == number + 1)  # type: ignore[misc]
    assert log.path.read_text().count('"message":"upload_events_lost"') == 1
    writer.error = None
    told_to(event(9))
    told_to.close()
    assert [one["upload_id"] for one in writer.entries] == ["u9"]


def test_more_than_can_wait_are_lost_at_once_and_counted(
    tmp_path: Path, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    told_to, figures = announcer(Writer(), tmp_path, log)
    monkeypatch.setattr(told_to, "_start", lambda: None)  # nothing is taken out
    for number in range(MOST + 7):
        told_to(event(number))
    assert figures.totals()["events lost"] == 7


def test_without_a_thread_the_upload_goes_on(tmp_path: Path, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_thread(*_: object, **__: object) -> None:
        raise RuntimeError("can't start new thread")

    told_to, figures = announcer(Writer(), tmp_path, log)
    monkeypatch.setattr("threading.Thread.start", no_thread)
    told_to(event())
    assert figures.totals()["events lost"] == 1


@pytest.mark.parametrize(
    ("told_of", "fields"),
    [
        (event(), {"event": "upload_started", "upload_id": "u0", "protocol": "chunked"}),
        (
            UploadEvent("upload_failed", "a\ud800", "tus", "me", "f", 0, {"label": "x", "message": "\N{SNOWMAN}"}),
            {
                "event": "upload_failed",
                "upload_id": "a\\ud800",
                "protocol": "tus",
                "owner": "me",
                "filename": "f",
                "size": "0",
                "note": '{"label":"x","message":"\N{SNOWMAN}"}',
            },
        ),
    ],
)
def test_the_fields_of_an_entry_are_texts_and_what_is_unknown_is_left_out(
    told_of: UploadEvent, fields: dict[str, str]
) -> None:
    assert event_fields(told_of, None) == fields
    assert event_fields(told_of, TRACE) == {**fields, "trace_id": TRACE}


def test_a_merge_that_a_killed_process_had_published_is_told_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file has its name, and the record does not say so yet: the next process completes it, and tells."""
    heard: list[UploadEvent] = []
    store = DiskBackend(store_in(tmp_path).settings, heard.append)
    send(store, 0, b"abcdef")
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(merger, "complete_merge", interrupted)
        merge(store, 1)
    assert [one.name for one in heard] == [values.STARTED_EVENT]
    store.sweep()
    merge(store, 1)
    assert [one.name for one in heard] == [values.STARTED_EVENT, values.COMPLETED_EVENT]
    assert heard[1].details["path"] == "file.bin"


def interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_the_document_names_all_events_and_fields() -> None:
    page = (ROOT / "docs" / "queue.md").read_text()
    names = [value for value in vars(values).values() if isinstance(value, str) and value.startswith("upload_")]
    assert len(names) == 7
    for name in names:
        assert f"`{name}`" in page
    for name in event_fields(UploadEvent("e", "i", "p", "o", "f", 1, {"a": 1}), TRACE):
        assert f"`{name}`" in page
