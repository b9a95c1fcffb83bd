"""``GET /tasks`` and the figures of tasks over HTTP, from two processes over many tasks."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests

from dlpool.storage.disk.catalog import make_cursor
from dlpool.storage.values import MAX_PAGE
from tests.listings import make_tasks
from tests.web import WebServer

COUNT = MAX_PAGE + 30


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebServer]:
    folder = tmp_path_factory.mktemp("lists")
    make_tasks(folder, COUNT)
    with WebServer(folder, {"web": {"threads": 16}}) as server:
        yield server
        assert not server.events("gunicorn_error") and not server.events("request_internal_error"), server.said()


def ask(server: WebServer, method: str, path: str, **options: Any) -> tuple[int, dict[str, Any]]:
    """Ask over a connection of its own, so that either process may answer."""
    answer = requests.request(
        method, f"{server.url}{path}", timeout=30, headers={"Accept": "application/json"}, **options
    )
    return answer.status_code, answer.json()


def test_a_list_without_a_limit_has_one_page(server: WebServer) -> None:
    status, first = ask(server, "GET", "/tasks")
    assert (status, len(first["tasks"]), first["total"]) == (200, MAX_PAGE, COUNT)
    status, last = ask(server, "GET", f"/tasks?cursor={first['next']}")
    assert (status, len(last["tasks"]), last["total"], "next" in last) == (200, COUNT - MAX_PAGE, COUNT, False)
    ids = [task["task_id"] for task in first["tasks"] + last["tasks"]]
    assert ids == sorted(set(ids)) and len(ids) == COUNT


def test_figures_are_those_of_the_list(server: WebServer) -> None:
    states = ask(server, "GET", "/metrics")[1]["tasks"]
    assert states == ask(server, "GET", "/system")[1]["tasks"]
    assert {state: ask(server, "GET", f"/tasks?status={state}&limit=1")[1]["total"] for state in states} == states
    assert sum(states.values()) == COUNT
    assert ask(server, "GET", "/tasks?status=paused,uploading&limit=1")[1]["total"] == COUNT


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("limit=0", "bad_field"),
        (f"limit={MAX_PAGE + 1}", "bad_field"),
        ("limit=-1", "bad_field"),
        ("limit=ten", "bad_field"),
        ("limit=" + "9" * 30, "bad_field"),
        ("status=not_found", "bad_field"),
        ("status=paused,,failed", "bad_field"),
        ("status=%00", "bad_field"),
        ("cursor=x", "bad_cursor"),
        ("cursor=%C3%A4", "bad_cursor"),
        ("cursor=" + "A" * 3000, "bad_cursor"),
        (f"cursor={make_cursor('a')}", "bad_cursor"),
    ],
)
def test_a_query_that_no_page_answers_is_refused(server: WebServer, query: str, code: str) -> None:
    status, said = ask(server, "GET", f"/tasks?{query}")
    assert (status, said["code"]) == (400, code)
    assert said["error"] and not said["error"].endswith(".")


@pytest.mark.parametrize("query", ["", "limit=", "limit=5&cursor=", "status=", "_=12345"])
def test_a_query_that_says_nothing_is_passed_over(server: WebServer, query: str) -> None:
    assert ask(server, "GET", f"/tasks?{query}")[1]["total"] == COUNT


def test_a_client_sees_its_own_changes_through_each_process(server: WebServer) -> None:
    name, url = "aaa", "/tasks?limit=3"
    for turn in range(12):
        form = {"file_id": name, "chunk_index": str(turn), "total_chunks": "12"}
        assert ask(server, "POST", "/upload_chunk", data=form, files={"chunk": b"x"})[0] == 200
        assert ask(server, "GET", url)[1]["tasks"][0]["uploaded_chunks"] == turn + 1
        for verb, state in (("pause", "paused"), ("resume", "uploading")):
            assert ask(server, "POST", f"/tasks/{name}/{verb}")[0] == 200
            assert ask(server, "GET", url)[1]["tasks"][0]["status"] == state
    assert ask(server, "DELETE", f"/tasks/{name}")[0] == 200
    assert ask(server, "GET", url)[1]["total"] == COUNT


def test_many_lists_at_once_are_answered(server: WebServer) -> None:
    with ThreadPoolExecutor(24) as pool:
        lists = [pool.submit(ask, server, "GET", "/tasks?limit=10") for _ in range(70)]
        others = [pool.submit(ask, server, "GET", "/upload_status?file_id=x") for _ in range(20)]
        answers = [one.result() for one in lists]
        assert {status for status, _ in answers} == {200}
        assert {said["total"] for _, said in answers} == {COUNT}
        assert {one.result()[0] for one in others} == {200}
