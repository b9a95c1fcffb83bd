"""``dlpool push``, ``jobs``, ``job`` and ``stats`` as a person uses them: processes, exit codes, messages, output."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dlpool.cli import queue_commands
from dlpool.cli.main import main
from dlpool.cli.push import blocks_of_lines
from dlpool.cli.queue_options import queue_settings
from dlpool.jobs import job_listing
from dlpool.jobs.keys import QueueKeys
from dlpool.jobs.pushed_job import PushedJob, compose_job
from dlpool.jobs.states import Disposition
from dlpool.jobs.transitions import FinishRequest, Transitions
from tests.conftest import free_port
from tests.processes import ROOT, Ended, finish, run, start
from tests.redis_server import RedisServer

Dlpool = Callable[..., Ended]
URL = "https://example.org/a.bin"
ID = re.compile(r"[0-9a-f]{32}\n")


@pytest.fixture
def dlpool(redis_server: RedisServer) -> Dlpool:
    """Run a command on the Redis of the test."""
    return lambda *arguments, **options: run(*arguments, "--redis-url", redis_server.url, **options)


@pytest.fixture
def call(redis_server: RedisServer, capsys: pytest.CaptureFixture[str]) -> Dlpool:
    """The same in this process, which is faster."""

    def called(*arguments: str) -> Ended:
        code = main([*arguments, "--redis-url", redis_server.url])
        said = capsys.readouterr()
        return Ended(code, said.out, said.err)

    return called


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder with a short name, as the one of a socket must be."""
    with tempfile.TemporaryDirectory(prefix="dlp-", dir="/tmp") as folder:
        yield Path(folder)


def raw_of(server: RedisServer, job_id: str, group: str | None = None) -> PushedJob:
    raw: Any = server.client().hget(QueueKeys(group).job(job_id), "raw")
    return PushedJob.parse(raw)


def queue_job(server: RedisServer, job_id: str, path: str = "a", url: str = URL, **own: Any) -> None:
    """What ``dlpool push`` does, without its process."""
    job = PushedJob.parse(compose_job(url, path, **own))
    assert Transitions(server.client(), QueueKeys()).push([(job, job_id)]) == ["OK"]


def ready(server: RedisServer, priority: str = "normal", group: str | None = None) -> list[str]:
    """Ids in the order in which they will be taken."""
    members: Any = server.client().lrange(QueueKeys(group).ready(priority), 0, -1)
    return [member.decode() for member in reversed(members)]


def push_lines(server: RedisServer, text: str | bytes, *arguments: object) -> Ended:
    data = text.encode() if isinstance(text, str) else text
    command = [sys.executable, "-m", "dlpool", "push", "-i", "-", "--redis-url", server.url, *map(str, arguments)]
    ended = subprocess.run(command, input=data, capture_output=True, cwd=ROOT, timeout=60)
    assert b"Traceback" not in ended.stderr
    return Ended(ended.returncode, ended.stdout.decode(), ended.stderr.decode())


# --- help and usage ---


@pytest.mark.parametrize("command", ["push", "jobs", "job", "events", "stats"])
def test_help_names_every_option_of_the_queue(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for option in ("--config", "--redis-url", "--redis-addr", "--redis-password", "--group", "--json", "-q"):
        assert option in text
    assert "20 Redis unreachable" in text


def test_help_imports_no_library() -> None:
    code = (
        "import sys, atexit\n"
        "heavy = ('requests', 'urllib3', 'redis', 'rich', 'structlog')\n"
        "atexit.register(lambda: print('loaded:', *[name for name in heavy if name in sys.modules]))\n"
        "from dlpool.cli.main import main\n"
        "main(['push', '--help'])\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert ended.stdout.strip().endswith("loaded:")


def test_the_states_that_help_names_are_those_that_are_listed() -> None:
    assert set(queue_commands.STATES) == set(job_listing.STATES)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["push"], "a URL is missing"),
        (["push", "http://h/"], "a PATH is missing"),
        (["push", "http://h/a", "http://h/b"], "PATH looks like a URL; several URLs go into a list: -i FILE"),
        (["push", "nonsense", "p"], "is not an http or https URL"),
        (["push", "http://[::1/", "p"], "cannot be read as a URL"),
        (["push", "http://h/", ""], "save_path is not a text"),
        (["push", "http://h/", "p" * 10_000], "save_path is longer than"),
        (["push", "http://h/\udcff", "p"], "not UTF-8"),
        (["push", "http://h/", "p", "--id", "a b"], "dlpool.id is not"),
        (["push", "http://h/", "p", "--priority", "urgent"], "neither high, normal, low nor an integer"),
        (["push", "http://h/", "p", "--not-before", "tomorrow"], "neither RFC 3339 nor epoch seconds"),
        (["push", "http://h/", "p", "--checksum", "md5:00"], "has not the 32 hexadecimal digits"),
        (["push", "http://h/", "p", "-H", "no colon"], "is not of the form 'Name: value'"),
        (["push", "http://h/", "p", "-H", "Range: bytes=0-1"], "set by dlpool itself"),
        (["push", "http://h/", "p", "--if-exists", "maybe"], "invalid choice: 'maybe'"),
        (["push", "-i", "f", "http://h/"], "put URLs and PATHs into the list"),
        (["push", "-i", "f", "--checksum", "md5:00"], "put checksums and ids into the list"),
        (["push", "-i", "f", "--priority", "urgent"], "neither high, normal, low nor an integer"),
        (["push", "http://h/", "p", "extra"], "extra"),
        (["jobs", "--state", "gone"], "invalid choice: 'gone'"),
        (["jobs", "--limit", "0"], "not from 1 to 10000"),
        (["jobs", "--limit", "few"], "not a whole number"),
        (["jobs", "--redis-addr", "host"], "not of the form HOST:PORT"),
        (["jobs", "--redis-addr", "host:99999"], "not of the form HOST:PORT"),
        (["jobs", "--redis-addr", "h:1", "--redis-url", "redis://h"], "not allowed with"),
        (["jobs", "--group", "a b"], "without spaces and braces"),
        (["job"], "ID"),
    ],
)
def test_bad_usage_is_one_sentence_and_exit_2(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(arguments)
    except SystemExit as ended:
        code = int(str(ended.code))
    said = capsys.readouterr()
    assert (code, said.out) == (2, "")
    assert sentence in said.err
    assert len(said.err.splitlines()) == 1


# --- push ---


def test_a_pushed_job_waits_in_dlpools_own_queue_under_the_printed_id(
    dlpool: Dlpool, redis_server: RedisServer
) -> None:
    ended = dlpool("push", URL, "models/a.bin")
    assert (ended.code, ended.err) == (0, "")
    assert ID.fullmatch(ended.out)
    assert ready(redis_server) == [ended.out.strip()]
    assert redis_server.client().llen("go_download_urls") == 0
    assert json.loads(raw_of(redis_server, ended.out.strip()).raw) == {"url": URL, "save_path": "models/a.bin"}


def test_every_option_reaches_the_job(call: Dlpool, redis_server: RedisServer) -> None:
    ended = call(
        "push",
        URL,
        "../a b",
        "--id",
        "my.job",
        "--priority",
        "-3",
        "--not-before",
        "2099-01-01T00:00:00Z",
        "--checksum",
        "MD5:" + "A" * 32,
        "-H",
        "X-One: 1",
        "--header",
        "X-Two:2",
        "--if-exists",
        "skip",
        "--limit-rate",
        "2M",
        "--dedupe",
        "--json",
    )
    assert ended.json == {"id": "my.job", "result": "OK"}
    job = raw_of(redis_server, "my.job")
    assert (job.save_path, job.priority, job.not_before) == ("../a b", "high", 4070908800.0)
    assert (str(job.checksum), job.headers) == ("md5:" + "a" * 32, {"X-One": "1", "X-Two": "2"})
    assert (job.if_exists, job.dedupe, job.limit_rate) == ("skip", True, 2 * 1024 * 1024)
    assert redis_server.client().zrange(QueueKeys().delayed, 0, -1) == [b"my.job"]


def test_a_known_id_is_not_pushed_again(call: Dlpool, redis_server: RedisServer) -> None:
    queue_job(redis_server, "one")
    again = call("push", URL, "b", "--id", "one")
    assert (again.code, again.out) == (0, "one\n")
    assert again.err == "dlpool: job one is already known\n"
    assert call("push", URL, "b", "--id", "one", "-q", "--json").json == {"id": "one", "result": "DUP"}
    assert ready(redis_server) == ["one"]
    assert raw_of(redis_server, "one").save_path == "a"


def test_a_job_that_waits_already_is_joined_with_dedupe(call: Dlpool, redis_server: RedisServer) -> None:
    queue_job(redis_server, "first", dedupe=True)
    second = call("push", URL, "a", "--dedupe")
    assert second.code == 0
    assert "ends with it" in second.err
    assert ready(redis_server) == ["first"]


def test_a_group_has_its_own_queue(call: Dlpool, redis_server: RedisServer) -> None:
    ended = call("push", URL, "a", "--group", "nightly")
    assert ready(redis_server, group="nightly") == [ended.out.strip()]
    assert call("jobs", "--json").out == ""
    assert json.loads(call("jobs", "--json", "--group", "nightly").out)["id"] == ended.out.strip()


# --- push -i ---


def test_lines_of_both_forms_are_pushed_as_they_stand(redis_server: RedisServer, tmp_path: Path) -> None:
    pushed = b'{"url": "http://h/2", "save_path": "two", "extra": [1.0], "dlpool": {"id": "two", "priority": "low"}}'
    (tmp_path / "list").write_bytes(
        b"# a comment\n\n http://h/1  one with spaces \r\n" + pushed + b"\nhttp://h/3 three"
    )
    ended = run("push", "-i", tmp_path / "list", "--redis-url", redis_server.url, "--if-exists", "fail")
    assert ended.code == 0
    assert ended.err == "dlpool: 3 jobs pushed\n"
    first, second, third = ended.out.split()
    assert second == "two"
    assert ready(redis_server) == [first, third]
    assert raw_of(redis_server, "two").raw == pushed
    job = raw_of(redis_server, first)
    assert (job.url, job.save_path, job.if_exists) == ("http://h/1", "one with spaces", "fail")


def test_bad_lines_are_named_and_the_others_pushed(redis_server: RedisServer) -> None:
    lines = [
        b"http://h/1 one",
        b"http://h/no-path",
        b"nonsense path",
        b"{broken",
        b'{"url": "http://h/"}',
        b'{"url": "ftp://h/", "save_path": "p"}',
        b'{"url": "http://h/", "save_path": "p", "dlpool": {"id": "a b"}}',
        b"http://h/\xff p",
        b"http://h/" + b"x" * 2_000_000 + b" p",
        b"[1]",
        b"http://h/1 http://h/2",
        b"http://h/2 two",
    ]
    ended = push_lines(redis_server, b"\n".join(lines))
    assert ended.code == 14
    assert re.findall(r"^dlpool: line (\d+): ", ended.err, re.MULTILINE) == [str(n) for n in range(2, 12)]
    assert ended.err.endswith("dlpool: 2 jobs pushed, 10 lines refused\n")
    assert len(ended.err) < 3000
    assert [raw_of(redis_server, job_id).save_path for job_id in ended.out.split()] == ["one", "two"]


def test_known_ids_and_equal_jobs_of_a_list_are_counted(redis_server: RedisServer) -> None:
    line = '{"url": "http://h/", "save_path": "p", "dlpool": {"id": "%s", "dedupe": true}}\n'
    ended = push_lines(redis_server, line % "a" + line % "b" + line % "a", "--json")
    assert ended.code == 0
    assert ended.err == "dlpool: 2 jobs pushed, 1 of them the same as other jobs, 1 already known\n"
    assert [json.loads(text) for text in ended.out.splitlines()] == [
        {"line": 1, "id": "a", "result": "OK"},
        {"line": 2, "id": "b", "result": "FOLLOWS"},
        {"line": 3, "id": "a", "result": "DUP"},
    ]


def test_ten_thousand_lines_from_standard_input_keep_their_order(redis_server: RedisServer) -> None:
    ended = push_lines(redis_server, "".join(f"http://h/{n} to/{n}\n" for n in range(10_000)), "-q")
    assert (ended.code, ended.err) == (0, "")
    ids = ended.out.split()
    assert len(set(ids)) == 10_000
    assert ready(redis_server) == ids
    assert [raw_of(redis_server, ids[n]).save_path for n in (0, 499, 500, 9_999)] == [
        "to/0",
        "to/499",
        "to/500",
        "to/9999",
    ]


def test_an_empty_list_is_no_failure(redis_server: RedisServer) -> None:
    assert push_lines(redis_server, "").err == "dlpool: 0 jobs pushed\n"


def test_the_line_of_a_slow_writer_is_pushed_while_it_writes_no_other(redis_server: RedisServer) -> None:
    process = start("push", "-i", "-", "--redis-url", redis_server.url, stdin=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("http://h/1 one\n")
    process.stdin.flush()
    assert ID.fullmatch(process.stdout.readline())
    assert len(ready(redis_server)) == 1
    process.stdin.close()
    assert process.wait(30) == 0
    process.stdout.close()


@pytest.mark.parametrize(
    ("reads", "blocks"),
    [
        ([], []),
        ([b"a\nb\n"], [[b"a", b"b"]]),
        ([b"a\nb", b"c\nd"], [[b"a"], [b"bc"], [b"d"]]),
        ([b"a", b"b", b"\n"], [[], [], [b"ab"]]),
        ([b"\n\n"], [[b"", b""]]),
    ],
)
def test_lines_are_complete_however_they_are_read(reads: list[bytes], blocks: list[list[bytes]]) -> None:
    pieces = iter([*reads, b""])
    assert list(blocks_of_lines(lambda: next(pieces))) == blocks


def test_a_list_that_cannot_be_read_is_exit_3(dlpool: Dlpool, tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere", tmp_path):
        ended = dlpool("push", "-i", path)
        assert ended.code == 3
        assert "cannot read the list" in ended.err


def test_a_lost_redis_reports_the_last_completed_line(tmp_path: Path) -> None:
    with RedisServer(tmp_path / "redis") as server:
        process = start("push", "-i", "-", "--redis-url", server.url, stdin=subprocess.PIPE)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("http://h/1 one\nnonsense\n")
        process.stdin.flush()
        assert ID.fullmatch(process.stdout.readline())
        server.kill()
        ended = finish_with(process, "http://h/3 three\n")
    assert ended.code == 20
    bad, stopped, sentence = ended.err.splitlines()
    assert bad.startswith("dlpool: line 2: ")
    assert stopped == (
        "dlpool: stopped after line 2: 1 job pushed, 1 line refused; lines 3 to 3 may or may not be pushed"
    )
    assert "cannot be reached" in sentence


def finish_with(process: subprocess.Popen[str], text: str) -> Ended:
    out, err = process.communicate(text, timeout=60)
    assert "Traceback" not in err
    return Ended(process.returncode, out, err)


def test_an_interrupted_list_reports_the_last_completed_line(redis_server: RedisServer) -> None:
    process = start("push", "-i", "-", "--redis-url", redis_server.url, stdin=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("http://h/1 one\n")
    process.stdin.flush()
    assert ID.fullmatch(process.stdout.readline())
    process.send_signal(signal.SIGINT)
    ended = finish(process)
    assert (ended.code, ended.err) == (130, "dlpool: stopped after line 1: 1 job pushed\n")


def test_a_closed_pipe_does_not_stop_the_push(redis_server: RedisServer) -> None:
    process = start("push", "-i", "-", "--redis-url", redis_server.url, stdin=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    ended = finish_with(process, "http://h/1 one\n" * 3)
    assert (ended.code, ended.err) == (0, "dlpool: 3 jobs pushed\n")


# --- jobs, job, stats ---


def test_jobs_prints_the_same_table_whenever_it_is_redirected(dlpool: Dlpool, redis_server: RedisServer) -> None:
    queue_job(redis_server, "one", url="https://me:hunter2@example.org/a?token=hunter2", headers={"X-Key": "hunter2"})
    redis_server.client().lpush("go_download_urls", compose_job("http://h/raw", "b\tc\x1b[2J"), b"rubbish")
    redis_server.client().hset(QueueKeys().job("one"), "created", 0)
    environment = {**os.environ, "COLUMNS": "20", "FORCE_COLOR": "1"}
    ended = dlpool("jobs", env=environment)
    assert ended.code == 0
    assert ended.out.split("\n") == [
        "ID\tSTATE\tPROGRESS\tATTEMPTS\tTIME\tOWNER\tURL\tPATH\tNOTE",
        "one\tqueued\t\t\t1970-01-01T00:00:00Z\t\thttps://example.org/a\ta\t",
        "-\tqueued\t\t\t\t\thttp://h/raw\tb\\tc\\x1b[2J\t",
        "-\tqueued\t\t\t\t\t\t\tthe job is not JSON",
        "",
    ]


def test_jobs_lists_a_state_up_to_a_limit(call: Dlpool, redis_server: RedisServer) -> None:
    for name in "abc":
        queue_job(redis_server, name)
    queue_job(redis_server, "d", not_before=4_000_000_000)
    assert [line.split("\t")[0] for line in call("jobs", "--state", "delayed").out.splitlines()] == ["ID", "d"]
    ended = call("jobs", "--limit", "2", "--json")
    assert [json.loads(line)["id"] for line in ended.out.splitlines()] == ["a", "b"]
    assert ended.err == ""
    assert "may be more" in call("jobs", "--limit", "2").err


def test_a_running_job_is_shown_with_owner_and_progress(call: Dlpool, redis_server: RedisServer) -> None:
    queue_job(redis_server, "one", headers={"X-Key": "hunter2"})
    transitions = Transitions(redis_server.client(), QueueKeys())
    info = {"host": "here", "pid": 7, "version": "1.0", "slots": 4, "busy": 1}
    transitions.heartbeat("s1", [], lease_s=300, info=info)
    claim = transitions.claim("s1", [], 1, lease_s=300, order="fifo")
    assert claim is not None
    transitions.heartbeat("s1", [(claim.jobs[0].lease, '{"done": 1048576, "size": 2097152}')], lease_s=300)
    row = call("jobs", "--state", "running").out.splitlines()[1].split("\t")
    assert row[:4] == ["one", "running", "50% of 2.0M", "1"]
    assert row[5] == "s1"
    told = dict(line.split("\t") for line in call("job", "one").out.splitlines())
    assert (told["owner"], told["progress"], told["headers"]) == ("s1", "50% of 2.0M", "X-Key")
    figures = call("stats").out.splitlines()
    assert "running\t1" in figures
    assert "s1\there\t7\t1.0\t4\t1" in figures


def test_a_job_hides_the_urls_secrets_from_people_and_headers_from_all(call: Dlpool, redis_server: RedisServer) -> None:
    secret = "https://me:hunter2@example.org/a?token=hunter3"
    queue_job(redis_server, "one", url=secret, headers={"X-Key": "hunter4"})
    shown = call("job", "one")
    assert "url\thttps://example.org/a\n" in shown.out
    assert "hunter" not in shown.out
    told = call("job", "one", "--json")
    assert (told.json["id"], told.json["url"], told.json["headers"]) == ("one", secret, ["X-Key"])
    assert "hunter4" not in told.out


def test_an_ended_job_is_shown_with_its_reason_or_its_file(call: Dlpool, redis_server: RedisServer) -> None:
    transitions = Transitions(redis_server.client(), QueueKeys())
    transitions.heartbeat("s1", [], lease_s=300, info={})
    notes: dict[str, dict[str, Any]] = {
        "success": {"path": "/data/a", "size": 5},
        "failed": {"label": "not_found", "message": "404 Not Found"},
    }
    for outcome, note in notes.items():
        queue_job(redis_server, outcome)
        claim = transitions.claim("s1", [], 1, lease_s=300, order="fifo")
        assert claim is not None
        transitions.finish("s1", [FinishRequest(claim.jobs[0].lease, Disposition(outcome), note=note)])
    rows = [line.split("\t") for line in call("jobs").out.splitlines()[1:]]
    assert [(row[0], row[1], row[8]) for row in rows] == [
        ("failed", "failed", "404 Not Found"),
        ("success", "succeeded", "/data/a"),
    ]
    assert call("job", "failed", "--json").json["note"] == notes["failed"]


@pytest.mark.parametrize("job_id", ["nowhere", "a b"])
def test_no_such_job_is_exit_21_and_a_sentence(job_id: str, call: Dlpool) -> None:
    ended = call("job", job_id)
    assert (ended.code, ended.out) == (21, "")
    assert ended.err == f"dlpool: no job {job_id!r} is known: it ended long ago, or is still in the intake list\n"


def test_stats_are_figures_for_people_and_programs(call: Dlpool, redis_server: RedisServer) -> None:
    queue_job(redis_server, "one", priority="high")
    redis_server.client().lpush("go_download_urls", b"1", b"2")
    ended = call("stats", "--json")
    assert (ended.json["backlog"], ended.json["ready_high"], ended.json["supervisors"]) == (2, 1, [])
    assert len(ended.json["days"]) == 7
    assert ended.json["days"][0]["pushed"] == 1
    lines = call("stats").out.splitlines()
    assert lines[:3] == ["waiting\t3", "backlog\t2", "reserved\t0"]
    assert "SUPERVISOR\tHOST\tPID\tVERSION\tSLOTS\tBUSY" in lines
    assert f"{ended.json['days'][0]['day']}\t1\t0\t0\t0\t0\t0\t0" in lines


@pytest.mark.parametrize("command", [["jobs"], ["stats"], ["job", "one"]])
def test_a_terminal_gets_a_table_without_control_characters(command: list[str], redis_server: RedisServer) -> None:
    queue_job(redis_server, "one", "a\x1b]0;pwned\x07[red]")
    main_end, other_end = pty.openpty()
    environment = {**os.environ, "TERM": "dumb", "COLUMNS": "200"}
    process = start(*command, "--redis-url", redis_server.url, stdout=other_end, env=environment)
    os.close(other_end)
    shown = b""
    try:
        while data := os.read(main_end, 65536):
            shown += data
    except OSError:  # the terminal's other end has closed
        pass
    finally:
        os.close(main_end)
    process.communicate(timeout=30)
    assert process.returncode == 0
    assert b"\x1b]0" not in shown
    assert b"\t" not in shown
    assert (b"one" in shown and b"a\\x1b]0;pwned\\x07[red]" in shown) or b"ready_normal     1" in shown


@pytest.mark.parametrize("command", [["jobs", "--json", "--limit", "10000"], ["jobs", "--limit", "10000"]])
def test_a_reader_that_wants_only_the_head_gets_no_traceback(command: list[str], redis_server: RedisServer) -> None:
    redis_server.client().lpush("go_download_urls", *[compose_job(f"http://h/{n}", "p") for n in range(3000)])
    process = start(*command, "--redis-url", redis_server.url)
    assert process.stdout is not None
    assert process.stdout.readline()
    process.stdout.close()
    process.stdout = None
    assert finish(process).err == ""


def test_an_output_that_is_full_is_exit_3(dlpool: Dlpool) -> None:
    with open("/dev/full", "w") as full:
        ended = dlpool("stats", stdout=full)
    assert ended.code == 3
    assert ended.err == "dlpool: cannot write to standard output: No space left on device\n"


def test_an_output_without_unicode_gets_escapes(dlpool: Dlpool, redis_server: RedisServer) -> None:
    queue_job(redis_server, "one", "ä")
    ended = dlpool("job", "one", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert ended.code == 0
    assert "save_path\t\\xe4\n" in ended.out


# --- which queue ---

COMMANDS = (["push", URL, "p"], ["push", "-i", "/dev/null"], ["jobs"], ["job", "x"], ["stats"])


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_an_absent_redis_is_one_sentence_and_exit_20(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--redis-addr", f"127.0.0.1:{free_port()}"]) == 20
    said = capsys.readouterr()
    assert said.out == ""
    assert "cannot be reached" in said.err
    assert len(said.err.splitlines()) == 1


def test_without_any_option_it_is_the_redis_of_this_host() -> None:
    given = Namespace(config=None, redis_url=None, redis_addr=None, redis_password=None, group=None)
    settings = queue_settings(given).redis
    assert (settings.url, settings.group) == ("redis://localhost:6379", None)


def test_address_and_password_are_taken_from_the_command_line(tmp_path: Path) -> None:
    port = free_port()
    ini = tmp_path / "dlpool.ini"
    ini.write_text("[redis]\nurl = redis://:old@localhost:1\npassword_file = /nowhere\ngroup = g\n")
    with RedisServer(tmp_path / "redis", port=port, password="hunter2"):
        address = ("-c", ini, "--redis-addr", f"127.0.0.1:{port}")
        wrong = run("push", URL, "a", *address, "--redis-password", "wrong")
        assert (wrong.code, wrong.out) == (20, "")
        assert "refuses" in wrong.err
        warned = run("push", URL, "a", *address, "--redis-password", "hunter2")
        assert warned.code == 0
        assert "others on this machine can see a password" in warned.err
        quiet = run("jobs", "--json", *address, "--redis-password", "hunter2", "-q")
        assert (quiet.json["id"], quiet.err) == (warned.out.strip(), "")
        assert "hunter2" not in warned.err + quiet.out
        ini.write_text(f"[redis]\nurl = redis://127.0.0.1:{port}\npassword = hunter2\ngroup = g\n")
        assert run("jobs", "--json", "--config", ini).out == quiet.out
        none = run("jobs", "--redis-url", f"redis://127.0.0.1:{port}")
        assert none.code == 20
        assert len(none.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("url", "left"),
    [
        ("redis://h:1/2", "redis://h:1/2"),
        ("redis://:old@h", "redis://h"),
        ("redis://me:o:l@d@h/1", "redis://me@h/1"),
        ("rediss://me@h", "rediss://me@h"),
        ("unix:///s.sock?password=old&db=1", "unix:///s.sock?db=1"),
        ("redis+sentinel://me:old@h:1,h:2/main", "redis+sentinel://me@h:1,h:2/main"),
        ("embedded", "embedded"),
    ],
)
def test_a_password_on_the_command_line_replaces_every_other(url: str, left: str, tmp_path: Path) -> None:
    ini = tmp_path / "dlpool.ini"
    ini.write_text(f"[redis]\nurl = {url}\npassword_file = /f\n")
    given = Namespace(config=str(ini), redis_url=None, redis_addr=None, redis_password="new", group=None, quiet=True)
    settings = queue_settings(given).redis
    assert (settings.url, settings.password, settings.password_file) == (left, "new", None)


def test_an_invalid_ini_is_exit_78(tmp_path: Path) -> None:
    (tmp_path / "dlpool.ini").write_text("[redis]\nurl = ftp://h\n")
    for path in (tmp_path / "dlpool.ini", tmp_path / "nowhere"):
        ended = run("stats", "-c", path)
        assert (ended.code, ended.out) == (78, "")
        assert len(ended.err.splitlines()) == 1


def test_without_a_supervisor_the_embedded_redis_has_advice(short: Path) -> None:
    ini = short / "my queue.ini"
    ini.write_text(f"[redis]\nurl = embedded\n[paths]\nstate_dir = {short}/state\n")
    sentence = f"dlpool: no supervisor runs for {short}/state: start it with dlpool-supervisor -c '{ini}'\n"
    absent = run("push", URL, "a", "-c", ini)
    assert (absent.code, absent.out, absent.err) == (20, "", sentence)
    assert os.listdir(short) == ["my queue.ini"]
    (short / "state" / "redis").mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as left_by_a_kill:
        left_by_a_kill.bind(str(short / "state" / "redis" / "redis.sock"))
    left = run("stats", "-c", ini)
    assert (left.code, left.out, left.err) == (20, "", sentence)


def test_an_embedded_redis_is_found_by_the_ini_and_left_aside_by_an_address(
    short: Path, redis_server: RedisServer
) -> None:
    ini = short / "dlpool.ini"
    ini.write_text(f"[redis]\nurl = embedded\n[paths]\nstate_dir = {short}/state\n")
    (short / "state" / "redis").mkdir(parents=True)
    (short / "state" / "redis" / "redis.sock").symlink_to(redis_server.socket)
    assert run("push", URL, "a", "-c", ini).code == 0
    assert run("stats", "-c", ini, "--json").json["ready_normal"] == 1
    assert "localhost:" in run("stats", "-c", ini, "--redis-addr", f"localhost:{free_port()}").err
