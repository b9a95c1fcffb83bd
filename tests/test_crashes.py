"""Killed at any instant and run again: the right file, and nothing committed is fetched again."""

from __future__ import annotations

import errno
import json
import random
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from dlpool.errors import Cancelled
from tests.conftest import IN_FLIGHT, Authority, Fetcher, Nginx, make_data, sha256, wait_until
from tests.origin import File, Origin
from tests.processes import finish, run, start

Serve = Callable[..., Origin]

SIZE = 3 * 1024 * 1024
DATA = make_data(SIZE)
SHARDS = 4
KILLED = -signal.SIGKILL
OPTIONS = ("--json", "-q", "-c", "3", "--min-split-size", "256K")


def slow_file() -> File:
    """Slow enough for several checkpoints at the pace of the fault runner."""
    return File(DATA, block=64 * 1024, pause_s=0.04)


def committed(target: Path) -> int:
    """What the state file on disk claims."""
    try:
        state = json.loads(target.with_name(target.name + ".part.meta").read_bytes())
    except FileNotFoundError:
        return 0
    return sum(chunk["position"] - chunk["start"] for chunk in state["chunks"])


def steps_of(log: Path) -> list[str]:
    return log.read_text().splitlines()


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The file operations of one undisturbed download."""
    folder = tmp_path_factory.mktemp("trace")
    with Origin(slow_file()) as origin:
        ended = run(folder / "log", "--", "fetch", f"{origin.url}/f", folder / "f", *OPTIONS, module="tests.faults")
    assert ended.code == 0, ended.err
    return steps_of(folder / "log")


def test_the_order_of_writes_is_data_then_state_then_name(trace: list[str]) -> None:
    calls = [line.split(":")[1] for line in trace if line.startswith("checkpoint:")]
    group = ["fdatasync", "open", "write", "fsync", "replace", "fsync"]
    assert calls == group * (len(calls) // len(group)) != []
    last = [line.split(":")[1] for line in trace if line.startswith("publish:")]
    assert last == [*group, "replace", "fsync", "unlink", "fsync"]
    renamed = [Path(name).name for line in trace if line.startswith("publish:replace:2") for name in line.split()[1:]]
    assert renamed == ["f.part", "f"]


@pytest.mark.parametrize(("when", "shard"), [*(("kill-before", shard) for shard in range(SHARDS)), ("kill-after", 0)])
def test_killed_at_any_file_operation_the_next_run_ends_right(
    when: str, shard: int, trace: list[str], tmp_path: Path
) -> None:
    """Opening, two data writes, the first two checkpoints, and all of publishing; after a call only where names change:
    after any other, it is as before the next."""
    steps = [line.split()[0] for line in trace]
    chosen = [step for step in steps if not step.startswith(("data", "checkpoint")) or step.endswith((":1", ":2"))]
    if when == "kill-after":
        chosen = [step for step in chosen if step.split(":")[1] in ("replace", "unlink") or step == chosen[-1]]
    for step in chosen[shard :: SHARDS if when == "kill-before" else 1]:
        folder = tmp_path / step
        folder.mkdir()
        target = folder / "f"
        with Origin(slow_file()) as origin:
            killed = run(
                tmp_path / f"{step}.log",
                when,
                step,
                "--",
                "fetch",
                f"{origin.url}/f",
                target,
                *OPTIONS,
                module="tests.faults",
            )
            assert killed.code == KILLED, (step, killed)
            kept, was_published = committed(target), target.exists()
            origin.handler = File(DATA)  # which does not pause
            ended = run("fetch", f"{origin.url}/f", target, *OPTIONS)
        assert ended.code == 0, (step, ended.err)
        assert target.read_bytes() == DATA
        assert [path.name for path in folder.iterdir()] == ["f"], step
        if kept:
            assert ended.json["received"] <= (0 if was_published else SIZE - kept + 1), step


@pytest.mark.parametrize(
    "step",
    [
        "checkpoint:fdatasync:2",
        "checkpoint:fsync:3",
        "checkpoint:replace:2",
        "publish:fdatasync:1",
        "publish:replace:1",
        "publish:replace:2",
    ],
)
def test_a_failing_sync_or_rename_is_a_local_fault_and_the_committed_state_stays(step: str, tmp_path: Path) -> None:
    target = tmp_path / "f"
    with Origin(slow_file()) as origin:
        failed = run(
            tmp_path / "log",
            "fail",
            step,
            errno.EIO,
            "--",
            "fetch",
            f"{origin.url}/f",
            target,
            *OPTIONS,
            module="tests.faults",
        )
        assert failed.code == 3, failed
        assert failed.json["error"]["label"] == "disk_failed"
        log = steps_of(tmp_path / "log")
        failed_at = next(i for i, line in enumerate(log) if line.startswith(step))
        later = [line for line in log[failed_at + 1 :] if line.split(":")[1] in ("fdatasync", "replace")]
        assert later == [] or step == "publish:replace:2"  # whose bytes are all on disk
        kept = committed(target)
        assert kept > 0
        assert run("fetch", f"{origin.url}/f", target, *OPTIONS).json["received"] <= SIZE - kept + 1
    assert target.read_bytes() == DATA


BIG = 200 * 1024 * 1024


@pytest.fixture(scope="module")
def big(nginx: Nginx) -> str:
    """A 200 MB file on nginx; the name is this module's, as workers of a parallel run have an nginx each."""
    path = nginx.root / "big.bin"
    if not path.exists():
        path.write_bytes(make_data(BIG))
    return sha256(path.read_bytes())


@pytest.mark.parametrize("shard", range(4))
def test_sigkill_at_random_moments_of_200_mb_always_ends_right(
    shard: int, nginx: Nginx, big: str, tmp_path: Path
) -> None:
    chance, url = random.Random(shard), f"{nginx.slow_url}/big.bin"
    for number in range(3):
        target = tmp_path / f"f{number}"
        process = start("fetch", url, target, "--json", "-q")
        part = target.with_name(target.name + ".part")
        wait_until(lambda part=part: part.exists())  # type: ignore[misc]
        try:
            process.wait(chance.uniform(0.0, 2.5))
        except subprocess.TimeoutExpired:
            process.kill()
        process.communicate()
        kept = committed(target)
        ended = run("fetch", url, target, "--json", "-q")
        assert ended.code == 0, ended.err
        assert sha256(target.read_bytes()) == big
        if process.returncode == KILLED:
            assert ended.json["received"] <= (BIG - kept) * 1.001 + 1
        target.unlink()


def test_cancel_at_random_moments_over_tls_always_ends_right(
    nginx: Nginx, big: str, authority: Authority, fetch: Fetcher, tmp_path: Path
) -> None:
    import threading
    import time

    chance = random.Random(7)
    network = {"cacert": str(authority.ca_file)}
    url, target = f"{nginx.tls_url}/big.bin", tmp_path / "f"
    cancelled = 0
    for _ in range(20):
        transfer = fetch.transfer(url, target, network=network, sync=True)
        timer = threading.Timer(chance.uniform(0.05, 0.6), transfer.cancel)
        timer.start()
        try:
            transfer.run()
        except Cancelled:
            cancelled += 1
            ended_at = time.monotonic()
            part = target.with_name("f.part")
            before = part.read_bytes() if part.exists() and cancelled % 5 == 0 else None
            assert time.monotonic() - ended_at < 30
            if before is not None:
                assert part.read_bytes() == before  # nobody writes any more
        finally:
            timer.cancel()
        if target.exists():
            assert sha256(target.read_bytes()) == big
            target.unlink()
    assert cancelled >= 5
    kept = committed(target)
    outcome = fetch(url, target, network=network, sync=True)
    assert sha256(target.read_bytes()) == big
    assert outcome.received <= BIG - kept + 1 + 4 * IN_FLIGHT


def test_two_and_three_processes_on_one_target_one_wins_and_none_corrupts(tmp_path: Path) -> None:
    with Origin(slow_file()) as origin:
        target = tmp_path / "f"
        processes = [start("fetch", f"{origin.url}/f", target, *OPTIONS) for _ in range(3)]
        ended = [finish(process) for process in processes]
    codes = sorted(end.code for end in ended)
    assert codes[0] == 0
    assert set(codes) <= {0, 13}
    assert 13 in codes
    assert target.read_bytes() == DATA
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
    message = next(end.json["error"]["message"] for end in ended if end.code == 13)
    assert "another download is writing to" in message


def test_processes_that_start_again_and_again_never_corrupt_the_target(tmp_path: Path) -> None:
    """Each opens the part file around the moment when another publishes or removes it."""
    data = DATA[: 200 * 1024]
    with Origin(File(data)) as origin:
        target = tmp_path / "f"
        command = ["fetch", "-i", "-", "-q", "-j", "4", "--no-sync"]
        lines = f"{origin.url}/f {target}\n" * 60
        processes = [start(*command, stdin=subprocess.PIPE) for _ in range(3)]
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(lines)
            process.stdin.close()
            process.stdin = None
        ended = [finish(process) for process in processes]
    assert {end.code for end in ended} <= {0, 14}
    for end in ended:
        assert all("another download is writing" in line for line in end.err.splitlines()), end.err
    assert target.read_bytes() == data
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
