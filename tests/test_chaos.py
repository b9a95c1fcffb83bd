"""The chaos suite in short: a run of a fixed seed loses nothing, and its check sees what is lost, doubled or spoilt."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from dlpool.jobs.keys import QueueKeys
from tests.chaos.faults import FAULTS, Fault, Struck
from tests.chaos.life import Life
from tests.chaos.run import Report, in_vain, run
from tests.chaos.stage import Stage
from tests.chaos.witness import Seen

SECONDS = 15.0
STORM_SEED = 34
STORM_SECONDS = 5.0
SEED = 7


def test_everything_fails_for_a_while_and_nothing_is_lost_doubled_or_left_behind(tmp_path: Path) -> None:
    said: list[str] = []
    report = run(tmp_path, SEED, SECONDS, said.append, kind="single")
    assert report.violations == [], "\n".join([*said, *report.violations])
    assert sum(report.faults.values()) >= 5
    assert report.faults.keys() <= {fault.name for fault in FAULTS}


def test_an_operator_storms_while_the_master_changes_and_the_accounts_balance(tmp_path: Path) -> None:
    said: list[str] = []
    weights = {"control_storm": 4, "master_steps_down": 2, "master_killed": 2, "worker_killed": 1}
    faults = [replace(fault, weight=weights[fault.name]) for fault in FAULTS if fault.name in weights]
    report = run(tmp_path, STORM_SEED, STORM_SECONDS, said.append, faults, kind="sentinel")
    assert report.violations == [], "\n".join([*said, *report.violations])
    assert report.faults["control_storm"] >= 1, report.faults
    assert report.faults["master_steps_down"] + report.faults["master_killed"] >= 1, report.faults


def seen(*events: str) -> list[Seen]:
    """Events by their names; after a space, their outcome or the label of their note."""
    made = []
    for text in events:
        name, _, word = text.partition(" ")
        fields = {"outcome": word} if name == "job_requeued" else {"note": f'{{"label":"{word}"}}'}
        made.append(Seen(0, name, fields))
    return made


@pytest.mark.parametrize(
    ("events", "said", "is_right"),
    [
        (["job_started", "job_succeeded"], {}, True),
        (["job_started", "job_failed poison"], {}, True),
        (["job_started", "job_failed no"], {}, False),
        (["job_started"], {}, False),
        (["job_succeeded", "job_succeeded"], {}, False),
        (["job_succeeded", "job_started", "job_succeeded"], {}, False),
        (["job_cancelled"], {}, False),
        (["job_cancelled"], {("cancel", "OK"): 1}, True),
        (["job_succeeded"], {("cancel", "OK"): 1}, False),
        (["job_succeeded"], {("cancel", "ASKED"): 1, ("cancel", "in doubt"): 1}, True),
        (["job_cancelled", "job_requeued retry", "job_succeeded"], {("cancel", "ASKED"): 1}, False),
        (["job_cancelled", "job_requeued retry", "job_succeeded"], {("cancel", "OK"): 1, ("retry", "OK"): 1}, True),
        (["job_cancelled", "job_requeued retry"], {("cancel", "OK"): 1, ("retry", "OK"): 1}, False),
    ],
)
def test_a_life_has_as_many_ends_as_the_operator_allowed(
    events: list[str], said: dict[tuple[str, str], int], is_right: bool
) -> None:
    assert (Life.of(seen(*events)).problem("succeeded", Counter(said)) is None) == is_right


def spoil(stage: Stage, chance: random.Random) -> Struck | None:
    """Do three wrongs to finished jobs, once: a file, a record, a second push."""
    jobs = [job for job in stage.jobs.made.values() if job.kind == "checksum" and job.push == "done"]
    ended = [job for job in jobs if job.id and stage.witness.is_over(job.id)]
    if len(ended) < 3 or "wrongs" in stage.held:
        return None
    with (stage.downloads / ended[0].path).open("ab") as file:
        file.write(b"more")
    stage.redis.delete(QueueKeys().success(ended[1].url))
    stage.redis.lpush(QueueKeys().intake, ended[2].raw)
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
