"""Which bytes of a file without validators are asked for again at its end."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlpool.transfer.evidence import Evidence, choose_samples
from dlpool.transfer.http.answer import ByteRange

KIB = 1024


@pytest.mark.parametrize(
    ("brought", "expected"),
    [
        ([], []),
        ([ByteRange(0, 1)], [ByteRange(0, 1)]),
        ([ByteRange(0, 4096)], [ByteRange(0, 4096)]),
        (
            [ByteRange(0, 5000)],
            [ByteRange(0, 4096), ByteRange(4096, 4397), ByteRange(4397, 4698), ByteRange(4698, 5000)],
        ),
        ([ByteRange(0, 1), ByteRange(1, 2)], [ByteRange(0, 1), ByteRange(1, 2)]),
        (
            [
                ByteRange(100 * KIB, 200 * KIB),
                ByteRange(0, 10 * KIB),
                ByteRange(50 * KIB, 60 * KIB),
                ByteRange(300 * KIB, 310 * KIB),
            ],
            [
                ByteRange(0, 4 * KIB),
                ByteRange(50 * KIB, 54 * KIB),
                ByteRange(100 * KIB, 104 * KIB),
                ByteRange(196 * KIB, 200 * KIB),
            ],
        ),
        (
            [ByteRange(0, 100 * KIB), ByteRange(100 * KIB, 300 * KIB)],
            [
                ByteRange(0, 4 * KIB),
                ByteRange(48 * KIB, 52 * KIB),
                ByteRange(96 * KIB, 100 * KIB),
                ByteRange(100 * KIB, 104 * KIB),
            ],
        ),
    ],
    ids=["nothing", "one byte", "4 KiB", "less than two samples", "two bytes", "four answers", "two answers"],
)
def test_what_came_early_is_sampled(brought: list[ByteRange], expected: list[ByteRange]) -> None:
    assert choose_samples(brought) == expected


@st.composite
def answers(draw: st.DrawFn) -> list[ByteRange]:
    sizes = draw(st.lists(st.integers(1, 20_000), min_size=1, max_size=12))
    ends = [sum(sizes[: number + 1]) for number in range(len(sizes))]
    return draw(st.permutations([ByteRange(end - size, end) for size, end in zip(sizes, ends, strict=True)]))


@given(answers())
def test_samples_are_few_small_apart_and_of_the_first_answers(brought: list[ByteRange]) -> None:
    chosen = choose_samples(brought)
    assert 1 <= len(chosen) <= 4
    assert all(0 < span.end - span.start <= 4096 for span in chosen)
    assert all(one.end <= other.start for one, other in pairwise(chosen))
    assert all(any(one.start <= span.start and span.end <= one.end for one in brought[:3]) for span in chosen)
    assert any(brought[0].start <= span.start < brought[0].end for span in chosen)


def test_an_answer_that_brought_nothing_is_none() -> None:
    evidence = Evidence()
    first, second = evidence.begin(0), evidence.begin(100)
    evidence.begin(200)
    second.end, first.end = 150, 70
    assert evidence.spans() == [ByteRange(0, 70), ByteRange(100, 150)]
