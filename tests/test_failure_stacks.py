"""What the log says of a job that failed because of another error: the stack of that error, of a sensible size."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dlpool.errors import ChecksumMismatch, DlpoolError, LocalFault, RetryRange
from dlpool.service.wire.frames import MAX_FRAME, EndedFrame, decode, encode
from dlpool.service.wire.results import AttemptResult
from dlpool.service.worker.job_run import MAX_STACK, _stack
from tests.conftest import free_port, wait_until
from tests.desk import Desk, answer, desk_of, running

SECRET = "hunter2"


@pytest.fixture
def desk(tmp_path: Path) -> Any:
    settings = {"retries": 0}
    with running(tmp_path, transfer=settings, supervisor={"max_attempts": 1}) as both, desk_of(*both) as found:
        yield found


def refused(desk: Desk) -> str:
    url = f"http://127.0.0.1:{free_port()}/f?sig={SECRET}"
    desk.client.push(url, desk.path())
    return url


def a_file_in_the_way(desk: Desk) -> str:
    desk.folder.mkdir(parents=True, exist_ok=True)
    (desk.folder / "file").write_text("")
    return desk.push("f", desk.path("file/below"))


@pytest.mark.parametrize(
    ("push", "cause"), [(refused, "ConnectionRefusedError"), (a_file_in_the_way, "NotADirectoryError")]
)
def test_a_failed_job_is_logged_with_the_stack_of_its_cause(
    desk: Desk, push: Callable[[Desk], str], cause: str
) -> None:
    url = push(desk)
    desk.client.wait_for_failure(url)
    wait_until(lambda: desk.service.events("job_failed") != [])
    [failed] = desk.service.events("job_failed")
    stack = failed["error.stack_trace"]
    assert stack.count("Traceback") >= 2 and cause in stack and len(stack) <= MAX_STACK
    assert stack.rstrip().splitlines()[-1].startswith("dlpool.errors."), stack
    assert failed["log.level"] == "error" and failed["error.message"] and failed["error.code"]
    assert SECRET not in json.dumps(failed)
    note = desk.client.redis.hget(desk.client.keys.job(failed["dlpool.job.id"]), "note")
    assert b"Traceback" not in note, "the stack is for the log, not for Redis"


@pytest.mark.parametrize("status", [404, 410, 401, 403, 451])
def test_a_job_that_the_server_refuses_is_logged_with_a_stack(desk: Desk, status: int) -> None:
    desk.serve(answer(status))
    desk.client.wait_for_failure(desk.push())
    wait_until(lambda: desk.service.events("job_failed") != [])
    [failed] = desk.service.events("job_failed")
    assert "dlpool.errors." in failed["error.stack_trace"] and len(failed["error.stack_trace"]) <= MAX_STACK
    assert failed["error.message"] and failed["error.code"]


def caused(error: DlpoolError, cause: Exception) -> DlpoolError:
    """An error as a worker has it: raised from its cause."""
    try:
        try:
            raise cause
        except Exception as inner:
            raise error from inner
    except DlpoolError as raised:
        return raised


@pytest.mark.parametrize("text", ["x" * 9000, "ü" * 50_000, '\x00\n"' * 30_000, "\ud800" * 10_000])
@pytest.mark.parametrize("kind", [RetryRange, LocalFault, ChecksumMismatch])
def test_a_stack_of_any_text_fits_into_a_frame(kind: type[DlpoolError], text: str) -> None:
    stack = _stack(caused(kind("it failed"), OSError(text)))
    assert len(stack) > 1000 and len(stack.encode()) <= MAX_STACK
    frame = EndedFrame("a.1", AttemptResult.FAILED, "/p" * 2000, label="x", message="m" * 2000, stack=stack)
    assert len(encode(frame)) <= MAX_FRAME and decode(encode(frame)) == frame


def test_an_error_without_a_cause_has_its_own_stack() -> None:
    try:
        raise LocalFault("x")
    except LocalFault as error:
        assert _stack(error).count("Traceback") == 1 and _stack(error).endswith("LocalFault: x\n")
