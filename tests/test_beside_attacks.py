"""Honest jobs and uploads end beside each attack, with the right files (``scripts/bench attacks`` tells how fast)."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from tests.attacks import ATTACKS, Attack, honest, many_lists, place_in
from tests.disks import needs_root

FEW_TASKS = 500
MOST_TRIES = 20  # of one request, among those that were asked to come again
CASES: dict[str, Attack] = {**ATTACKS, "many lists": partial(many_lists, tasks=FEW_TASKS)}


@needs_root
@pytest.mark.parametrize("name", CASES)
def test_honest_work_ends(name: str, tmp_path: Path) -> None:
    with place_in(tmp_path) as place, CASES[name](place):
        taken = honest(place, jobs=10, uploads=20)
        assert taken.tries <= MOST_TRIES
