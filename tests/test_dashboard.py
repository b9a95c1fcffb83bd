"""The dashboard in a real Chromium: what a person sees and does, over a real service, Redis, origin and dlpool-web."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import jwt
import pytest
from selenium.webdriver.common.keys import Keys as Key

from tests.browser import Page, browser
from tests.conftest import wait_until
from tests.dashboard import Place, anew, place_in
from tests.desk import Desk, Gate, InTurn, answer, desk_of
from tests.origin import File
from tests.redis_server import RedisServer
from tests.web import WebServer

MIB = 2**20
SECRET = "k" * 40
EVIL = "<img src=x onerror=console.error('markup')>"


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
def desk(place: Place) -> Iterator[Desk]:
    with desk_of(place.service, place.client) as desk:
        yield desk


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
    assert "no more jobs?" in page.text("#halt"), "it asks first"
    page.find("#halt").click()
    page.sees("#health", "Paused")
    page.sees("#halted", "no job begins")
    assert not page.find("#halt").is_displayed(), "there is one button for it, and it stands by the reason"
    page.find("#unhalt").click()
    page.sees("#health", "Live")
    assert not page.find("#halted").is_displayed()


@pytest.fixture
def locked(_page: Page, tmp_path: Path) -> Iterator[tuple[Page, RedisServer]]:
    """The page of a server that asks for a secret, ``SECRET``, or for a token signed with it; and its Redis."""
    with RedisServer(tmp_path / "redis") as redis:
        settings = {"redis": {"url": redis.url}, "web": {"auth": "on", "secret_key": SECRET, "jwt_key": SECRET}}
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
    assert page.text("#health") == "Redis unavailable"
    page.sees("#banner", "Data is from ")
    other = tmp_path / "other.txt"
    other.write_bytes(b"other")
    page.drop(other)
    wait_until(lambda: page.text("#uploads").count("done") == 2)
    redis.start()
    page.sees("#health", "Live")
    assert not page.find("#banner").is_displayed()


def test_a_token_that_ends_loses_no_half_typed_form_and_signing_out_leaves_nothing(
    locked: tuple[Page, RedisServer], tmp_path: Path
) -> None:
    page, _ = locked
    page.open()
    page.sees("#health", "Signed out")
    assert page.run("return document.documentElement.scrollWidth <= innerWidth")
    assert not page.find("#halt").is_displayed()
    page.fill(token=SECRET + Key.ENTER)
    page.sees("#health", "Live")
    page.fill(save_path="models/half")
    page.run("sessionStorage.setItem('dlpool.token', 'expired')")
    page.sees("#health", "Signed out")
    page.fill(token=SECRET + Key.ENTER)
    page.sees("#health", "Live")
    assert page.find("#save_path").get_attribute("value") == "models/half"
    file = tmp_path / "mine.txt"
    file.write_bytes(b"mine")
    page.drop(file)
    page.sees("#uploads", "done")
    assert page.run("return Object.values(localStorage).map(one => JSON.parse(one).who)") == ["secret"]
    for _ in range(2):
        page.find("#sign-out").click()
    page.sees("#health", "Signed out")
    assert page.run("return [localStorage.length, sessionStorage.length]") == [0, 0]


def test_a_token_without_a_scope_is_told_plainly(locked: tuple[Page, RedisServer]) -> None:
    page, _ = locked

    def sign_in(scope: str) -> None:
        claims = {"sub": "alice", "exp": time.time() + 600, "scope": scope}
        page.fill(token=jwt.encode(claims, SECRET, "HS256") + Key.ENTER)

    page.open()
    page.sees("#health", "Signed out")
    sign_in("upload")
    page.sees("#login-said", "this needs the scope read")
    page.sees("#health", "Not allowed")
    sign_in("read")
    page.sees("#health", "Live")
    for _ in range(2):
        page.find("#halt").click()
    page.sees("#complaint", "this needs the scope operate")
    assert not page.find("#halted").is_displayed()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_fits_its_window(page: Page, desk: Desk, width: int, scheme: str, tmp_path: Path) -> None:
    gate = Gate()
    desk.serve(InTurn(answer(404), gate))
    desk.push("a-rather-long-name-of-a-file-that-is-not-there.safetensors", max_attempts=1)
    page.sees("#failed", "404")
    wait_until(lambda: len(desk.asked()) == 1)  # the page shows failures of other tests, too
    desk.push("a-rather-long-name-of-a-file-that-is-on-its-way.safetensors")
    page.open(width, 900, scheme)
    page.sees("#running", "on-its-way")
    sizes = page.driver.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert sizes[0] <= sizes[1] == width
    assert len(page.shot(tmp_path / f"{width}-{scheme}.png")) > 10_000
    gate.open()
