"""Uploads of a browser, as tests watch them: what is sent, what is stored, what the browser remembers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import requests

from tests.browser import Page
from tests.conftest import make_data, wait_until
from tests.web import WebServer

MIB = 2**20
SIZE = 48 * MIB + 12_345
RATE = 8 * MIB  # bytes a second of uploads, so that they can be cut in mid-way


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
