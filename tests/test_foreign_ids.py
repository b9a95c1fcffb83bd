"""An id of another owner is answered like an unknown one, on every route and by every method."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jwt
import pytest
import requests
from falcon import inspect

from dlpool.config import Settings, UploadSettings, WebSettings
from dlpool.config.sections import PathSettings
from dlpool.storage.disk.backend import DiskBackend
from dlpool.storage.disk.task_record import TaskIdentity, TaskRecord
from dlpool.storage.names import folder_name, owner_folder_name
from dlpool.storage.upload_requests import PARTIAL, TusUploadRequest
from dlpool.web.app import create_app
from tests.uploads import detail_of, list_of, merge, refused, send, status_of, store_in, uploaded
from tests.web import WebServer

KEY, SECRET = "k" * 32, "s" * 32
TUS = {"Tus-Resumable": "1.0.0"}
PATCH = {**TUS, "Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}
OCTETS = {"Content-Type": "application/octet-stream"}
API = "/go-uploader"
CHUNK = f"{API}/upload_chunk?file_id=ID&chunk_index=0&total_chunks=1"


# --- the store ---


def test_owners_use_the_same_id_without_a_trace_of_each_other(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    for owner, data in (("ann", b"ann"), ("bob", b"bobby"), (None, b"-")):
        send(store, 0, data, file_id="same", owner=owner, total_chunks=1)
    for owner, size in (("ann", 3), ("bob", 5), (None, 1)):
        assert detail_of(store, "same", owner)["chunks"][0]["size"] == size
    assert [store.tasks(owner).total for owner in ("ann", "bob", None)] == [1, 1, 3]
    store.pause("same", "ann")
    assert [status_of(store, "same", owner)["status"] for owner in ("ann", "bob", None)] == [
        "paused",
        "uploading",
        "uploading",
    ]
    merge(store, 1, "bobs", file_id="same", owner="bob")
    assert (tmp_path / "merged" / "bobs").read_bytes() == b"bobby"
    store.delete("same", None)
    assert status_of(store, "same", "ann")["status"] == "paused"


def test_who_sees_all_means_his_own_task_or_the_only_one(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    send(store, 0, b"x", file_id="same", owner="ann")
    assert detail_of(store, "same", None)["uploaded_chunks"] == [0]
    send(store, 1, b"y", file_id="same", owner=None)
    assert uploaded(store, "same") == [0, 1] and detail_of(store, "same", "ann")["uploaded_chunks"] == [0, 1]
    send(store, 0, b"x", file_id="same", owner="bob")
    with refused(404, "no_such_task"):
        detail_of(store, "same", None)
    assert store.cleanup(None, ["uploading"], 0) == 2 and list_of(store, None)["total"] == 0


def test_a_task_from_before_is_still_its_owners(tmp_path: Path) -> None:
    """Tasks were named by their id alone."""
    store = store_in(tmp_path)
    store.layout.create_folders()
    with store.layout.lock_folder(folder_name("old")) as task:
        store.layout.create_task(task, TaskIdentity("old", "ann", time.time()), TaskRecord(total_chunks=2))
    for owner in ("ann", "bob"):
        send(store, 0, owner.encode(), file_id="old", owner=owner, total_chunks=2)
        assert detail_of(store, "old", owner)["uploaded_chunks"] == [0]
    send(store, 1, b"!", file_id="old", owner="ann", total_chunks=2)
    merge(store, 2, "ann", file_id="old", owner="ann")
    assert (tmp_path / "merged" / "ann").read_bytes() == b"ann!"
    assert status_of(store, "old", "bob")["status"] == "uploading"
    store.sweep()
    assert [store.tasks(owner).total for owner in ("ann", "bob", None)] == [1, 1, 2]


def test_pages_have_each_task_of_an_id_once(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    for number in range(7):
        send(store, 0, b"x", file_id="same", owner=f"owner {number}")
    found, cursor = 0, ""
    while True:
        page = list_of(store, None, limit=2, cursor=cursor)
        found += len(page["tasks"])
        if "next" not in page:
            break
        cursor = page["next"]
    assert (found, page["total"]) == (7, 7)


def test_no_two_owners_and_ids_share_a_folder() -> None:
    pairs = [("a", "b"), ("ab", ""), ("a", ""), ("a", None), ("b", "a"), ("a", "bb"), ("a", "\U0001f600"), ("", "x")]
    names = [owner_folder_name(file_id, owner) for file_id, owner in pairs if file_id]
    assert len(set(names)) == len(names) and all(len(name) == 64 for name in names)
    assert owner_folder_name("a", None) == folder_name("a")
    assert len({name[:32] for name in names}) == len(names), "temporary files are named by it"
    assert len({owner_folder_name("a", owner)[:2] for owner in ("b", "c", "d", None)}) == 1, "the lock is named by it"


# --- over HTTP ---


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebServer]:
    web = {"jwt_key": KEY, "secret_key": SECRET, "request_rate": "100000/s", "request_burst": 100000}
    with WebServer(tmp_path_factory.mktemp("foreign"), {"web": web}) as server:
        yield server


def ask(server: WebServer, method: str, path: str, who: str | None, **options: Any) -> requests.Response:
    token = jwt.encode({"sub": who, "exp": int(time.time()) + 600}, KEY, algorithm="HS256")
    given = {"X-Secret-Key": SECRET} if who is None else {"Authorization": f"Bearer {token}"}
    headers = {**given, **options.pop("headers", {})}
    return requests.request(method, server.root + path, headers=headers, timeout=20, **options)


def begin(server: WebServer, who: str | None, **headers: str) -> str:
    """Create a tus upload and return its id."""
    answer = ask(server, "POST", "/files", who, headers={**TUS, "Upload-Length": "3", **headers})
    return answer.headers["Location"].rpartition("/")[2]


def fill(server: WebServer, file_id: str, who: str | None) -> None:
    assert ask(server, "PATCH", f"/files/{file_id}", who, headers=PATCH, data=b"abc").status_code == 204


Made = Callable[[WebServer, str | None], str]


def chunked(server: WebServer, who: str | None) -> str:
    file_id = f"chunked-{time.monotonic_ns():020}"
    assert ask(server, "POST", CHUNK.replace("ID", file_id), who, headers=OCTETS, data=b"abc").status_code == 200
    return file_id


def merged(server: WebServer, who: str | None) -> str:
    file_id = chunked(server, who)
    body = {"file_id": file_id, "filename": f"{file_id}.bin", "total_chunks": 1}
    assert ask(server, "POST", f"{API}/merge_chunks", who, json=body).status_code == 200
    return file_id


def growing(server: WebServer, who: str | None) -> str:
    return begin(server, who)


def partial(server: WebServer, who: str | None) -> str:
    file_id = begin(server, who, **{"Upload-Concat": "partial"})
    fill(server, file_id, who)
    return file_id


def grown(server: WebServer, who: str | None) -> str:
    file_id = begin(server, who)
    fill(server, file_id, who)
    return file_id


Request = tuple[str, str, dict[str, Any]]
MERGE = {"filename": "n.bin", "total_chunks": 1}
REQUESTS: list[Request] = [
    ("GET", f"{API}/upload_status?file_id=ID", {}),
    ("HEAD", f"{API}/upload_status?file_id=ID", {}),
    ("GET", f"{API}/tasks/ID", {}),
    ("HEAD", f"{API}/tasks/ID", {}),
    ("OPTIONS", f"{API}/tasks/ID", {}),
    ("POST", f"{API}/tasks/ID/pause", {}),
    ("POST", f"{API}/tasks/ID/resume", {}),
    ("POST", f"{API}/tasks/ID", {}),
    ("PUT", f"{API}/tasks/ID", {}),
    *[
        ("POST", f"{API}/tasks/batch", {"json": {"action": action, "ids": ["ID"]}})
        for action in ("pause", "resume", "delete", "explode")
    ],
    ("POST", f"{API}/merge_chunks", {"json": {"file_id": "ID", **MERGE}}),
    ("POST", f"{API}/merge_chunks", {"data": {"file_id": "ID", **MERGE, "expected_md5": "0" * 32}}),
    ("POST", f"{API}/tasks/cleanup?status=uploading,paused,completed&older_than=0", {}),
    ("GET", f"{API}/tasks", {}),
    ("DELETE", f"{API}/tasks/ID", {}),
    ("HEAD", "/files/ID", {"headers": TUS}),
    ("HEAD", "/files/ID", {}),
    ("OPTIONS", "/files/ID", {}),
    ("PATCH", "/files/ID", {"headers": PATCH, "data": b"abc"}),
    ("PATCH", "/files/ID", {"headers": {**PATCH, "Upload-Offset": "2"}, "data": b"c"}),
    ("PATCH", "/files/ID", {"headers": {**PATCH, "Upload-Length": "9"}, "data": b"abc"}),
    ("PATCH", "/files/ID", {"headers": {**PATCH, "Upload-Checksum": "md5 AAAAAAAAAAAAAAAAAAAAAA=="}, "data": b"abc"}),
    ("POST", "/files/ID", {"headers": {**PATCH, "X-HTTP-Method-Override": "PATCH"}, "data": b"abc"}),
    ("POST", "/files", {"headers": {**TUS, "Upload-Concat": "final;/files/ID"}}),
    ("POST", "/files/ID", {"headers": {**TUS, "X-HTTP-Method-Override": "DELETE"}}),
    ("DELETE", "/files/ID", {"headers": TUS}),
    ("GET", f"{API}/files/ID.bin", {}),
    # What creates comes last: then the id is one's own. Each is asked with the same bytes for both ids.
    ("POST", CHUNK + "&md5=" + "0" * 32, {"headers": OCTETS, "data": b"abc"}),
    ("POST", CHUNK + "&file_size=99", {"headers": OCTETS, "data": b"abc"}),
    ("GET", f"{API}/upload_status?file_id=ID", {}),
    ("POST", f"{API}/upload_chunk", {"data": {"file_id": "ID", "chunk_index": 0}, "files": {"chunk": b"abcd"}}),
    ("DELETE", f"{API}/tasks/ID", {}),
    ("GET", f"{API}/upload_status?file_id=ID", {}),
]


def with_id(value: Any, file_id: str) -> Any:
    if isinstance(value, str):
        return value.replace("ID", file_id)
    if isinstance(value, dict):
        return {name: with_id(one, file_id) for name, one in value.items()}
    return [with_id(one, file_id) for one in value] if isinstance(value, list) else value


def answer_to(server: WebServer, request: Request, file_id: str) -> tuple[Any, ...]:
    """Return the answer without the date, the id and the times of creation."""
    method, path, options = request
    answer = ask(server, method, path.replace("ID", file_id), "bob", **with_id(options, file_id))
    headers = {name: value for name, value in answer.headers.items() if name != "Date"}
    body = answer.content.replace(file_id.encode(), b"ID")
    if answer.headers.get("Content-Type") == "application/json" and body:
        said = answer.json()
        known = {"created_at", "updated_at"} & set(said if isinstance(said, dict) else ())
        for name in known:
            body = body.replace(str(said[name]).encode(), b"TIME")
    return answer.status_code, headers, body


@pytest.mark.parametrize("made", [chunked, merged, growing, partial, grown])
@pytest.mark.parametrize("who", ["ann", None])
def test_a_foreign_id_is_answered_as_an_unknown_one(server: WebServer, made: Made, who: str | None) -> None:
    foreign = made(server, who)
    unknown = ("0" if foreign[0] != "0" else "1") + foreign[1:]
    for request in REQUESTS:
        assert answer_to(server, request, foreign) == answer_to(server, request, unknown), request
    # And nothing of it has changed.
    path = f"{API}/tasks/{foreign}" if made in (chunked, merged) else f"/files/{foreign}"
    method = "GET" if made in (chunked, merged) else "HEAD"
    answer = ask(server, method, path, who, headers=TUS)
    assert answer.status_code == 200
    if made in (growing,):
        assert answer.headers["Upload-Offset"] == "0"
    if made is chunked:
        assert answer.json()["status"] == "uploading" and len(answer.json()["chunks"]) == 1


def test_the_table_has_every_route_that_an_id_goes_to(tmp_path: Path) -> None:
    paths = PathSettings(state_dir=str(tmp_path / "s"), log_dir=str(tmp_path / "l"), download_dir=str(tmp_path / "d"))
    upload = UploadSettings(upload_dir=str(tmp_path / "u"), merged_dir=str(tmp_path / "m"))
    app = create_app(Settings(paths=paths, upload=upload, web=WebSettings(prefix=API)))
    prefixes = (f"{API}/upload", f"{API}/merge", f"{API}/tasks", f"{API}/files", "/files")
    known = {path.split("?")[0].replace("ID.bin", "ID") for _, path, _ in REQUESTS}
    for route in inspect.inspect_routes(app):
        if route.path.startswith(prefixes):
            template = route.path.replace("{rest:path}", "ID").replace("{file_id}", "ID").replace("{path:path}", "ID")
            assert template in known, route.path


def test_merges_of_the_same_id_do_not_wait_for_each_other(server: WebServer) -> None:
    for who in ("ann", "bob"):
        chunk = CHUNK.replace("ID", "both")
        assert ask(server, "POST", chunk, who, headers=OCTETS, data=b"x" * 1000).status_code == 200

    def merged_by(who: str) -> int:
        body = {"file_id": "both", "filename": f"{who}.bin", "total_chunks": 1}
        return ask(server, "POST", f"{API}/merge_chunks", who, json=body).status_code

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(merged_by, ("ann", "bob"))) == [200, 200]


def test_an_upload_of_tus_is_not_found_by_another_owner(tmp_path: Path) -> None:
    store: DiskBackend = store_in(tmp_path)
    file_id = store.tus.create(TusUploadRequest("ann", 3, "file", concat=PARTIAL))
    for look in (store.tus.recover, store.tus.state, store.tus.finish, store.task, store.delete):
        with refused(404, "no_such_task"):
            look(file_id, "bob")
    assert store.tus.recover(file_id, "ann").offset == 0
