"""Test traces: a real supervisor sends spans of jobs to a collector, whose failures do not disturb downloads."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.collector import Collector, collector, values
from tests.conftest import free_port, make_data, wait_until
from tests.desk import NOT_FOUND, Desk, InTurn, answer, desk_of, running
from tests.fleet import Client, Supervisor
from tests.origin import File
from tests.processes import ROOT

OK, ERROR = 0, 2  # codes of a span's status: unset, error
CLIENT = 3
Both = tuple[Desk, Collector]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Supervisor, Client, Collector]]:
    with collector() as server:
        otel = {"endpoint": server.url, "service_name": "downloads"}
        with running(tmp_path_factory.mktemp("shared"), otel=otel, transfer={"retry_delay": "10ms"}) as both:
            yield *both, server


@pytest.fixture
def traced(shared: tuple[Supervisor, Client, Collector]) -> Iterator[Both]:
    service, client, server = shared
    with desk_of(service, client) as desk:
        yield desk, server


def ended(server: Collector, trace_id: str) -> tuple[Any, list[Any]]:
    """Wait for the span of the job, and return it with the spans of its ranges."""
    wait_until(lambda: any(not span.parent_span_id for span in server.trace(trace_id)))
    spans = server.trace(trace_id)
    [job] = [span for span in spans if not span.parent_span_id]
    return job, [span for span in spans if span.parent_span_id]


def test_a_job_is_one_trace_with_a_span_for_each_range(traced: Both) -> None:
    desk, server = traced
    data = make_data(300_000)
    desk.serve(File(data))
    trace_id = "a" * 32
    url = desk.url("f")
    secret = f"{url.replace('//', '//user:hidden@')}?key=hidden"
    desk.client.push(secret, desk.path(), id=f"{desk.name}-job", trace_id=trace_id, user_id="u1")
    job, ranges = ended(server, trace_id)
    known = values(job.attributes)
    assert (job.name, job.status.code) == ("download", OK)
    assert known["url.full"] == url
    assert "hidden" not in str(server.trace(trace_id))
    assert known["dlpool.job.id"] == f"{desk.name}-job"
    assert (known["user.id"], known["dlpool.attempt"], known["dlpool.attempt_result"]) == ("u1", 1, "succeeded")
    assert (known["file.size"], known["file.path"]) == (len(data), str(desk.folder / "f"))
    assert ranges
    assert sum(
        values(one.attributes)["dlpool.range.end"] - values(one.attributes)["dlpool.range.start"] for one in ranges
    ) == len(data)
    for one in ranges:
        said = values(one.attributes)
        assert (one.name, one.kind, one.parent_span_id) == ("GET", CLIENT, job.span_id)
        assert (said["http.request.method"], said["http.response.status_code"]) == ("GET", 206)
        assert (said["server.address"], said["server.port"]) == ("127.0.0.1", desk.origin.port)
        assert job.start_time_unix_nano <= one.start_time_unix_nano <= one.end_time_unix_nano <= job.end_time_unix_nano
    assert server.resources[0]["service.name"] == "downloads"
    assert set(server.paths) == {"/v1/traces"}


def test_a_range_that_failed_is_a_span_with_its_error(traced: Both) -> None:
    desk, server = traced
    desk.serve(InTurn(answer(503), File(b"data")))
    desk.client.wait_for(desk.push(trace_id="b" * 32))
    job, ranges = ended(server, "b" * 32)
    assert job.status.code == OK
    assert [one.status.code for one in ranges] == [ERROR, OK]
    failed = values(ranges[0].attributes)
    [logged] = [line for line in desk.service.events("range_retry") if line["trace.id"] == "b" * 32]
    assert failed["error.type"] == logged["error.code"]
    assert failed["dlpool.range.attempt"] == 1


def test_a_failed_job_says_why(traced: Both) -> None:
    desk, server = traced
    desk.serve(answer(NOT_FOUND))
    desk.client.wait_for_failure(desk.push(trace_id="c" * 32))
    job, _ = ended(server, "c" * 32)
    assert job.status.code == ERROR
    assert "404" in job.status.message
    assert values(job.attributes)["error.type"] == "not_found"


@pytest.mark.parametrize("fault", ["away", "refuses", "slow"])
def test_a_collector_that_takes_nothing_harms_no_download_and_no_end(fault: str, tmp_path: Path) -> None:
    with collector() as server:
        server.status, server.is_slow = 500 if fault == "refuses" else 200, fault == "slow"
        endpoint = f"http://127.0.0.1:{free_port()}" if fault == "away" else server.url
        with running(tmp_path, otel={"endpoint": endpoint}, supervisor={"workers": 1}) as both, desk_of(*both) as desk:
            desk.client.wait_for(*[desk.push(number) for number in range(3)])
            assert desk.service.stop() == 0
            lost = desk.service.events("traces_lost")
            assert lost[-1]["dlpool.spans"] == 6  # three jobs of a range each
            assert len(lost) <= 2
            assert not desk.service.events("worker_died")
            assert "Traceback" not in desk.service.errors.read_text()


def test_spans_that_wait_are_sent_when_the_service_ends(tmp_path: Path) -> None:
    with collector() as server, running(tmp_path, otel={"endpoint": server.url}) as both, desk_of(*both) as desk:
        desk.client.wait_for(desk.push(trace_id="d" * 32))
        assert desk.service.stop() == 0
        assert len(server.trace("d" * 32)) == 2


def test_without_an_endpoint_nothing_is_imported_that_sends_traces() -> None:
    program = """import sys
from dlpool.config import OtelSettings
from dlpool.observe.tracing import check_traces, open_traces
import dlpool.service.service, dlpool.service.worker.process
check_traces(OtelSettings())
assert open_traces(OtelSettings(), "n", None) is None
own = ("opentelemetry.exporter", "opentelemetry.sdk.trace", "google.protobuf", "dlpool.observe.spans")
print([name for name in sys.modules if name.startswith(own)])"""  # redis imports the rest where it finds it
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert ran.stdout == "[]\n"


def test_an_endpoint_without_the_extra_is_said_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "dlpool.ini").write_text(f"[otel]\nendpoint = http://127.0.0.1:1\n[paths]\nstate_dir = {tmp_path}\n")
    program = """import sys
sys.modules["opentelemetry.sdk"] = None
from dlpool.cli.supervisor import main
sys.exit(main(["-c", sys.argv[1]]))"""
    ran = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "dlpool.ini")],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 78
    assert ran.stderr.count("\n") == 1
    assert "pip install 'dlpool[otel]'" in ran.stderr
