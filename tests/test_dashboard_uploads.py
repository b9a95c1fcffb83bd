"""Uploads in the dashboard, in a real Chromium: cut off, paused, resumed, and shared by tabs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.browser import Page, browser
from tests.conftest import make_data, sha256, wait_until
from tests.dashboard import Place, anew, place_in
from tests.uploading import (
    MIB,
    RATE,
    SIZE,
    chunks_received,
    chunks_sent,
    chunks_stored,
    files_in,
    limit_uploads,
    note,
    note_ids,
    percent,
    press,
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with place_in(tmp_path_factory.mktemp("dashboard")) as place:
        yield place


@pytest.fixture(scope="module")
def _page(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(place.web.root, tmp_path_factory.mktemp("browser")) as page:
        yield page


@pytest.fixture
def page(_page: Page) -> Iterator[Page]:
    with anew(_page) as page:
        yield page


@pytest.fixture
def slow(page: Page) -> Iterator[Page]:
    """The page behind a line that gives uploads ``RATE``."""
    limit_uploads(page, RATE)
    yield page
    limit_uploads(page, -1)


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
        page.sees("#banner", "reconnects automatically")
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


def test_a_pause_lets_chunks_under_way_end_and_a_second_one_stops_at_once(
    slow: Page, place: Place, tmp_path: Path
) -> None:
    limit_uploads(slow, MIB)
    (file,) = files_in(tmp_path, 1, SIZE)
    slow.drop(file)
    wait_until(lambda: bool(slow.run("return parseFloat(document.querySelector('#uploads .moving')?.style.width) > 1")))
    assert percent(slow, "#uploads") == 0, "what is on its way is not there yet"
    press(slow, "Pause")
    slow.sees("#uploads", "finishing chunks in flight")
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
    slow.sees("#uploads", "uploading in another tab")
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
