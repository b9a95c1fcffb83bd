"""Test which Redis a supervisor uses, and what it logs about it, without a server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dlpool.config import RedisSettings
from dlpool.errors import QueueRefused
from dlpool.jobs.connection import AUTO, EMBEDDED
from dlpool.service.node import redis_server
from dlpool.service.node.redis_server import RedisServer
from tests.fakes import Lines

ADDRESS = "127.0.0.1:6379"


class Private:
    """A fake private server that exits when the test sets it."""

    def __init__(self, listen: str) -> None:
        self.listen, self.url = listen, "unix:///s"
        self.lives, self.stops = True, 0

    def is_alive(self) -> bool:
        return self.lives

    def stop(self) -> None:
        self.stops += 1


class World:
    """A fake machine: which servers it has, and which were started."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.lines = folder, Lines()
        self.is_redis: bool | Exception = False
        self.is_server_running = self.has_data = self.is_taken = False
        self.started: list[Private] = []
        self.asked: list[str] = []
        self.closed = 0
        for name in ("is_redis", "is_server_running", "has_data"):
            monkeypatch.setattr(redis_server, name, lambda _, name=name: self._said(name))
        monkeypatch.setattr(redis_server, "connect", self._connect)
        monkeypatch.setattr(redis_server, "EmbeddedRedis", self)

    def _said(self, name: str) -> bool:
        value = getattr(self, name)
        if isinstance(value, Exception):
            raise value
        return bool(value)

    def _connect(self, settings: RedisSettings, _folder: Path) -> World:
        self.asked.append(settings.url)
        return self

    def close(self) -> None:
        self.closed += 1

    def start(self, folder: Path, listen: str = "") -> Private:
        assert folder == self.folder
        self.started.append(Private("" if self.is_taken else listen))
        return self.started[-1]

    def server(self, url: str, **settings: Any) -> RedisServer:
        log: Any = self.lines
        return RedisServer(RedisSettings(url=url, embedded_listen=ADDRESS, **settings), self.folder, log)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)


def test_a_server_that_is_named_is_used_and_nothing_is_started(world: World) -> None:
    server = world.server("redis://host:7/2", password="secret")
    server.restart_if_exited()
    server.stop()
    assert world.started == [] and world.asked == [] and world.lines.kept == []
    assert server.settings.url == "redis://host:7/2" and "secret" not in server.display_url
    assert server.client_url == server.display_url


@pytest.mark.parametrize(
    ("is_server_running", "is_redis", "is_found"), [(False, True, True), (False, False, False), (True, True, False)]
)
def test_what_auto_finds(is_server_running: bool, is_redis: bool, is_found: bool, world: World) -> None:
    world.is_server_running, world.is_redis = is_server_running, is_redis
    server = world.server(AUTO, password="p")
    assert server.settings.url == (f"redis://{ADDRESS}" if is_found else EMBEDDED)
    assert server.settings.password == ("p" if is_found else None)
    assert len(world.started) == (not is_found)
    assert world.closed == len(world.asked) == (not is_server_running)
    assert world.lines.kept == []
    if not is_found:
        assert server.client_url == f"redis://{ADDRESS}"


def test_a_found_server_that_refuses_is_named(world: World) -> None:
    world.is_redis = QueueRefused("it refuses")
    with pytest.raises(
        QueueRefused, match=r"^it refuses; url = auto found this server: set a password, or url = embedded$"
    ):
        world.server(AUTO)
    assert world.closed == 1


@pytest.mark.parametrize("is_redis", [True, False])
def test_jobs_in_a_private_server_that_is_not_used_are_told_of(is_redis: bool, world: World) -> None:
    world.has_data, world.is_redis = True, is_redis
    world.server(AUTO)
    if not is_redis:
        assert world.lines.kept == []
        return
    ((level, event, fields),) = world.lines.kept
    assert (level, event) == ("warning", "embedded_data_unused")
    assert fields["reason"].startswith(f"Redis at {ADDRESS} is used")
    assert str(world.folder) in fields["reason"]


def test_a_private_server_that_ended_is_started_again_and_ended_once(world: World) -> None:
    server = world.server(EMBEDDED)
    server.restart_if_exited()
    assert len(world.started) == 1 and world.lines.kept == []
    world.started[0].lives = False
    server.restart_if_exited()
    assert len(world.started) == 2
    assert world.lines.kept == [("error", "embedded_redis_exited", {"error": "it is restarted"})]
    server.stop()
    assert [one.stops for one in world.started] == [0, 1]


def test_a_private_server_without_its_address_is_told_of(world: World) -> None:
    world.is_taken = True
    server = world.server(EMBEDDED)
    ((level, event, fields),) = world.lines.kept
    assert (level, event) == ("warning", "embedded_listen_in_use")
    assert fields["reason"].startswith(f"another program uses {ADDRESS}") and "unix:///s" in fields["reason"]
    assert server.client_url == server.display_url != f"redis://{ADDRESS}"
