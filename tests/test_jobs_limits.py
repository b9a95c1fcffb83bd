"""Values of the queue at their limits: fields of a job, times, answers for operators, options of connections."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis
from redis import exceptions as errors

from dlpool.config import RedisSettings
from dlpool.errors import ConfigurationError, NoSuchJob, QueueAway, QueueError, QueueRefused, UsageError
from dlpool.jobs.connection import CONNECT_S, SOCKET_S, auto_address, connect, is_redis, translated
from dlpool.jobs.failure_records import FailureRecord
from dlpool.jobs.job_admin import NotPossible, error_of_reply
from dlpool.jobs.job_view import time_text, time_text_ms
from dlpool.jobs.keys import node_of
from dlpool.jobs.nodes import node_rows
from dlpool.jobs.pushed_job import MAX_HEADERS, MAX_PATH, MAX_URL, BadJob, Malformed, PushedJob, compose_job, parse_time
from dlpool.jobs.queue_clock import QueueTime, parse_ahead_ms
from dlpool.jobs.queue_views import QueueStats, SupervisorView
from dlpool.jobs.redis_address import RedisAddress
from dlpool.jobs.redis_values import to_number, to_object
from dlpool.jobs.server_check import incompatibility, warnings
from tests.conftest import Authority

# --- fields of a job ---


def texts(most: int) -> list[tuple[str, bool]]:
    """Texts of at most, and of more than so many characters as ASCII JSON."""
    return [
        ("x" * most, True),
        ("x" * (most + 1), False),
        ("ü" * (most // 6), True),
        ("ü" * (most // 6) + "x" * (most % 6 + 1), False),
    ]


@pytest.mark.parametrize(("url", "is_taken"), texts(MAX_URL), ids=lambda value: str(value)[:5])
def test_a_url_has_a_longest_length(url: str, is_taken: bool) -> None:
    if is_taken:
        assert PushedJob.parse(compose_job(url, "x")).url == url
    else:
        with pytest.raises(Malformed, match=f"url is longer than {MAX_URL} characters"):
            PushedJob.parse(compose_job(url, "x"))


@pytest.mark.parametrize(("path", "is_taken"), texts(MAX_PATH), ids=lambda value: str(value)[:5])
def test_a_path_has_a_longest_length(path: str, is_taken: bool) -> None:
    if is_taken:
        assert PushedJob.parse(compose_job("http://h", path)).save_path == path
    else:
        with pytest.raises(BadJob, match=f"save_path is longer than {MAX_PATH} characters"):
            PushedJob.parse(compose_job("http://h", path))


@pytest.mark.parametrize(
    ("field", "value", "is_taken"),
    [
        ("id", "x" * 64, True),
        ("id", "x" * 65, False),
        ("max_attempts", 0, False),
        ("max_attempts", 1, True),
        ("max_attempts", 1_000_000, True),
        ("max_attempts", 1_000_001, False),
        ("limit_rate", 1023, False),
        ("limit_rate", 1024, True),
        ("limit_rate", 2**63 - 1, True),
        ("limit_rate", 2**63, False),
        ("user_id", "x" * 200, True),
        ("user_id", "x" * 201, False),
        ("headers", {"A": "b" * (MAX_HEADERS - len(json.dumps({"A": ""})))}, True),
        ("headers", {"A": "b" * (MAX_HEADERS - len(json.dumps({"A": ""})) + 1)}, False),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_field_is_taken_up_to_its_limit(field: str, value: Any, is_taken: bool) -> None:
    raw = compose_job("http://h", "x", **{field: value})
    if is_taken:
        assert getattr(PushedJob.parse(raw), field) == value
    else:
        with pytest.raises(BadJob):
            PushedJob.parse(raw)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (0, 0.0),
        (0.5, 0.5),
        (2**40 - 1, 2.0**40 - 1),
        (2**40, None),
        (-1, None),
        (-0.5, None),
        (999_999_999_999, 1e12 - 1),
    ],
)
def test_a_moment_is_between_1970_and_the_far_future(value: float, seconds: float | None) -> None:
    if seconds is None:
        with pytest.raises(UsageError):
            parse_time(value)
    else:
        assert parse_time(value) == seconds


# --- times ---


@pytest.mark.parametrize(
    ("clock", "noted", "now_ms", "ahead_ms"),
    [
        ((100, 250_999), (None, None), 100_250, 0),
        ((100, 500_000), (None, None), 100_500, 0),
        ((100, 0), (b"99999", b"0"), 100_000, 0),
        ((100, 0), (b"100000", b"0"), 100_000, 0),
        ((100, 0), (b"200000", b"0"), 200_000, 100_000),
        ((100, 0), (b"5", b"1000"), 101_000, 1000),
        ((100, 0), (b"101500", b"1000"), 101_500, 1500),
        ((100, 0), (None, b"-500"), 99_500, -500),
        ((100, 0), (b"x", b"1.5"), 100_000, 0),
        ((100, 0), (b"", b"--"), 100_000, 0),
    ],
)
def test_the_queue_time_is_the_clock_and_its_lead_but_never_goes_back(
    clock: tuple[int, int], noted: tuple[bytes | None, bytes | None], now_ms: int, ahead_ms: int
) -> None:
    found = QueueTime.of(clock, noted)
    assert (found.now_ms, found.ahead_ms) == (now_ms, ahead_ms)
    assert found.clock_ms == clock[0] * 1000 + clock[1] // 1000


def test_the_lead_of_a_reply() -> None:
    assert [parse_ahead_ms(reply) for reply in (None, b"", b"7", b"-7", b"x")] == [0, 0, 7, -7, 0]


@pytest.mark.parametrize(
    ("at", "text"),
    [
        (None, None),
        (-5, "1970-01-01T00:00:00Z"),
        (0, "1970-01-01T00:00:00Z"),
        (1, "1970-01-01T00:00:01Z"),
        (253_402_300_799, "9999-12-31T23:59:59Z"),
        (10**15, "9999-12-31T23:59:59Z"),
    ],
)
def test_a_time_is_one_that_can_be_written(at: float | None, text: str | None) -> None:
    assert time_text(at) == text


@pytest.mark.parametrize(
    ("at", "text"), [(1.0, "01.000"), (1.001, "01.001"), (1.0006, "01.001"), (59.9996, "00.000"), (12.125, "12.125")]
)
def test_an_exact_time_has_milliseconds(at: float, text: str) -> None:
    assert time_text_ms(at) == f"1970-01-01T00:0{int(at > 59.5)}:{text}Z"


def test_numbers_and_objects_of_redis_are_read_or_nothing() -> None:
    found = [to_number(text) for text in (None, "", "x", "1", "-1.5", "1e3", "9" * 18, "9" * 19, "1.")]
    assert found == [None, None, None, 1.0, -1.5, None, float("9" * 18), None, None]
    assert [to_object(text) for text in (None, "", "[]", "{", '{"a": 1}', "[" * 100_000)] == [
        {},
        {},
        {},
        {},
        {"a": 1},
        {},
    ]


def test_the_node_of_a_supervisor() -> None:
    assert [node_of(sid) for sid in ("a-0123abcd", "a-b-0123abcd", "a-0123abcde", "-0123abcd", "a")] == [
        "a",
        "a-b",
        None,
        None,
        None,
    ]


# --- answers for operators ---


@pytest.mark.parametrize(
    ("reply", "kind", "text"),
    [
        ("OK", None, ""),
        ("ASKED", None, ""),
        ("NONE", NoSuchJob, "no job 'j' is known"),
        ("following", NotPossible, "cannot pause j: it ends with the job that does the same"),
        ("GONE", NotPossible, "cannot pause j: the record has changed or was deleted"),
        ("EMPTY", NotPossible, "cannot pause j: the record holds no job"),
        ("succeeded", NotPossible, "cannot pause j: it is succeeded"),
    ],
)
def test_what_redis_answers_is_said(reply: str, kind: type[Exception] | None, text: str) -> None:
    problem = error_of_reply("pause", "j", reply)
    assert (type(problem) if problem else None) is kind
    assert text in str(problem or "")


@pytest.mark.parametrize(
    ("value", "raw"),
    [
        (b'{"task_data":{"url":"u", "n":1.0},"error_message":"e"}', b'{"url":"u", "n":1.0}'),
        (b'{"task_data": {"url":"u", "n":1.0},"error_message":"e"}', b'{"url": "u", "n": 1.0}'),
        (b'{"x":1,"task_data":{"url":"u"}}', b'{"url": "u"}'),
        (b'{"task_data":[]}', None),
        (b'{"task_data":"x"}', None),
        (b"[]", None),
        (b"x", None),
    ],
)
def test_the_job_in_a_record_of_a_failure(value: bytes, raw: bytes | None) -> None:
    failure = FailureRecord.parse(b"u", value)
    assert (failure.raw, failure.job_id) == (raw, None)


def test_a_failure_names_its_job_only_by_a_text() -> None:
    ids = ['{"id": "a"}', '{"id": 5}', "[]", "null"]
    found = [FailureRecord.parse(b"u", b'{"task_data":{"dlpool":%b}}' % own.encode()).job_id for own in ids]
    assert found == ["a", None, None, None]
    parsed = FailureRecord.parse(b"u", b'{"task_data":{"url":"u"},"error_message":"e","failed_at":"t"}')
    assert parsed.as_json() == {"url": "u", "message": "e", "failed_at": "t", "job": {"url": "u"}}
    assert FailureRecord.parse(b"u", b"{}").as_json() == {"url": "u", "message": "", "failed_at": "", "job": None}


def stats_of(
    *supervisors: SupervisorView, lost: tuple[SupervisorView, ...] = (), is_halted: bool = False
) -> QueueStats:
    zeros: Any = dict.fromkeys(
        ("delayed", "paused", "running", "succeeded", "failed", "cancelled", "failure_records"), 0
    )
    return QueueStats(
        1.0, 1, 2, {"high": 3, "low": 4}, supervisors=supervisors, lost=lost, days=(), is_halted=is_halted, **zeros
    )


def test_figures_of_a_queue_are_added_up() -> None:
    views = [
        SupervisorView("a-00000000", {"rate": 5}),
        SupervisorView("b-00000000", {"rate": "x"}),
        SupervisorView("c-00000000", {"rate": 7}),
    ]
    stats = stats_of(*views)
    assert (stats.waiting, stats.rate) == (10, 12)
    assert stats.counts()["ready_high"] == 3
    assert [view.node for view in (*views, SupervisorView("odd", {}), SupervisorView("x", {"node": "n"}))] == [
        "a",
        "b",
        "c",
        None,
        "n",
    ]
    assert SupervisorView("a-00000000", {"node": 5}).node == "a"


def test_the_states_of_nodes_in_their_order() -> None:
    infos: dict[str, dict[str, Any]] = {
        "e": {"busy": 0, "is_low_on_space": True},
        "d": {"busy": 1, "is_low_on_space": True},
        "c": {"busy": 0},
        "b": {},
        "a": {"busy": 2},
    }
    views = [SupervisorView(f"{node}-00000000", info) for node, info in infos.items()]
    lost = (
        SupervisorView("z-00000001", {"host": "h", "busy": 1, "pid": 2}, 5.0),
        SupervisorView("z-00000002", {}, 9.0),
        SupervisorView("a-00000009", {}, 9.0),
    )
    running = node_rows(stats_of(*views, lost=lost), {"b", "away"})
    assert [(row["node"], row["state"], row["is_drained"]) for row in running] == [
        ("a", "working", False),
        ("c", "working", False),
        ("d", "low on space", False),
        ("e", "low on space", False),
        ("away", "drained", True),
        ("b", "drained", True),
        ("z", "lost", False),
    ]
    assert running[-1]["sid"] == "z-00000002" and running[-1]["seen_at"] == "1970-01-01T00:00:09Z"
    halted = node_rows(stats_of(*views, lost=lost[:1], is_halted=True), {"z"})
    assert [(row["node"], row["state"]) for row in halted] == [
        ("a", "working"),
        ("d", "low on space"),
        ("b", "halted"),
        ("c", "halted"),
        ("e", "halted"),
        ("z", "lost"),
    ]
    assert {name: halted[-1].get(name) for name in ("host", "pid", "busy", "is_drained")} == {
        "host": "h",
        "pid": 2,
        "busy": None,
        "is_drained": True,
    }


# --- connections ---


def test_no_command_is_repeated_and_none_waits_for_long(tmp_path: Path) -> None:
    for url in ("redis://h:1", "unix:///s", "auto", "redis+cluster://h", "redis+sentinel://h/main"):
        client = connect(replace(RedisSettings(), url=url), tmp_path, name="me")
        options = client.connection_pool.connection_kwargs
        assert (options["socket_timeout"], options["socket_connect_timeout"]) == (SOCKET_S, CONNECT_S)
        assert options["retry"].get_retries() == 0 and not options["retry_on_timeout"]
        assert (options["health_check_interval"], options["protocol"], options["client_name"]) == (0, 2, "me")
        assert options.get("socket_keepalive") is (None if url.startswith("unix") else True)
        assert "password" not in options and "ssl_check_hostname" not in options


def test_over_tls_host_and_certificate_are_checked(tmp_path: Path, authority: Authority) -> None:
    ca, cert, key = (str(path) for path in (authority.ca_file, authority.cert_file, authority.key_file))
    settings = replace(RedisSettings(), url="rediss://h:1", tls_cacert=ca, tls_cert=cert, tls_key=key)
    options = connect(settings, tmp_path).connection_pool.connection_kwargs
    assert (options["ssl_cert_reqs"], options["ssl_check_hostname"], options["ssl_ca_certs"]) == ("required", True, ca)
    assert (options["ssl_certfile"], options["ssl_keyfile"]) == (cert, key)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"tls_cert": None}, "tls_key is given without tls_cert"),
        ({"tls_cacert": str(tmp_path / "none")}, "tls_cacert = .*No such file"),
        ({"tls_cacert": key}, "tls_cacert = "),
        ({"tls_key": ca}, "tls_cert = .*, tls_key = "),
        ({"tls_cert": str(tmp_path / "none")}, "tls_cert = .*No such file"),
    ]
    for changed, said in wrong:
        with pytest.raises(ConfigurationError, match=rf"^\[redis\] {said}"):
            connect(replace(settings, **changed), tmp_path)
    assert connect(replace(settings, tls_cert=None, tls_key=None), tmp_path)


def said_of(client: redis.Redis, error: Exception) -> QueueError:
    with pytest.raises(QueueError) as raised, translated(client):
        raise error
    return raised.value


@pytest.mark.parametrize(
    ("text", "is_hinted"),
    [("Connection closed by server.", True), ("EOF occurred", True), ("Connection refused", False)],
)
def test_a_server_that_may_want_a_certificate_is_hinted_at(
    tmp_path: Path, authority: Authority, text: str, is_hinted: bool
) -> None:
    plain = replace(RedisSettings(), url="redis://h:1")
    tls = replace(plain, url="rediss://h:1", tls_cacert=str(authority.ca_file))
    with_cert = replace(tls, tls_cert=str(authority.cert_file), tls_key=str(authority.key_file))
    for settings, may_be in ((plain, False), (tls, True), (with_cert, False)):
        said = said_of(connect(settings, tmp_path), errors.ConnectionError(text))
        assert type(said) is QueueAway
        assert ("client certificate" in str(said)) == (is_hinted and may_be)


@pytest.mark.parametrize(
    ("url", "where"),
    [
        ("redis://h", "h:6379"),
        ("redis://h:7", "h:7"),
        ("redis://", "localhost:6379"),
        ("unix:///run/s", "/run/s"),
        ("auto", "127.0.0.1:6379"),
        ("redis+cluster://h,i:2", "the Cluster of h:6379,i:2"),
        ("redis+sentinel://h/main", "main of the Sentinels h:26379"),
    ],
)
def test_an_error_says_where(tmp_path: Path, url: str, where: str) -> None:
    client = connect(replace(RedisSettings(), url=url), tmp_path)
    assert str(said_of(client, errors.ConnectionError("gone."))) == f"Redis at {where} cannot be reached: gone"
    assert str(said_of(client, OSError())) == f"Redis at {where} cannot be reached: OSError"
    long = str(said_of(client, errors.ResponseError("x" * 301)))
    assert long == f"Redis at {where} refuses: {'x' * 300}"
    untrusted = "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed certificate (_ssl.c:992)"
    refused = said_of(client, errors.ConnectionError(untrusted))
    assert type(refused) is QueueRefused and "is not trusted: self-signed certificate (its CA" in str(refused)


class Asked:
    """A client that answers PING with an error."""

    connection_pool = connect(replace(RedisSettings(), url="redis://h:1"), Path()).connection_pool

    def __init__(self, error: Exception | None) -> None:
        self.error = error

    def ping(self) -> None:
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (None, True),
        (errors.BusyLoadingError(), True),
        (errors.ReadOnlyError(), True),
        (errors.ConnectionError(), False),
        (OSError(), False),
        (errors.InvalidResponse(), False),
        (errors.ResponseError("odd"), False),
    ],
)
def test_whether_a_redis_answers(error: Exception | None, found: bool) -> None:
    client: Any = Asked(error)
    assert is_redis(client) is found


def test_a_redis_that_wants_a_password_says_so() -> None:
    client: Any = Asked(errors.AuthenticationError("Authentication required."))
    with pytest.raises(QueueRefused, match="Authentication required"):
        is_redis(client)


def test_the_address_of_auto() -> None:
    assert auto_address(RedisSettings()) == "127.0.0.1:6379"
    assert auto_address(replace(RedisSettings(), embedded_listen="::1:7")) == "::1:7"


@pytest.mark.parametrize(("port", "is_taken"), [(0, False), (1, True), (65_535, True), (65_536, False)])
def test_a_port_is_one(port: int, is_taken: bool) -> None:
    url = f"redis+cluster://h:{port}"
    if is_taken:
        assert RedisAddress.parse(url).hosts == (("h", port),)
    else:
        with pytest.raises(ValueError, match="HOST:PORT"):
            RedisAddress.parse(url)


@pytest.mark.parametrize(
    ("version", "is_fit"),
    [("6.1.99", False), ("6.2.0", True), ("5.9", False), ("7.0", True), ("10.1", True), ("", True)],
)
def test_the_oldest_server_that_will_do(version: str, is_fit: bool) -> None:
    assert (incompatibility({"redis_version": version}, is_cluster=False) == "") is is_fit
    node = {"redis_version": "7.0", "cluster_enabled": 1}
    assert incompatibility(node, is_cluster=True) == "" and "is a node of a Cluster" in incompatibility(
        node, is_cluster=False
    )


def test_what_may_cost_jobs_is_said_for_each_cause() -> None:
    evicting = {"maxmemory": 1, "maxmemory_policy": "allkeys-lru", "aof_enabled": 1}
    assert [one.event for one in warnings(evicting, "")] == ["redis_may_evict"]
    assert warnings({**evicting, "maxmemory": 0}, "") == ()
    assert warnings({"maxmemory": 1, "aof_enabled": 1}, "") == ()
    assert [one.event for one in warnings({}, "")] == ["redis_not_persistent"]
    assert warnings({}, "3600 1") == warnings({}, None) == warnings({"aof_enabled": 1}, "") == ()
