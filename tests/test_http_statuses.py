"""Statuses, Retry-After, and servers that admit few connections."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from dlpool import errors
from tests.conftest import Fetcher
from tests.handlers import (
    DATA,
    OTHER,
    SIZE,
    Serve,
    check_file,
    nth,
)
from tests.origin import Connection, File, Request

# --- statuses ---


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524])
def test_passing_statuses_are_retried(status: int, serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    origin = serve(nth({1, 3}, lambda _r, c: c.answer(status), File(DATA)))
    fetch(f"{origin.url}/f", tmp_path / "f")
    check_file(tmp_path / "f")


@pytest.mark.parametrize(
    ("status", "error", "code"),
    [
        (401, errors.AccessDenied, 6),
        (403, errors.AccessDenied, 6),
        (407, errors.AccessDenied, 6),
        (404, errors.NotFound, 10),
        (410, errors.NotFound, 10),
        (451, errors.HttpRefused, 8),
        (204, errors.ProtocolBroken, 7),
        (205, errors.ProtocolBroken, 7),
        (304, errors.ProtocolBroken, 7),
        (505, errors.HttpRefused, 8),
    ],
)
def test_final_statuses_fail_at_once(
    status: int, error: type[errors.DlpoolError], code: int, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    origin = serve(lambda _request, connection: connection.answer(status))
    with pytest.raises(error) as raised:
        fetch(f"{origin.url}/f", tmp_path / "f")
    assert raised.value.exit_code == code
    assert len(origin.requests) == 1
    assert list(tmp_path.iterdir()) == []


def test_1xx_answers_are_skipped(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    file = File(DATA)

    def handle(request: Request, connection: Connection) -> None:
        connection.send(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n")
        file(request, connection)

    origin = serve(handle)
    fetch(f"{origin.url}/f", tmp_path / "f")
    check_file(tmp_path / "f")


def test_a_203_is_taken_whole_and_never_combined(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    origin = serve(lambda _r, c: c.answer(203, {"ETag": '"v1"'}, DATA))
    fetch(f"{origin.url}/f", tmp_path / "f")
    check_file(tmp_path / "f")

    mixed = serve(nth({2, 3}, lambda _r, c: c.answer(203, {"ETag": '"v1"'}, OTHER), File(DATA)))
    fetch(f"{mixed.url}/g", tmp_path / "f")
    check_file(tmp_path / "f")


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("value", ["1", "date"])
def test_no_thread_asks_again_before_retry_after(
    status: int, value: str, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    file = File(DATA)
    refused_at: list[float] = []
    early: list[float] = []
    lock = threading.Lock()

    def handle(request: Request, connection: Connection) -> None:
        now = time.time()
        with lock:
            if request.number == 3:
                refused_at.append(now)
            elif refused_at and request.number > 8 and now < refused_at[0] + 0.9:
                early.append(now)
        if request.number == 3:
            seconds = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(now + 2)) if value == "date" else value
            connection.answer(status, {"Retry-After": seconds})
        else:
            file(request, connection)

    origin = serve(handle)
    fetch(f"{origin.url}/f", tmp_path / "f", min_split_size=64 * 1024, connections=4)
    check_file(tmp_path / "f")
    assert refused_at and not early


@pytest.mark.parametrize("value", ["soon", "-5", "", "Thu, 01 Jan 1970 00:00:00 GMT", "99999999999999999999"])
def test_a_garbage_or_past_retry_after_is_an_ordinary_backoff(
    value: str, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    origin = serve(nth({1}, lambda _r, c: c.answer(503, {"Retry-After": value}), File(DATA)))
    fetch(f"{origin.url}/f", tmp_path / "f")
    check_file(tmp_path / "f")


def test_a_retry_after_above_the_limit_fails_with_that_reason(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    origin = serve(lambda _r, c: c.answer(429, {"Retry-After": "3600"}))
    with pytest.raises(errors.WaitTooLong, match="3600 s"):
        fetch(f"{origin.url}/f", tmp_path / "f")


def test_a_range_that_fails_for_good_fails_the_job_and_keeps_the_state(
    serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    file = File(DATA, block=16 * 1024, pause_s=0.2)

    def handle(request: Request, connection: Connection) -> None:
        span = request.range
        if span and span.start > SIZE // 2:
            connection.answer(500)
        else:
            file(request, connection)

    origin = serve(handle)
    threads = set(threading.enumerate())
    with pytest.raises(errors.ServerTrouble):
        fetch(f"{origin.url}/f", tmp_path / "f")
    assert (tmp_path / "f.part.meta").exists()
    left = [thread for thread in set(threading.enumerate()) - threads if thread.name.startswith("dlpool-connection")]
    assert left == []

    good = serve(File(DATA))
    file.pause_s = 0
    origin.handler = good.handler
    outcome = fetch(f"{origin.url}/f", tmp_path / "f")
    check_file(tmp_path / "f")
    assert outcome.resumed_from > 0


@pytest.mark.parametrize("how", ["503", "close", "silence"])
def test_a_server_that_allows_two_connections_still_completes(
    how: str, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    file = File(DATA, block=32 * 1024, pause_s=0.05)
    busy = threading.Semaphore(2)

    def handle(request: Request, connection: Connection) -> None:
        if not busy.acquire(blocking=False):
            if how == "503":
                return connection.answer(503)
            return connection.reset() if how == "close" else connection.wait_for_client_to_go()
        try:
            return file(request, connection)
        finally:
            busy.release()

    origin = serve(handle)
    fetch(f"{origin.url}/f", tmp_path / "f", retry_delay=0.2, retry_max_delay=0.5)
    check_file(tmp_path / "f")
