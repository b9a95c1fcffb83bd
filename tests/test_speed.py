"""Progress in words: speeds, sizes, times, and the line of a file."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dlpool.cli.units import eta_s, percent, size_text, status_text, time_text
from dlpool.engine.progress import WINDOW_S, Speedometer
from dlpool.transfer.job import Progress

KIB = 1024
MIB = 1024 * KIB


def progress(done: int, size: int | None, connections: int = 4) -> Progress:
    return Progress(Path("file"), done, size, connections, "downloading")


# --- speed ---


def test_the_first_sample_has_no_speed() -> None:
    assert Speedometer().add(100.0, 5 * MIB) == 0.0


def test_a_speed_is_bytes_by_seconds() -> None:
    meter = Speedometer()
    meter.add(100.0, 1000)
    assert meter.add(102.0, 4000) == 1500.0


def test_two_samples_at_once_are_no_speed() -> None:
    meter = Speedometer()
    meter.add(100.0, 0)
    assert meter.add(100.0, 1000) == 0.0


def test_samples_before_the_window_are_dropped() -> None:
    meter = Speedometer()
    meter.add(0.0, 0)
    meter.add(1.0, 10**9)
    for second in range(2, 12):
        speed = meter.add(float(second), 10**9 + second * 100)
    assert speed == pytest.approx(100.0)


def test_a_burst_is_spread_over_the_window() -> None:
    meter = Speedometer()
    meter.add(0.0, 0)
    speeds = [meter.add(float(second), 1000) for second in range(1, 6)]
    assert speeds == [pytest.approx(1000 / second) for second in range(1, 6)]


def test_a_stall_reduces_the_speed_to_zero() -> None:
    meter = Speedometer()
    meter.add(0.0, 0)
    meter.add(1.0, 10**9)
    speeds = [meter.add(1.0 + step, 10**9) for step in range(1, int(WINDOW_S) + 2)]
    assert speeds[-1] == 0.0
    assert speeds == sorted(speeds, reverse=True)


def test_a_restart_resets_the_speed() -> None:
    meter = Speedometer()
    meter.add(0.0, 0)
    meter.add(1.0, 10**9)
    assert meter.add(2.0, 10) == 0.0
    assert meter.add(3.0, 110) == 100.0


@given(st.lists(st.tuples(st.floats(0, 10), st.integers(0, 10**12)), min_size=1, max_size=30))
def test_a_speed_is_never_negative(samples: list[tuple[float, int]]) -> None:
    meter, now = Speedometer(), 0.0
    for seconds, total in samples:
        now += seconds
        assert meter.add(now, total) >= 0.0


# --- sizes and times ---


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (0, "0B"),
        (512, "512B"),
        (1023, "1023B"),
        (1024, "1.0K"),
        (1536, "1.5K"),
        (200 * MIB, "200.0M"),
        (MIB * KIB, "1.0G"),
        (MIB * MIB, "1.0T"),
        (5000 * MIB * MIB, "5000.0T"),
        (0.4, "0B"),
    ],
)
def test_a_size_is_short(size: float, expected: str) -> None:
    assert size_text(size) == expected


@given(st.floats(0, 1023 * MIB * MIB))
@example(1023.7)
@example(MIB - 1)
def test_a_size_is_never_shown_as_1024_of_a_unit(size: float) -> None:
    assert float(size_text(size)[:-1]) < 1024


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "0s"),
        (0.4, "0s"),
        (7, "7s"),
        (59.4, "59s"),
        (59.6, "1m00s"),
        (60, "1m00s"),
        (200, "3m20s"),
        (3599.4, "59m59s"),
        (3599.7, "1h00m"),
        (7500, "2h05m"),
        (360_000, "100h00m"),
    ],
)
def test_a_time_is_short(seconds: float, expected: str) -> None:
    assert time_text(seconds) == expected


# --- the line of a file ---


@pytest.mark.parametrize(
    ("done", "size", "expected"), [(0, 200, 0.0), (50, 200, 25.0), (200, 200, 100.0), (50, None, None), (0, 0, None)]
)
def test_a_share_is_in_per_cent(done: int, size: int | None, expected: float | None) -> None:
    assert percent(progress(done, size)) == expected


@pytest.mark.parametrize(
    ("done", "size", "speed", "expected"),
    [(50, 200, 10.0, 15.0), (50, 200, 0.5, 300.0), (200, 200, 10.0, 0.0), (50, 200, 0.0, None), (50, None, 10.0, None)],
)
def test_the_remaining_time_is_shown_if_known(
    done: int, size: int | None, speed: float, expected: float | None
) -> None:
    assert eta_s(progress(done, size), speed) == expected


@pytest.mark.parametrize(
    ("moment", "speed", "expected"),
    [
        (progress(50 * MIB, 200 * MIB), 1.5 * MIB, "25%, 50.0M of 200.0M, 1.5M/s, ETA 1m40s, 4 connections"),
        (progress(50 * MIB, 200 * MIB), 0.0, "25%, 50.0M of 200.0M, 0B/s, 4 connections"),
        (progress(50 * MIB, None), 512.0, "50.0M, 512B/s, 4 connections"),
        (progress(0, 0), 0.0, "0B, 0B/s, 4 connections"),
    ],
)
def test_the_progress_of_a_file_is_one_line(moment: Progress, speed: float, expected: str) -> None:
    assert status_text(moment, speed) == expected


def test_one_connection_is_singular() -> None:
    assert status_text(progress(0, None, connections=1), 0.0).endswith(", 1 connection")
