"""The log of a running service: rotated by logrotate, on a full disk, without its folder, for the eyes, with traces."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dlpool.service.wire.frames import JobFrame
from dlpool.service.worker.job_run import with_traceparent
from tests.conftest import make_data, wait_until
from tests.desk import Desk, desk_of, running
from tests.disks import needs_root, tmpfs
from tests.fleet import Client, Supervisor
from tests.origin import File, Origin
from tests.processes import ROOT
from tests.redis_server import RedisServer

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
Service = tuple[Supervisor, Client]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    logging = {
        "traceparent": "yes",
        "levels": "jobs=error, worker=debug",
        "rotate_daily": "no",
        "rotate_size": "1T",
        "keep_size": "1T",
    }
    with running(tmp_path_factory.mktemp("shared"), logging=logging) as both:
        yield both


@pytest.fixture
def desk(shared: Service) -> Iterator[Desk]:
    with desk_of(*shared) as one:
        yield one


def done(desk: Desk, file: str = "f", **own: Any) -> list[dict[str, Any]]:
    """Push a job, wait for its end, and return what the log says of it."""
    job_id = f"{desk.name}-{file}"
    desk.client.wait_for(desk.push(file, id=job_id, **own))
    wait_until(lambda: any(line["event.action"] == "job_started" for line in desk.lines(job_id)))
    return desk.lines(job_id)


# --- levels ---


def test_the_ini_gives_loggers_levels_of_their_own(desk: Desk) -> None:
    lines = done(desk)
    assert {line["log.logger"] for line in lines} == {"worker"}
    wait_until(lambda: "debug" in {line["log.level"] for line in desk.service.records()})


# --- traces ---


def test_a_trace_goes_from_the_job_into_each_line_and_to_the_origin(desk: Desk) -> None:
    desk.serve(File(make_data(400_000)))
    lines = done(desk, trace_id=TRACE_ID)
    assert {line["trace.id"] for line in lines} == {TRACE_ID}
    sent = {request.headers["traceparent"] for request in desk.origin.requests}
    assert len(desk.origin.requests) > 1
    (header,) = sent
    assert re.fullmatch(rf"00-{TRACE_ID}-(?!0{{16}})[0-9a-f]{{16}}-01", header)


def test_a_trace_id_that_dlpool_made_is_sent_too(desk: Desk) -> None:
    (trace_id,) = {line["trace.id"] for line in done(desk)}
    assert desk.origin.requests[0].headers["traceparent"].split("-")[1] == trace_id


def test_a_trace_is_not_sent_where_a_redirect_leads(desk: Desk) -> None:
    with Origin(File(b"elsewhere")) as other:
        desk.serve(lambda _, connection: connection.answer(302, {"Location": f"{other.url}/f"}))
        done(desk)
        assert "traceparent" in desk.origin.requests[0].headers
        assert "traceparent" not in other.requests[0].headers


FRAME = JobFrame("j.1", "j", 1, 0.0, 1, "http://h/f", "f", TRACE_ID, None, {"X-Own": "1"}, None, None, None)


@pytest.mark.parametrize(
    "frame",
    [
        replace(FRAME, trace_id="order 7"),
        replace(FRAME, trace_id="0" * 32),
        replace(FRAME, trace_id=TRACE_ID.upper()),
        replace(FRAME, headers={"TraceParent": "00-own"}),
    ],
)
def test_what_w3c_does_not_know_and_what_the_job_says_itself_stay_as_they_are(frame: JobFrame) -> None:
    assert with_traceparent(frame) is frame


def test_another_run_has_another_parent() -> None:
    first, second = (with_traceparent(replace(FRAME, lease_id=ticket)).headers for ticket in ("j.1", "j.2"))
    assert first["X-Own"] == "1"
    assert first["traceparent"][:36] == second["traceparent"][:36] == f"00-{TRACE_ID}-"
    assert first["traceparent"] != second["traceparent"]


# --- logrotate ---


def test_logrotate_takes_the_log_away_and_nothing_is_lost(desk: Desk, tmp_path: Path) -> None:
    """The configuration that we ship, with another path, another way to signal, and each time enough to rotate."""
    logrotate = shutil.which("logrotate") or shutil.which("logrotate", path="/usr/sbin")
    assert logrotate is not None, "logrotate is not installed: scripts/test installs it"
    service = desk.service
    text = (ROOT / "etc" / "logrotate" / "dlpool").read_text()
    text = text.replace("/var/log/dlpool/dlpool.log", str(service.log_file))
    text = re.sub(r"systemctl .*", f"kill -USR1 {service.pid}", text)
    (tmp_path / "conf").write_text(text)
    (tmp_path / "conf").chmod(0o600)
    ids = [f"{desk.name}-{turn}" for turn in range(3)]
    for job_id in ids:
        desk.client.wait_for(desk.push(job_id, id=job_id))
        wait_until(lambda: has_lines(service))  # logrotate leaves an empty log alone
        subprocess.run([logrotate, "--force", "--state", tmp_path / "state", tmp_path / "conf"], check=True)
        wait_until(service.log_file.exists)
        time.sleep(0.5)  # within which all writers follow; logrotate's next turn comes much later
    names = {path.name for path in service.log_file.parent.iterdir()}
    assert names == {"dlpool.log", "dlpool.log.1", "dlpool.log.2.gz", "dlpool.log.3.gz"}
    lines = "".join(every_line(service.log_file.parent))
    assert all(f'"{job_id}"' in lines for job_id in ids)


def has_lines(service: Supervisor) -> bool:
    """Have the supervisor write something, and say whether it is in the file that has the log's name."""
    service.signal(signal.SIGUSR2)
    return service.log_file.stat().st_size > 0


def every_line(folder: Path) -> Iterator[str]:
    """The lines of all logs; each must be whole."""
    for path in folder.iterdir():
        data = subprocess.run(["zcat", "-f", path], capture_output=True, check=True).stdout
        for line in data.decode().splitlines():
            assert json.loads(line)
            yield line


# --- a log that cannot be written ---


def outlive(service: Supervisor, client: Client, desk: Desk) -> None:
    """All workers are killed; a new one takes a job, whatever its log is like."""
    for worker in service.workers():
        worker.kill()
    client.wait_for(desk.push("first"), desk.push("second"))


def assert_logs_again(desk: Desk) -> None:
    """Supervisor and worker write what happens from now on."""
    numbers = itertools.count()

    def is_seen() -> bool:
        number = next(numbers)
        desk.client.wait_for(desk.push(f"after{number}", id=f"after{number}"))
        return {"worker", "jobs"} <= {line["log.logger"] for line in desk.lines(f"after{number}")}

    wait_until(is_seen)


@needs_root
def test_a_full_log_disk_stops_no_download(tmp_path: Path) -> None:
    folder = tmp_path / "node" / "log"
    with tmpfs(folder, "256k"), running(tmp_path) as both, desk_of(*both) as desk:
        with suppress(OSError), (folder / "ballast").open("wb", buffering=0) as file:
            while file.write(bytes(512)):
                pass
        for number in range(40):  # what is left of the log's own page is used up
            desk.push(number)
        desk.client.wait_for(*(desk.url(number) for number in range(40)))
        outlive(*both, desk)
        (folder / "ballast").unlink()
        assert_logs_again(desk)
        *_, last = both[0].records()
        assert last["@timestamp"]


def test_a_log_folder_that_is_gone_stops_no_download(tmp_path: Path) -> None:
    with running(tmp_path) as both, desk_of(*both) as desk:
        folder = both[0].log_file.parent
        folder.rename(tmp_path / "moved")
        folder.write_text("a file where the folder was")
        outlive(*both, desk)
        folder.unlink()
        assert_logs_again(desk)


# --- for the eyes ---


def test_the_log_may_be_for_the_eyes(tmp_path: Path) -> None:
    """The option is over the INI, and reaches the workers."""
    with RedisServer(tmp_path / "redis") as server, Origin(File(b"data")) as origin:
        service, client = Supervisor(tmp_path / "node", server.url), Client(server.client())
        service.start("--log-format", "console", is_ready=False)
        try:
            client.push(f"{origin.url}/f", "f")
            client.wait_for(f"{origin.url}/f")
            wait_until(lambda: "job_succeeded" in service.log_file.read_text())
            assert service.stop() == 0
        finally:
            service.kill()
        shown = service.log_file.read_text()
    pattern = r"20[0-9-]{8}T[0-9:.]{12}Z \[(debug|info|warning|error) *\] [a-z_]+ +\[[a-z]+\] .*"
    assert all(re.fullmatch(pattern, line) for line in shown.splitlines())
    assert re.search(r"job_started +\[worker\]", shown)
