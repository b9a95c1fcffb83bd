"""What clients of the service know: records to the letter, the list as backlog, the order, and each wish of a job."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dlpool.config import PathSettings, Settings
from dlpool.errors import InternalError
from dlpool.jobs.pushed_job import MAX_HEADERS, MAX_PATH, MAX_URL, PushedJob
from dlpool.service.cleanup import split_into_frames
from dlpool.service.node.node import Node
from dlpool.service.service import serve
from dlpool.service.wire.frames import CleanFrame, CleanupEntry, JobFrame, encode
from tests.conftest import make_data, sha256, wait_until
from tests.desk import DATA, NOT_FOUND, Desk, Gate, InTurn, answer, desk_of, running
from tests.fleet import Client, Supervisor
from tests.origin import Connection, File, Handler, Request
from tests.processes import run

Service = tuple[Supervisor, Client]

MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
DAY_S = 86_400
MALFORMED = (
    "not JSON",
    "[1, 2]",
    '"text"',
    "null",
    "{",
    "",
    b"\xff\xfe{}",
    b'{"url": "\xe9"}',
    "{}",
    '{"save_path": "x"}',
    '{"url": null, "save_path": "x"}',
    '{"url": ["x"], "save_path": "x"}',
    '{"url": {}, "save_path": "x"}',
    '{"url": true, "save_path": "x"}',
    '{"url": "", "save_path": "x"}',
    '{"url": NaN, "save_path": "x"}',
    "[" * 100_000,
    '{"url": "\\ud800", "save_path": "x"}',
    '{"url": "' + "x" * 20_000 + '", "save_path": "x"}',
    b"{" + b" " * 10_000_000 + b"}",
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service without retries inside of an attempt, so that each answer of a server is an attempt."""
    with running(
        tmp_path_factory.mktemp("shared"), supervisor={"max_concurrent_downloads": 4}, transfer={"retries": 0}
    ) as both:
        yield both


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with one slot, of a group."""
    with running(
        tmp_path_factory.mktemp("single"), group="team", supervisor={"max_concurrent_downloads": 1, "workers": 1}
    ) as both:
        yield both


@pytest.fixture
def desk(shared: Service) -> Iterator[Desk]:
    with desk_of(*shared) as one:
        yield one


@pytest.fixture
def narrow(single: Service) -> Iterator[Desk]:
    with desk_of(*single) as one:
        yield one


def held(desk: Desk) -> Gate:
    """Let a first job hold the only slot until the gate opens; all later requests are answered at once."""
    gate = Gate()
    desk.serve(InTurn(gate, File(DATA)))
    desk.push("first")
    wait_until(lambda: gate.waiting == 1)
    return gate


# --- records ---


def test_a_success_record_is_to_the_letter(desk: Desk) -> None:
    url = desk.url()
    desk.push_raw({"url": url, "save_path": desk.path(), "unknown": [1, {"a": None}]})
    desk.client.wait_for(url)
    key = f"success:{url}"
    record = json.loads(desk.client.redis.get(key))
    assert list(record) == ["url", "save_path", "file_size", "duration", "finished_at"]
    assert (record["url"], record["save_path"], record["file_size"]) == (url, desk.path(), len(DATA))
    assert type(record["duration"]) is float
    assert MOMENT.fullmatch(record["finished_at"])
    assert desk.client.redis.type(key) == b"string"
    assert DAY_S - 60 <= desk.client.redis.ttl(key) <= DAY_S
    assert (desk.folder / "f").read_bytes() == DATA


def test_a_failure_record_is_to_the_letter_and_holds_the_job_as_it_was_pushed(desk: Desk) -> None:
    desk.serve(answer(404))
    url = desk.url()
    raw = (
        f'{{"save_path" : "{desk.path()}",  "url":"{url}", "n": 1.0, "unknown":{{"ü": [null]}}, "dlpool": {{"x": 1}}}}'
    )
    desk.push_raw(raw)
    desk.client.wait_for_failure(url)
    value = desk.client.redis.hget("go_download_failed_tasks", url).decode()
    record = json.loads(value)
    assert list(record) == ["task_data", "error_message", "failed_at"]
    assert raw in value
    assert record["task_data"] == json.loads(raw)
    assert "404" in record["error_message"]
    assert MOMENT.fullmatch(record["failed_at"])
    assert desk.client.redis.ttl("go_download_failed_tasks") == -1
    assert desk.client.success(url) is None


def test_a_groups_records_and_list_carry_its_name(narrow: Desk) -> None:
    narrow.serve(InTurn(File(DATA), answer(404)))
    good, bad = narrow.url("good"), narrow.url("bad")
    for url in (good, bad):
        job = json.dumps({"url": url, "save_path": narrow.path("f")})
        narrow.client.redis.lpush("team:go_download_urls", job)
    wait_until(lambda: bool(narrow.client.redis.hexists("team:go_download_failed_tasks", bad)))
    assert json.loads(narrow.client.redis.get(f"success:team:{good}"))["file_size"] == len(DATA)
    assert narrow.client.redis.exists(f"success:{good}", "go_download_failed_tasks", "go_download_urls") == 0


def test_numbers_are_taken_as_texts(desk: Desk) -> None:
    desk.push_raw({"url": desk.url(), "save_path": 17})
    desk.client.wait_for(desk.url())
    record = desk.client.success(desk.url())
    assert record is not None
    assert record["save_path"] == "17"
    assert (desk.service.out / "17").read_bytes() == DATA
    desk.push_raw({"url": 18.5, "save_path": desk.path()})
    assert desk.client.wait_for_failure("18.5")["task_data"]["url"] == 18.5


def test_missing_parents_are_made(desk: Desk) -> None:
    desk.push(save_path=f"{desk.name}/a/b/c/f")
    desk.client.wait_for(desk.url())
    assert (desk.folder / "a/b/c/f").read_bytes() == DATA


# --- the list is the backlog, in order ---


def test_jobs_stay_in_the_list_until_a_slot_is_free(narrow: Desk) -> None:
    left: list[int] = []

    def handle(request: Request, connection: Connection) -> None:
        left.append(narrow.waiting())
        File(DATA)(request, connection)

    gate = Gate(handle)
    narrow.serve(gate)
    urls = [narrow.push(number) for number in range(6)]
    wait_until(lambda: gate.waiting == 1)
    gate.open()
    narrow.client.wait_for(*urls)
    assert left == [5, 4, 3, 2, 1, 0]


def test_jobs_run_in_the_order_in_which_they_were_pushed(narrow: Desk) -> None:
    gate = held(narrow)
    urls = [narrow.push(number) for number in range(6)]
    gate.open()
    narrow.client.wait_for(*urls)
    assert narrow.asked() == ["first", "0", "1", "2", "3", "4", "5"]


def test_the_ini_can_say_that_the_last_pushed_job_runs_first(narrow: Desk) -> None:
    service = narrow.service
    before = service.ini.read_text()
    try:
        for text in (before.replace("[redis]", "[redis]\norder = lifo"), before):
            reloads = len(service.events("configuration_reloaded"))
            service.ini.write_text(text)
            service.signal(signal.SIGHUP)
            wait_until(lambda count=reloads: len(service.events("configuration_reloaded")) > count)  # type: ignore[misc]
            if text == before:
                break
            gate = held(narrow)
            urls = [narrow.push(number) for number in range(5)]
            gate.open()
            narrow.client.wait_for(*urls)
    finally:
        service.ini.write_text(before)
    assert narrow.asked() == ["first", "4", "3", "2", "1", "0"]


# --- each push has its end ---


def test_the_same_url_pushed_twice_is_two_jobs_with_two_ends(desk: Desk) -> None:
    for name in ("a", "b"):
        desk.push(id=f"{desk.name}-{name}")
    wait_until(lambda: all(desk.client.ends(f"{desk.name}-{name}") == 1 for name in ("a", "b")))
    assert desk.client.success(desk.url()) is not None
    assert desk.client.failure(desk.url()) is None
    wait_until(lambda: desk.files() == ["f"])


def test_the_same_url_to_two_paths_is_two_files(desk: Desk) -> None:
    for name in ("a", "b"):
        desk.push(save_path=desk.path(name), id=f"{desk.name}-{name}")
    wait_until(lambda: all(desk.client.ends(f"{desk.name}-{name}") == 1 for name in ("a", "b")))
    wait_until(lambda: desk.files() == ["a", "b"])
    assert (desk.folder / "a").read_bytes() == (desk.folder / "b").read_bytes() == DATA


def test_retries_of_a_job_are_not_visible_to_clients(desk: Desk) -> None:
    failures: list[object] = []

    def refuse(request: Request, connection: Connection) -> None:
        failures.append(desk.client.failure(desk.url()))
        connection.answer(500)

    desk.serve(InTurn(refuse, refuse, File(DATA)))
    desk.push(id=desk.name)
    desk.client.wait_for(desk.url())
    assert failures == [None, None]
    assert job(desk)["attempts"] == 3
    assert len([line for line in desk.lines(desk.name) if line["event.action"] == "job_retried"]) == 2


def job(desk: Desk) -> dict[str, Any]:
    """What ``dlpool job`` says of this test's job."""
    return run("job", desk.name, "-c", desk.service.ini, "--json").json


def test_a_job_waits_at_least_as_long_as_the_server_asked(desk: Desk) -> None:
    came: list[float] = []

    def busy(request: Request, connection: Connection) -> None:
        came.append(time.monotonic())
        connection.answer(503, {"Retry-After": "1"})

    def good(request: Request, connection: Connection) -> None:
        came.append(time.monotonic())
        File(DATA)(request, connection)

    desk.serve(InTurn(busy, good))
    desk.push(id=desk.name)
    desk.client.wait_for(desk.url())
    assert came[1] - came[0] >= 1.0
    retried = next(line for line in desk.lines(desk.name) if line["event.action"] == "job_retried")
    assert retried["dlpool.delay_s"] >= 1.0


def test_the_last_attempts_reason_is_the_failure(desk: Desk) -> None:
    desk.serve(InTurn(answer(500), answer(502)))
    desk.push(max_attempts=2, id=desk.name)
    assert "502" in desk.client.wait_for_failure(desk.url())["error_message"]
    assert len(desk.origin.requests) == 2
    assert desk.client.ends(desk.name) == 1


def test_what_is_not_there_fails_at_once(desk: Desk) -> None:
    desk.serve(answer(NOT_FOUND))
    desk.push()
    assert "404" in desk.client.wait_for_failure(desk.url())["error_message"]
    assert len(desk.origin.requests) == 1


def test_a_failed_job_leaves_no_part_behind(desk: Desk) -> None:
    data = make_data(1_000_000)

    def broken(request: Request, connection: Connection) -> None:
        head = {"Content-Range": f"bytes 0-999999/{len(data)}", "Content-Length": str(len(data)), "ETag": '"v1"'}
        connection.answer(206, head, data[:300_000], length=False)
        connection.reset()

    desk.serve(InTurn(broken, broken, answer(404)))
    desk.push(id=desk.name)
    desk.client.wait_for_failure(desk.url())
    wait_until(lambda: desk.files() == [])


# --- what a job may ask for ---


def test_a_right_checksum_succeeds(desk: Desk) -> None:
    desk.push(checksum=f"sha256:{sha256(DATA)}")
    desk.client.wait_for(desk.url())


def test_a_wrong_checksum_fails_and_leaves_nothing(desk: Desk) -> None:
    desk.push(checksum=f"sha256:{sha256(b'other')}")
    assert "sha256" in desk.client.wait_for_failure(desk.url())["error_message"]
    wait_until(lambda: desk.files() == [])
    assert len(desk.origin.requests) == 1


def test_headers_are_sent(desk: Desk) -> None:
    desk.push(headers={"X-Key": "secret-key", "Authorization": "Bearer hunter2"})
    desk.client.wait_for(desk.url())
    assert desk.origin.requests[0].headers["x-key"] == "secret-key"
    assert desk.origin.requests[0].headers["authorization"] == "Bearer hunter2"
    assert "hunter2" not in desk.service.log_file.read_text()


@pytest.mark.parametrize(
    ("if_exists", "files", "content"),
    [("overwrite", ["f"], DATA), ("skip", ["f"], b"old"), ("rename", ["f", "f.1"], b"old"), ("fail", ["f"], b"old")],
)
def test_each_wish_for_an_existing_file_is_obeyed(if_exists: str, files: list[str], content: bytes, desk: Desk) -> None:
    desk.folder.mkdir()
    (desk.folder / "f").write_bytes(b"old")
    desk.push(if_exists=if_exists)
    if if_exists == "fail":
        assert "exists already" in desk.client.wait_for_failure(desk.url())["error_message"]
    else:
        desk.client.wait_for(desk.url())
    wait_until(lambda: desk.files() == files)
    assert (desk.folder / "f").read_bytes() == content


def test_high_comes_before_the_list_and_low_behind_it(narrow: Desk) -> None:
    keys = narrow.client.keys
    narrow.client.redis.set(f"{keys.prefix}fence", 1000)  # fences only rise; no job's turn is one of the exceptions
    gate = held(narrow)
    narrow.push("low", priority="low")
    narrow.push("a")
    narrow.push("b")
    own = ["--redis-url", narrow.service.url, "--group", "team"]
    run("push", narrow.url("high"), narrow.path("high"), "--priority", "high", *own)
    gate.open()
    narrow.client.wait_for(*(narrow.url(name) for name in ("high", "a", "b", "low")))
    assert narrow.asked() == ["first", "high", "a", "b", "low"]


@pytest.mark.parametrize("how", ["raw", "own"])
def test_a_job_does_not_run_before_its_time(how: str, desk: Desk) -> None:
    came: list[float] = []

    def handle(request: Request, connection: Connection) -> None:
        came.append(time.time())
        File(DATA)(request, connection)

    desk.serve(handle)
    due = time.time() + 2.0
    if how == "raw":
        desk.push(not_before=due, id=desk.name)
    else:
        run("push", desk.url(), desk.path(), "--not-before", due, "--id", desk.name, "-c", desk.service.ini)
    desk.client.wait_for(desk.url())
    assert came[0] >= due
    assert job(desk)["attempts"] == 1


def test_equal_jobs_that_wish_it_are_one_download_and_each_has_its_end(desk: Desk) -> None:
    gate = Gate()
    desk.serve(gate)
    names = [f"{desk.name}-{number}" for number in range(3)]
    for name in names:
        desk.push(dedupe=True, id=name)
    wait_until(lambda: gate.waiting == 1 and desk.waiting() == 0)
    gate.open()
    wait_until(lambda: [desk.client.ends(name) for name in names] == [1, 1, 1])
    assert gate.waiting == 1
    assert desk.client.success(desk.url()) is not None


def test_every_log_line_of_a_job_says_its_trace_and_user(desk: Desk) -> None:
    desk.serve(InTurn(answer(500), File(DATA)))
    desk.push(id=desk.name, trace_id="trace-7", user_id="user-7", checksum=f"sha256:{sha256(DATA)}")
    desk.client.wait_for(desk.url())
    wait_until(lambda: "job_succeeded" in {line["event.action"] for line in desk.lines(desk.name)})
    lines = desk.lines(desk.name)
    assert {line["trace.id"] for line in lines} == {"trace-7"}
    assert {line["user.id"] for line in lines} == {"user-7"}
    assert {"job_retried", "job_succeeded", "checksum_verified"} <= {line["event.action"] for line in lines}


def test_a_job_without_a_trace_is_given_one_that_stays(desk: Desk) -> None:
    desk.serve(InTurn(answer(500), File(DATA)))
    desk.push(id=desk.name)
    desk.client.wait_for(desk.url())
    wait_until(lambda: "job_succeeded" in {line["event.action"] for line in desk.lines(desk.name)})
    (trace,) = {line["trace.id"] for line in desk.lines(desk.name)}
    assert re.fullmatch("[0-9a-f]{32}", trace)


@pytest.mark.parametrize(
    ("own", "reason"),
    [
        ({"checksum": "sha256:zz"}, "checksum"),
        ({"max_attempts": 0}, "max_attempts"),
        ({"headers": {"Bad\nName": "x"}}, "header"),
        ({"priority": "urgent"}, "priority"),
        ({"not_before": "tomorrow"}, "not_before"),
        ({"if_exists": "maybe"}, "if_exists"),
        ({"dedupe": "yes"}, "dedupe"),
    ],
)
def test_a_wish_that_cannot_be_understood_fails_the_job_and_names_it(
    own: dict[str, Any], reason: str, desk: Desk
) -> None:
    desk.push(**own)
    assert reason in desk.client.wait_for_failure(desk.url())["error_message"]
    assert desk.origin.requests == []


def test_a_long_url_in_any_script_neither_fails_to_end_nor_stops_the_service(desk: Desk) -> None:
    urls = [desk.url(letter * 15_000) for letter in "aé漢😀\\"]
    for number, url in enumerate(urls):
        desk.push_raw({"url": url, "save_path": desk.path(number), "dlpool": {"id": f"{desk.name}-{number}"}})
    wait_until(lambda: all(desk.client.ends(f"{desk.name}-{number}") == 1 for number in range(len(urls))), 40)
    assert desk.client.success(urls[0]) is not None
    assert desk.service.process is not None
    assert desk.service.process.poll() is None


@pytest.mark.parametrize("letter", ["a", "é", "😀", "\\", '"', "\x01"])
def test_the_largest_job_of_any_script_fits_the_way_to_its_worker(letter: str) -> None:
    def most(limit: int) -> str:
        return letter * (limit // (len(json.dumps(letter)) - 2))

    url, save_path, text = most(MAX_URL), most(MAX_PATH), "v" * (MAX_HEADERS - 10)
    own = {"headers": {"H": text}, "user_id": "😀" * 200, "trace_id": "😀" * 200}
    asked = PushedJob.parse(json.dumps({"url": url, "save_path": save_path, "dlpool": own}).encode())
    ticket = f"{'i' * 64}.{2**63}"
    texts = (asked.url, asked.save_path, asked.trace_id or "", asked.user_id)
    encode(JobFrame(ticket, "i" * 64, 2**63, 1.0, 1, *texts, dict(asked.headers), f"sha512:{'0' * 128}", "overwrite"))
    (portion,) = split_into_frames([CleanupEntry("i" * 64, asked.url, asked.save_path, "/é" * 1365, has_failed=True)])
    encode(CleanFrame([list(one) for one in portion]))


def test_a_defect_in_the_service_is_logged_and_said_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Node, "wait_for_old_workers", lambda *_: 1 // 0)
    paths = PathSettings(state_dir=str(tmp_path / "state"), log_dir=str(tmp_path))
    with pytest.raises(InternalError, match="unexpected ZeroDivisionError"):
        serve(Settings(paths=paths), Settings)
    (line,) = map(json.loads, (tmp_path / "dlpool.log").read_text().splitlines())
    assert line["event.action"] == "service_failed"
    assert "wait_for_old_workers" in line["error.stack_trace"]


# --- many ---


def test_malformed_jobs_among_ten_thousand_stop_none(tmp_path: Path) -> None:
    """1 % is malformed; each of those is in the dead list with its reason, and counted; the log has a few and a sum."""
    with (
        running(tmp_path, supervisor={"max_concurrent_downloads": 32}, transfer={"connections": 1}) as both,
        desk_of(*both) as desk,
    ):
        client, keys = desk.client, desk.client.keys
        pipeline = client.redis.pipeline(transaction=False)
        total, bad = 10_000, 100
        for number in range(total):
            if number % 100 == 50:
                raw: str | bytes = MALFORMED[min(number // 500, len(MALFORMED) - 1)]
                raw = raw if number < 9_600 else MALFORMED[number // 100 % 5]
            else:
                raw = json.dumps({"url": desk.url(number), "save_path": desk.path(f"{number % 50}/{number}")})
            pipeline.lpush(keys.intake, raw)
        pipeline.execute()
        wait_until(lambda: client.redis.zcard(keys.done) + client.redis.zcard(keys.dead) == total, 240)
        assert client.redis.zcard(keys.dead) == bad
        assert client.redis.exists(keys.failed) == 0
        assert sum(1 for _ in client.redis.scan_iter("success:*", count=1000)) == total - bad
        wait_until(lambda: sum(len(list(one.iterdir())) for one in desk.folder.iterdir()) == total - bad)
        for job_id in client.redis.zrange(keys.dead, 0, -1):
            note = json.loads(client.redis.hget(keys.job(job_id.decode()), "note"))
            assert note["label"] == "malformed"
            assert note["message"]
        today = int(time.time() // DAY_S)
        days = [client.redis.hgetall(keys.stats(day)) for day in (today - 1, today)]  # midnight may lie between
        counted = {name: sum(int(day.get(name, 0)) for day in days) for name in (b"failed", b"succeeded")}
        assert counted == {b"failed": bad, b"succeeded": total - bad}
        assert desk.service.stop() == 0
        lines, sums = desk.service.events("job_malformed"), desk.service.events("jobs_malformed")
        assert all(line["error.message"] for line in lines) and 0 < len(lines) < bad
        assert len(lines) + sum(line["dlpool.count"] for line in sums) == bad
        assert client.leftovers() == []


def test_a_job_of_ten_megabytes_is_kept_only_in_part(desk: Desk) -> None:
    before = desk.client.redis.zcard(desk.client.keys.dead)
    desk.push_raw(b'{"url": "' + b"x" * 10_000_000 + b'"}')
    wait_until(lambda: desk.client.redis.zcard(desk.client.keys.dead) > before)
    (job_id,) = desk.client.redis.zrange(desk.client.keys.dead, -1, -1)
    kept = desk.client.redis.hgetall(desk.client.keys.job(job_id.decode()))
    assert len(kept[b"raw"]) <= 4096
    assert int(kept[b"size"]) > 10_000_000


def test_well_formed_and_malformed_are_told_by_the_url(desk: Desk) -> None:
    """A job of a known URL has its failure record, however wrong the rest of it is."""
    handler: Handler = answer(500)
    desk.serve(handler)
    desk.push_raw({"url": desk.url(), "dlpool": 7})
    assert "dlpool is not an object" in desk.client.wait_for_failure(desk.url())["error_message"]
    desk.push_raw({"url": desk.url("g")})
    assert "save_path is missing" in desk.client.wait_for_failure(desk.url("g"))["error_message"]
    assert desk.origin.requests == []
