"""What the dashboard makes of an overview, in a real Chromium: answers that a service gives in need are canned."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from selenium.webdriver.common.keys import Keys as Key

from tests.browser import Page, browser
from tests.conftest import wait_until
from tests.overviews import BATCH, HISTORY, OVERVIEW, failed, job, moment, node, overview
from tests.web import WebServer

NOWHERE = {"redis": {"url": "redis://127.0.0.1:1/0"}}
ALIKE = [failed(f"f{number}") for number in range(5)]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    folder = tmp_path_factory.mktemp("views")
    with WebServer(folder / "web", NOWHERE) as web, browser(web.root, folder / "browser") as page:
        yield page


@contextmanager
def seen(page: Page, width: int = 1280, **answers: Any) -> Iterator[None]:
    """The page over an overview; other answers by their path. At its end the console must have said nothing."""
    given = answers.pop("answers", {})
    with page.canned({OVERVIEW: overview(**answers), HISTORY: {"samples": []}, **given}):
        page.open(width)
        wait_until(lambda: page.text("#tiles") != "")
        yield
        assert page.console() == []


def focused(page: Page) -> str:
    return str(page.run("const e = document.activeElement; return e.getAttribute('aria-label') ?? e.id"))


def told(page: Page) -> list[tuple[str, dict[str, Any]]]:
    """What was asked to be changed."""
    return [(path, json.loads(body)) for method, path, body in page.asked() if method == "POST"]


def top(page: Page, css: str) -> float:
    return float(page.run("return document.querySelector(arguments[0]).getBoundingClientRect().top", css))


def test_failures_that_are_alike_are_one_row_until_it_is_opened(page: Page) -> None:
    other = failed("other", "checksum")
    with seen(page, failed=[*ALIKE, other], figures={"failed": 6}):
        page.sees("#failed", "5 \N{MULTIPLICATION SIGN} not_found at gone.example")
        assert len(page.all("#failed > li")) == 2
        page.find("#failed summary").click()
        page.sees("#failed .inner", "f4")
        page.can(BATCH, {"results": [{"id": one["id"], "result": "OK"} for one in ALIKE]})
        page.find("#failed [aria-label^='Retry all']").click()
        wait_until(lambda: len(told(page)) == 1)
        assert told(page) == [(BATCH, {"verb": "retry", "ids": [one["id"] for one in ALIKE]})]


def test_one_failure_and_all_alike_are_dismissed(page: Page) -> None:
    with seen(page, failed=[*ALIKE, failed("other", "checksum")], answers={BATCH: {"results": []}}):
        page.find("#failed [aria-label='Dismiss other']").click()
        wait_until(lambda: len(told(page)) == 1)
        every = page.find("#failed [aria-label^='Dismiss all']")
        every.click()
        assert every.text == "Sure?"
        every.click()
        wait_until(lambda: len(told(page)) == 2)
        bodies = [body for _, body in told(page)]
        assert bodies == [
            {"verb": "remove", "ids": ["other"]},
            {"verb": "remove", "ids": [one["id"] for one in ALIKE]},
        ]


def test_failures_stand_above_what_runs_only_as_long_as_there_are_some(page: Page) -> None:
    with seen(page, failed=ALIKE, today={"failed": 5}):
        assert top(page, "#failed-part") < top(page, "#running-part")
        page.find("#tiles a").click()
        assert focused(page) == "failed-title", "the figure leads there"
        page.can(OVERVIEW, overview())
        page.sees("#failed-part", "No failures.")
        assert top(page, "#failed-part") > top(page, "#running-part")


def test_an_error_of_an_action_stays_until_it_is_dismissed(page: Page) -> None:
    refusal = {"status": 409, "error": "it is too late for that", "code": "not_possible"}
    with seen(page, failed=[failed("late")], answers={"/api/v1/jobs/late/retry": refusal}):
        page.find("#failed [aria-label='Retry late']").click()
        page.sees("#complaint", "Retry late: it is too late for that")
        looks = len(page.asked())
        wait_until(lambda: len(page.asked()) > looks + 2)
        assert page.find("#alert [role=alert]").text == "Retry late: it is too late for that"
        page.find("#dismiss").click()
        assert not page.find("#alert").is_displayed()


def test_a_refusal_of_some_of_many_says_how_many(page: Page) -> None:
    results = [{"id": "f0", "error": "no job f0 is known", "code": "no_such_job"}, {"id": "f1", "result": "OK"}]
    with seen(page, failed=ALIKE, answers={BATCH: {"results": results}}):
        page.find("#failed [aria-label^='Retry all']").click()
        page.sees("#complaint", "1 of 5 jobs could not be changed: no job f0 is known")


def test_a_lost_node_is_on_top_and_can_be_forgotten(page: Page) -> None:
    lost = node("zeta", "s9", state="lost", seen_at=moment(130))
    forget = "/api/v1/nodes/zeta/forget"
    with seen(page, nodes=[node("alpha", "s1"), lost], answers={forget: {"nodes": []}}):
        assert page.text("#nodes > li:first-child .pill") == "lost 2 min ago"
        assert page.find("#nodes .pill").get_attribute("data-state") == "bad"
        for _ in range(2):
            page.find("#nodes [aria-label^='Forget zeta']").click()
        wait_until(lambda: told(page) == [(forget, {})])


def test_a_running_job_says_that_its_node_is_gone(page: Page) -> None:
    progress = {"done": 10, "size": 100, "phase": "downloading", "connections": 1}
    orphan = job("orphan", "running", owner="s9", node="zeta", progress=progress)
    kept = job("kept", "running", progress=progress)
    with seen(page, nodes=[node("alpha", "s1"), node("zeta", "s9", state="lost")], running=[orphan, kept]):
        assert page.text("#running li:first-child .warning") == "its node is lost; another node will take it over"
        assert page.text("#running li:last-child .warning") == ""
        assert "1 connection ·" in page.text("#running li:last-child .meta")


def test_a_running_job_without_news_says_for_how_long(page: Page) -> None:
    still = job("still", "running", progress={"done": 10, "size": 100, "phase": "downloading"})
    with seen(page, nodes=[node("alpha", "s1")], running=[still]):
        assert page.text("#running .warning") == ""
        page.run(
            "const then = Date.now; Date.now = () => then() + 60_000; window.canned[arguments[0]].now = null", OVERVIEW
        )
        page.sees("#running .warning", "no data for 1 min")


def test_a_node_shows_its_workers(page: Page) -> None:
    workers = [
        {"pid": 11, "busy": 3, "slots": 4, "memory": 92_274_688, "state": "working"},
        {"pid": 12, "busy": 0, "slots": 4, "memory": 10_485_760, "state": "retiring"},
    ]
    with seen(page, nodes=[node("alpha", "s1", workers_info=workers)]):
        assert [len(page.all(f"#nodes .workers li:nth-child({place}) .busy")) for place in (1, 2)] == [3, 0]
        assert "88 MiB" in page.text("#nodes .workers")
        assert "process 12, retiring · 0 of 4 slots busy" in page.run(
            "return document.querySelector('.workers').textContent"
        )


def test_a_stopped_queue_says_so_for_as_long_as_it_is(page: Page) -> None:
    with seen(page, is_halted=True, halted_at=moment(400), answers={"/api/v1/queue/resume": {"is_halted": False}}):
        assert re.search(r"paused since (\S+ )?\d\d:\d\d:\d\d: no job begins", page.text("#halted-text"))
        page.find("#unhalt").click()
        wait_until(lambda: told(page) == [("/api/v1/queue/resume", {})])
        page.can(OVERVIEW, overview())
        wait_until(lambda: not page.find("#halted").is_displayed())
        assert focused(page) == "Pause queue", "the focus goes to the button that undoes it"


def test_after_an_action_the_focus_goes_to_the_same_button_of_the_next_row(page: Page) -> None:
    rows = [job(name, "running") for name in ("a", "b")]
    with seen(page, running=rows, answers={"/api/v1/jobs/a/pause": {}, "/api/v1/jobs/b/pause": {}}):
        for name, left, then in (("a", rows[1:], "Pause b"), ("b", [], "running-title")):
            page.find(f"[aria-label='Pause {name}']").send_keys(Key.ENTER)
            page.can(OVERVIEW, overview(running=left))
            wait_until(lambda then=then: focused(page) == then)  # type: ignore[misc]


def test_a_row_that_goes_by_itself_gives_the_focus_to_its_heading(page: Page) -> None:
    with seen(page, running=[job("a", "running"), job("b", "running")]):
        page.run("document.querySelector(\"[aria-label='Pause a']\").focus()")
        page.can(OVERVIEW, overview(running=[job("b", "running")]))
        wait_until(lambda: focused(page) == "running-title")


def test_the_buttons_of_a_row_fit_its_state(page: Page) -> None:
    with seen(page, listed=[job("a", "delayed")]):
        assert page.all("[aria-label='Now a']")
        page.can(OVERVIEW, overview(listed=[job("a", "paused")]))
        wait_until(lambda: bool(page.all("[aria-label='Resume a']")))
        assert not page.all("[aria-label='Now a']")


def test_a_change_during_a_look_is_followed_by_another_look(page: Page) -> None:
    def looks() -> int:
        return sum(path.startswith(OVERVIEW) for _, path, _ in page.asked())

    away = {"status": 503, "headers": {"Retry-After": "600"}, "error": "Redis cannot be reached", "code": "redis"}
    with seen(page, answers={OVERVIEW: overview()}):
        page.run("window.held = new Promise((done) => { window.release = done; })")
        before = looks()
        wait_until(lambda: looks() > before)
        page.can(OVERVIEW, away)
        page.find("#state option[value=paused]").click()
        page.run("window.release()")
        wait_until(lambda: looks() > before + 1)


def test_a_list_that_leaves_some_out_says_so(page: Page) -> None:
    waiting = [job(f"w{number}", "queued") for number in range(50)]
    with seen(page, listed=waiting, figures={"waiting": 312}):
        assert page.text("#listed-count") == "50 of 312"
        assert page.text("#tiles").startswith("Waiting\n312")


def test_on_a_phone_what_matters_comes_first_and_lists_are_short(page: Page) -> None:
    waiting = [job(f"w{number}", "queued") for number in range(30)]
    with seen(page, 390, listed=waiting, failed=ALIKE, running=[job("r", "running")], nodes=[node("alpha", "s1")]):
        parts = ["failed", "nodes", "running", "charts", "listed", "uploads", "push"]
        tops = [top(page, f"#{part}-part") for part in parts]
        assert tops == sorted(tops)
        assert not page.find("#url").is_displayed(), "the form is closed"
        assert len(page.all("#listed li")) == 10
        page.find("#listed-part .more").click()
        assert len(page.all("#listed li")) == 30
        assert page.run("return [document.documentElement.scrollWidth, innerWidth]") == [390, 390]


def test_history_is_drawn_over_gaps_and_lone_samples_are_dots(page: Page) -> None:
    now = int(time.time() * 1000)
    times = [now - 1000 * ago for ago in (800, 600, 580, 560, 510, 490)]  # alone; five in a row with a gap of 50 s
    samples = [[at, 40, 2, 1024.0] for at in times]
    with seen(page, answers={HISTORY: {"samples": samples}}):
        wait_until(lambda: len(page.all("#depth polyline.waiting")) == 1)
        assert len(page.all("#depth circle.waiting")) == 2, "of the history, and of what the page sees now"
        labels = [one.text for one in page.all("#rate .axis")]
        assert labels[:3] == ["0", "512 B/s", "1 KiB/s"]
        page.run("document.querySelector('[name=span][value=\"86400\"]').click()")
        wait_until(lambda: sum(HISTORY in path for _, path, _ in page.asked()) == 2)
        since = int(page.asked()[-1][1].rpartition("=")[2])
        assert abs(now - 86_400_000 - since) < 60_000
        size = page.run("return getComputedStyle(document.querySelector('.axis')).fontSize")
        assert float(size.removesuffix("px")) >= 11


def test_charts_without_samples_show_no_scale(page: Page) -> None:
    with seen(page, nodes=[node("alpha", "s1")]):
        assert page.run("return document.getElementById('rate').textContent") == "no data yet15 min agonow"
        assert page.text("#rate-now") == "", "a first rate would be a guess"


def test_the_page_says_as_of_when_it_is_while_the_server_is_away(page: Page) -> None:
    with seen(page, running=[job("r", "running")]):
        page.can(OVERVIEW, {"status": 502, "error": "nobody is there"})
        page.sees("#health", "Offline")
        assert re.search(r"Data is from \d\d:\d\d:\d\d, ", page.text("#banner"))
        assert page.run("return getComputedStyle(document.querySelector('main')).opacity") == "1"


def test_before_the_first_answer_nothing_is_said_to_be_empty(page: Page) -> None:
    with page.canned({OVERVIEW: {"status": 503, "code": "redis", "error": "Redis cannot be reached"}}):
        page.open()
        page.sees("#health", "Redis unavailable")
        assert "No running jobs" not in page.text("main")
        assert page.text("#running-part").endswith("No data yet.")
        assert page.console() == []


def test_the_end_of_a_long_path_and_a_path_of_spaces_are_seen(page: Page) -> None:
    long = f"{'a-long-folder/' * 20}the-file.bin"
    with seen(page, running=[job(long, "running"), job("   ", "running")]):
        script = "return document.querySelector('#running .file').getBoundingClientRect().toJSON()"
        file, row = page.run(script), page.run(script.replace(".file", ".name"))
        assert row["left"] <= file["left"] < file["right"] <= row["right"] + 1
        assert page.text("#running li:last-child .name") == "“   ”"


def test_bars_are_seen_in_forced_colours(page: Page) -> None:
    progress = {"done": 50, "size": 100, "phase": "downloading"}
    with seen(page, running=[job("r", "running", progress=progress)], nodes=[node("alpha", "s1")]):
        features = [{"name": "forced-colors", "value": "active"}]
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        colour = "return getComputedStyle(document.querySelector(arguments[0])).backgroundColor"
        assert page.run(colour, "#running .fill") != page.run(colour, "#running .bar")


def test_durations_are_rounded_once(page: Page) -> None:
    script = """
        const [seconds, done] = arguments;
        import("/static/texts.js").then(({ durationText }) => done(seconds.map(durationText)));
    """
    page.open()
    found = page.driver.execute_async_script(script, [0.2, 59.7, 119.6, 3599.9, 86_399.9])
    assert found == ["1 s", "1 min 00 s", "2 min 00 s", "1 h 00 min", "1 d 0 h"]
    page.console()


def test_a_rate_needs_two_changes_and_nodes_are_not_forgotten(page: Page) -> None:
    script = """
        const done = arguments[0];
        import("/static/rates.js").then(({ Rates }) => {
          const rates = new Rates();
          const noted = [[0, 0], [1, 9e9], [2, 9e9 + 100], [4, 9e9 + 300]];
          const seen = noted.map(([at, bytes]) => rates.record("n", bytes, at).rate);
          for (let other = 0; other < 3000; other++) rates.record(`job ${other}`, 1, 4);
          rates.sweep();
          const kept = rates.record("n", 9e9 + 400, 5).rate;
          rates.sweep();
          rates.sweep();
          done([...seen, kept, rates.record("n", 9e9 + 400, 6).rate]);
        });
    """
    page.open()
    assert page.driver.execute_async_script(script) == [None, None, None, 100, 100, None]
    page.console()
