"""Merged files are for their owner and who knows the secret, unless they are shared; others do not learn of them."""

from __future__ import annotations

import base64
import errno
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import jwt
import pytest
import requests

from dlpool.disk import publish_exclusive
from dlpool.scan.quarantine import Quarantine, ScanFinding
from dlpool.scan.scannedfile import OWNER_ATTRIBUTE, ScannedFile
from dlpool.storage.disk import merge_output
from dlpool.storage.disk.backend import DiskBackend
from dlpool.storage.disk.durability import NO_SYNC
from dlpool.storage.disk.ownership import FOLDER, NO, UNOWNED, YES, FileOwnership, OwnershipStore, parse
from dlpool.storage.errors import UploadError
from dlpool.storage.upload_requests import TusUploadRequest
from dlpool.web.errors import http_error
from tests.uploads import merge, refused, send, store_in
from tests.web import WebServer

KEY, SECRET = "k" * 32, "s" * 32
ANN, BOB, ADMIN = "ann", "bob", None
TUS = {"Tus-Resumable": "1.0.0"}


@pytest.fixture(params=["attribute", "file"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How ownerships are stored. A file system without extended attributes refuses both calls."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    if request.param == "file":
        monkeypatch.setattr(os, "setxattr", refuse)
        monkeypatch.setattr(os, "getxattr", refuse)
    return str(request.param)


def publish(store: DiskBackend, name: str, owner: str | None, data: bytes = b"abc", **fields: Any) -> None:
    send(store, 0, data, file_id=name, owner=owner)
    merge(store, 1, name, file_id=name, owner=owner, **fields)


def can_read(store: DiskBackend, path: str, reader: str | None) -> bool:
    try:
        store.open_merged(path, reader).close()
    except UploadError as error:
        with pytest.raises(UploadError) as other:
            store.open_merged(f"{path[:-1]}~", reader)
        unknown = other.value.text.replace(f"{path[:-1]}~", path)
        assert (http_error(error).status, error.code, error.text) == (404, "not_found", unknown)
        return False
    return True


def readers(store: DiskBackend, path: str) -> list[str | None]:
    return [one for one in (ANN, BOB, ADMIN) if can_read(store, path, one)]


# --- who may read what ---


@pytest.mark.parametrize(
    ("shared_files", "owned", "unowned"),
    [
        (NO, [ANN, ADMIN], [ADMIN]),
        (UNOWNED, [ANN, ADMIN], [ANN, BOB, ADMIN]),
        (YES, [ANN, BOB, ADMIN], [ANN, BOB, ADMIN]),
    ],
)
def test_a_file_is_read_by_its_owner_and_who_knows_the_secret(
    kind: str, shared_files: str, owned: list[str | None], unowned: list[str | None], tmp_path: Path
) -> None:
    store = store_in(tmp_path, shared_files=shared_files)
    publish(store, "hers", ANN, relative_path="a/b")
    publish(store, "nobodys", ADMIN)
    publish(store, "shared", ANN, is_shared=True)
    publish(store, "given", ADMIN, is_shared=True)
    (tmp_path / "merged" / "put").write_bytes(b"by an operator")
    assert readers(store, "a/b/hers") == owned
    assert readers(store, "nobodys") == readers(store, "put") == unowned
    assert readers(store, "shared") == readers(store, "given") == [ANN, BOB, ADMIN]
    assert (tmp_path / "upload" / FOLDER).exists() == (kind == "file")


def test_an_upload_of_tus_has_its_owner_too(kind: str, tmp_path: Path) -> None:
    store = store_in(tmp_path)
    store.tus.create(TusUploadRequest(ANN, 0, "hers"))
    store.tus.create(TusUploadRequest(ANN, 0, "shared", is_shared=True))
    assert readers(store, "hers") == [ANN, ADMIN] and readers(store, "shared") == [ANN, BOB, ADMIN]


def test_a_renamed_file_keeps_its_owner_or_is_unreadable(kind: str, tmp_path: Path) -> None:
    store = store_in(tmp_path)
    publish(store, "one", ANN)
    (tmp_path / "merged" / "one").rename(tmp_path / "merged" / "two")
    assert readers(store, "two") == ([ANN, ADMIN] if kind == "attribute" else [ADMIN])


def test_a_file_in_the_place_of_a_removed_one_has_its_own_owner(kind: str, tmp_path: Path) -> None:
    store = store_in(tmp_path)
    publish(store, "one", ANN)
    (tmp_path / "merged" / "one").unlink()
    send(store, 0, b"xyz", file_id="bobs", owner=BOB)
    merge(store, 1, "one", file_id="bobs", owner=BOB)
    assert readers(store, "one") == [BOB, ADMIN]
    (tmp_path / "merged" / "one").unlink()
    (tmp_path / "merged" / "one").write_bytes(b"by an operator")
    assert readers(store, "one") == [ADMIN]


def test_a_name_that_another_one_got_keeps_that_ones_owner(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both want the name, with the same size and at the same time; the one that comes later gets a suffix."""
    store = store_in(tmp_path, merge_conflict="suffix")
    send(store, 0, b"bob", file_id="bobs", owner=BOB)
    has = merge_output.MergeOutput.has
    asked: list[str] = []

    def first(output: merge_output.MergeOutput, name: str) -> bool:
        if name == "one" and not asked:
            asked.append(name)  # bob has seen that the name is free; ann gets it before he does
            publish(store, "one", ANN)
            return False
        return has(output, name)

    monkeypatch.setattr(merge_output.MergeOutput, "has", first)
    merge(store, 1, "one", file_id="bobs", owner=BOB)
    assert asked and (tmp_path / "merged" / "one").read_bytes() == b"abc"
    assert readers(store, "one") == [ANN, ADMIN] and readers(store, "one-1") == [BOB, ADMIN]


@pytest.mark.parametrize("is_before", [True, False])
def test_who_is_killed_leaves_no_file_without_its_owner(
    kind: str, is_before: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killed(*arguments: Any, **options: Any) -> None:
        if not is_before:
            publish_exclusive(*arguments, **options)
        raise Killed

    store = store_in(tmp_path)
    send(store, 0, b"abc", file_id="one", owner=ANN)
    with monkeypatch.context() as patched:
        patched.setattr(merge_output, "publish_exclusive", killed)
        patched.setattr(merge_output.MergeOutput, "discard", lambda _: None)
        with pytest.raises(Killed):
            merge(store, 1, "one", file_id="one", owner=ANN)
    assert readers(store, "one") == ([] if is_before else [ANN, ADMIN])
    with suppress(UploadError):
        merge(store, 1, "one", file_id="one", owner=ANN)
    assert readers(store, "one") == [ANN, ADMIN]


def test_what_cannot_be_noted_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store = store_in(tmp_path)
    send(store, 0, b"abc", file_id="one", owner=ANN)
    monkeypatch.setattr(os, "setxattr", full)
    (tmp_path / "upload" / FOLDER).write_text("no folder")
    with pytest.raises(UploadError) as caught:
        merge(store, 1, "one", file_id="one", owner=ANN)
    assert caught.value.is_transient and not (tmp_path / "merged" / "one").exists()
    (tmp_path / "upload" / FOLDER).unlink()
    merge(store, 1, "one", file_id="one", owner=ANN)
    assert readers(store, "one") == [ANN, ADMIN]


def test_notes_of_files_that_are_gone_are_removed(kind: str, tmp_path: Path) -> None:
    store = store_in(tmp_path)
    for name in ("stays", "goes"):
        publish(store, name, ANN, name.encode())
    (tmp_path / "merged" / "goes").unlink()
    owners = OwnershipStore(tmp_path / "upload", NO_SYNC)
    assert owners.sweep(str(tmp_path / "merged"), time.time() - 3600) == 0
    assert owners.sweep(str(tmp_path / "merged"), time.time() + 60) == (1 if kind == "file" else 0)
    assert readers(store, "stays") == [ANN, ADMIN]


@pytest.mark.parametrize(
    "note",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"owner": 3, "shared": true}',
        b'{"owner": "ann"}',
        b"\xff",
        b'{"shared": true}',
        b"[" * 60_000,
    ],
)
def test_a_damaged_ownership_lets_no_user_read(note: bytes, tmp_path: Path) -> None:
    found = parse(note)
    assert not any(found.is_readable(reader, UNOWNED) for reader in (ANN, BOB)) and found.is_readable(ADMIN, NO)


@pytest.mark.parametrize("owner", [ANN, "é" * 255, "\U0001f600" * 255, 'a"b\\c', None])
def test_an_ownership_survives_serialization(owner: str | None) -> None:
    for is_shared in (True, False):
        assert parse(FileOwnership(owner, is_shared).as_bytes()) == FileOwnership(owner, is_shared)


def test_an_error_of_the_disk_is_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    store = store_in(tmp_path, shared_files=UNOWNED)
    publish(store, "one", ANN)
    monkeypatch.setattr(os, "getxattr", broken)
    with pytest.raises(UploadError) as caught:
        store.open_merged("one", BOB)
    assert caught.value.is_transient


def test_a_switch_that_is_none_is_refused(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    with refused(404, "not_found"):
        store.open_merged("none", ANN)
    assert replace(store.settings, shared_files=YES).shared_files == YES


def test_a_file_that_is_released_from_quarantine_has_its_owner_again(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    publish(store, "one", ANN)
    path, quarantine = tmp_path / "merged" / "one", Quarantine(tmp_path / "q", 1 << 20)
    try:
        os.getxattr(path, OWNER_ATTRIBUTE)
    except OSError:
        pytest.skip("no extended attributes here")
    descriptor = os.open(path, os.O_RDWR)
    try:
        found = ScanFinding("Some.Virus", "upload", "one", str(path), ANN, None)
        item = quarantine.add(ScannedFile(descriptor, path, 3), found)
    finally:
        os.close(descriptor)
    assert readers(store, "one") == []
    quarantine.release(item.id)
    assert readers(store, "one") == [ANN, ADMIN]


# --- over HTTP ---


@pytest.fixture(scope="module", params=[None, "/protected"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebServer]:
    web: dict[str, Any] = {"jwt_key": KEY, "secret_key": SECRET, "request_rate": "100000/s", "request_burst": 100000}
    web |= {"accel_prefix": request.param} if request.param else {}
    with WebServer(tmp_path_factory.mktemp("owners"), {"web": web}) as server:
        yield server


def ask(server: WebServer, method: str, path: str, who: str | None, **options: Any) -> requests.Response:
    token = jwt.encode({"sub": who, "exp": int(time.time()) + 600}, KEY, algorithm="HS256")
    given = {"X-Secret-Key": SECRET} if who is ADMIN else {"Authorization": f"Bearer {token}"}
    headers = {**given, **options.pop("headers", {})}
    return requests.request(method, server.root + path, headers=headers, timeout=20, **options)


def upload(server: WebServer, name: str, who: str | None, **fields: Any) -> requests.Response:
    form = {"file_id": name, "chunk_index": 0}
    sent = ask(server, "POST", "/go-uploader/upload_chunk", who, data=form, files={"chunk": b"abc"})
    assert sent.status_code == 200, sent.text
    return ask(
        server,
        "POST",
        "/go-uploader/merge_chunks",
        who,
        json={"file_id": name, "filename": name, "total_chunks": 1, **fields},
    )


def answer_of(response: requests.Response, *names: str) -> tuple[int, dict[str, str], bytes]:
    """Return everything that distinguishes answers, with all ``names`` replaced by one."""
    body = response.content
    for name in names:
        body = body.replace(name.encode(), b"NAME")
    return response.status_code, {k: v for k, v in response.headers.items() if k != "Date"}, body


def test_a_foreign_file_is_answered_as_one_that_is_not_there(server: WebServer) -> None:
    assert upload(server, "hers.bin", ANN).status_code == 200
    assert upload(server, "ours.bin", ADMIN).status_code == 200
    more: list[dict[str, str]] = [
        {},
        {"Range": "bytes=0-0"},
        {"If-None-Match": "*"},
        {"If-Match": '"x"'},
        {"If-Unmodified-Since": "Thu, 01 Jan 1970 00:00:00 GMT"},
        {"Range": "bytes=99-"},
    ]
    for method in ("GET", "HEAD"):
        for headers in more:
            unknown = ask(server, method, "/go-uploader/files/none.bin", BOB, headers=headers)
            for name in ("hers.bin", "ours.bin"):
                foreign = ask(server, method, f"/go-uploader/files/{name}", BOB, headers=headers)
                assert answer_of(foreign, name) == answer_of(unknown, "none.bin"), (method, headers)
                assert foreign.status_code == 404 and "X-Accel-Redirect" not in foreign.headers
        for behind in ("/x", "//", "/x/y", "/./x"):
            unknown = ask(server, method, f"/go-uploader/files/none.bin{behind}", BOB)
            foreign = ask(server, method, f"/go-uploader/files/hers.bin{behind}", BOB)
            assert answer_of(foreign, "hers.bin") == answer_of(unknown, "none.bin"), behind
    for who, name in ((ANN, "hers.bin"), (ADMIN, "hers.bin"), (ADMIN, "ours.bin")):
        assert ask(server, "GET", f"/go-uploader/files/{name}", who).status_code == 200


@pytest.mark.parametrize(
    ("value", "status"),
    [
        (True, 200),
        ("true", 200),
        (1, 200),
        ("yes", 200),
        (False, 404),
        (None, 404),
        ("", 404),
        ("no", 404),
        ("perhaps", 400),
    ],
)
def test_a_merge_request_states_whether_its_file_is_shared(server: WebServer, value: Any, status: int) -> None:
    name = f"shared-{value!r}-{type(value).__name__}".replace("'", "")
    merged = upload(server, name, ANN, shared=value)
    if status == 400:
        assert (merged.status_code, merged.json()["code"]) == (400, "bad_field")
    else:
        assert merged.status_code == 200
        assert ask(server, "GET", f"/go-uploader/files/{name}", BOB).status_code == status


@pytest.mark.parametrize(("value", "status"), [("true", 200), ("false", 404), ("whatever", 404), (None, 404)])
def test_metadata_of_tus_say_whether_the_file_is_shared(server: WebServer, value: str | None, status: int) -> None:
    name = f"tus-{value}.bin"
    pairs = {"filename": name, **({} if value is None else {"shared": value})}
    note = ",".join(f"{key} {base64.b64encode(text.encode()).decode()}" for key, text in pairs.items())
    headers = {**TUS, "Upload-Length": "3", "Upload-Metadata": note, "Content-Type": "application/offset+octet-stream"}
    assert ask(server, "POST", "/files", ANN, headers=headers, data=b"abc").status_code == 201
    assert ask(server, "GET", f"/go-uploader/files/{name}", BOB).status_code == status
    assert ask(server, "GET", f"/go-uploader/files/{name}", ANN).status_code == 200
