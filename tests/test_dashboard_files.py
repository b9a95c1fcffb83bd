"""Files that are given to the dashboard, in a real Chromium: how they are sent, named, and refused."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.browser import Page, browser
from tests.conftest import make_data, wait_until
from tests.dashboard import Place, anew, place_in
from tests.overviews import HISTORY, OVERVIEW, overview
from tests.uploading import (
    MIB,
    RATE,
    chunks_sent,
    files_in,
    limit_uploads,
    press,
    watch_requests,
)
from tests.web import WebServer


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
            page.sees("#uploads-refused", "large.bin is larger than 3 MiB, the limit of this server")
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


SENT = "return performance.getEntriesByType('resource').filter(one => one.name.includes('/upload_chunk')).length"


def test_a_name_that_is_taken_is_changed_before_anything_is_sent(page: Page, place: Place, tmp_path: Path) -> None:
    (file,) = files_in(tmp_path, 1, 5 * MIB)
    for taken in (file.name, f"{file.stem}-1.bin"):
        (place.web.merged_dir / taken).write_bytes(b"old")
    page.drop(file)
    for number in (1, 2):
        page.sees("#uploads", f"Save as {file.stem}-{number}.bin")
        assert "exists already" in page.text("#uploads .reason")
        assert page.find("#uploads [aria-label^='Try again']").is_displayed()
        assert not list(place.web.upload_dir.rglob("*.chunk"))
        press(page, "Save as")
    page.sees("#uploads", "done")
    assert (place.web.merged_dir / f"{file.stem}-2.bin").read_bytes() == file.read_bytes()
    page.console()  # the refusals


def test_a_name_that_is_taken_meanwhile_is_changed_without_sending_again(
    page: Page, place: Place, tmp_path: Path
) -> None:
    (file,) = files_in(tmp_path, 1, 64 * MIB)
    page.drop(file)
    wait_until(lambda: bool(list(place.web.upload_dir.rglob("*.chunk"))))
    (place.web.merged_dir / file.name).write_bytes(b"old")
    page.sees("#uploads", f"Save as {file.stem}-1.bin")
    sent = page.run(SENT)
    press(page, "Save as")
    page.sees("#uploads", "done")
    assert page.run(SENT) == sent
    assert (place.web.merged_dir / f"{file.stem}-1.bin").read_bytes() == file.read_bytes()
    page.console()  # the refusal


def test_a_refused_upload_says_why_and_can_be_removed(page: Page, place: Place, tmp_path: Path) -> None:
    file = tmp_path / "there already.bin"
    file.write_bytes(b"new")
    (place.web.merged_dir / file.name).write_bytes(b"old")
    page.drop(file)
    page.sees("#uploads", "exists already: choose another name")
    remove = page.find("#uploads [aria-label^=Remove]")
    remove.click()
    assert remove.text == "Sure?"
    remove.click()
    wait_until(lambda: not page.all("#uploads li"))
    assert (place.web.merged_dir / file.name).read_bytes() == b"old"
    page.console()  # the refusal itself


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
    page.sees("#uploads-refused", "More than 10,000 files")
    assert page.all("#uploads li") == []
