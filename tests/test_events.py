"""``dlpool events``, and the stream that other programs read: on a real service, and on a stream of known entries."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from dlpool.cli import events as command
from dlpool.cli.main import main
from dlpool.jobs import event_stream
from dlpool.jobs.event_stream import EventReader, QueueEvent
from dlpool.jobs.keys import QueueKeys
from tests.conftest import free_port, wait_until
from tests.desk import DATA, answer, desk_of, running
from tests.processes import finish, run, start
from tests.redis_server import RedisServer

MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


def fill(server: RedisServer, count: int, group: str | None = None) -> list[str]:
    """Put entries into the stream; their ids, which are 1000000000000-1 and so on."""
    pipeline = server.client().pipeline(transaction=False)
    ids = [f"1000000000000-{number}" for number in range(1, count + 1)]
    for number, entry in enumerate(ids, 1):
        pipeline.xadd(QueueKeys(group).events, {"event": "job_started", "id": f"j{number}", "owner": "n.1"}, id=entry)
    pipeline.execute()
    return ids


def shown(capsys: pytest.CaptureFixture[str], server: RedisServer, *arguments: str) -> list[dict[str, Any]]:
    """What ``dlpool events --json`` prints, in this process."""
    assert main(["events", "--json", "--redis-url", server.url, *arguments]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


class Follower:
    """``dlpool events --follow`` as a process; a context."""

    def __init__(self, url: str, output: Path, *arguments: str) -> None:
        self._output = output
        self._arguments = ["events", "--follow", "--redis-url", url, *arguments]

    def __enter__(self) -> Follower:
        with self._output.open("w") as output:
            self.process = start(*self._arguments, stdout=output)
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()

    def lines(self) -> list[str]:
        return self._output.read_text().split("\n")[:-1]

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines()]


# --- with a service ---


def test_all_that_happens_to_jobs_is_followed(tmp_path: Path) -> None:
    with running(tmp_path, transfer={"retries": 0}) as both, desk_of(*both) as desk:
        with Follower(desk.service.url, tmp_path / "out", "--json", "--since", "0") as follower:
            good = run("push", desk.url("good"), desk.path("good"), "--id", "good", "--redis-url", desk.service.url)
            assert good.code == 0
            desk.client.wait_for(desk.url("good"))
            desk.serve(answer(500))
            bad = desk.push("bad", id="bad", max_attempts=2)
            desk.client.wait_for_failure(bad)
            wait_until(lambda: len(follower.lines()) == 7)
            told = follower.events()
            follower.process.send_signal(signal.SIGINT)
            ended = finish(follower.process)
            assert (ended.code, ended.err) == (130, "")
        names = [(event["job_id"], event["event"]) for event in told]
        assert names == [
            ("good", "job_queued"),
            ("good", "job_started"),
            ("good", "job_succeeded"),
            ("bad", "job_started"),
            ("bad", "job_requeued"),
            ("bad", "job_started"),
            ("bad", "job_failed"),
        ]
        assert all(MOMENT.fullmatch(event["at"]) for event in told)
        assert told[0]["priority"] == "normal"
        assert told[1]["owner"]
        assert (told[2]["note"]["size"], told[2]["note"]["path"]) == (len(DATA), str(desk.folder / "good"))
        assert told[4]["outcome"] == "retry"
        assert "500" in told[6]["note"]["message"]
        again = run("events", "--json", "--since", told[2]["id"], "--redis-url", desk.service.url)
        assert [json.loads(line) for line in again.out.splitlines()] == told[3:]


def test_a_redis_that_goes_away_ends_it_with_one_sentence(tmp_path: Path) -> None:
    with RedisServer(tmp_path / "redis") as server:
        fill(server, 1)
        with Follower(server.url, tmp_path / "out") as follower:
            wait_until(lambda: len(follower.lines()) == 2)
            server.kill()
            ended = finish(follower.process)
    assert ended.code == 20
    assert re.fullmatch(r"dlpool: Redis at .* cannot be reached: .*\n", ended.err)


def test_without_a_redis_it_is_one_sentence() -> None:
    ended = run("events", "--redis-addr", f"127.0.0.1:{free_port()}")
    assert ended.code == 20
    assert len(ended.err.splitlines()) == 1


# --- on known entries ---


def test_the_last_ones_are_shown_oldest_first(redis_server: RedisServer, capsys: pytest.CaptureFixture[str]) -> None:
    ids = fill(redis_server, 30)
    assert [event["id"] for event in shown(capsys, redis_server)] == ids[-20:]
    assert [event["id"] for event in shown(capsys, redis_server, "--last", "3")] == ids[-3:]
    assert shown(capsys, redis_server, "--last", "0") == []
    assert shown(capsys, redis_server, "--last", "1") == [
        {"id": ids[-1], "at": "2001-09-09T01:46:40.000Z", "event": "job_started", "job_id": "j30", "owner": "n.1"}
    ]


def test_since_an_event_all_later_ones_are_shown_page_by_page(
    redis_server: RedisServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = fill(redis_server, 25)
    for module in (event_stream, command):
        monkeypatch.setattr(module, "PAGE", 5)
    for begin in (0, 4, 7, 24):
        assert [event["id"] for event in shown(capsys, redis_server, "--since", ids[begin])] == ids[begin + 1 :]
    assert len(shown(capsys, redis_server, "--since", "0")) == 25
    assert shown(capsys, redis_server, "--since", "999999999999999") == []


def test_a_group_has_a_stream_of_its_own(redis_server: RedisServer, capsys: pytest.CaptureFixture[str]) -> None:
    fill(redis_server, 2, "team")
    assert shown(capsys, redis_server) == []
    assert len(shown(capsys, redis_server, "--group", "team")) == 2


def test_nothing_yet_is_followed_from_the_beginning(redis_server: RedisServer, tmp_path: Path) -> None:
    with Follower(redis_server.url, tmp_path / "out", "--json") as follower:
        wait_until(lambda: bool(redis_server.client().client_list(_type="normal")))
        ids = fill(redis_server, 3)
        wait_until(lambda: [event["id"] for event in follower.events()] == ids)


def test_redirected_it_is_tab_separated(redis_server: RedisServer, capsys: pytest.CaptureFixture[str]) -> None:
    redis_server.client().xadd(
        QueueKeys().events, {"event": "job_failed", "id": "a", "note": '{"message":"a\\tb"}'}, id="1-1"
    )
    assert main(["events", "--redis-url", redis_server.url]) == 0
    head, row = capsys.readouterr().out.splitlines()
    assert head.split("\t") == list(command.COLUMNS)
    assert row.split("\t") == ["1-1", "1970-01-01T00:00:00.001Z", "job_failed", "a", "a\\tb"]


@pytest.mark.parametrize("options", [[], ["--follow"]])
def test_a_terminal_gets_columns_without_control_characters(options: list[str], redis_server: RedisServer) -> None:
    note = json.dumps({"message": "x\x1b]0;y"})
    redis_server.client().xadd(QueueKeys().events, {"event": "job_failed", "id": "a", "note": note})
    main_end, other_end = pty.openpty()
    environment = {**os.environ, "TERM": "dumb", "COLUMNS": "200"}
    process = start("events", *options, "--redis-url", redis_server.url, stdout=other_end, env=environment)
    os.close(other_end)
    text = b""
    while b"]0;y" not in text:
        text += os.read(main_end, 65536)
    process.send_signal(signal.SIGINT)
    os.close(main_end)
    process.communicate(timeout=30)
    assert b"\x1b]0" not in text
    assert b"ID" in text


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, ""),
        ({"owner": "n.1"}, "owner=n.1"),
        ({"outcome": "retry", "note": '{"label":"x","message":"why"}'}, "outcome=retry why"),
        ({"note": '{"path":"/a/b"}'}, "/a/b"),
        ({"note": "no JSON"}, ""),
        ({"note": '{"message":["odd"]}'}, "['odd']"),
        ({"note": json.dumps({"message": "x" * 500})}, "x" * command.DETAIL_SHOWN),
    ],
)
def test_the_detail_says_why_or_where(fields: dict[str, str], expected: str) -> None:
    assert command.detail_text(QueueEvent("1-0", "job_x", "a", fields)) == expected


def test_odd_entries_of_others_break_nothing(redis_server: RedisServer, capsys: pytest.CaptureFixture[str]) -> None:
    client = redis_server.client()
    client.xadd(QueueKeys().events, {b"\xff": b"\xfe"}, id="5-1")
    client.xadd(QueueKeys().events, {"event": "x", "note": "[1]"}, id=f"{10**18}-1")
    found = EventReader(client, QueueKeys()).last(10)
    assert [event.as_json()["at"] for event in found] == ["1970-01-01T00:00:00.005Z", "9999-12-31T23:59:59.000Z"]
    assert len(shown(capsys, redis_server)) == 2


@pytest.mark.parametrize(
    "arguments",
    [["--last", "x"], ["--last", "10001"], ["--since", "soon"], ["--since", "1-2-3"], ["--last", "1", "--since", "1"]],
)
def test_what_makes_no_sense_is_a_sentence(arguments: list[str]) -> None:
    ended = run("events", *arguments)
    assert ended.code == 2
    assert len(ended.err.splitlines()) == 1


def test_a_reader_that_goes_away_ends_it(redis_server: RedisServer) -> None:
    fill(redis_server, 1)
    process = start("events", "--follow", "--json", "--redis-url", redis_server.url)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    redis_server.client().xadd(QueueKeys().events, {"event": "job_started", "id": "x"})
    try:
        assert process.wait(30) == 1
    except subprocess.TimeoutExpired:
        process.kill()
        raise
