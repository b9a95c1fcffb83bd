"""Test the private Redis without its program: command line, log, and the time limits of its start."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dlpool.errors import QueueAway, QueueError
from dlpool.jobs.embedded_socket import embedded_dir
from dlpool.service.node import embedded_redis
from dlpool.service.node.embedded_redis import (
    EmbeddedRedis,
    has_data,
    is_address_free,
    is_server_running,
    server_arguments,
)
from dlpool.service.node.locks import POLL_S, lock_within, open_lock
from tests.conftest import open_descriptors
from tests.fakes import Clock

LISTEN = "127.0.0.1:7000"


def server_of(log: Path, *, start: int = 0, code: int | None = None) -> EmbeddedRedis:
    process: Any = SimpleNamespace(pid=1, returncode=code, poll=lambda: code)
    return EmbeddedRedis(process, "unix:///s", "", log, start)


# --- its command line ---


@pytest.mark.parametrize(("listen", "host", "port"), [("", "127.0.0.1", "0"), ("[::1]:7", "::1", "7")])
def test_its_settings_are_on_its_command_line(listen: str, host: str, port: str) -> None:
    given = server_arguments(Path("/data"), Path("/s"), Path("/log"), listen)
    settings = dict(zip(given[:26:2], given[1:26:2], strict=True))
    assert settings == {
        "--port": port,
        "--bind": host,
        "--protected-mode": "yes",
        "--unixsocket": "/s",
        "--unixsocketperm": "700",
        "--dir": "/data",
        "--logfile": "/log",
        "--appendonly": "yes",
        "--appendfsync": "everysec",
        "--save": "",
        "--maxmemory-policy": "noeviction",
        "--daemonize": "no",
        "--supervised": "no",
    }
    assert given[26:] == (["--user", *embedded_redis.CLIENT_RIGHTS.split()] if listen else [])


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_an_address_at_which_a_program_listens_is_not_free(family: int, host: str) -> None:
    with socket.socket(family) as one:
        one.bind((host, 0))
        one.listen()
        address = f"[{host}]:{one.getsockname()[1]}" if ":" in host else f"{host}:{one.getsockname()[1]}"
        assert not is_address_free(address)
    assert is_address_free(address)


# --- its folder ---


def test_a_folder_is_held_while_a_server_has_its_lock(tmp_path: Path) -> None:
    assert not is_server_running(tmp_path)
    embedded_dir(tmp_path).mkdir(parents=True)
    lock = open_lock(embedded_dir(tmp_path) / embedded_redis.LOCK)
    before = open_descriptors(tmp_path)
    try:
        assert not is_server_running(tmp_path)
        assert lock_within(lock, 0)
        assert is_server_running(tmp_path)
        assert open_descriptors(tmp_path) == before
    finally:
        os.close(lock)
    assert not is_server_running(tmp_path)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({}, False),
        ({"appendonlydir/a": 1024}, False),
        ({"appendonlydir/a": 1025}, True),
        ({"appendonlydir/a": 1000, "appendonlydir/b": 25}, True),
        ({"appendonly.aof": 2000}, True),
        ({"redis.log": 2000}, False),
    ],
)
def test_whether_there_are_jobs_in_it(sizes: dict[str, int], expected: bool, tmp_path: Path) -> None:
    for name, size in sizes.items():
        path = embedded_dir(tmp_path) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)
    assert has_data(tmp_path) == expected


# --- a start ---


@pytest.mark.parametrize(
    ("text", "start", "words"),
    [
        ("1:C 25 Nov 2026 10:00:00.123 # bad option\n\n", 0, "bad option"),
        ("first\n  last  \n", 0, "last"),
        ("of another server\n", 18, "it logged nothing, status 7"),
        ("", 0, "it logged nothing, status 7"),
        ("of another server\nmine\n", 18, "mine"),
    ],
)
def test_the_last_log_line_of_a_server(text: str, start: int, words: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(text)
    assert server_of(log, start=start, code=7)._last_log_line() == words


@pytest.mark.parametrize("more", [0, 1])
def test_of_a_long_log_the_end_is_read(more: int, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("x" * 100 + "y" * (embedded_redis.MAX_LOG_TAIL + more))
    assert server_of(log, code=7)._last_log_line() == "y" * embedded_redis.MAX_LOG_TAIL


@pytest.mark.parametrize(
    ("answers", "waited_s"),
    [(["ready"], 0.0), (["silent", "ready"], POLL_S), (["loading"] * 100 + ["silent", "ready"], 101 * POLL_S)],
)
def test_a_start_waits_until_the_server_answers(
    answers: list[str], waited_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, said = Clock(), iter(answers)
    began = clock.now
    monkeypatch.setattr(embedded_redis, "time", clock)
    monkeypatch.setattr(embedded_redis, "_ask", lambda _socket: next(said))
    server_of(tmp_path / "log")._wait_until_ready(tmp_path / "s", 0.1)
    assert clock.now - began == pytest.approx(waited_s)


def test_a_start_gives_up_after_the_servers_silence_or_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    began = clock.now
    monkeypatch.setattr(embedded_redis, "time", clock)
    monkeypatch.setattr(embedded_redis, "_ask", lambda _socket: "silent")
    (tmp_path / "log").write_text("odd\n")
    with pytest.raises(QueueAway, match=r"did not answer for 1 s \(its log: /.*/log\)$"):
        server_of(tmp_path / "log")._wait_until_ready(tmp_path / "s", 1.0)
    assert clock.now - began == pytest.approx(1.0, abs=POLL_S)
    with pytest.raises(QueueError, match=r"exited at its start: odd \(its log: /.*/log\)$"):
        server_of(tmp_path / "log", code=1)._wait_until_ready(tmp_path / "s", 1.0)


@pytest.mark.parametrize(
    ("error", "listen", "free", "starts"),
    [
        (QueueError("it ended"), LISTEN, [True, False], [LISTEN, ""]),
        (QueueError("it ended"), LISTEN, [True, True], [LISTEN]),
        (QueueError("it ended"), LISTEN, [False], [""]),
        (QueueError("it ended"), "", [], [""]),
        (KeyboardInterrupt(), LISTEN, [True], [LISTEN]),
        (None, LISTEN, [True], [LISTEN]),
        (None, LISTEN, [False], [""]),
        (None, "", [], [""]),
    ],
)
def test_a_start_without_its_address_only_where_another_program_took_it(
    error: BaseException | None,
    listen: str,
    free: list[bool],
    starts: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked, errors, seen, ended = iter(free), iter([error, None]), [], []

    class Fake(EmbeddedRedis):
        @classmethod
        def _spawned(cls, program: str, state_dir: Path, listen: str, lock: int) -> EmbeddedRedis:
            assert lock >= 0 and program == "/program" and is_server_running(state_dir), "under the lock"
            seen.append(listen)
            process: Any = SimpleNamespace(pid=1, poll=lambda: None)
            return cls(process, "unix:///s", listen, state_dir, 0)

        def _wait_until_ready(self, _socket: Path, _timeout_s: float) -> None:
            if (one := next(errors)) is not None:
                raise one

        def stop(self, timeout_s: float = 1.0) -> None:
            assert timeout_s == 1.0
            ended.append(self.listen)

    monkeypatch.setattr(embedded_redis, "find_redis_program", lambda: "/program")
    monkeypatch.setattr(embedded_redis, "is_address_free", lambda _address: next(asked))
    if error is not None and len(starts) == 1:
        with pytest.raises(type(error)):
            Fake.start(tmp_path, 1.0, listen)
    else:
        assert Fake.start(tmp_path, 1.0, listen).listen == starts[-1]
    assert seen == starts and ended == (starts[:1] if error is not None else [])
    assert list(asked) == [] and not is_server_running(tmp_path)
