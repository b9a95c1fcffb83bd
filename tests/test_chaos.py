"""The chaos suite in short: a run of a fixed seed loses nothing, and its check sees what is lost, doubled or spoilt."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

from dlpool.jobs.keys import Keys
from tests.chaos.faults import FAULTS, Fault, Struck
from tests.chaos.run import Report, in_vain, run
from tests.chaos.stage import Stage

SECONDS = 20.0
SEED = 7


def test_everything_fails_for_a_while_and_nothing_is_lost_doubled_or_left_behind(tmp_path: Path) -> None:
    said: list[str] = []
    report = run(tmp_path, SEED, SECONDS, said.append)
    assert report.violations == [], "\n".join([*said, *report.violations])
    assert sum(report.faults.values()) >= 5
    assert report.faults.keys() <= {fault.name for fault in FAULTS}


def spoil(stage: Stage, chance: random.Random) -> Struck | None:
    """Do three wrongs to finished jobs, once: a file, a record, a second push."""
    jobs = [job for job in stage.jobs.made.values() if job.kind == "checksum" and job.push == "done"]
    ended = [job for job in jobs if job.id and stage.witness.is_over(job.id)]
    if len(ended) < 3 or "wrongs" in stage.held:
        return None
    with (stage.downloads / ended[0].path).open("ab") as file:
        file.write(b"more")
    stage.redis.delete(Keys().success(ended[1].url))
    stage.redis.lpush(Keys().intake, ended[2].raw)
    return Struck("three wrongs", 60.0, holds="wrongs")


def test_the_check_sees_a_spoilt_file_a_lost_record_and_a_doubled_job(tmp_path: Path) -> None:
    report = run(tmp_path / "spoilt", SEED, 4.0, print, [Fault("spoilt", 1, spoil)])
    assert report.faults["spoilt"] == 1
    assert len(report.violations) == 3, report.violations
    found = "\n".join(report.violations)
    assert "are not the" in found
    assert "it has no record" in found
    assert "is none that was pushed" in found


def test_a_run_without_faults_or_without_ends_does_not_pass() -> None:
    ended, faults = Counter(succeeded=1, failed=1), Counter(worker_killed=1)
    assert in_vain(Report(SEED, faults=faults, ends=ended)) == []
    assert in_vain(Report(SEED, ends=ended)) == ["no fault was injected"]
    assert in_vain(Report(SEED, faults=faults)) == ["no job has succeeded, or none failed"]
