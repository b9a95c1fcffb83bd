"""The fixed upload API: each address, what it answers, and how it refuses."""

from __future__ import annotations

import hashlib
import math
import os
import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import requests

from tests.conftest import make_data, wait_until
from tests.documents import blocks
from tests.processes import ROOT
from tests.web import RawClient, WebServer, multipart

SIZE = 100_000
OCTETS = {"Content-Type": "application/octet-stream"}


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebServer]:
    settings: Any = {"web": {"threads": 24}, "upload": {"allowed_extensions": ".bin,.txt"}}
    with WebServer(tmp_path_factory.mktemp("web"), settings) as server:
        yield server
        assert not server.events("gunicorn_error") and not server.events("request_internal_error"), server.said()


class Api:
    """The API as a client of one task uses it."""

    def __init__(self, url: str, file_id: str) -> None:
        self.url = url
        self.file_id = file_id

    def ask(self, method: str, path: str, **options: Any) -> tuple[int, dict[str, Any]]:
        said = requests.request(method, f"{self.url}{path}", timeout=30, **options)
        assert said.headers["Content-Type"].startswith("application/json"), said.text
        body = said.json()
        if said.status_code >= 400 and "checks" not in body:
            assert body["error"] and re.fullmatch("[a-z0-9_]+", body["code"])
        return said.status_code, body

    def chunk(self, index: object, data: bytes, **fields: object) -> tuple[int, dict[str, Any]]:
        form = {"file_id": self.file_id, "chunk_index": index, **fields}
        return self.ask("POST", "/upload_chunk", data=form, files={"chunk": data})

    def merge(self, total: int, filename: str = "f.bin", **fields: object) -> tuple[int, dict[str, Any]]:
        form = {"file_id": self.file_id, "filename": filename, "total_chunks": total, **fields}
        return self.ask("POST", "/merge_chunks", data=form)

    def status(self) -> dict[str, Any]:
        return self.ask("GET", "/upload_status", params={"file_id": self.file_id})[1]

    def task(self, method: str = "GET", action: str = "") -> tuple[int, dict[str, Any]]:
        return self.ask(method, f"/tasks/{quote(self.file_id, safe='')}{action}")


@pytest.fixture
def api(server: WebServer, request: pytest.FixtureRequest) -> Api:
    return Api(server.url, f"id of {request.node.name}/ü..")


def test_chunks_become_a_file(api: Api, server: WebServer) -> None:
    data = make_data(3 * SIZE)
    for index in (2, 0, 1):
        piece = data[index * SIZE : (index + 1) * SIZE]
        status, said = api.chunk(
            index, piece, md5=md5(piece), total_chunks=3, file_size=len(data), relative_path="a/b c"
        )
        assert (status, said) == (
            200,
            {"status": "ok", "chunk_index": index, "md5_checked": True, "relative_path": "a/b c", "size": SIZE},
        )
    found = api.status()
    assert (found["uploaded_chunks"], found["total_chunks"], found["file_size"]) == ([0, 1, 2], 3, len(data))
    assert (found["status"], found["completion_rate"]) == ("uploading", 100)
    assert found["created_at"] <= found["updated_at"]
    status, said = api.merge(3, "ä b..c.bin", expected_md5=md5(data))
    assert status == 200
    path = server.merged_dir / "a" / "b c" / "ä b..c.bin"
    assert said == {
        "status": "ok",
        "filePath": str(path),
        "md5": md5(data),
        "relative_path": "a/b c",
        "size": len(data),
        "merge_time": said["merge_time"],
    }
    assert isinstance(said["merge_time"], int) and said["merge_time"] > 0
    assert path.read_bytes() == data
    assert api.merge(3, "ä b..c.bin", expected_md5=md5(data)) == (200, said)
    assert api.chunk(0, b"late")[0] == 409


def test_raw_bytes_with_the_fields_in_the_query(api: Api) -> None:
    fields = {"file_id": api.file_id, "chunk_index": "0", "md5": md5(b"hello"), "total_chunks": "1"}
    status, said = api.ask("POST", "/upload_chunk", params=fields, data=b"hello", headers=OCTETS)
    assert (status, said["md5_checked"], said["size"]) == (200, True, 5)
    fields["md5"] = md5(b"other")
    assert api.ask("POST", "/upload_chunk", params=fields, data=b"wrong", headers=OCTETS)[0] == 400
    assert api.task()[1]["chunks"][0]["md5"] == md5(b"hello")


def test_the_md5_may_come_after_the_chunk(api: Api, server: WebServer) -> None:
    for digest, wanted in ((md5(b"data"), 200), (md5(b"else"), 400)):
        kind, body = multipart({"file_id": "after", "chunk_index": 0}, b"data")
        last = f'--xXx\r\nContent-Disposition: form-data; name="md5"\r\n\r\n{digest}\r\n--xXx--\r\n'
        body = body.replace(b"--xXx--\r\n", last.encode())
        said = requests.post(f"{server.url}/upload_chunk", data=body, headers={"Content-Type": kind}, timeout=10)
        assert said.status_code == wanted, said.text
    assert Api(server.url, "after").status()["uploaded_chunks"] == [0]


def test_a_chunked_body_is_a_body(api: Api) -> None:
    def pieces() -> Iterator[bytes]:
        yield from (b"one ", b"two")

    status, said = api.ask(
        "POST", "/upload_chunk", params={"file_id": api.file_id, "chunk_index": 0}, data=pieces(), headers=OCTETS
    )
    assert (status, said["size"]) == (200, 7)


@pytest.mark.parametrize("form", ["data", "json", "files"])
def test_a_merge_may_be_asked_for_in_any_form(form: str, api: Api) -> None:
    assert api.chunk(0, b"x")[0] == 200
    fields: dict[str, Any] = {"file_id": api.file_id, "filename": f"{form}.bin", "total_chunks": 1}
    if form == "files":
        fields = {name: (None, str(value)) for name, value in fields.items()}
    assert api.ask("POST", "/merge_chunks", **{form: fields})[0] == 200


def test_a_merge_names_the_chunks_that_are_there(api: Api) -> None:
    api.chunk(2, b"c")
    api.chunk(0, b"a")
    status, said = api.merge(4)
    assert status == 400
    assert (said["uploaded"], said["total_required"], said["uploaded_chunks"]) == (2, 4, [0, 2])


def test_what_is_unknown(api: Api) -> None:
    assert api.status()["status"] == "not_found" and api.status()["uploaded_chunks"] == []
    assert api.merge(1)[0] == 404
    for method, action in (("GET", ""), ("DELETE", ""), ("POST", "/pause"), ("POST", "/resume")):
        assert api.task(method, action)[0] == 404
    assert api.ask("GET", "/nothing")[0] == 404
    assert api.ask("PUT", "/tasks")[0] == 405


def test_the_life_of_a_task(api: Api) -> None:
    assert api.chunk(0, b"abc", total_chunks=2)[0] == 200
    status, task = api.task()
    assert status == 200
    assert (task["task_id"], task["task_type"], task["uploaded_chunks"]) == (api.file_id, "file", [0])
    [chunk] = task["chunks"]
    assert {"index", "size", "md5", "status", "uploaded_at", "retry_count"} == set(chunk)
    assert (chunk["index"], chunk["size"], chunk["md5"]) == (0, 3, md5(b"abc"))
    assert api.task("POST", "/pause")[0] == 200
    assert api.chunk(1, b"def")[0] == 409
    assert api.task("POST", "/resume")[0] == 200
    assert api.chunk(1, b"def")[0] == 200
    listed = api.ask("GET", "/tasks")[1]
    assert listed["total"] == len(listed["tasks"])
    assert [one["uploaded_chunks"] for one in listed["tasks"] if one["task_id"] == api.file_id] == [2]
    assert api.task("DELETE")[0] == 200
    assert api.task()[0] == 404


def test_nothing_in_lists_is_null_or_unsorted(api: Api) -> None:
    api.chunk(1, b"")
    tasks = api.ask("GET", "/tasks")[1]["tasks"]
    assert tasks == sorted(tasks, key=lambda one: one["task_id"])
    wanted = {
        "task_id",
        "task_type",
        "filename",
        "relative_path",
        "total_chunks",
        "uploaded_chunks",
        "file_size",
        "status",
        "created_at",
        "updated_at",
        "completion_rate",
        "retry_count",
    }
    for task in tasks:
        assert set(task) >= wanted and None not in task.values()
        assert math.isfinite(task["completion_rate"]) and 0 <= task["completion_rate"] <= 100


def test_many_tasks_at_once(api: Api) -> None:
    other = Api(api.url, api.file_id + "2")
    api.chunk(0, b"x")
    other.chunk(0, b"x")
    ids = [other.file_id, api.file_id, "absent"]
    status, said = api.ask("POST", "/tasks/batch", json={"action": "pause", "ids": ids})
    assert status == 200
    assert {one["id"]: one["status"] for one in said["results"]} == {ids[0]: "ok", ids[1]: "ok", "absent": "error"}
    status, said = api.ask("POST", "/tasks/cleanup?status=paused&older_than=0")
    assert (status, said["status"]) == (200, "ok") and said["cleaned_count"] >= 2
    assert api.task()[0] == other.task()[0] == 404
    wrong: Any
    for wrong in ({"action": "explode", "ids": []}, {"ids": ["x"]}, {"action": "pause", "ids": "x"}, [], None):
        assert api.ask("POST", "/tasks/batch", json=wrong)[0] == 400


@pytest.mark.parametrize(
    ("index", "fields", "wanted"),
    [
        ("-1", {}, 400),
        ("1.5", {}, 400),
        ("x", {}, 400),
        ("", {}, 400),
        ("9" * 30, {}, 400),
        ("\u0661", {}, 400),
        (5, {"total_chunks": 5}, 400),
        (0, {"total_chunks": 0}, 400),
        (0, {"total_chunks": "no"}, 400),
        (0, {"file_size": -1}, 400),
        (0, {"file_size": 11 * 1024**3}, 413),
        (0, {"md5": "short"}, 400),
        (0, {"md5": "0" * 32}, 400),
        (0, {"relative_path": "../x"}, 400),
        (0, {"relative_path": "/etc"}, 400),
        (0, {"relative_path": "a\\b"}, 400),
        (0, {"relative_path": "a\0b"}, 400),
        (0, {"file_id": ""}, 400),
        (0, {"file_id": "x" * 5000}, 400),
        (0, {"file_id": "a\0b"}, 400),
    ],
)
def test_a_wrong_chunk_is_told_why(index: object, fields: dict[str, Any], wanted: int, api: Api) -> None:
    status, said = api.chunk(index, b"data", **fields)
    assert status == wanted, said
    assert api.status()["status"] == "not_found"


def test_one_id_is_one_file(api: Api) -> None:
    assert api.chunk(0, b"x", total_chunks=3, file_size=10)[0] == 200
    assert api.chunk(1, b"x", total_chunks=4)[0] == 409
    assert api.chunk(1, b"x", file_size=11)[0] == 409
    assert api.chunk(3, b"x")[0] == 400


@pytest.mark.parametrize(
    "name", ["../f.bin", "/etc/f.bin", "a/b.bin", "a\\b.bin", "a\0.bin", "..", ".", "", "x" * 300 + ".bin", "f.exe"]
)
def test_a_name_that_leads_elsewhere_is_refused(name: str, api: Api) -> None:
    api.chunk(0, b"x")
    status, said = api.merge(1, name)
    assert status == (415 if name == "f.exe" else 400), said


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b'{"file_id": [1]}', b'{"file_id": true}', b"\xff"])
def test_json_that_is_none_is_refused(body: bytes, api: Api) -> None:
    headers = {"Content-Type": "application/json"}
    assert api.ask("POST", "/merge_chunks", data=body, headers=headers)[0] == 400


def test_other_content_types_are_refused(api: Api) -> None:
    assert api.ask("POST", "/upload_chunk", data=b"x", headers={"Content-Type": "text/plain"})[0] == 415
    assert api.ask("POST", "/merge_chunks", data=b"x", headers={"Content-Type": "text/plain"})[0] == 415


# --- files ---


@pytest.fixture(scope="module")
def merged(server: WebServer) -> bytes:
    data = make_data(SIZE)
    api = Api(server.url, "merged")
    assert api.chunk(0, data)[0] == 200
    assert api.merge(1, "merged ü.bin", relative_path="d")[0] == 200
    return data


@pytest.mark.parametrize(
    ("wanted", "status", "begin", "end"),
    [
        (None, 200, 0, SIZE),
        ("bytes=0-9", 206, 0, 10),
        ("bytes=5-", 206, 5, SIZE),
        ("bytes=-7", 206, SIZE - 7, SIZE),
        (f"bytes=-{SIZE * 2}", 206, 0, SIZE),
        (f"bytes={SIZE - 1}-{SIZE * 9}", 206, SIZE - 1, SIZE),
        ("bytes=0-1,5-6", 200, 0, SIZE),
        ("bytes=9-1", 200, 0, SIZE),
        ("lines=1-2", 200, 0, SIZE),
        (f"bytes={SIZE}-", 416, 0, 0),
        ("bytes=-0", 416, 0, 0),
    ],
)
def test_a_merged_file_comes_back_in_ranges(
    wanted: str | None, status: int, begin: int, end: int, server: WebServer, merged: bytes
) -> None:
    url = f"{server.url}/files/d/merged%20%C3%BC.bin"
    headers = {"Range": wanted} if wanted else {}
    said = requests.get(url, headers=headers, timeout=10)
    assert said.status_code == status
    if status == 416:
        assert said.headers["Content-Range"] == f"bytes */{SIZE}"
        return
    assert said.content == merged[begin:end]
    assert status == 200 or said.headers["Content-Range"] == f"bytes {begin}-{end - 1}/{SIZE}"
    head = requests.head(url, headers=headers, timeout=10)
    assert (head.status_code, head.headers["Content-Length"]) == (status, str(end - begin))


def test_the_validators_of_a_file(server: WebServer, merged: bytes) -> None:
    url = f"{server.url}/files/d/merged ü.bin"
    first = requests.get(url, timeout=10)
    etag = first.headers["ETag"]
    assert etag.startswith('"')
    for condition, status in ((etag, 206), (first.headers["Last-Modified"], 206), ('"other"', 200), (f"W/{etag}", 200)):
        said = requests.get(url, headers={"Range": "bytes=0-0", "If-Range": condition}, timeout=10)
        assert said.status_code == status, condition
    assert requests.get(url, headers={"If-None-Match": f'"x", {etag}'}, timeout=10).status_code == 304
    assert first.headers["X-Content-Type-Options"] == "nosniff"
    assert first.headers["Content-Disposition"].startswith("attachment")


@pytest.mark.parametrize(
    "path",
    [
        "../upload/x",
        "%2e%2e/upload",
        "d/%2e%2e/%2e%2e/web.ini",
        "d%2f..%2f..%2fweb.ini",
        "..%5cweb.ini",
        "%00",
        "d%00.bin",
        "/etc/passwd",
        "%2fetc%2fpasswd",
        "d",
        "d/",
        "",
        ".",
        "absent.bin",
        "link",
        "links/web.ini",
        "%ff",
        "pipe",
    ],
)
def test_no_path_leads_out_of_the_folder(path: str, server: WebServer, merged: bytes) -> None:
    planted = {"link": server.ini, "links": server.folder}
    for name, target in planted.items():
        if not (server.merged_dir / name).is_symlink():
            (server.merged_dir / name).symlink_to(target)
    if not (server.merged_dir / "pipe").exists():
        os.mkfifo(server.merged_dir / "pipe")
    with RawClient(server.port) as client:
        status, said = client.post(f"/go-uploader/files/{path}", "Connection: close", method="GET").answer()
    assert status in (400, 404), said
    assert said["code"] in ("bad_path", "bad_filename", "not_found")


@pytest.mark.parametrize(
    "path",
    [
        "/go-uploader/tasks/%2e%2e%2f%2e%2e%2fweb.ini",
        "/go-uploader/tasks/../../web.ini",
        "/static/..%2fapp.py",
        "/static/%2e%2e/app.py",
        "/files/..%2f..%2fweb.ini",
        "/api/v1/jobs/..%2f..%2fweb.ini",
    ],
)
def test_no_path_of_another_kind_leads_anywhere(path: str, server: WebServer) -> None:
    with RawClient(server.port) as client:
        status, said = client.post(path, "Connection: close", "Tus-Resumable: 1.0.0", method="GET").answer()
    assert status in (404, 405, 503), said  # 503: there is no Redis
    assert said["code"] in ("not_found", "no_such_task", "method_not_allowed", "redis")


@pytest.mark.parametrize("path", ["/health", "/client", "/system", "/metrics", "/tasks", "/upload_status?file_id=x"])
def test_head_is_answered_where_get_is(path: str, server: WebServer) -> None:
    answer = requests.head(f"{server.url}{path}", timeout=10)
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["Content-Type"] == requests.get(f"{server.url}{path}", timeout=10).headers["Content-Type"]


# --- health, system, metrics ---


def test_health_says_what_it_looked_at(api: Api) -> None:
    status, said = api.ask("GET", "/health")
    assert status == 200 and said["status"] in ("healthy", "warning")
    assert said["timestamp"].endswith("Z")
    assert set(said["checks"]) == {"disk_space", "merged_dir", "upload_dir"}
    assert 0 <= said["checks"]["disk_space"]["used_percent"] <= 100


def test_system_says_what_holds(api: Api, server: WebServer) -> None:
    api.chunk(0, b"x")
    said = api.ask("GET", "/system")[1]
    assert set(said["memory"]) == {str(one.pid) for one in server.workers()}
    assert said["tasks"]["uploading"] >= 1 and said["configuration"]["upload"]["max_chunk_size"] == 100 * 1024**2
    assert said["disk"]["upload_dir"]["total"] > 0


def scraped(server: WebServer) -> dict[str, float]:
    lines = requests.get(f"{server.url}/metrics", timeout=10).text.splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}


def test_metrics_are_those_of_all_workers_and_outlive_them(tmp_path: Path) -> None:
    wanted = {
        "dlpool_upload_chunks_total": 20,
        "dlpool_upload_bytes_total": 200,
        "dlpool_upload_chunks_stored": 20,
        'dlpool_upload_tasks{state="uploading"}': 1,
        'dlpool_web_errors_total{code="bad_field"}': 20,
        "dlpool_web_workers": 2,
    }

    def are_all_right(server: WebServer) -> bool:
        found = scraped(server)
        return all(found[name] == value for name, value in wanted.items())

    with WebServer(tmp_path) as server:
        api = Api(server.url, "metrics")
        for index in range(20):
            assert api.chunk(index, b"x" * 10)[0] == 200
            assert api.chunk(-1, b"x")[0] == 400
        wait_until(lambda: all(are_all_right(server) for _ in range(4)))  # whichever worker answers
        said = requests.get(f"{server.url}/metrics", headers={"Accept": "application/json"}, timeout=10).json()
        assert (said["tasks"]["uploading"], said["counts"]["chunks"]) == (1, 20)
        documented = set(re.findall(r"`(dlpool_(?:web|upload)_\w+)", (ROOT / "docs" / "metrics.md").read_text()))
        assert documented == {re.split(r"[{]|_bucket|_sum|_count", name)[0] for name in scraped(server)}
        server.kill()
        server.start()
        wait_until(lambda: all(are_all_right(server) for _ in range(4)))


# --- many at once ---


def test_sixteen_equal_chunks_at_once_are_one(api: Api, server: WebServer) -> None:
    candidates = [make_data(2_000_000, seed) for seed in range(16)]
    with ThreadPoolExecutor(16) as pool:
        codes = [said[0] for said in pool.map(lambda data: api.chunk(0, data, md5=md5(data)), candidates)]
    assert codes == [200] * 16
    status, said = api.merge(1, "sixteen.bin")
    assert status == 200 and said["md5"] in [md5(data) for data in candidates]
    assert (server.merged_dir / "sixteen.bin").read_bytes() in candidates


def test_of_eight_merges_at_once_one_works(api: Api, server: WebServer) -> None:
    data = make_data(8_000_000)
    for index in range(8):
        api.chunk(index, data[index * 1_000_000 : (index + 1) * 1_000_000])
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: api.merge(8, "eight.bin"), range(8)))
    assert {status for status, _ in answers} <= {200, 409}
    results = [said for status, said in answers if status == 200]
    assert results and all(one == results[0] for one in results)
    assert (server.merged_dir / "eight.bin").read_bytes() == data
    assert not (server.merged_dir / "eight-1.bin").exists()


# --- the documents ---


@pytest.mark.parametrize("document", ["README.md", "docs/uploads.md"])
def test_the_curl_commands_of_the_documents_run_as_they_stand(document: str, tmp_path: Path) -> None:
    [script] = [block for block in blocks(ROOT / document) if "curl " in block]
    (tmp_path / "model.bin").write_bytes(make_data(3_000_000))
    with WebServer(tmp_path / "web") as server:
        assert "http://127.0.0.1:18101" in script
        script = script.replace("http://127.0.0.1:18101", server.root)
        ended = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert '"error"' not in ended.stdout, ended.stdout
    assert (tmp_path / "copy.bin").read_bytes() == (tmp_path / "model.bin").read_bytes()


@pytest.mark.parametrize("path", ["/merge_chunks", "/tasks/batch", "/tasks/cleanup"])
@pytest.mark.parametrize("body", [b'{"a":' * 50_000, b'{"\\ud800": []}', b'{"action": "delete", "ids": ["\\ud800"]}'])
def test_json_that_nobody_can_say_is_refused(path: str, body: bytes, api: Api) -> None:
    assert api.ask("POST", path, data=body, headers={"Content-Type": "application/json"})[0] == 400


def test_a_cleanup_may_be_asked_for_in_any_form(api: Api) -> None:
    wanted = {"status": "failed", "older_than": 0.5}
    for form in ("params", "data", "json"):
        arguments: dict[str, Any] = {form: wanted}
        assert api.ask("POST", "/tasks/cleanup", **arguments)[0] == 200
        for wrong in ({"older": 1}, {"older_than": "-1"}, {"older_than": "nan"}):
            arguments = {form: wrong}
            assert api.ask("POST", "/tasks/cleanup", **arguments)[0] == 400


def test_a_file_is_sent_only_on_its_conditions(api: Api, server: WebServer) -> None:
    api.chunk(0, b"abc")
    assert api.merge(1, "conditions.bin")[0] == 200
    url, old = f"{server.url}/files/conditions.bin", "Mon, 01 Jan 2001 00:00:00 GMT"
    first = requests.get(url, timeout=10).headers
    for headers, status in (
        ({"If-Match": '"x"'}, 412),
        ({"If-Match": first["ETag"], "If-Unmodified-Since": old}, 200),
        ({"If-Unmodified-Since": old}, 412),
        ({"Range": "bytes=9-"}, 416),
        ({"If-Unmodified-Since": first["Last-Modified"]}, 200),
    ):
        said = requests.get(url, headers=headers, timeout=10)
        assert said.status_code == status
        assert ("ETag" in said.headers) == ("Content-Disposition" in said.headers) == (status == 200)
