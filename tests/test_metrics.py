"""Test the metrics of real supervisors: they are exact, also after a worker or supervisor was killed."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dlpool.jobs.keys import QueueKeys
from dlpool.jobs.pushed_job import PushedJob, compose_job
from dlpool.jobs.transitions import OldestWaiting, Transitions
from dlpool.observe.metrics import Metrics
from dlpool.service.monitor.surveys import DiskSurvey, IntakeAge, size_and_free
from dlpool.service.wire.counters import RANGE_BOUNDS_S, CounterDeltas, WorkerCounters, ranges_of, retries_of
from tests.conftest import free_port, make_data, wait_for_port, wait_until
from tests.desk import InTurn, answer
from tests.fleet import Client
from tests.held import BLOCK, HeldFile, wait_for_commit, wait_for_run
from tests.metrics import PATIENCE_S, Watched, get, samples
from tests.origin import Connection, File, Origin, Request
from tests.processes import ROOT
from tests.redis_server import RedisServer

DATA = make_data(3 * 1024 * 1024)
ONE: dict[str, dict[str, Any]] = {
    "supervisor": {"workers": 1, "max_concurrent_downloads": 2, "max_attempts": 1},
    "transfer": {"connections": 1},  # with several, a few bytes come twice
}
PROMETHEUS = ROOT / "etc" / "prometheus"


def serve(request: Request, connection: Connection) -> None:
    if "missing" in request.path:
        connection.answer(404)
    else:
        File(DATA)(request, connection)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Watched, Client]]:
    """Run a supervisor for the tests that do not disturb it."""
    folder = tmp_path_factory.mktemp("status_turn")
    with RedisServer(folder / "redis") as server, Watched(folder / "node", server.url, ONE) as service:
        yield service, Client(server.client())


def test_jobs_bytes_ranges_and_retries_are_counted_exactly(watched: tuple[Watched, Client]) -> None:
    service, client = watched
    counted: list[tuple[str, dict[str, str], float]] = [
        ("dlpool_received_bytes_total", {}, 2 * len(DATA)),
        ("dlpool_jobs_total", {"outcome": "success"}, 2),
        ("dlpool_jobs_total", {"outcome": "failed", "label": "not_found"}, 1),
        ("dlpool_range_retries_total", {"reason": "server_busy"}, 1),
        ("dlpool_job_seconds_count", {"attempt_result": "succeeded"}, 2),
        ("dlpool_job_speed_bytes_per_second_count", {}, 2),
    ]
    before = [service.value(name, **labels) for name, labels, _ in counted]
    ranges = service.value("dlpool_range_seconds_count")
    with Origin(serve) as origin, Origin(InTurn(answer(503), serve)) as busy:
        urls = [f"{origin.url}/a", f"{busy.url}/b"]
        for url in urls:
            client.push(url, url.rpartition("/")[2])
        client.push(f"{origin.url}/missing", "missing")
        client.wait_for(*urls)
        client.wait_for_failure(f"{origin.url}/missing")
    for (name, labels, more), value in zip(counted, before, strict=True):
        service.wait_for(name, value + more, **labels)
    assert service.value("dlpool_range_seconds_count") >= ranges + 2
    assert service.value("dlpool_range_seconds_bucket", le="+Inf") == service.value("dlpool_range_seconds_count")


def test_the_state_of_the_node_is_shown(watched: tuple[Watched, Client]) -> None:
    service, _ = watched
    service.wait_for("dlpool_workers", 1, state="idle")
    service.wait_for("dlpool_queue_supervisors", 1)
    wait_until(lambda: service.value("dlpool_workers_resident_bytes") > 10 * 1024 * 1024, PATIENCE_S)
    assert service.value("dlpool_worker_resident_bytes_max") == service.value("dlpool_workers_resident_bytes")
    assert service.value("dlpool_ready") == service.value("dlpool_redis_up") == 1
    service.wait_for("dlpool_slots", 2)
    assert service.value("dlpool_redis_call_seconds_count", call="heartbeat") >= 1
    assert (
        0
        < service.value("dlpool_disk_free_bytes", folder=str(service.out))
        < service.value("dlpool_disk_size_bytes", folder=str(service.out))
    )


@pytest.mark.parametrize("accept", ["text/plain", "application/openmetrics-text; version=1.0.0"])
def test_promtool_has_nothing_to_say_against_the_metrics(watched: tuple[Watched, Client], accept: str) -> None:
    service, _ = watched
    _, text = get(service.port, "/metrics", accept=accept)
    assert text.endswith("# EOF\n") == ("openmetrics" in accept)
    if "openmetrics" not in accept:
        ended = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True)
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_a_killed_worker_takes_nothing_along_and_nothing_counts_twice(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    client = Client(redis_server.client())
    with HeldFile(DATA) as file, Origin(file) as origin, Watched(tmp_path, redis_server.url, ONE) as service:
        client.push(f"{origin.url}/a", "a", id="a")
        wait_for_commit(service.out / "a")
        service.wait_for("dlpool_received_bytes_total", BLOCK)
        wait_until(lambda: 1 <= service.value("dlpool_connections") <= 16, PATIENCE_S)
        os.kill(wait_for_run(service, "a"), signal.SIGKILL)
        wait_for_run(service, "a", 2)
        assert service.value("dlpool_received_bytes_total") >= BLOCK
        file.gate.set()
        client.wait_for(f"{origin.url}/a")
        service.wait_for("dlpool_received_bytes_total", len(DATA))
        service.wait_for("dlpool_jobs_total", 1, outcome="success")
        service.wait_for("dlpool_connections", 0)
        assert service.value("dlpool_requeued_jobs_total", disposition="crash", label="worker_died") == 1
        assert service.value("dlpool_worker_exits_total", reason="died") == 1
        assert service.value("dlpool_worker_starts_total") == 2


def test_while_redis_is_away_the_node_is_alive_and_not_ready_and_says_why(tmp_path: Path) -> None:
    with RedisServer(tmp_path / "redis") as server, Watched(tmp_path / "node", server.url) as service:
        assert service.get("/readyz")[0] == 200
        wait_until(lambda: service.value("dlpool_queue_supervisors") == 1, PATIENCE_S)
        server.stop()
        wait_until(lambda: service.get("/readyz")[0] == 503, PATIENCE_S)
        assert service.get("/livez") == (200, "ok\n")
        text = service.get("/readyz?verbose")[1]
        assert re.search(r"^\[-\]redis failed: .", text, re.MULTILINE)
        assert "[+]workers ok\n" in text
        assert service.value("dlpool_redis_up") == service.value("dlpool_ready") == 0
        assert service.value("dlpool_redis_errors_total", kind="unavailable") >= 1
        wait_until(lambda: math.isnan(service.value("dlpool_queue_supervisors")), PATIENCE_S)
        assert service.samples("dlpool_queue_jobs") == []
        server.start()
        wait_until(lambda: service.get("/readyz")[0] == 200, PATIENCE_S)


# --- the documents ---


def exposed() -> dict[str, tuple[str, str]]:
    """Return type and help of dlpool's metrics by name."""
    text = Metrics(RANGE_BOUNDS_S).exposition("text/plain")[0].decode()
    helps = dict(re.findall(r"^# HELP (dlpool_\w+) (.*)$", text, re.MULTILINE))
    return {name: (kind, helps[name]) for name, kind in re.findall(r"^# TYPE (dlpool_\w+) (\w+)$", text, re.MULTILINE)}


def test_the_table_of_metrics_is_that_of_the_code(watched: tuple[Watched, Client]) -> None:
    text = (ROOT / "docs" / "metrics.md").read_text()
    rows = re.findall(r"^\| `(dlpool_\w+)` \| (\w+) \| (.*?) ?\| (.*) \|$", text, re.MULTILINE)
    assert {name: kind for name, kind, _, _ in rows} == {name: kind for name, (kind, _) in exposed().items()}
    scraped = watched[0].get("/metrics")[1]
    for name, _, labels, help_text in rows:
        assert help_text.startswith(exposed()[name][1].removesuffix(".")), name
        told = set(re.findall(r"`(\w+)`", labels))
        used = re.findall(rf"^{name}(?:_count)?(?:\{{(.*)\}})? ", scraped, re.MULTILINE)
        assert all(set(re.findall(r'(\w+)="', found)) == told for found in used), name


def expressions() -> list[str]:
    """Return the expressions of the dashboard."""
    dashboard = json.loads((ROOT / "etc" / "grafana" / "dlpool.json").read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    return asked + [one["query"] for one in dashboard["templating"]["list"] if one["type"] == "query"]


def metrics_in(text: str) -> set[str]:
    """Return the metrics in an expression, histograms without suffix."""
    names = set(re.findall(r"(?<![\w:])dlpool_\w+", text))
    return {re.sub(r"_(bucket|count|sum)$", "", name) for name in names}


def test_every_metric_of_rules_and_dashboard_exists() -> None:
    rules = (PROMETHEUS / "dlpool.rules.yml").read_text()
    recorded = set(re.findall(r"record: (\S+)", rules))
    asked = expressions()
    assert len(asked) > 20
    for text in (rules, *asked):
        assert metrics_in(text) <= set(exposed()), text
        assert set(re.findall(r"dlpool:\w+:\w+", text)) <= recorded, text


def test_the_expressions_of_the_dashboard_are_promql(tmp_path: Path) -> None:
    asked = [text.replace("$__rate_interval", "1m") for text in expressions() if not text.startswith("label_values")]
    rules = [{"record": f"x:{number}", "expr": text} for number, text in enumerate(asked)]
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    ended = subprocess.run(["promtool", "check", "rules", tmp_path / "rules.yml"], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert f"{len(asked)} rules found" in ended.stdout


def test_the_rules_do_what_their_tests_say() -> None:
    ended = subprocess.run(
        ["promtool", "test", "rules", "dlpool.rules.test.yml"], cwd=PROMETHEUS, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_every_alert_is_tested_and_explained() -> None:
    alerts = set(re.findall(r"alert: (\w+)", (PROMETHEUS / "dlpool.rules.yml").read_text()))
    text = (PROMETHEUS / "dlpool.rules.test.yml").read_text()
    firing = set(re.findall(r'alertname="(\w+)"', text)) | set(re.findall(r"- alertname: (\w+)", text))
    assert firing == alerts
    assert set(re.findall(r"^\| `(Dlpool\w+)` \|", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE)) == alerts


def test_a_real_prometheus_scrapes_a_real_supervisor(watched: tuple[Watched, Client], tmp_path: Path) -> None:
    service, client = watched
    port = free_port()
    config = (PROMETHEUS / "prometheus.yml").read_text().replace("15s", "1s").replace(":9108", f":{service.port}")
    (tmp_path / "prometheus.yml").write_text(config)
    (tmp_path / "dlpool.rules.yml").write_text((PROMETHEUS / "dlpool.rules.yml").read_text())
    with Origin(serve) as origin:
        client.push(f"{origin.url}/seen", "seen")
        client.wait_for(f"{origin.url}/seen")
    wanted = service.value("dlpool_jobs_total", outcome="success")
    assert wanted >= 1
    command = [
        "prometheus",
        f"--config.file={tmp_path}/prometheus.yml",
        f"--storage.tsdb.path={tmp_path}/data",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=error",
    ]
    with (tmp_path / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            wait_for_port(port, process)
            wait_until(lambda: asked(port, 'sum(dlpool_jobs_total{outcome="success"})') == wanted, PATIENCE_S)
            assert asked(port, 'up{job="dlpool"}') == 1
            wait_until(lambda: asked(port, "dlpool:queue_backlog:max") == 0, PATIENCE_S)
            states = re.findall(r'"health":"(\w+)"', get(port, "/api/v1/rules")[1])
            assert states
            assert set(states) <= {"ok", "unknown"}  # unknown: not evaluated yet
        finally:
            process.terminate()
            process.wait(PATIENCE_S)


def asked(port: int, expression: str) -> float | None:
    """Return the only value that a Prometheus has for an expression."""
    status, text = get(port, f"/api/v1/query?query={urllib.parse.quote(expression)}")
    result = json.loads(text)["data"]["result"] if status == 200 else []
    return float(result[0]["value"][1]) if result else None


# --- what is decided without a process ---


def test_a_tally_is_added_up_once_whatever_the_order_of_heartbeats() -> None:
    tally, counted = WorkerCounters(), CounterDeltas()
    tally.add("received", 100)
    first = tally.snapshot()
    tally.add("received", 50)
    tally.count_retry("timeout")
    second = tally.snapshot()
    assert counted.update(second) == {"received": 150, "retry.timeout": 1}
    assert counted.update(first) == {}
    assert counted.update(second) == {}
    tally.count_retry("timeout")
    new = counted.update(tally.snapshot())
    assert retries_of(new) == {"timeout": 1}


def test_ranges_are_counted_by_their_bounds() -> None:
    tally = WorkerCounters()
    for seconds in (0.001, RANGE_BOUNDS_S[0], RANGE_BOUNDS_S[0] + 0.001, 1e9):
        tally.count_range(seconds)
    assert ranges_of(tally.snapshot()) == [2, 1, *[0] * (len(RANGE_BOUNDS_S) - 2), 1]


def test_the_age_of_the_intake_is_that_of_what_has_been_seen_at_its_old_end() -> None:
    intake = IntakeAge()
    seen = [
        (0.0, OldestWaiting(0, "", 0.0), 0.0),  # empty
        (1.0, OldestWaiting(2, "a", 0.0), 0.0),
        (5.0, OldestWaiting(3, "a", 0.0), 4.0),  # only pushes
        (6.0, OldestWaiting(2, "b", 0.0), 0.0),  # a was taken
        (9.0, OldestWaiting(2, "b", 0.0), 3.0),
        (10.0, OldestWaiting(1, "b", 0.0), 0.0),  # an equal one was taken
        (12.0, OldestWaiting(0, "", 0.0), 0.0),
    ]
    assert [intake.sample(oldest, now, is_fifo=True) for now, oldest, _ in seen] == [age for _, _, age in seen]


def test_taking_the_newest_leaves_the_oldest_its_age() -> None:
    intake = IntakeAge()
    intake.sample(OldestWaiting(3, "a", 0.0), 0.0, is_fifo=False)
    assert intake.sample(OldestWaiting(1, "a", 0.0), 7.0, is_fifo=False) == 7.0


def test_redis_knows_what_waits_longest(redis_server: RedisServer) -> None:
    client: Any = redis_server.client()
    keys = QueueKeys()
    queue = Transitions(client, keys)
    assert queue.oldest_waiting() == OldestWaiting(0, "", 0.0)
    for name in ("old", "new"):
        queue.push([(PushedJob.parse(compose_job(f"http://h/{name}", f"/{name}")), name)])
    client.hincrby(keys.job("old"), "created", -90_000)
    assert 90.0 <= queue.oldest_waiting().ready_age_s < 120.0
    client.hset(keys.job("old"), "due", int(client.hget(keys.job("new"), "created")) - 40_000)
    assert 40.0 <= queue.oldest_waiting().ready_age_s < 70.0
    client.lpush(keys.intake, "a" * 2000 + "1", "b")
    first = queue.oldest_waiting()
    client.lset(keys.intake, -1, "a" * 2000 + "2")
    assert first.backlog == 2
    assert first.fingerprint != queue.oldest_waiting().fingerprint != ""


def test_outcomes_on_disk_are_counted_without_those_that_are_being_written(tmp_path: Path) -> None:
    for name in ("a.1.json", "b.1.json", "c.1.tmp", "d.1.damaged"):
        (tmp_path / name).touch()
    metrics = Metrics(RANGE_BOUNDS_S)
    DiskSurvey(lambda: [str(tmp_path)], tmp_path, metrics).sample()
    text = metrics.exposition("text/plain")[0].decode()
    assert samples(text, "dlpool_spooled_results") == [2]
    assert samples(text, "dlpool_disk_size_bytes", folder=str(tmp_path)) == [size_and_free(tmp_path)[0]]


def test_a_folder_that_is_not_there_yet_has_the_room_of_its_parent(tmp_path: Path) -> None:
    size, free = size_and_free(tmp_path / "a" / "b")
    found = os.statvfs(tmp_path)
    assert size == found.f_blocks * found.f_frsize
    assert 0 < free <= size
    (tmp_path / "file").touch()
    assert all(math.isnan(value) for value in size_and_free(tmp_path / "file" / "below"))
