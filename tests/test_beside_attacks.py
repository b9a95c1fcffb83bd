"""Honest jobs and uploads end beside each attack, with the right files (``scripts/bench attacks`` tells how fast)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.attacks import ATTACKS, Attack, Place, honest, many_lists, place_in
from tests.disks import needs_root

FEW_TASKS = 500
MOST_TRIES = 20  # of one request, among those that were asked to come again
OF_WEB: dict[str, Attack] = {
    "many lists": partial(many_lists, tasks=FEW_TASKS),
    **{name: ATTACKS[name] for name in ("large bodies", "slow bodies", "silent connections")},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with place_in(tmp_path_factory.mktemp("place")) as made:
        yield made


@needs_root
@pytest.mark.parametrize("name", OF_WEB)
def test_honest_uploads_end(name: str, place: Place) -> None:
    with OF_WEB[name](place):
        assert honest(place, jobs=1, uploads=20).tries <= MOST_TRIES


@needs_root
@pytest.mark.parametrize("name", sorted(ATTACKS.keys() - OF_WEB.keys()))
def test_honest_work_ends(name: str, tmp_path: Path) -> None:
    with place_in(tmp_path) as place, ATTACKS[name](place):
        assert honest(place, jobs=10, uploads=10).tries <= MOST_TRIES
