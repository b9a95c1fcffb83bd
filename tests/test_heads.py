"""The head of a request as it comes: when it is whole, when it is too long, and whose time is over."""

from __future__ import annotations

import math

import pytest

from dlpool.heads import MAX_HEAD, MAX_LINE, Heads, Progress, target_of

HEAD = b"GET /livez?verbose HTTP/1.1\r\nHost: h\r\n\r\n"


def progress(*parts: bytes) -> Progress:
    """After the last of the parts; those before are no whole head."""
    heads: Heads[str] = Heads()
    heads.hold("c", 0.0)
    for part in parts[:-1]:
        assert heads.feed("c", part, 0.0) is Progress.PARTIAL
    found = heads.feed("c", parts[-1], 0.0)
    assert heads.take("c") == b"".join(parts)
    return found


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (HEAD, Progress.WHOLE),
        (HEAD + b"the body", Progress.WHOLE),
        (b"\r\n" + HEAD, Progress.WHOLE),
        (b"GET / HTTP/1.0\r\n\r\n", Progress.WHOLE),
        (HEAD[:-1], Progress.PARTIAL),
        (HEAD[:-2], Progress.PARTIAL),
        (b"GET / HTTP/1.1\n", Progress.WHOLE),
        (b"GET / HTTP/1.1\r\nHost: h\n", Progress.WHOLE),
        (b"\n", Progress.WHOLE),
        (b"x" * MAX_LINE, Progress.PARTIAL),
        (b"x" * (MAX_LINE + 1), Progress.WHOLE),
        (b"\r\n" + b"x" * MAX_LINE, Progress.WHOLE),
        (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 2000, Progress.PARTIAL),
        (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 8000, Progress.TOO_LONG),
        (b"GET / HTTP/1.1\r\nA: " + b"b" * MAX_HEAD, Progress.TOO_LONG),
    ],
)
def test_when_a_head_is_whole(head: bytes, expected: Progress) -> None:
    assert progress(head) is expected


@pytest.mark.parametrize("head", [HEAD, b"\r\n" + HEAD, b"GET / HTTP/1.1\r\nHost: h\n"])
def test_a_head_may_be_cut_anywhere(head: bytes) -> None:
    assert progress(*(bytes([byte]) for byte in head)) is Progress.WHOLE
    for cut in range(1, len(head)):
        assert progress(head[:cut], head[cut:]) is Progress.WHOLE


def test_the_oldest_is_the_first_that_came_whatever_it_has_sent() -> None:
    heads: Heads[int] = Heads()
    for number in range(3):
        heads.hold(number, 10.0)
    heads.feed(0, b"G", 20.0)
    assert (list(heads), heads.oldest(), len(heads)) == ([0, 1, 2], 0, 3)
    assert heads.take(0) == b"G"
    assert (heads.oldest(), 0 in heads, 1 in heads) == (1, False, True)
    heads.hold(0, 10.0)
    assert list(heads) == [1, 2, 0]


def test_when_a_head_is_due() -> None:
    heads: Heads[str] = Heads()
    assert (heads.due(1e9), heads.patience(0.0), heads.oldest()) == ([], math.inf, None)
    heads.hold("silent", 10.0)
    heads.hold("begun", 30.0)
    heads.feed("begun", b"G", 15.0)
    heads.feed("begun", b"E", 99.0)  # a further byte gains no time
    assert (heads.due(9.0), heads.patience(9.0)) == ([], 1.0)
    assert heads.due(10.0) == ["silent"]
    heads.take("silent")
    assert (heads.patience(10.0), heads.due(14.0), heads.due(15.0)) == (5.0, [], ["begun"])
    heads.take("begun")
    assert heads.patience(20.0) == math.inf


def test_the_end_does_not_wait_long_for_who_has_said_nothing() -> None:
    heads: Heads[str] = Heads()
    heads.hold("silent", 10.0)
    heads.hold("begun", 10.0)
    heads.feed("begun", b"G", 10.0)
    assert (heads.is_silent("silent"), heads.is_silent("begun")) == (True, False)
    heads.hurry(2.0)
    assert (heads.due(2.0), heads.due(10.0)) == (["silent"], ["silent", "begun"])


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (HEAD, ("GET", "/livez")),
        (b"\r\n" + HEAD, ("GET", "/livez")),
        (b"HEAD /a/b HTTP/1.1\r\n\r\n", ("HEAD", "/a/b")),
        (b"GET /a HTTP/1.1\nHost: h\r\n\r\n", ("GET", "/a")),
        (b"GET  /a HTTP/1.1\r\n\r\n", ("", "")),
        (b"\xff\xfe\r\n\r\n", ("", "")),
        (b"", ("", "")),
    ],
)
def test_what_a_head_asks_for(head: bytes, expected: tuple[str, str]) -> None:
    assert target_of(head) == expected
