"""The head of a request as it comes: when it is whole, when it is too long, and whose time is over."""

from __future__ import annotations

import math

import pytest

from dlpool.request_heads import MAX_HEAD, MAX_LINE, HeadProgress, PendingHeads, parse_target

HEAD = b"GET /livez?verbose HTTP/1.1\r\nHost: h\r\n\r\n"


def progress(*parts: bytes) -> HeadProgress:
    """After the last of the parts; those before are no whole head."""
    heads: PendingHeads[str] = PendingHeads()
    heads.add("c", 0.0)
    for part in parts[:-1]:
        assert heads.feed("c", part, 0.0) is HeadProgress.PARTIAL
    found = heads.feed("c", parts[-1], 0.0)
    assert heads.remove("c") == b"".join(parts)
    return found


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (HEAD, HeadProgress.COMPLETE),
        (HEAD + b"the body", HeadProgress.COMPLETE),
        (b"\r\n" + HEAD, HeadProgress.COMPLETE),
        (b"GET / HTTP/1.0\r\n\r\n", HeadProgress.COMPLETE),
        (HEAD[:-1], HeadProgress.PARTIAL),
        (HEAD[:-2], HeadProgress.PARTIAL),
        (b"GET / HTTP/1.1\n", HeadProgress.COMPLETE),
        (b"GET / HTTP/1.1\r\nHost: h\n", HeadProgress.COMPLETE),
        (b"\n", HeadProgress.COMPLETE),
        (b"x" * MAX_LINE, HeadProgress.PARTIAL),
        (b"x" * (MAX_LINE + 1), HeadProgress.COMPLETE),
        (b"\r\n" + b"x" * MAX_LINE, HeadProgress.COMPLETE),
        (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 2000, HeadProgress.PARTIAL),
        (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 8000, HeadProgress.TOO_LONG),
        (b"GET / HTTP/1.1\r\nA: " + b"b" * MAX_HEAD, HeadProgress.TOO_LONG),
    ],
)
def test_when_a_head_is_whole(head: bytes, expected: HeadProgress) -> None:
    assert progress(head) is expected


@pytest.mark.parametrize("head", [HEAD, b"\r\n" + HEAD, b"GET / HTTP/1.1\r\nHost: h\n"])
def test_a_head_may_be_cut_anywhere(head: bytes) -> None:
    assert progress(*(bytes([byte]) for byte in head)) is HeadProgress.COMPLETE
    for cut in range(1, len(head)):
        assert progress(head[:cut], head[cut:]) is HeadProgress.COMPLETE


def test_the_oldest_is_the_first_that_came_whatever_it_has_sent() -> None:
    heads: PendingHeads[int] = PendingHeads()
    for number in range(3):
        heads.add(number, 10.0)
    heads.feed(0, b"G", 20.0)
    assert (list(heads), heads.oldest(), len(heads)) == ([0, 1, 2], 0, 3)
    assert heads.remove(0) == b"G"
    assert (heads.oldest(), 0 in heads, 1 in heads) == (1, False, True)
    heads.add(0, 10.0)
    assert list(heads) == [1, 2, 0]


def test_when_a_head_is_due() -> None:
    heads: PendingHeads[str] = PendingHeads()
    assert (heads.expired(1e9), heads.next_timeout_s(0.0), heads.oldest()) == ([], math.inf, None)
    heads.add("silent", 10.0)
    heads.add("begun", 30.0)
    heads.feed("begun", b"G", 15.0)
    heads.feed("begun", b"E", 99.0)  # a further byte gains no time
    assert (heads.expired(9.0), heads.next_timeout_s(9.0)) == ([], 1.0)
    assert heads.expired(10.0) == ["silent"]
    heads.remove("silent")
    assert (heads.next_timeout_s(10.0), heads.expired(14.0), heads.expired(15.0)) == (5.0, [], ["begun"])
    heads.remove("begun")
    assert heads.next_timeout_s(20.0) == math.inf


def test_the_end_does_not_wait_long_for_who_has_said_nothing() -> None:
    heads: PendingHeads[str] = PendingHeads()
    heads.add("silent", 10.0)
    heads.add("begun", 10.0)
    heads.feed("begun", b"G", 10.0)
    assert (heads.is_empty("silent"), heads.is_empty("begun")) == (True, False)
    heads.cap_deadlines(2.0)
    assert (heads.expired(2.0), heads.expired(10.0)) == (["silent"], ["silent", "begun"])


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
    assert parse_target(head) == expected
