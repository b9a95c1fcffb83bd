"""The dashboard over a fleet that fails: what the page asks for is done, and what it shows is so."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

from tests.browser import Page, browser
from tests.conftest import wait_until
from tests.dashboard import anew, place_in
from tests.desk import Gate, InTurn, answer, desk_of
from tests.origin import File

ALIKE = 5


@pytest.mark.parametrize("verb", ["Retry all", "Dismiss all"])
def test_failures_that_are_alike_are_ended_together(verb: str, tmp_path: Path) -> None:
    with (
        place_in(tmp_path / "place") as place,
        desk_of(place.service, place.client) as desk,
        browser(place.web.root, tmp_path / "browser") as tab,
        anew(tab) as page,
    ):
        desk.serve(InTurn(*[answer(404)] * ALIKE, File(b"there")))
        for number in range(ALIKE):
            desk.push(number)
        page.sees("#failed", f"{ALIKE} \N{MULTIPLICATION SIGN} not_found at ")
        press_twice(page, f"#failed [aria-label^='{verb}']")
        page.sees("#failed", "")
        page.find("#state option[value=succeeded]").click()
        if verb == "Retry all":
            page.sees("#listed", desk.path(ALIKE - 1))
            wait_until(lambda: desk.files() == [str(number) for number in range(ALIKE)])
        else:
            assert desk.files() == []
            assert page.text("#listed") == ""


def test_a_node_that_is_killed_is_lost_until_it_is_forgotten(tmp_path: Path) -> None:
    with (
        place_in(tmp_path / "place", lease="2s", grace="1s") as place,
        desk_of(place.service, place.client) as desk,
        browser(place.web.root, tmp_path / "browser") as tab,
        anew(tab) as page,
    ):
        gate = Gate()
        desk.serve(gate)
        desk.push()
        page.sees("#running", desk.path())
        page.sees("#nodes .pill", "working")
        assert place.service.process is not None
        place.service.process.send_signal(signal.SIGKILL)
        page.sees("#nodes .pill", "lost")
        page.sees("#running", "its node is lost; another node will take it over")
        wait_until(lambda: lost_s(page) >= 9, 30)  # not before it has stayed away for a moment
        press_twice(page, "#nodes [aria-label^='Forget here']")
        wait_until(lambda: not page.all("#nodes > li"))
        page.sees("#running", "")  # what it had is given back
        page.sees("#listed", desk.path())
        gate.open()
        place.service.start()
        page.sees("#nodes .pill", "working")
        wait_until(lambda: desk.files() == ["f"])


def lost_s(page: Page) -> int:
    """For how many seconds the node has been lost."""
    found = re.search("lost ([0-9]+) s ago", page.text("#nodes .pill"))
    return int(found[1]) if found else 0


def press_twice(page: Page, selector: str) -> None:
    """What cannot be taken back asks once more."""
    for _ in range(1 + page.find(selector).text.startswith(("Dismiss", "Forget"))):
        page.find(selector).click()
