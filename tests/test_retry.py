"""What may be tried again, and when."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlpool.config import TransferSettings
from dlpool.errors import (
    ConnectionBroken,
    ContradictoryAnswer,
    RetryRange,
    ServerBusy,
    ServerTrouble,
    ShortBody,
    TimedOut,
    TooSlow,
    WaitTooLong,
)
from dlpool.transfer.retry import WORTHWHILE, FailureCount, RetryDelay, RetryPolicy

POLICY = RetryPolicy(retries=3, delay=1.0, max_delay=10.0, max_retry_after=60.0)


def test_the_policy_is_that_of_the_settings() -> None:
    settings = TransferSettings(retries=7, retry_delay=0.5, retry_max_delay=8.0, max_retry_after=9.0)
    assert RetryPolicy.of(settings) == RetryPolicy(7, 0.5, 8.0, 9.0)


@pytest.mark.parametrize(
    ("failures", "ceiling"),
    [(0, 0.0), (1, 1.0), (2, 2.0), (3, 4.0), (4, 8.0), (5, 10.0), (6, 10.0), (1000, 10.0), (10**9, 10.0)],
)
def test_the_backoff_doubles_up_to_its_limit(failures: int, ceiling: float) -> None:
    assert POLICY.backoff_s(failures, jitter=1.0) == ceiling


@pytest.mark.parametrize(("jitter", "expected"), [(0.0, 0.0), (0.25, 1.0), (1.0, 4.0)])
def test_the_jitter_is_full(jitter: float, expected: float) -> None:
    assert POLICY.backoff_s(3, jitter) == expected


def test_the_limit_holds_for_the_first_backoff_too() -> None:
    assert RetryPolicy(3, 30.0, 10.0, 60.0).backoff_s(1, 1.0) == 10.0


@given(st.integers(0, 10**6), st.floats(0, 1), st.floats(0, 1e6), st.floats(0, 1e6))
def test_a_backoff_is_never_negative_nor_above_its_limit(
    failures: int, jitter: float, delay: float, max_delay: float
) -> None:
    assert 0 <= RetryPolicy(3, delay, max_delay, 60.0).backoff_s(failures, jitter) <= max_delay


@pytest.mark.parametrize(("failures", "is_over"), [(0, False), (3, False), (4, True), (100, True)])
def test_an_error_is_final_after_so_many_retries(failures: int, is_over: bool) -> None:
    error = TimedOut("nothing came")
    assert POLICY.final_error(error, failures) is (error if is_over else None)


def test_without_retries_the_first_failure_is_final() -> None:
    error = TimedOut("nothing came")
    assert RetryPolicy(0, 1.0, 10.0, 60.0).final_error(error, 1) is error


@pytest.mark.parametrize("wait_s", [None, 0.0, 59.0, 60.0])
def test_a_wait_within_the_limit_is_kept(wait_s: float | None) -> None:
    assert POLICY.final_error(ServerBusy("the server answered 503", retry_after_s=wait_s), 1) is None


@pytest.mark.parametrize("failures", [0, 1, 100])
def test_a_wait_above_the_limit_ends_the_job_with_that_reason(failures: int) -> None:
    verdict = POLICY.final_error(ServerBusy("the server answered 503", retry_after_s=61.0), failures)
    assert isinstance(verdict, WaitTooLong)
    assert str(verdict) == "the server answered 503 and asked to wait 61 s, longer than max_retry_after"


# --- who rests, and for how long ---


@pytest.mark.parametrize("error", [ServerTrouble("500"), ShortBody("short")])
def test_a_chunk_that_failed_rests_itself(error: RetryRange) -> None:
    assert POLICY.next_delay(error, FailureCount(3, 0), capacity_failures=0, jitter=1.0) == RetryDelay(
        chunk_s=4.0, worker_s=0.0
    )


@pytest.mark.parametrize("error", [ServerBusy("503"), TimedOut("timeout"), ConnectionBroken("reset")])
def test_where_a_connection_may_be_one_too_many_its_thread_rests(error: RetryRange) -> None:
    assert POLICY.next_delay(error, FailureCount(3, 0), capacity_failures=0, jitter=1.0) == RetryDelay(
        chunk_s=0.0, worker_s=4.0
    )


@pytest.mark.parametrize(
    ("attempts", "capacity_failures", "delay_s"), [(0, 0, 1.0), (1, 0, 1.0), (1, 3, 4.0), (3, 1, 4.0)]
)
def test_the_longer_row_of_failures_sets_the_rest(attempts: int, capacity_failures: int, delay_s: float) -> None:
    rest = POLICY.next_delay(ServerBusy("503"), FailureCount(attempts, 0), capacity_failures, jitter=1.0)
    assert rest == RetryDelay(0.0, delay_s)


@pytest.mark.parametrize(("progress", "delay_s"), [(0, 2.0), (WORTHWHILE - 1, 2.0), (WORTHWHILE, 0.0)])
def test_what_brought_bytes_goes_on_at_once(progress: int, delay_s: float) -> None:
    assert POLICY.next_delay(
        ShortBody("short"), FailureCount(2, progress), capacity_failures=0, jitter=1.0
    ) == RetryDelay(delay_s, 0.0)


def test_what_was_merely_slow_goes_on_at_once() -> None:
    assert POLICY.next_delay(TooSlow("slow"), FailureCount(3, 0), capacity_failures=3, jitter=1.0) == RetryDelay(
        0.0, 0.0
    )


@pytest.mark.parametrize(
    ("error", "failures", "slow_bytes", "said"),
    [
        (ShortBody("it was cut"), 3, 0, None),
        (ShortBody("it was cut"), 4, 0, r"^it was cut$"),
        (ShortBody("it was cut"), 4, 7, r"it was cut.*\(the last 4 attempts received 7 bytes\): lower low_speed_limit"),
        (TooSlow("slow"), 4, 0, r"slow.*are limited by retries: lower low_speed_limit"),
        (TooSlow("slow"), 3, 7, None),
    ],
)
def test_the_error_after_too_many_attempts_says_what_to_do(
    error: RetryRange, failures: int, slow_bytes: int, said: str | None
) -> None:
    final = RetryPolicy(3, 1.0, 60.0, 600.0).final_error(error, failures, slow_bytes)
    assert (final is None) is (said is None)
    assert said is None or re.search(said, str(final))


def test_an_error_that_is_final_is_not_tried_again() -> None:
    error = ContradictoryAnswer("twice", is_final=True)
    assert RetryPolicy(3, 1.0, 60.0, 600.0).final_error(error, 1) is error
