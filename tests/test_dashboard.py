"""The dashboard in a real Chromium: what a person sees and does, over a real service, Redis, origin and dlpool-web."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
from selenium.webdriver.common.keys import Keys as Key

from tests.browser import Page, browser
from tests.conftest import make_data, sha256, wait_until
from tests.desk import Desk, Gate, InTurn, answer, desk_of, running
from tests.fleet import Client, Supervisor
from tests.origin import File
from tests.redis_server import RedisServer
from tests.web import WebServer

MIB = 2**20
SIZE = 24 * MIB + 12_345
RATE = 8 * MIB  # bytes a second of uploads, so that they can be cut in mid-way
SECRET = "k" * 40
EVIL = "<img src=x onerror=console.error('markup')>"


@dataclass(frozen=True)
class Place:
    """A service, and the HTTP side over its Redis."""

    service: Supervisor
    client: Client
    web: WebServer


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("dashboard")
    nodes = {"node_id": "here", "max_concurrent_downloads": 3, "workers": 1}
    with running(folder, supervisor=nodes) as (service, client):
        settings: dict[str, dict[str, Any]] = {"redis": {"url": service.url}, "paths": {"download_dir": service.out}}
        with WebServer(folder / "web", settings) as web:
            yield Place(service, client, web)


@pytest.fixture(scope="module")
def _page(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(place.web.root, tmp_path_factory.mktemp("browser")) as page:
        yield page


@pytest.fixture
def page(_page: Page) -> Iterator[Page]:
    """The dashboard, anew; at its end the console must have said nothing."""
    _page.open()
    _page.driver.execute_script("localStorage.clear(); sessionStorage.clear()")
    _page.open()
    _page.sees("#health", "Live")
    yield _page
    assert _page.console() == []


@pytest.fixture
def desk(place: Place) -> Iterator[Desk]:
    with desk_of(place.service, place.client) as desk:
        yield desk


def limit_uploads(page: Page, rate: int) -> None:
    limits = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": rate}
    page.driver.execute_cdp_cmd("Network.enable", {})
    page.driver.execute_cdp_cmd("Network.emulateNetworkConditions", limits)


def chunks_received(web: WebServer) -> int:
    """How many chunks were answered with 200, since the beginning."""
    served = [one for one in web.events("request_served") if one["url.path"].endswith("/upload_chunk")]
    return sum(one["http.response.status_code"] == 200 for one in served)


def chunks_stored(page: Page, web: WebServer) -> set[int]:
    """The chunks that the server has of the only upload."""
    script = "return JSON.parse(localStorage.getItem('dlpool.uploads'))[0].id"
    asked = requests.get(f"{web.url}/upload_status", params={"file_id": page.driver.execute_script(script)}, timeout=20)
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


def test_a_job_that_is_pushed_in_the_page_is_seen_running_and_finished(page: Page, desk: Desk) -> None:
    gate = Gate(File(b"x" * MIB))
    desk.serve(gate)
    page.fill(url=desk.url("model.bin") + "?token=secret", save_path=desk.path("model.bin") + Key.ENTER)
    page.sees("#push-said", "Queued as ")
    page.sees("#running", desk.path("model.bin"))
    assert "secret" not in page.text("main")
    gate.open()
    page.find("#state option[value=succeeded]").click()
    page.sees("#listed", desk.path("model.bin"))
    page.sees("#running", "")
    assert (desk.folder / "model.bin").read_bytes() == b"x" * MIB
    page.sees("#nodes", "here")
    page.sees("#nodes", "1 worker")


def test_what_is_wrong_with_a_new_job_is_said(page: Page, desk: Desk) -> None:
    page.fill(url=desk.url(), save_path="../../etc/passwd" + Key.ENTER)
    page.sees("#push-said", "outside of")
    assert desk.waiting() == 0
    assert len(page.console()) == 1, "the refusal, and nothing else"


def test_a_failed_job_is_retried_by_its_button(page: Page, desk: Desk) -> None:
    desk.serve(InTurn(answer(404), File(b"now it is there")))
    desk.push("late.bin", max_attempts=1)
    page.sees("#failed", desk.path("late.bin"))
    page.sees("#failed", "the server answered 404")
    page.find(f"#failed [aria-label='Retry {desk.path('late.bin')}']").click()
    wait_until(lambda: (desk.folder / "late.bin").exists())
    wait_until(lambda: desk.path("late.bin") not in page.text("#failed"))


def test_a_running_job_is_cancelled_by_keyboard_alone(page: Page, desk: Desk) -> None:
    gate = Gate()
    desk.serve(gate)
    desk.push("held.bin")
    page.sees("#running", desk.path("held.bin"))
    cancel = page.find("#running [aria-label^=Cancel]")
    for _ in range(60):
        focused = page.driver.switch_to.active_element
        if focused == cancel:
            break
        focused.send_keys(Key.TAB)
    assert page.driver.switch_to.active_element == cancel
    outline = "return getComputedStyle(document.activeElement).outlineStyle"
    assert page.driver.execute_script(outline) == "solid", "the focus is visible"
    cancel.send_keys(Key.ENTER)
    page.driver.switch_to.active_element.send_keys(Key.ENTER)
    assert desk.client.wait_for_failure(desk.url("held.bin"))["error_message"] == "the job was cancelled"
    gate.open()


def test_a_row_that_goes_takes_no_focus_along(page: Page, desk: Desk) -> None:
    gates = {"first": Gate(), "second": Gate()}
    desk.serve(lambda request, connection: gates[request.path.rpartition("/")[2]](request, connection))
    for name in gates:
        desk.push(name)
        page.sees("#running", desk.path(name))
    page.driver.execute_script("document.querySelector('#running li:last-child button').focus()")
    label = page.driver.switch_to.active_element.get_attribute("aria-label")
    assert label == f"Pause {desk.path('second')}"
    gates["first"].open()
    wait_until(lambda: desk.path("first") not in page.text("#running"))
    assert page.driver.switch_to.active_element.get_attribute("aria-label") == label
    gates["second"].open()


def test_names_are_never_markup(page: Page, desk: Desk) -> None:
    desk.serve(answer(404))
    desk.client.push(desk.url("x") + EVIL, f"{desk.name}/{EVIL}", max_attempts=1)
    page.sees("#failed", EVIL)
    assert page.all("main img") == []


def test_the_queue_is_paused_and_resumed(page: Page) -> None:
    page.find("#halt").click()
    page.sees("#health", "Paused")
    page.find("#halt").click()
    page.sees("#health", "Live")


@pytest.fixture
def locked(_page: Page, tmp_path: Path) -> Iterator[tuple[Page, RedisServer]]:
    """The page of a server that asks for a secret, ``SECRET``, and its Redis."""
    with RedisServer(tmp_path / "redis") as redis:
        settings = {"redis": {"url": redis.url}, "web": {"auth": "on", "secret_key": SECRET}}
        with WebServer(tmp_path, settings) as server:
            page = Page(_page.driver, server.root)
            yield page, redis
            page.driver.get("about:blank")
            assert page.console(is_away=True) == []


def test_a_page_asks_once_for_the_secret_and_waits_for_redis(locked: tuple[Page, RedisServer], tmp_path: Path) -> None:
    page, redis = locked
    page.open()
    page.sees("#health", "Signed out")
    page.fill(token="wrong" + Key.ENTER)
    page.sees("#login-said", "X-Secret-Key")
    page.fill(token=SECRET + Key.ENTER)
    page.sees("#health", "Live")
    page.open()
    page.sees("#health", "Live")
    file = tmp_path / "small.txt"
    file.write_bytes(b"small")
    page.drop(file)
    page.sees("#uploads", "done")
    redis.stop()
    page.sees("#banner", "cannot be reached")
    assert page.text("#health") == "Offline"
    redis.start()
    page.sees("#health", "Live")
    assert page.text("#banner") == ""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_fits_its_window(page: Page, desk: Desk, width: int, scheme: str, tmp_path: Path) -> None:
    gate = Gate()
    desk.serve(InTurn(answer(404), gate))
    desk.push("a-rather-long-name-of-a-file-that-is-not-there.safetensors", max_attempts=1)
    page.sees("#failed", "404")
    desk.push("a-rather-long-name-of-a-file-that-is-on-its-way.safetensors")
    page.open(width, 900, scheme)
    page.sees("#running", "on-its-way")
    sizes = page.driver.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert sizes[0] <= sizes[1] == width
    assert len(page.shot(tmp_path / f"{width}-{scheme}.png")) > 10_000
    gate.open()
