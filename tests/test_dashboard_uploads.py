"""Uploads in the dashboard, in a real Chromium: dropped, cut off, resumed, refused, shared by tabs."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.browser import Page, browser
from tests.conftest import make_data, sha256, wait_until
from tests.dashboard import Place, anew, place_in
from tests.overviews import HISTORY, OVERVIEW, overview
from tests.web import WebServer

MIB = 2**20
SIZE = 48 * MIB + 12_345
RATE = 8 * MIB  # bytes a second of uploads, so that they can be cut in mid-way


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with place_in(tmp_path_factory.mktemp("dashboard")) as place:
        yield place


@pytest.fixture(scope="module")
def _page(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(place.web.root, tmp_path_factory.mktemp("browser")) as page:
        yield page


@pytest.fixture
def slow(page: Page) -> Iterator[Page]:
    """The page behind a line that gives uploads ``RATE``."""
    limit_uploads(page, RATE)
    yield page
    limit_uploads(page, -1)


@pytest.fixture
def page(_page: Page) -> Iterator[Page]:
    with anew(_page) as page:
        yield page


def limit_uploads(page: Page, rate: int) -> None:
    limits = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": rate}
    page.driver.execute_cdp_cmd("Network.enable", {})
    page.driver.execute_cdp_cmd("Network.emulateNetworkConditions", limits)


def chunks_received(web: WebServer) -> int:
    """How many chunks were answered with 200, since the beginning."""
    served = [one for one in web.events("request_served") if one["url.path"].endswith("/upload_chunk")]
    return sum(one["http.response.status_code"] == 200 for one in served)


def note_ids(page: Page) -> list[str]:
    names = page.run("return Object.keys(localStorage).filter((name) => name.startsWith('dlpool.upload.'))")
    return [str(name).rpartition(".")[2] for name in names]


def note(page: Page) -> dict[str, Any]:
    """What the browser remembers of the only upload."""
    (found_id,) = note_ids(page)
    found: dict[str, Any] = json.loads(
        page.run("return localStorage.getItem(arguments[0])", f"dlpool.upload.{found_id}")
    )
    return found


def chunks_stored(page: Page, web: WebServer) -> set[int]:
    """The chunks that the server has of the only upload."""
    asked = requests.get(f"{web.url}/upload_status", params={"file_id": note(page)["id"]}, timeout=20)
    return set(asked.json()["uploaded_chunks"])


def chunks_sent(page: Page) -> set[int]:
    """The chunks that the page has sent since it was loaded."""
    urls = page.driver.execute_script("return performance.getEntriesByType('resource').map(one => one.name)")
    return {int(found[1]) for url in urls if (found := re.search(r"/upload_chunk\?.*chunk_index=(\d+)", url))}


def percent(page: Page, css: str) -> int:
    value = page.find(f"{css} [role=progressbar]").get_attribute("aria-valuenow")
    return int(value or 0)


def test_md5_is_that_of_the_standard_library(page: Page) -> None:
    chance = random.Random(1)
    texts = [b"", b"a", b"abc", b"message digest", b"a" * 55, b"a" * 56, b"a" * 63, b"a" * 64, b"a" * 65]
    texts += [chance.randbytes(chance.randrange(1, 5000)) for _ in range(40)]
    script = """
        const [texts, done] = arguments;
        import("/static/md5.js").then(({ Md5 }) => done(texts.map(([hex, cut]) => {
          const bytes = Uint8Array.from(hex.match(/../g) ?? [], (pair) => parseInt(pair, 16));
          return new Md5().update(bytes.subarray(0, cut)).update(bytes.subarray(cut)).hex();
        })));
    """
    cuts = [(text.hex(), chance.randrange(len(text) + 1)) for text in texts]
    found = page.driver.execute_async_script(script, cuts)
    assert found == [hashlib.md5(text).hexdigest() for text in texts]


def test_an_upload_that_is_cut_off_goes_on_by_itself_also_after_a_reload(
    page: Page, place: Place, tmp_path: Path
) -> None:
    data = make_data(SIZE)
    file = tmp_path / "image one.bin"
    file.write_bytes(data)
    limit_uploads(page, RATE)
    try:
        page.drop(file)
        wait_until(lambda: chunks_received(place.web) >= 2)
        place.web.kill()
        page.sees("#uploads", "waiting")
        page.sees("#banner", "goes on by itself")
        place.web.start()
        before = chunks_received(place.web)
        wait_until(lambda: chunks_received(place.web) > before, 40)
        assert 0 < percent(page, "#uploads") < 100
        stored = chunks_stored(page, place.web)
        page.open()
        page.sees("#uploads", "done", 60)
    finally:
        limit_uploads(page, -1)
    assert sha256((place.web.merged_dir / file.name).read_bytes()) == sha256(data)
    sent = chunks_sent(page)
    assert stored and sent and not stored & sent, "what was there is not sent again"
    page.console()


def test_a_file_that_the_browser_has_not_kept_is_dropped_again(page: Page, place: Place, tmp_path: Path) -> None:
    file = tmp_path / "image two.bin"
    file.write_bytes(make_data(SIZE, seed=2))
    limit_uploads(page, RATE)
    try:
        before = chunks_received(place.web)
        page.drop(file)
        wait_until(lambda: chunks_received(place.web) >= before + 3)
        page.find("#uploads [aria-label^=Pause]").click()
        page.sees("#uploads", "paused")
        stored = chunks_stored(page, place.web)
        page.driver.execute_async_script("indexedDB.deleteDatabase('dlpool').onsuccess = () => arguments[0]()")
        page.open()
    finally:
        limit_uploads(page, -1)
    page.sees("#uploads", "drop the file again")
    wait_until(lambda: percent(page, "#uploads") > 0)
    page.drop(file)
    page.sees("#uploads", "done")
    assert len(page.all("#uploads li")) == 1
    assert (place.web.merged_dir / file.name).read_bytes() == file.read_bytes()
    sent = chunks_sent(page)
    assert stored and sent and not stored & sent


def test_a_refused_upload_says_why_and_can_be_removed(page: Page, place: Place, tmp_path: Path) -> None:
    file = tmp_path / "there already.bin"
    file.write_bytes(b"new")
    (place.web.merged_dir / file.name).write_bytes(b"old")
    page.drop(file)
    page.sees("#uploads", "there already: choose another name")
    remove = page.find("#uploads [aria-label^=Remove]")
    remove.click()
    assert remove.text == "Sure?"
    remove.click()
    wait_until(lambda: not page.all("#uploads li"))
    assert (place.web.merged_dir / file.name).read_bytes() == b"old"
    page.console()  # the refusal itself


def watch_requests(page: Page) -> None:
    """Count the chunks that are under way from now on, and keep what merges say."""
    page.run("""
        window.most = 0;
        let now = 0;
        const send = XMLHttpRequest.prototype.send;
        XMLHttpRequest.prototype.send = function (body) {
          window.most = Math.max(window.most, ++now);
          this.addEventListener("readystatechange", () => { now -= this.readyState === 4; });
          send.call(this, body);
        };
        window.merges = [];
        const ask = window.fetch;
        window.fetch = (path, options) => {
          if (String(path).endsWith("/merge_chunks")) window.merges.push(JSON.parse(options.body));
          return ask(path, options);
        };
    """)


def files_in(folder: Path, count: int, size: int) -> list[Path]:
    made = [folder / f"{folder.name}-{number}.bin" for number in range(count)]
    for number, path in enumerate(made):
        path.write_bytes(make_data(size, seed=number))
    return made


def press(page: Page, label: str, times: int = 1) -> None:
    """Press a button of the only upload, as soon as it is there."""
    css = f"#uploads [aria-label^='{label}']"
    for _ in range(times):
        wait_until(lambda: any(one.is_displayed() for one in page.all(css)))
        page.find(css).click()


def test_many_uploads_at_once_leave_the_page_its_connections(slow: Page, tmp_path: Path) -> None:
    watch_requests(slow)
    slow.drop(*files_in(tmp_path, 6, 5 * MIB))
    slow.sees("#uploads", "queued")
    asked = "return performance.getEntriesByType('resource').filter(one => one.name.includes('/overview')).length"
    before = slow.run(asked)
    wait_until(lambda: slow.run(asked) >= before + 2)
    assert slow.text("#health") == "Live"
    wait_until(lambda: slow.text("#uploads").count("done") == 6, 60)
    assert 1 < slow.run("return window.most") <= 4


def test_the_server_says_how_large_and_how_many_chunks_are(_page: Page, tmp_path: Path) -> None:
    upload = {"max_chunk_size": "1M", "concurrent_uploads": 2, "max_file_size": "3M"}
    with WebServer(tmp_path / "web", {"redis": {"url": "redis://127.0.0.1:1/0"}, "upload": upload}) as web:
        page = Page(_page.driver, web.root)
        with page.canned({OVERVIEW: overview(), HISTORY: {"samples": []}}), anew(page):
            watch_requests(page)
            good, large = tmp_path / "good.bin", tmp_path / "large.bin"
            good.write_bytes(make_data(5 * MIB // 2))
            large.write_bytes(bytes(4 * MIB))
            page.drop(large, good)
            page.sees("#uploads-refused", "large.bin is larger than 3 MiB, the most that this server takes")
            page.sees("#uploads", "done")
            assert chunks_sent(page) == {0, 1, 2}
            assert page.run("return window.most") <= 2
        page.driver.get("about:blank")


def test_an_upload_is_merged_with_the_md5_of_the_whole_file_and_linked(
    page: Page, place: Place, tmp_path: Path
) -> None:
    watch_requests(page)
    (file,) = files_in(tmp_path, 1, 9 * MIB)
    page.drop(file)
    page.sees("#uploads", "done")
    assert page.run("return window.merges[0].expected_md5") == hashlib.md5(file.read_bytes()).hexdigest()
    link = page.find("#uploads .link a")
    assert link.text == file.name, "not where it lies on the server's disk"
    assert requests.get(str(link.get_attribute("href")), timeout=20).content == file.read_bytes()


def test_a_name_that_is_taken_is_changed_without_sending_again(page: Page, place: Place, tmp_path: Path) -> None:
    (file,) = files_in(tmp_path, 1, 5 * MIB)
    for taken in (file.name, f"{file.stem}-1.bin"):
        (place.web.merged_dir / taken).write_bytes(b"old")
    page.drop(file)
    for number in (1, 2):
        page.sees("#uploads", f"Save as {file.stem}-{number}.bin")
        assert "there already" in page.text("#uploads .reason")
        assert page.find("#uploads [aria-label^='Try again']").is_displayed()
        press(page, "Save as")
    page.sees("#uploads", "done")
    assert (place.web.merged_dir / f"{file.stem}-2.bin").read_bytes() == file.read_bytes()
    assert (
        len(
            page.run(
                "return performance.getEntriesByType('resource').filter(one => one.name.includes('/upload_chunk'))"
            )
        )
        == 2
    )
    page.console()  # the refusals


def test_a_folder_is_uploaded_with_its_paths(page: Page, place: Place, tmp_path: Path) -> None:
    folder = tmp_path / "album"
    (folder / "disc 1").mkdir(parents=True)
    (folder / "cover.jpg").write_bytes(b"cover")
    (folder / "disc 1" / "one.flac").write_bytes(b"one")
    page.drop(folder)
    wait_until(lambda: page.text("#uploads").count("done") == 2)
    assert (place.web.merged_dir / "album" / "cover.jpg").read_bytes() == b"cover"
    assert (place.web.merged_dir / "album" / "disc 1" / "one.flac").read_bytes() == b"one"


def test_a_folder_of_too_many_files_is_refused_as_a_whole(page: Page, tmp_path: Path) -> None:
    folder = tmp_path / "heap"
    folder.mkdir()
    for number in range(10_001):
        (folder / str(number)).touch()
    page.drop(folder)
    page.sees("#uploads-refused", "more than 10,000 files")
    assert page.all("#uploads li") == []


def test_a_pause_lets_chunks_under_way_end_and_a_second_one_stops_at_once(
    slow: Page, place: Place, tmp_path: Path
) -> None:
    limit_uploads(slow, MIB)
    (file,) = files_in(tmp_path, 1, SIZE)
    slow.drop(file)
    wait_until(lambda: bool(slow.run("return parseFloat(document.querySelector('#uploads .moving')?.style.width) > 1")))
    assert percent(slow, "#uploads") == 0, "what is on its way is not there yet"
    press(slow, "Pause")
    slow.sees("#uploads", "what is on its way still ends")
    limit_uploads(slow, -1)
    slow.sees("#uploads .meta", "paused")
    assert len(chunks_stored(slow, place.web)) == 4
    limit_uploads(slow, MIB)
    press(slow, "Resume")
    wait_until(lambda: bool(slow.run("return parseFloat(document.querySelector('#uploads .moving').style.width) > 1")))
    press(slow, "Pause")
    press(slow, "Stop now")
    slow.sees("#uploads .meta", "paused")
    assert len(chunks_stored(slow, place.web)) == 4
    press(slow, "Remove", times=2)
    wait_until(lambda: not slow.all("#uploads li"))


def test_a_page_does_not_undo_the_pause_of_an_operator(slow: Page, place: Place, tmp_path: Path) -> None:
    (file,) = files_in(tmp_path, 1, SIZE)
    slow.drop(file)
    before = chunks_received(place.web)
    wait_until(lambda: chunks_received(place.web) > before)
    task = f"{place.web.url}/tasks/{note(slow)['id']}"
    assert requests.post(f"{task}/pause", timeout=20).ok
    slow.sees("#uploads", "it was paused on the server")
    slow.open()
    slow.sees("#uploads", "it was paused on the server")
    assert requests.get(task, timeout=20).json()["status"] == "paused"
    limit_uploads(slow, -1)
    press(slow, "Resume")
    slow.sees("#uploads", "done")
    slow.console()  # the refusals of chunks


def test_a_file_of_other_content_is_not_joined_to_an_old_upload(slow: Page, place: Place, tmp_path: Path) -> None:
    (file,) = files_in(tmp_path, 1, SIZE)
    slow.drop(file)
    before = chunks_received(place.web)
    wait_until(lambda: chunks_received(place.web) > before)
    press(slow, "Pause")
    slow.sees("#uploads .meta", "paused")
    times = file.stat()
    file.write_bytes(make_data(SIZE, seed=99))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    limit_uploads(slow, -1)
    slow.drop(file)
    slow.sees("#uploads", "done")
    assert len(slow.all("#uploads li")) == 2
    assert (place.web.merged_dir / file.name).read_bytes() == file.read_bytes()


@pytest.fixture
def tabs(slow: Page) -> Iterator[tuple[str, str]]:
    """Two tabs of one browser; the test begins in the first."""
    first = slow.driver.current_window_handle
    slow.driver.switch_to.new_window("tab")
    second = slow.driver.current_window_handle
    slow.open()
    slow.sees("#health", "Live")
    slow.driver.switch_to.window(first)
    yield first, second
    slow.driver.switch_to.window(second)
    slow.driver.close()
    slow.driver.switch_to.window(first)


def test_what_is_done_in_one_tab_holds_in_the_other(
    slow: Page, tabs: tuple[str, str], place: Place, tmp_path: Path
) -> None:
    (file,) = files_in(tmp_path, 1, SIZE)
    first, second = tabs
    limit_uploads(slow, MIB)
    slow.drop(file)
    slow.sees("#uploads", "KiB of")
    slow.driver.switch_to.window(second)
    slow.sees("#uploads", "another tab uploads it")
    press(slow, "Pause")
    slow.driver.switch_to.window(first)
    slow.sees("#uploads .meta", "paused")
    task = f"{place.web.url}/tasks/{note(slow)['id']}"
    slow.driver.switch_to.window(second)
    press(slow, "Remove", times=2)
    wait_until(lambda: not slow.all("#uploads li"))
    slow.driver.switch_to.window(first)
    wait_until(lambda: not slow.all("#uploads li"))
    assert requests.get(task, timeout=20).status_code == 404
    slow.console()


def test_an_upload_of_somebody_else_is_forgotten_here_and_not_shown_to_others(
    slow: Page, place: Place, tmp_path: Path
) -> None:
    (file,) = files_in(tmp_path, 1, SIZE)
    slow.drop(file)
    wait_until(lambda: bool(note_ids(slow)))
    press(slow, "Pause")
    slow.sees("#uploads .meta", "paused")
    key = f"dlpool.upload.{note(slow)['id']}"
    with slow.canned({f"/go-uploader/tasks/{note(slow)['id']}": {"status": 403, "code": "not_owner", "error": "no"}}):
        slow.open()
        slow.sees("#uploads", "paused")
        press(slow, "Remove", times=2)
        wait_until(lambda: not slow.all("#uploads li"))
    assert note_ids(slow) == []
    slow.run(
        "localStorage.setItem(arguments[0], JSON.stringify({id: 'x', who: 'sub ada', at: 1, name: 'hers', size: 1}))",
        key,
    )
    slow.open()
    slow.sees("#health", "Live")
    assert slow.text("#uploads") == ""
