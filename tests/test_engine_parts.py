"""The engine's parts by themselves: the queue, the figures, the speed. Their locks: ``test_thread_safety.py``."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlpool import DownloadQueue, DownloadStats, DownloadTask
from dlpool.engine.progress import WINDOW_S, Speedometer
from dlpool.engine.task import FINAL, MOVES


def task(priority: int = 0) -> DownloadTask:
    return DownloadTask("http://h/x", ".", priority=priority)


# --- the queue ---


@given(st.lists(st.tuples(st.sampled_from(["add", "next", "remove", "again"]), st.integers(-2, 2)), max_size=60))
def test_the_queue_is_a_sorted_list(steps: list[tuple[str, int]]) -> None:
    queue, model = DownloadQueue(), []
    for step, number in steps:
        if step == "add":
            one = task(number)
            queue.add_task(one)
            model.append(one)
        elif step == "next":
            first = min(model, key=lambda one: one.priority, default=None)
            assert queue.get_next_task() is first
            model = [one for one in model if one is not first]
        elif step == "again" and model:
            queue.add_task(model[number % len(model)])
        elif step == "remove" and model:
            one = model.pop(number % len(model))
            assert queue.remove_task(one.id)
            assert not queue.remove_task(one.id)
        assert len(queue) == len(model)
        assert queue.get_all_tasks() == sorted(model, key=lambda one: one.priority)
    queue.clear()
    assert (len(queue), queue.get_next_task()) == (0, None)


# --- the figures ---


def test_the_statistics_add_up() -> None:
    stats = DownloadStats()
    assert (stats.get_overall_progress(), stats.get_overall_speed(), stats.get_total_bytes()) == (0.0, 0.0, 0)
    for name in ("a", "b", "c", "d"):
        stats.start_task(name)
    stats.update_task_progress("a", 50, 100, 10.0)
    stats.update_task_progress("b", 100, 100, 20.0)
    stats.update_task_progress("c", 30, None, 5.0)
    assert stats.get_overall_speed() == 35.0
    assert (stats.get_completed_bytes(), stats.get_total_bytes()) == (180, 230)
    stats.complete_task("b")
    stats.fail_task("c", "why")
    assert (stats.get_completed_bytes(), stats.get_total_bytes(), stats.get_overall_speed()) == (150, 200, 10.0)
    assert stats.get_overall_progress() == 0.75
    assert (stats.completed, stats.failed, stats.errors) == (1, 1, {"c": "why"})


def test_calls_for_unknown_tasks_break_no_statistics() -> None:
    stats = DownloadStats()
    stats.complete_task("never started")
    stats.fail_task("never started", "x")
    stats.update_task_progress("a", 200, 100, 0.0)
    assert stats.get_overall_progress() == 1.0
    for number in range(1500):
        stats.fail_task(str(number), "x")
    assert len(stats.errors) == 1000


# --- the rest ---


def test_final_statuses_never_change() -> None:
    assert all(not MOVES[status] for status in FINAL)
    assert MOVES.keys() == {"pending", "downloading", "paused", *FINAL}


def test_the_speed_is_averaged_over_the_window() -> None:
    speed = Speedometer()
    assert speed.add(0.0, 0) == 0.0
    assert speed.add(1.0, 100) == 100.0
    assert speed.add(100.0, 200) == pytest.approx(100 / 99)
    assert speed.add(100.0 + WINDOW_S, 700) == pytest.approx(500 / WINDOW_S)
    assert speed.add(106.0, 10) == 0.0, "a restart begins anew"
