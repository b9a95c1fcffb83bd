"""A headless Chromium over a dashboard: what a person does there, and what the console says of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from tests.conftest import wait_until

SEEN_S = 30.0
# Answers instead of the server's, by path: for what no server can be brought to say at will.
CANNED = """
    window.canned = %s;
    window.asked = [];
    const ask = window.fetch;
    window.fetch = async (path, options = {}) => {
      const answer = window.canned[String(path).split("?")[0]];
      if (answer === undefined) return ask(path, options);
      window.asked.push([options.method ?? "GET", String(path), options.body ?? ""]);
      await window.held;
      const { status = 200, headers = {}, ...body } = window.canned[String(path).split("?")[0]];
      return new Response(JSON.stringify(body), { status, headers });
    };
"""
# What a browser writes by itself when a server is away, or refuses: asked for by the tests that do that.
AWAY = ("Failed to load resource", "net::ERR_")


class Page:
    """One browser window. ``errors`` are the console's, less those that a server that is away makes."""

    def __init__(self, driver: webdriver.Chrome, root: str) -> None:
        self.driver = driver
        self.root = root

    def open(self, width: int = 1280, height: int = 900, scheme: str = "light") -> None:
        """Open the page at a width, in the dark or not."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        self.driver.get(self.root)

    def find(self, css: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, css)

    def all(self, css: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, css)

    def text(self, css: str) -> str:
        """The text of all that there is of ``css``, at one moment."""
        script = "return [...document.querySelectorAll(arguments[0])].map(one => one.innerText).join('\\n')"
        return str(self.driver.execute_script(script, css))

    def sees(self, css: str, text: str, timeout_s: float = SEEN_S) -> None:
        """Wait until ``text`` stands in ``css``."""
        seen = ""

        def is_there() -> bool:
            nonlocal seen
            seen = self.text(css)
            return text in seen

        try:
            wait_until(is_there, timeout_s)
        except AssertionError:
            raise AssertionError(f"{text!r} did not come in {css}: {seen!r}; {self.console()}") from None

    @contextmanager
    def canned(self, answers: dict[str, Any]) -> Iterator[None]:
        """From the next ``open`` on, what is asked for at these paths is answered so.

        ``status`` and ``headers`` of an answer are not in its body.
        """
        command = "Page.addScriptToEvaluateOnNewDocument"
        made = self.driver.execute_cdp_cmd(command, {"source": CANNED % json.dumps(answers)})
        try:
            yield
        finally:
            self.driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", made)

    def can(self, path: str, answer: dict[str, Any] | None) -> None:
        """Change a canned answer; None: the server is asked."""
        self.run("window.canned[arguments[0]] = arguments[1] ?? undefined", path, answer)

    def asked(self) -> list[tuple[str, str, str]]:
        """Method, path and body of what was asked for, and was answered from the can."""
        return [(method, path, body) for method, path, body in self.run("return window.asked")]

    def run(self, script: str, *arguments: object) -> Any:
        return self.driver.execute_script(script, *arguments)

    def fill(self, **fields: str) -> None:
        """Type into the fields of these ids."""
        for name, text in fields.items():
            self.find(f"#{name}").send_keys(text)

    def drop(self, *paths: Path) -> None:
        """Drag files or folders from the desktop, and drop them on the page."""
        box: dict[str, Any] = self.driver.execute_script(
            "const e = document.getElementById('drop'); e.scrollIntoView({block: 'center'}); "
            "return e.getBoundingClientRect().toJSON()"
        )
        place = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
        data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.driver.execute_cdp_cmd("Input.dispatchDragEvent", {"type": kind, **place, "data": data})

    def shot(self, path: Path) -> bytes:
        """A picture of the whole page, which is kept at ``path``."""
        height = self.driver.execute_script("return document.documentElement.scrollHeight")
        width = self.driver.execute_script("return document.documentElement.clientWidth")
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        path.parent.mkdir(parents=True, exist_ok=True)
        assert self.driver.save_screenshot(str(path))
        return path.read_bytes()

    def console(self, *, is_away: bool = False) -> list[str]:
        """What the console has said since the last call; ``is_away``: less what a server that is away makes of it."""
        said = [str(entry["message"]) for entry in self.driver.get_log("browser")]  # type: ignore[no-untyped-call]
        return [line for line in said if not (is_away and any(word in line for word in AWAY))]


@contextmanager
def browser(root: str, folder: Path) -> Iterator[Page]:
    """A Chromium with a profile of its own, which ends with the context."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    driver_path = shutil.which("chromedriver")
    assert chromium and driver_path, "chromium and chromedriver are not installed: scripts/test installs them"
    options = Options()
    options.binary_location = chromium
    options.add_argument("--headless=new")
    options.add_argument("--no-sandbox")  # the tests may run as root, and open their own page only
    options.add_argument("--disable-dev-shm-usage")
    options.add_argument("--disable-background-networking")
    options.add_argument(f"--user-data-dir={folder / 'profile'}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(driver_path))
    try:
        driver.set_script_timeout(60)
        yield Page(driver, root)
    finally:
        driver.quit()
