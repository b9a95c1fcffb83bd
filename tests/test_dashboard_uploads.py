"""Uploads in the dashboard, in a real Chromium: dropped, cut off, resumed, refused, shared by tabs."""

from __future__ import annotations

import hashlib
import json
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


def note(page: Page) -> dict[str, Any]:
    """What the browser remembers of the only upload."""
    script = "return Object.entries(localStorage).filter(([name]) => name.startsWith('dlpool.upload.'))"
    ((_, text),) = page.run(script)
    found: dict[str, Any] = json.loads(text)
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
