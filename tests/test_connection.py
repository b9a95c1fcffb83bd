"""Redis that is away, refuses, or loses replies: our errors, no secrets in them, and nothing sent twice."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis

from dlpool.config import RedisSettings
from dlpool.errors import ConfigurationError, QueueAway, QueueError, QueueRefused
from dlpool.jobs.connection import BLOCK_S, SOCKET_S, connect, effective_url, is_redis, shown_server, translated
from dlpool.jobs.keys import QueueKeys
from dlpool.jobs.pushed_job import PushedJob, compose_job
from dlpool.jobs.redis_address import RedisAddress
from dlpool.jobs.transitions import Transitions
from tests.conftest import wait_until
from tests.proxy import Proxy
from tests.redis_server import RedisServer

SECRET = "s3cret"
Ask = Callable[[redis.Redis], Any]


@contextmanager
def listening(answer: bytes) -> Iterator[str]:
    """A program that is no Redis: it answers each connection with these bytes; HOST:PORT."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    accepted, _ = server.accept()
                    with accepted:
                        accepted.recv(65536)
                        accepted.sendall(answer)
                        accepted.shutdown(socket.SHUT_WR)
                        while accepted.recv(65536):
                            pass

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


def client_of(url: str, tmp_path: Path, **settings: Any) -> redis.Redis:
    return connect(replace(RedisSettings(), url=url, **settings), tmp_path)


def error_of(client: redis.Redis, ask: Ask = lambda client: client.ping()) -> QueueError:
    """The error, as ours, that asking raises; it must not tell the password."""
    with pytest.raises(QueueError) as raised, translated(client):
        ask(client)
    assert SECRET not in str(raised.value)
    return raised.value


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[RedisServer]:
    """A server that wants a password."""
    with RedisServer(tmp_path / "locked", password=SECRET) as server:
        yield server


@pytest.fixture
def proxy(redis_server: RedisServer) -> Iterator[Proxy]:
    with Proxy(redis_server.socket) as proxy:
        yield proxy


# --- away ---------------------------------------------------------------------------------------------------------


def test_a_server_that_is_absent_is_away(proxy: Proxy, tmp_path: Path) -> None:
    proxy.refuse()
    error = error_of(client_of(proxy.url, tmp_path))
    assert type(error) is QueueAway
    assert str(error).startswith(f"Redis at 127.0.0.1:{proxy.port} cannot be reached: ")


def test_a_socket_that_is_absent_is_away(tmp_path: Path) -> None:
    error = error_of(client_of(f"unix://{tmp_path}/none.sock", tmp_path))
    assert type(error) is QueueAway
    assert str(error).startswith(f"Redis at {tmp_path}/none.sock cannot be reached: ")


def test_a_host_without_an_address_is_away(tmp_path: Path) -> None:
    assert type(error_of(client_of("redis://redis.invalid", tmp_path))) is QueueAway


def test_after_a_broken_connection_the_next_call_connects_again(proxy: Proxy, tmp_path: Path) -> None:
    client = client_of(proxy.url, tmp_path)
    client.ping()
    proxy.refuse()
    assert type(error_of(client)) is QueueAway
    proxy.pass_on()
    assert client.ping()


@pytest.mark.parametrize(
    "code",
    [
        "LOADING",
        "MASTERDOWN",
        "BUSY",
        "MISCONF",
        "NOREPLICAS",
        "TRYAGAIN",
        "CLUSTERDOWN",
        "READONLY",
        "OOM",
        "UNBLOCKED",
        "ERR Error running script (call to f_1): @user_script:5: @user_script: 5: -OOM",
    ],
)
def test_what_may_pass_soon_is_away(code: str, redis_server: RedisServer) -> None:
    script = f"return redis.error_reply('{code} for a while')"
    error = error_of(redis_server.client(), lambda client: client.eval(script, 0))
    assert type(error) is QueueAway
    assert "cannot serve now: " in str(error)


def test_what_no_wait_helps_is_neither_away_nor_refused(redis_server: RedisServer) -> None:
    script = "return redis.error_reply('WRONGTYPE of value')"
    assert type(error_of(redis_server.client(), lambda client: client.eval(script, 0))) is QueueError


def test_a_replica_is_away_for_a_push(tmp_path: Path, redis_server: RedisServer) -> None:
    with RedisServer(tmp_path / "replica", replicaof="127.0.0.1 1", replica_serve_stale_data="yes") as replica:
        queue = Transitions(client_of(replica.url, tmp_path), QueueKeys())
        with pytest.raises(QueueAway, match="read only replica"):
            queue.push([(PushedJob.parse(compose_job("http://h/1", "1")), "1")])


@pytest.mark.parametrize("count", [1, 2], ids=["alone", "in a pipeline"])
def test_a_full_memory_is_away_for_a_push(count: int, tmp_path: Path) -> None:
    with RedisServer(tmp_path / "full", maxmemory="100kb") as full:
        queue = Transitions(client_of(full.url, tmp_path), QueueKeys())
        job = PushedJob.parse(compose_job("http://h/1", "1"))
        with pytest.raises(QueueAway, match=r"^Redis at \S+ cannot serve now: command not allowed when used memory"):
            queue.push([(job, str(number)) for number in range(count)])


# --- refused ------------------------------------------------------------------------------------------------------


def test_a_missing_password_is_refused(locked: RedisServer, tmp_path: Path) -> None:
    error = error_of(client_of(locked.url, tmp_path))
    assert type(error) is QueueRefused
    assert str(error) == (
        f"Redis at {locked.socket} refuses: Authentication required (user and password are in [redis])"
    )


def test_a_wrong_password_is_refused(locked: RedisServer, tmp_path: Path) -> None:
    error = error_of(client_of(locked.url, tmp_path, password=SECRET + "?"))
    assert type(error) is QueueRefused


def test_a_password_that_the_server_does_not_want_is_refused(redis_server: RedisServer, tmp_path: Path) -> None:
    assert type(error_of(client_of(redis_server.url, tmp_path, password=SECRET))) is QueueRefused


def test_the_password_of_the_settings_opens(locked: RedisServer, tmp_path: Path) -> None:
    assert client_of(locked.url, tmp_path, password=SECRET).ping()


def test_the_password_of_a_file_opens(locked: RedisServer, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text(f"{SECRET}\n")
    assert client_of(locked.url, tmp_path, password_file=str(file)).ping()


def test_the_password_of_the_url_opens(locked: RedisServer, tmp_path: Path) -> None:
    assert client_of(f"unix://:{SECRET}@{locked.socket}", tmp_path).ping()


def add_user(server: RedisServer, *rules: str) -> None:
    admin: Any = server.client()
    admin.execute_command("ACL", "SETUSER", "worker", "reset", "on", f">{SECRET}", *rules)


def test_a_user_without_the_right_to_a_command_is_refused(locked: RedisServer, tmp_path: Path) -> None:
    add_user(locked, "~*", "+@connection")
    client = client_of(locked.url, tmp_path, username="worker", password=SECRET)
    assert type(error_of(client, lambda client: client.lpush("list", "1"))) is QueueRefused


def test_a_user_without_the_right_to_a_key_is_refused(locked: RedisServer, tmp_path: Path) -> None:
    add_user(locked, "~other", "+@all")
    client = client_of(locked.url, tmp_path, username="worker", password=SECRET)
    assert type(error_of(client, lambda client: client.lpush("list", "1"))) is QueueRefused


def test_a_user_without_the_right_to_a_key_that_a_script_uses_is_refused(locked: RedisServer, tmp_path: Path) -> None:
    add_user(locked, "~go_download_urls", "+@all")
    client = client_of(locked.url, tmp_path, username="worker", password=SECRET)
    with pytest.raises(QueueRefused):
        Transitions(client, QueueKeys()).push([(PushedJob.parse(compose_job("http://h/1", "1")), "1")])


# --- settings that cannot be used ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:6379",
        "http://localhost",
        "redis:localhost",
        f"user:{SECRET}@host",
        "redis+sentinel://h",
        "redis+sentinel:///main",
        "redis+sentinel://h/main/first",
        "redis+sentinel://h:99999/main",
        "redis+other://h/x",
        "redis+cluster://h/1",
        "redis+cluster://h:port",
        "redis+cluster://h,",
        f"redis+cluster://:{SECRET}#@h",
        f"redis+sentinel://:a/{SECRET}@h/main",
        f"redis+sentinel://h/main?no_such_option={SECRET}",
        "rediss://h?ssl_cert_reqs=maybe",
        "redis://localhost:port",
        "redis://[::1",
        "redis://localhost?socket_timeout=soon",
        "redis://h:99999",
        "redis://localhost?no_such_option=1",
        f"redis://:{SECRET}#x@host/0",
        f"redis://:#{SECRET}@host",
        f"redis://:a/{SECRET}@host",
        f"redis://:{SECRET}/a@host",
        f"redis://:a?{SECRET}@host",
        f"ftp://:{SECRET}@host",
        f"redis://host:port?password={SECRET}",
        f"redis://host:port?password=a@{SECRET}",
    ],
)
def test_a_url_that_cannot_be_used_is_said_without_the_password(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"^\[redis\] url = ") as raised:
        client_of(url, tmp_path)
    assert SECRET not in str(raised.value)
    assert raised.value.__suppress_context__ or raised.value.__context__ is None


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://localhost", "redis://localhost"),
        ("redis://u:p@host:1/2?password=x#y", "redis://host:1/2"),
        ("rediss://:p@[::1]:1", "rediss://[::1]:1"),
        ("redis://a@b:p@host/0", "redis://host/0"),
        ("unix://:p@/run/redis.sock?db=1", "unix:///run/redis.sock"),
        ("redis://:a/b@host", "redis://..."),
        ("redis+sentinel://u:p@a:1,b:2/main/0?password=x", "redis+sentinel://a:1,b:2/main/0"),
        ("user:p@host", "host"),
    ],
)
def test_a_url_is_shown_without_user_and_query(url: str, shown: str) -> None:
    assert shown_server(url) == shown


@pytest.mark.parametrize(
    ("url", "plain", "hosts", "service"),
    [
        ("redis://h", "redis://h", (), ""),
        ("redis+sentinel://a,b:1/main", "redis://localhost/", (("a", 26379), ("b", 1)), "main"),
        ("rediss+sentinel://u:p%40@a/m/3?x=1", "rediss://u:p%40@localhost/3?x=1", (("a", 26379),), "m"),
        ("redis+cluster://[::1]:7,h", "redis://localhost/", (("::1", 7), ("h", 6379)), ""),
        ("rediss+cluster://:p@h/0", "rediss://:p@localhost/0", (("h", 6379),), ""),
    ],
)
def test_a_url_may_name_several_hosts(url: str, plain: str, hosts: tuple[tuple[str, int], ...], service: str) -> None:
    address = RedisAddress.parse(url)
    assert (address.server_url, address.hosts, address.service) == (plain, hosts, service)


def test_a_password_file_that_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"^\[redis\] password_file = \S+: No such file or directory$"):
        client_of("redis://localhost", tmp_path, password_file=str(tmp_path / "none"))


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xfe",  # of UTF-16 the mark alone
        b"\xfe\xff",
        b"\xff\xfe\0\0",
        b"\0\0\xfe\xff",
        b"\xff\xfea",
        b"\xff\xfe\0\xd8",
        b"pass\xffword",
        b"\xef\xbb\xbfpass\xffword",
        b"\x80\x81",
    ],
)
def test_a_password_file_that_is_not_text_is_said(data: bytes, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_bytes(data)
    with pytest.raises(ConfigurationError, match=r"^\[redis\] password_file = \S+: it is not UTF-8$"):
        client_of("redis://localhost", tmp_path, password_file=str(file))


def test_a_state_folder_with_special_characters_is_found_by_the_embedded_url(tmp_path: Path) -> None:
    state_dir = Path("/tmp/100% of #1?")
    client = connect(replace(RedisSettings(), url="embedded"), state_dir)
    assert client.connection_pool.connection_kwargs["path"] == f"{state_dir}/redis/redis.sock"


def test_another_url_than_embedded_is_taken_as_it_is(tmp_path: Path) -> None:
    assert effective_url(replace(RedisSettings(), url="redis://h"), tmp_path) == "redis://h"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        # of Redis 7, of Redis 6.2, and of a command that is not in a script
        (
            redis.exceptions.ReadOnlyError(
                f"You can't write against a read only replica. script: {'0a' * 20}, on @user_script:20."
            ),
            "cannot serve now: You can't write against a read only replica",
        ),
        (
            redis.exceptions.OutOfMemoryError(
                f"command not allowed when used memory > 'maxmemory'. script: {'f' * 40}, on @user_script:7."
            ),
            "cannot serve now: command not allowed when used memory > 'maxmemory'",
        ),
        (
            redis.exceptions.ReadOnlyError("You can't write against a read only replica."),
            "cannot serve now: You can't write against a read only replica",
        ),
        (
            redis.exceptions.ResponseError("no such script: a script, on Monday"),
            "refuses: no such script: a script, on Monday",
        ),
    ],
)
def test_a_reason_does_not_name_the_line_of_our_script(error: Exception, said: str, tmp_path: Path) -> None:
    def ask(_client: redis.Redis) -> None:
        raise error

    assert str(error_of(client_of("redis://h:1", tmp_path), ask)) == f"Redis at h:1 {said}"


@pytest.mark.parametrize(
    "answer",
    [
        b"<html>",
        b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"220 smtp ready\r\n",
        b"\x15\x03\x01\x00\x02\x02\x46\r\n",
    ],
)
def test_what_answers_and_is_no_redis_is_named_so(answer: bytes, tmp_path: Path) -> None:
    with listening(answer) as address:
        error = error_of(client_of(f"redis://{address}", tmp_path))
        assert is_redis(client_of(f"redis://{address}", tmp_path)) is False
    assert type(error) is QueueAway
    assert str(error) == f"the server at {address} does not use the protocol of Redis: check the address in [redis]"


# --- nothing is sent twice ----------------------------------------------------------------------------------------


def test_a_command_whose_reply_was_lost_is_sent_once(proxy: Proxy, redis_server: RedisServer, tmp_path: Path) -> None:
    client = client_of(proxy.url, tmp_path)
    client.ping()
    proxy.swallow_next(b"LPUSH")
    assert type(error_of(client, lambda client: client.lpush("list", "job"))) is QueueAway
    assert redis_server.client().lrange("list", 0, -1) == [b"job"]
    assert client.lpush("list", "another") == 2


def test_a_pipeline_whose_reply_was_lost_is_sent_once(proxy: Proxy, redis_server: RedisServer, tmp_path: Path) -> None:
    client = client_of(proxy.url, tmp_path)
    proxy.swallow_next(b"LPUSH")
    pipeline = client.pipeline(transaction=False)
    pipeline.lpush("list", "1")
    pipeline.lpush("list", "2")
    assert type(error_of(client, lambda _: pipeline.execute())) is QueueAway
    assert redis_server.client().lrange("list", 0, -1) == [b"2", b"1"]


def test_a_push_whose_reply_was_lost_may_be_called_again(
    proxy: Proxy, redis_server: RedisServer, tmp_path: Path
) -> None:
    queue = Transitions(client_of(proxy.url, tmp_path), QueueKeys())
    job = PushedJob.parse(compose_job("http://h/1", "1"))
    queue.push([(job, "first")])
    proxy.swallow_next(b"EVALSHA")
    with pytest.raises(QueueAway):
        queue.push([(job, "second")])
    assert queue.push([(job, "second")]) == ["DUP"]
    assert redis_server.client().lrange(QueueKeys().ready("normal"), 0, -1) == [b"second", b"first"]


def test_a_server_that_goes_silent_is_away_after_one_command(
    proxy: Proxy, redis_server: RedisServer, tmp_path: Path
) -> None:
    client = connect(replace(RedisSettings(), url=f"{proxy.url}?socket_timeout=0.2"), tmp_path, name="impatient")
    client.ping()
    proxy.swallow_all()
    error = error_of(client, lambda client: client.lpush("list", "job"))
    assert type(error) is QueueAway
    assert "Timeout" in str(error)
    assert redis_server.client().llen("list") == 1


def take(client: Any) -> Any:
    return client.execute_command("BLMOVE", "list", "inbox", "RIGHT", "LEFT", BLOCK_S)


def test_a_blocking_pop_returns_before_the_socket_times_out(proxy: Proxy, tmp_path: Path) -> None:
    assert BLOCK_S * 2 < SOCKET_S
    client = client_of(proxy.url, tmp_path)
    with translated(client):
        assert take(client) is None


def test_a_blocking_pop_whose_reply_was_lost_took_one_job_only(
    proxy: Proxy, redis_server: RedisServer, tmp_path: Path
) -> None:
    client = client_of(proxy.url, tmp_path)
    admin = redis_server.client()
    admin.lpush("list", "1", "2", "3")
    proxy.swallow_next(b"BLMOVE")
    assert type(error_of(client, take)) is QueueAway
    assert admin.lrange("inbox", 0, -1) == [b"1"]
    assert admin.llen("list") == 2


def test_a_client_is_named_for_those_who_look_at_the_server(redis_server: RedisServer, tmp_path: Path) -> None:
    client = connect(replace(RedisSettings(), url=redis_server.url), tmp_path, name="dlpool-node1")
    client.ping()
    names: list[str] = []

    def is_named() -> bool:
        names[:] = [entry["name"] for entry in redis_server.client().client_list()]
        return "dlpool-node1" in names

    wait_until(is_named)
