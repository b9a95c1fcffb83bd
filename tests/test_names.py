"""File names from servers and URLs: any input becomes a safe base name."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dlpool.transfer.target.names import MAX_NAME_BYTES, RESERVED_SUFFIXES, file_name, name_from_url, safe_name

NAME_MAX = 255
BIDI_CONTROLS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
BIDI_MARKS = {"\u061c", "\u200e", "\u200f"}

_FRAGMENTS = [
    "a",
    "é",
    "e\u0301",
    "€",
    "\U0001f600",
    ".",
    "..",
    "/",
    "\\",
    " ",
    "\0",
    "\n",
    "\x7f",
    "\x85",
    "\u202e",
    "\u2066",
    "\u200f",
    "\ud800",
    "C:",
    "_",
    ".part",
    ".part.meta",
    ".tmp",
    ".meta",
    ".tar.gz",
    "x" * 100,
    "y" * 17,
    "ü" * 60,
]
ANY_NAME = st.text(st.characters(), max_size=40) | st.lists(st.sampled_from(_FRAGMENTS), max_size=12).map("".join)

CUT_TO_PART = "a" * (MAX_NAME_BYTES - 5) + ".part" + "y" * 20
CUT_TO_STATE = "a" * (MAX_NAME_BYTES - 10) + ".part" + "y" * 20 + ".meta"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.txt", "a.txt"),
        ("a b.txt", "a b.txt"),
        (" a.txt ", "a.txt"),
        ("/etc/passwd", "passwd"),
        ("../../etc/passwd", "passwd"),
        ("..\\..\\boot.ini", "boot.ini"),
        ("C:\\temp\\a.txt", "a.txt"),
        ("C:a.txt", "a.txt"),
        ("a/", ""),
        ("..", ""),
        (".", ""),
        ("...", ""),
        ("", ""),
        ("\0", ""),
        (".bashrc", "_bashrc"),
        ("\0.bashrc", "_bashrc"),
        (" .bashrc", "_bashrc"),
        ("a\0b\r\n\x1b[2Jc\x85", "ab[2Jc"),
        ("txt\u202egpj.exe", "txtgpj.exe"),
        ("a.txt...", "a.txt"),
        ("e\u0301.txt", "é.txt"),
        ("a\ud800b", "ab"),
        ("a.part", "a.part_"),
        ("a.part.meta", "a.part.meta_"),
        ("a.part.tmp", "a.part.tmp_"),
        ("a.part.meta.tmp", "a.part.meta.tmp_"),
        (".part", "_part"),
        ("part", "part"),
        ("a.part\u202e", "a.part_"),
        ("a.part.", "a.part_"),
    ],
)
def test_a_name_is_reduced_to_what_is_safe(name: str, expected: str) -> None:
    assert safe_name(name) == expected


@given(ANY_NAME)
@example("..")
@example("\0..")
@example(".\u202e.")
@settings(max_examples=400, deadline=None)
def test_a_safe_name_stays_in_its_folder(name: str) -> None:
    safe = safe_name(name)
    assert "/" not in safe
    assert "\\" not in safe
    assert not safe.startswith(".")


@given(ANY_NAME)
@settings(max_examples=400, deadline=None)
def test_a_safe_name_holds_no_control_or_bidirectional_character(name: str) -> None:
    safe = safe_name(name)
    assert not {unicodedata.category(char) for char in safe} & {"Cc", "Cs"}
    assert not {unicodedata.bidirectional(char) for char in safe} & BIDI_CONTROLS
    assert not set(safe) & BIDI_MARKS


@given(ANY_NAME)
@example("€" * 100)
@example("a" * 300 + ".tar")
@settings(max_examples=400, deadline=None)
def test_a_safe_name_fits_the_file_system(name: str) -> None:
    assert len(safe_name(name).encode()) <= MAX_NAME_BYTES


@given(ANY_NAME)
@example(CUT_TO_PART)
@example(CUT_TO_STATE)
@settings(max_examples=400, deadline=None)
def test_a_safe_name_never_ends_like_one_of_our_own(name: str) -> None:
    assert not safe_name(name).endswith(RESERVED_SUFFIXES)


@given(ANY_NAME)
@example("C:D:x")
@example("\0C:x")
@example("a .")
@example("a" * (MAX_NAME_BYTES - 1) + "." + "y" * 20)
@settings(max_examples=400, deadline=None)
def test_a_safe_name_is_left_as_it_is(name: str) -> None:
    safe = safe_name(name)
    assert safe_name(safe) == safe


def test_a_long_name_keeps_its_extension() -> None:
    safe = safe_name("a" * 300 + ".txt")
    assert safe == "a" * (MAX_NAME_BYTES - 4) + ".txt"


@pytest.mark.parametrize("length", [17, 300])
def test_a_long_extension_is_cut_like_the_rest(length: int) -> None:
    assert safe_name("a" * 230 + "." + "x" * length) == "a" * 230 + "." + "x" * min(length, MAX_NAME_BYTES - 231)


def test_an_extension_of_16_bytes_is_kept() -> None:
    assert safe_name("a" * 300 + "." + "x" * 16) == "a" * (MAX_NAME_BYTES - 17) + "." + "x" * 16


def test_every_name_derived_from_a_safe_one_fits_the_file_system() -> None:
    assert max(len(safe_name("a" * 300) + suffix) for suffix in RESERVED_SUFFIXES) == NAME_MAX


def test_a_long_name_is_not_cut_within_a_character() -> None:
    assert safe_name("€" * 100) == "€" * (MAX_NAME_BYTES // 3)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://host/a.txt", "a.txt"),
        ("http://host/dir/a.txt?x=1#y", "a.txt"),
        ("http://host/a%20b.txt", "a b.txt"),
        ("http://host/%E2%82%AC", "€"),
        ("http://host/..%2f..%2fetc%2fpasswd", "passwd"),
        ("http://host/%2e%2e", "download"),
        ("http://host/.part", "_part"),
        ("http://host/a%00.txt", "a.txt"),
        ("http://host/%ff", "\ufffd"),
        ("http://host/dir/", "download"),
        ("http://host", "download"),
        ("http://host?a=/b", "download"),
    ],
)
def test_a_url_names_the_file_by_its_last_segment(url: str, expected: str) -> None:
    assert name_from_url(url) == expected


@pytest.mark.parametrize(
    ("server_name", "expected"),
    [("theirs.txt", "theirs.txt"), ("dir/theirs.txt", "theirs.txt"), ("..", "ours"), ("", "ours"), (None, "ours")],
)
def test_the_server_names_the_file_before_the_url(server_name: str | None, expected: str) -> None:
    assert file_name(server_name, "http://host/ours") == expected


@given(ANY_NAME)
@settings(max_examples=200, deadline=None)
def test_a_file_always_gets_a_name(server_name: str) -> None:
    assert file_name(server_name, "http://host/") != ""
