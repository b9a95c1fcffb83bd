"""The timer thread of a process: whom it calls, and when it is there."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dlpool import threads
from dlpool.errors import NoThread
from dlpool.transfer import timer as timers
from dlpool.transfer.timer import CALM_TICKS, IDLE_TICKS, TimerThread
from tests.conftest import wait_until


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(timers, "TICK_S", 0.001)
    wait_until(has_ended)  # threads of earlier tests
    yield
    wait_until(has_ended)


def has_ended() -> bool:
    return not [one for one in threading.enumerate() if one.name == "dlpool-timer"]


def test_callbacks_are_called_again_and_again_while_their_block_runs() -> None:
    timer, calls = TimerThread(), {"one": 0, "other": 0}

    def counting(name: str) -> Callable[[], None]:
        def call() -> None:
            calls[name] += 1

        return call

    with timer.calling(counting("one")) as is_called:
        assert is_called
        wait_until(lambda: calls["one"] >= 3)
        with timer.calling(counting("other")) as is_other_called:
            assert is_other_called
            wait_until(lambda: calls["other"] >= 3)
        assert len([one for one in threading.enumerate() if one.name == "dlpool-timer"]) == 1
        seen = calls["one"]
        other = calls["other"]
        wait_until(lambda: calls["one"] >= seen + 3)
        assert calls["other"] <= other + 1, "it may be called once while its block ends"
    assert timer._callbacks == {}


def test_a_callback_that_is_in_a_hurry_is_called_at_each_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks: list[int] = []
    calls: dict[str, list[int]] = {"calm": [], "hurried": []}

    class Pause:
        def wait(self, _seconds: float) -> bool:
            ticks.append(len(ticks))
            return len(ticks) > 2 * CALM_TICKS + 1

    monkeypatch.setattr(threading, "Event", Pause)
    timer = TimerThread()
    timer._callbacks["calm"] = timers._Entry(lambda: calls["calm"].append(len(ticks)))

    def hurry() -> bool:
        calls["hurried"].append(len(ticks))
        return True

    timer._callbacks["hurried"] = timers._Entry(hurry)
    timer._run()
    assert calls == {"calm": [1, 1 + CALM_TICKS, 1 + 2 * CALM_TICKS], "hurried": list(range(1, 2 * CALM_TICKS + 2))}


def test_the_thread_ends_without_callbacks_and_comes_back() -> None:
    timer, called = TimerThread(), threading.Event()
    for _ in range(2):
        called.clear()
        with timer.calling(called.set):
            assert called.wait(20.0)
        wait_until(lambda: timer._thread is None)


def test_an_idle_thread_stays_for_some_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks: list[float] = []

    class Pause:
        def wait(self, seconds: float) -> bool:
            ticks.append(seconds)
            if len(ticks) == 5:
                timer._callbacks["once"] = timers._Entry(timer._callbacks.clear)
            return False

    monkeypatch.setattr(threading, "Event", Pause)
    timer = TimerThread()
    timer._run()
    assert len(ticks) == 5 + IDLE_TICKS + 1, "counted from the last callback"


def test_without_a_thread_it_is_said_that_nothing_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Any:
        raise NoThread("no thread")

    monkeypatch.setattr(threads, "start_thread", refuse)
    with TimerThread().calling(lambda: None) as is_called:
        assert is_called is False


def test_a_block_that_fails_ends_its_calls() -> None:
    timer = TimerThread()
    with pytest.raises(ValueError, match="failed"), timer.calling(lambda: None):
        raise ValueError("failed")
    assert timer._callbacks == {}


def test_the_callbacks_change_and_are_read_only_under_the_lock() -> None:
    timer, called = TimerThread(), threading.Event()

    class Guarded(dict[object, Any]):
        def __setitem__(self, key: object, value: Any) -> None:
            assert timer._lock.locked()
            super().__setitem__(key, value)

        def __delitem__(self, key: object) -> None:
            assert timer._lock.locked()
            super().__delitem__(key)

        def values(self) -> Any:
            assert timer._lock.locked()
            return super().values()

    timer._callbacks = Guarded()
    with timer.calling(called.set):
        assert called.wait(20.0)
