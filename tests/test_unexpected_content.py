"""A page in place of the file: never the file, and never the end of what was fetched."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dlpool import DownloadEngine, errors
from dlpool.config import NetworkSettings, TransferSettings
from dlpool.transfer.http.media_types import is_page, is_same_family, names_binary
from tests.conftest import Fetcher, wait_until
from tests.desk import desk_of, running
from tests.handlers import DATA, OTHER, SIZE, Serve, check_file, first, redirect
from tests.origin import Connection, File, Handler, Request
from tests.processes import run

PAGE = b"<!doctype html><title>Please log in</title>"
HTML = {"Content-Type": "text/html; charset=utf-8"}
BINARY = {"Content-Type": "application/octet-stream"}


def page(headers: dict[str, str] | None = None, body: bytes = PAGE, status: int = 200) -> Handler:
    """A login page, by default without validators."""
    return lambda _request, connection: connection.answer(status, {**HTML, **(headers or {})}, body)


def binary(data: bytes = DATA, **options: Any) -> File:
    return File(data, extra=dict(BINARY), **options)


def at_login(good: Handler, login: Handler) -> Handler:
    """The file, and a page under /login."""
    return lambda request, connection: (login if request.path == "/login" else good)(request, connection)


def committed(target: Path) -> int:
    state = json.loads(target.with_name(target.name + ".part.meta").read_text())
    return sum(chunk["position"] - chunk["start"] for chunk in state["chunks"])


def begin(fetch: Fetcher, url: str, target: Path) -> int:
    """Run a download that ends with an error; return how many bytes it has committed."""
    with pytest.raises(errors.NotFound):
        fetch(url, target, connections=1)
    return committed(target)


def gone_from(number: int, good: Handler) -> Handler:
    return first(number - 1, good, lambda _request, connection: connection.answer(404))


# --- which types belong together ---


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("application/zip", "application/octet-stream", True),
        ("application/zip", "application/x-zip-compressed", True),
        ("application/zip", None, True),
        ("image/png", "image/webp", True),
        ("image/png", None, True),
        ("application/zip", "application/force-download", True),
        ("video/mp4", "audio/mp4", True),
        ("video/mp4", "application/mp4", True),
        ("application/octet-stream", "binary/octet-stream", True),
        (None, None, True),
        ("text/html", "application/xhtml+xml", True),
        ("application/json", "application/problem+json", True),
        ("application/xml", "text/xml", True),
        ("application/atom+xml", "text/xml", True),
        ("text/csv", "text/plain", True),
        ("application/zip", "text/html", False),
        ("application/zip", "application/xhtml+xml", False),
        ("application/zip", "application/json", False),
        ("application/zip", "application/problem+json", False),
        ("application/zip", "application/xml", False),
        ("application/zip", "text/plain", False),
        ("application/zip", "image/png", False),
        ("video/mp4", "image/png", False),
        ("application/octet-stream", "image/png", False),
        (None, "text/html", False),
        (None, "application/json", False),
        (None, "application/xml", False),
        (None, "text/plain", False),
        ("application/octet-stream", "text/html", False),
        ("text/csv", "text/html", False),
        ("application/json", "text/html", False),
        ("image/png", "text/html", False),
    ],
)
def test_what_may_be_two_versions_of_one_file(one: str | None, other: str | None, expected: bool) -> None:
    assert is_same_family(one, other) is expected
    assert is_same_family(other, one) is expected


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [("text/html", True), ("application/xhtml+xml", True), ("text/plain", False), ("text/xml", False), (None, False)],
)
def test_what_is_a_page(content_type: str | None, expected: bool) -> None:
    assert is_page(content_type) is expected


BINARY_NAMES = (
    "safetensors bin zip gz tgz xz zst 7z iso img deb rpm whl jar exe msi dmg pdf png jpg jpeg gif webp mp4 "
    "mp3 parquet pt pth onnx gguf npz npy h5 tar bz2 rar apk docx xlsx epub mkv webm flac sqlite woff2 qcow2 ckpt arrow"
)


@pytest.mark.parametrize("name", BINARY_NAMES.split())
def test_a_name_of_a_binary_file_is_known(name: str) -> None:
    for url in (f"http://h/a.{name}", f"http://h/a.b.{name.upper()}?x=1.html#y", f"http://h/a%2E{name}"):
        assert names_binary(url)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/zip",
        "/a.zip/",
        "/a.zip/b",
        "/a.html",
        "/a.htm",
        "/a.php",
        "/a.aspx",
        "/a.com",
        "/a?f=b.zip",
        "/a.txt",
        "/a.json",
        "/a.",
        "/v1.2",
    ],
)
def test_another_name_promises_nothing(path: str) -> None:
    assert not names_binary(f"http://h{path}")


# --- the first answer ---


@pytest.mark.parametrize("name", ["model.safetensors", "a.zip", "a.tar.gz", "a.iso?token=x", "a.PDF", "m%2Egguf"])
@pytest.mark.parametrize(
    "content_type",
    ["text/html", "Text/HTML; charset=utf-8", "application/xhtml+xml", "text/html, text/html", "text/html,text/plain"],
)
def test_a_page_in_place_of_a_binary_file_is_retried_then_refused(
    name: str, content_type: str, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    origin = serve(at_login(redirect("/login", 307), page({"Content-Type": content_type, "ETag": '"login"'})))
    with pytest.raises(errors.UnexpectedContent, match="--no-html-guard") as raised:
        fetch(f"{origin.url}/{name}", tmp_path / "f")
    assert (raised.value.label, raised.value.exit_code) == ("unexpected_content", 7)
    assert list(tmp_path.iterdir()) == []
    assert [request.path for request in origin.requests].count("/login") == 4  # one, and three retries


@pytest.mark.parametrize("status", [200, 203, 206])
def test_a_page_is_refused_whatever_its_status(status: int, serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    headers = {"Content-Range": f"bytes 0-{len(PAGE) - 1}/{len(PAGE)}"} if status == 206 else {}
    origin = serve(page(headers, status=status))
    with pytest.raises(errors.UnexpectedContent):
        fetch(f"{origin.url}/a.zip", tmp_path / "f", retries=0)
    assert list(tmp_path.iterdir()) == []


def test_a_portal_that_passes_costs_nothing(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    origin = serve(first(2, page(), binary()))
    fetch(f"{origin.url}/a.zip", tmp_path / "f")
    check_file(tmp_path / "f")


@pytest.mark.parametrize(("name", "options"), [("a.zip", {"html_guard": False}), ("a.html", {}), ("a", {}), ("", {})])
def test_a_page_is_a_file_where_nothing_else_was_promised(
    name: str, options: dict[str, Any], serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    origin = serve(page())
    fetch(f"{origin.url}/{name}", tmp_path / "f", **options)
    check_file(tmp_path / "f", PAGE)


def test_the_command_takes_a_page_when_it_is_told_so(serve: Serve, tmp_path: Path) -> None:
    origin = serve(page())
    refused = run("fetch", f"{origin.url}/a.zip", tmp_path / "f", "--retries", "0")
    assert refused.code == 7
    assert "--no-html-guard" in refused.err
    assert run("fetch", f"{origin.url}/a.zip", tmp_path / "f", "--no-html-guard").code == 0
    assert (tmp_path / "f").read_bytes() == PAGE


def test_a_job_of_the_service_fails_with_the_reason(tmp_path: Path) -> None:
    transfer, supervisor = {"retries": 1, "retry_delay": "10ms"}, {"max_attempts": 1}
    with running(tmp_path, transfer=transfer, supervisor=supervisor) as both, desk_of(*both) as desk:
        desk.serve(page({"ETag": '"login"'}))
        url = f"{desk.origin.url}/a.zip"
        desk.push_raw({"url": url, "save_path": desk.path("a.zip")})
        assert "--no-html-guard" in desk.client.wait_for_failure(url)["error_message"]
        wait_until(lambda: any("unexpected_content" in str(line) for line in desk.service.events("job_failed")))
        assert len(desk.origin.requests) == 2


@pytest.mark.parametrize("html_guard", [True, False])
def test_the_engine_goes_by_the_setting(html_guard: bool, serve: Serve, tmp_path: Path) -> None:
    origin = serve(page())
    transfer = TransferSettings(html_guard=html_guard)
    network = NetworkSettings(network="any")
    with DownloadEngine(retry_times=0, transfer=transfer, network=network) as engine:
        task = engine.download(f"{origin.url}/a.zip", tmp_path / "a.zip")
        assert task.wait(20)
    assert (tmp_path / "a.zip").exists() is not html_guard


# --- in mid-download ---

DOCUMENTS: dict[str, Callable[[], Handler]] = {
    "a page": page,
    "a page with an etag": lambda: page({"ETag": '"login"'}),
    "a page with all validators": lambda: File(PAGE, etag='"login"', extra=dict(HTML)),
    "a page that serves ranges": lambda: File(PAGE * 40_000, etag='"login"', extra=dict(HTML)),
    "a page in xhtml": lambda: page({"Content-Type": "application/xhtml+xml", "ETag": '"login"'}),
    "json": lambda: page({"Content-Type": "application/json", "ETag": '"e"'}, b'{"error": "expired"}'),
    "problem json": lambda: page({"Content-Type": "application/problem+json", "ETag": '"e"'}, b"{}"),
    "xml": lambda: page({"Content-Type": "application/xml", "ETag": '"e"'}, b"<Error><Code>Expired</Code></Error>"),
    "text": lambda: page({"Content-Type": "text/plain", "ETag": '"e"'}, b"quota exceeded"),
    "an image": lambda: page({"Content-Type": "image/png", "ETag": '"e"'}, b"\x89PNG"),
    "a page as large as the file": lambda: page({"ETag": '"login"'}, b"<" * SIZE),
}
# What is known of the file itself.
FILES: dict[str, dict[str, Any]] = {
    "strong etag": {},
    "date": {"etag": None},
    "weak etag": {"etag": 'W/"v1"'},
    "no validator": {"etag": None, "last_modified": None},
}


@pytest.mark.parametrize("known", FILES)
@pytest.mark.parametrize("document", DOCUMENTS)
def test_a_document_in_mid_download_is_retried_then_fails_and_the_bytes_are_kept(
    document: str, known: str, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    good = File(DATA, extra={"Content-Type": "application/zip"}, **FILES[known])
    redirected = at_login(redirect("/login"), DOCUMENTS[document]())
    origin = serve(first(2, good, redirected))
    with pytest.raises(errors.UnexpectedContent):
        fetch(f"{origin.url}/f", tmp_path / "f", connections=2)
    assert committed(tmp_path / "f") >= 64 * 1024
    assert fetch.named("download_restarted") == []
    assert not (tmp_path / "f").exists()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_a_document_that_passes_in_mid_download_costs_nothing(
    document: str, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    bad, good, count = DOCUMENTS[document](), binary(), 0

    def handle(request: Request, connection: Connection) -> None:
        nonlocal count
        count += 1
        (bad if count in (2, 4) else good)(request, connection)

    outcome = fetch(f"{serve(handle).url}/f", tmp_path / "f")
    check_file(tmp_path / "f")
    assert outcome.restarts == 0
    assert outcome.received == SIZE


# --- when a later run goes on ---


@pytest.mark.parametrize("known", ["strong etag", "date"])
@pytest.mark.parametrize("document", DOCUMENTS)
def test_a_document_never_replaces_what_an_earlier_run_has_fetched(
    document: str, known: str, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    good = binary(**FILES[known])
    origin = serve(gone_from(2, good))
    before = begin(fetch, f"{origin.url}/f", tmp_path / "f")
    origin.handler = at_login(redirect("/login"), DOCUMENTS[document]())
    with pytest.raises(errors.UnexpectedContent):
        fetch(f"{origin.url}/f", tmp_path / "f", retries=1)
    assert committed(tmp_path / "f") == before
    assert (tmp_path / "f.part").read_bytes()[:before] == DATA[:before]
    origin.handler = good
    assert fetch(f"{origin.url}/f", tmp_path / "f").resumed_from == before > 0
    check_file(tmp_path / "f")


@pytest.mark.parametrize("known", ["weak etag", "no validator"])
@pytest.mark.parametrize("document", DOCUMENTS)
def test_nor_does_it_where_nothing_lets_a_later_run_go_on(
    document: str, known: str, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    good = binary(**({**FILES[known], "last_modified": None}))
    origin = serve(gone_from(2, good))
    before = begin(fetch, f"{origin.url}/f", tmp_path / "f")
    origin.handler = at_login(redirect("/login"), DOCUMENTS[document]())
    for _ in range(2):
        with pytest.raises(errors.UnexpectedContent):
            fetch(f"{origin.url}/f", tmp_path / "f", retries=1)
    assert committed(tmp_path / "f") == before
    assert (tmp_path / "f.part").read_bytes()[:before] == DATA[:before]
    origin.handler = binary(OTHER, **{**FILES[known], "last_modified": None})
    assert fetch(f"{origin.url}/f", tmp_path / "f").resumed_from == 0
    check_file(tmp_path / "f", OTHER)


def test_another_file_of_another_host_does_not_replace_what_was_fetched(
    serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    good = binary()
    origin, elsewhere = serve(gone_from(2, good)), serve(binary(OTHER, etag='"other"'))
    before = begin(fetch, f"{origin.url}/f", tmp_path / "f")
    origin.handler = redirect(f"{elsewhere.url}/g")
    with pytest.raises(errors.UnexpectedContent, match="--allow-change"):
        fetch(f"{origin.url}/f", tmp_path / "f", retries=1)
    assert committed(tmp_path / "f") == before > 0


def test_the_same_file_of_another_host_goes_on(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    good = binary()
    origin, elsewhere = serve(gone_from(2, good)), serve(good)
    before = begin(fetch, f"{origin.url}/f", tmp_path / "f")
    origin.handler = redirect(f"{elsewhere.url}/g")
    assert fetch(f"{origin.url}/f", tmp_path / "f").resumed_from == before > 0
    check_file(tmp_path / "f")


@pytest.mark.parametrize("how", ["another kind", "another host"])
def test_a_change_that_is_allowed_replaces_what_was_fetched(
    how: str, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    origin = serve(gone_from(2, binary()))
    begin(fetch, f"{origin.url}/f", tmp_path / "f")
    if how == "another host":
        origin.handler = redirect(serve(binary(OTHER, etag='"other"')).url + "/g")
    else:
        origin.handler = File(OTHER, etag='"other"', extra={"Content-Type": "text/csv"})
    assert fetch(f"{origin.url}/f", tmp_path / "f", allow_change=True).resumed_from == 0
    check_file(tmp_path / "f", OTHER)


def test_a_new_version_of_the_same_kind_and_host_replaces_what_was_fetched(
    serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    origin = serve(gone_from(2, binary()))
    begin(fetch, f"{origin.url}/f", tmp_path / "f")
    origin.handler = File(OTHER, etag='"v2"', extra={"Content-Type": "application/zip"})
    assert fetch(f"{origin.url}/f", tmp_path / "f").resumed_from == 0
    check_file(tmp_path / "f", OTHER)


# --- after a restart ---


def test_a_page_does_not_become_the_file_when_a_stream_begins_again(
    serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    def broken(_request: Request, connection: Connection) -> None:
        connection.answer(200, {**BINARY, "Content-Length": str(SIZE)}, DATA[:1000], length=False)
        connection.hang_up()

    origin = serve(first(1, broken, page({"ETag": '"login"'})))
    with pytest.raises(errors.UnexpectedContent):
        fetch(f"{origin.url}/f", tmp_path / "f")
    assert not (tmp_path / "f").exists()


def test_a_size_that_another_host_tells_is_no_change(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    origin = serve(binary())
    other = serve(lambda _request, connection: connection.answer(416, {"Content-Range": "bytes */17"}))
    origin.handler = first(2, binary(), redirect(f"{other.url}/g"))
    with pytest.raises(errors.DlpoolError) as raised:
        fetch(f"{origin.url}/f", tmp_path / "f", connections=2)
    assert not isinstance(raised.value, errors.RestartFile)
    assert committed(tmp_path / "f") > 0
