"""Settings: text becomes a value in its range, or a reason why not."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import MISSING, Field, fields
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dlpool.config import (
    SECTIONS,
    NetworkSettings,
    TransferSettings,
    option_names,
    parse_setting,
)
from dlpool.kinds import parse_count, parse_duration, parse_size, parse_switch, parse_text

KIB = 1024
WITHOUT_OPTIONS = {"downloader", "upload", "web", "scan"}
DECLARED = [(section, declared) for section, settings in SECTIONS.items() for declared in fields(settings)]
BY_NAME = {declared.name: declared for section, declared in DECLARED if section not in WITHOUT_OPTIONS}
FIELDS = [pytest.param(declared, id=f"{section}.{declared.name}") for section, declared in DECLARED]


# --- parsers ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("512", 512),
        (" 512 ", 512),
        ("512b", 512),
        ("64K", 64 * KIB),
        ("64k", 64 * KIB),
        ("64 KB", 64 * KIB),
        ("64KiB", 64 * KIB),
        ("1.5M", 1536 * KIB),
        ("2G", 2 * KIB**3),
        ("1T", KIB**4),
        ("0.5", 0),
        ("9007199254740992", 2**53),
    ],
)
def test_a_size_is_in_powers_of_1024(text: str, expected: int) -> None:
    assert parse_size(text) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not a number"),
        ("K", "not a number"),
        ("1.", "not a number"),
        (".5", "not a number"),
        ("1,5M", "not a number"),
        ("1e3", "not a number"),
        ("0x10", "not a number"),
        ("1_000", "not a number"),
        ("\u0661", "not a number"),
        ("nan", "not a number"),
        ("inf", "not a number"),
        ("1 2", "not a number"),
        ("-1", "negative"),
        ("-1K", "negative"),
        ("1P", "unknown unit"),
        ("1s", "unknown unit"),
        ("1iB", "unknown unit"),
        ("9999999T", "too large"),
        ("9" * 400, "too large"),
    ],
)
def test_what_is_no_size_is_told_why(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_size(text)


@given(st.integers(0, 2**53), st.sampled_from(["", "B", " "]))
def test_a_size_in_bytes_is_exact(size: int, ending: str) -> None:
    assert parse_size(f"{size}{ending}") == size


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0", 0.0), ("30", 30.0), ("30s", 30.0), ("500ms", 0.5), ("5m", 300.0), ("2h", 7200.0), ("1.5 h", 5400.0)],
)
def test_a_duration_is_in_seconds(text: str, expected: float) -> None:
    assert parse_duration(text) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "reason"), [("", "not a number"), ("-1s", "negative"), ("5d", "unknown unit"), ("5K", "unknown unit")]
)
def test_what_is_no_duration_is_told_why(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_duration(text)


@pytest.mark.parametrize(("text", "expected"), [("0", 0), ("7", 7), (" 7 ", 7), ("007", 7), ("9" * 18, 10**18 - 1)])
def test_a_count_is_a_whole_number(text: str, expected: int) -> None:
    assert parse_count(text) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "whole"),
        ("1.0", "whole"),
        ("1K", "whole"),
        ("+1", "whole"),
        ("\u0661", "whole"),
        ("9" * 19, "whole"),
        ("-1", "negative"),
    ],
)
def test_what_is_no_count_is_told_why(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_count(text)


@pytest.mark.parametrize(
    ("texts", "expected"), [(["yes", "true", "on", "1", " YES "], True), (["no", "false", "off", "0", "Off"], False)]
)
def test_a_switch_is_on_or_off(texts: list[str], expected: bool) -> None:
    assert [parse_switch(text) for text in texts] == [expected] * len(texts)


@pytest.mark.parametrize("text", ["", "y", "2", "maybe"])
def test_a_switch_is_nothing_in_between(text: str) -> None:
    with pytest.raises(ValueError, match="neither yes nor no"):
        parse_switch(text)


@pytest.mark.parametrize("text", ["a\nb", "a\0b", "\x1b[2J", "a\x7f", "a\r"])
def test_text_holds_no_control_characters(text: str) -> None:
    with pytest.raises(ValueError, match="control characters"):
        parse_text(text)


@pytest.mark.parametrize("text", ["", "a b", "dlpool/1 (+https://example.org)", "grüße"])
def test_other_text_stays_as_it_is(text: str) -> None:
    assert parse_text(text) == text


ANY_TEXT = st.text(st.characters(), max_size=20) | st.from_regex(r"-?[0-9.]{0,400}[A-Za-z]{0,3}", fullmatch=True)


NUMBERS = st.from_regex(r"[0-9]{1,12}(\.[0-9]{1,3})?( ?(K|M|G|T|ms|s|m|h))?", fullmatch=True)
VALUES = st.sampled_from(
    ["", "0", "1", "7", "64", "5000", "1.5", "10s", "5m", "1M", "2G", "yes", "auto", "a b", "/tmp/x"]
)


@pytest.mark.parametrize("parser", [parse_size, parse_duration, parse_count])
def test_a_number_is_never_negative_nor_beyond_64_bits(parser: Callable[[str], float]) -> None:
    read: list[float] = []

    @given(text=ANY_TEXT | NUMBERS)
    @settings(max_examples=150, deadline=None)
    def check(text: str) -> None:
        with suppress(ValueError):
            read.append(parser(text))

    check()
    assert len(read) >= 10
    assert all(0 <= value < 2**63 for value in read)


def alike(declared: Field[object]) -> object:
    """What decides how a text of it is read."""
    metadata = declared.metadata
    return (metadata["kind"].parse, metadata["low"], metadata["high"], declared.default is None)


DISTINCT = list({alike(one.values[0]): one for one in FIELDS}.values())  # type: ignore[arg-type]


@pytest.mark.parametrize("declared", DISTINCT)
def test_any_text_is_a_value_in_range_or_a_value_error(declared: Field[object]) -> None:
    read: list[tuple[str, Any]] = []

    @given(text=ANY_TEXT | NUMBERS | VALUES)
    @example(text=shown_default(declared))
    @settings(max_examples=40, deadline=None)
    def check(text: str) -> None:
        try:
            read.append((text, parse_setting(declared, text)))
        except ValueError as error:
            assert str(error)

    check()
    low, high = declared.metadata["low"], declared.metadata["high"]
    assert read
    for text, value in read:
        assert value is not None or (text, declared.default) == ("", None)
        if value is not None and not isinstance(value, str):  # bounds are of numbers
            assert low is None or value >= low
            assert high is None or value <= high


def shown_default(declared: Field[object]) -> str:
    """The default as a text, as the shipped file may have it."""
    shown: str | None = declared.metadata["text"]
    return shown or ""


# --- bounds and choices ---


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("connections", "1", 1),
        ("connections", "64", 64),
        ("min_split_size", "64K", 64 * KIB),
        ("limit_rate", "1K", KIB),
        ("probe", "head", "head"),
        ("network", "public-only", "public-only"),
        ("resume", "no", False),
        ("deadline", "1h", 3600.0),
        ("deadline", "", None),
        ("proxy", "", None),
    ],
)
def test_a_value_within_its_bounds_is_taken(name: str, text: str, expected: object) -> None:
    assert parse_setting(BY_NAME[name], text) == expected


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("connections", "0", "below 1"),
        ("connections", "65", "above 64"),
        ("connections", "four", "neither a whole number nor auto"),
        ("connections", "-4", "negative"),
        ("min_split_size", "65535", "below 65536"),
        ("limit_rate", "1023", "below 1024"),
        ("read_timeout", "0", "below 0.001"),
        ("probe", "HEAD", "not one of range, head"),
        ("retries", "", "not a whole number"),
        ("network", "", "not one of any, no-metadata, public-only"),
        ("user_agent", "a\nb", "control characters"),
    ],
)
def test_a_value_out_of_its_bounds_is_told_why(name: str, text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_setting(BY_NAME[name], text)


# --- declarations ---


@pytest.mark.parametrize("declared", FIELDS)
def test_a_default_is_what_its_text_means(declared: Field[object]) -> None:
    assert declared.default is not MISSING
    text = declared.metadata["text"]
    assert declared.default == (None if text is None else parse_setting(declared, text))


@pytest.mark.parametrize("declared", FIELDS)
def test_a_setting_says_what_it_is(declared: Field[object]) -> None:
    assert declared.metadata["help"]
    assert declared.metadata["kind"].metavar


def test_no_two_settings_share_an_option() -> None:
    options = [option for declared in BY_NAME.values() for option in option_names(declared)]
    assert len(BY_NAME) == sum(section not in WITHOUT_OPTIONS for section, _ in DECLARED), "names are unique"
    assert len(options) == len(set(options))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("connections", ["-c", "--connections"]),
        ("min_split_size", ["--min-split-size"]),
        ("resume", ["--no-resume"]),
        ("insecure", ["--insecure"]),
        ("deadline", ["--deadline"]),
    ],
)
def test_options_are_named_after_settings(name: str, expected: list[str]) -> None:
    assert option_names(BY_NAME[name]) == expected


def test_the_defaults_are_as_documented() -> None:
    transfer, network = TransferSettings(), NetworkSettings()
    assert (transfer.connections, transfer.min_split_size, transfer.retries) == (4, KIB**2, 5)
    assert (transfer.resume, transfer.sync, transfer.if_exists) == (True, True, "overwrite")
    assert (network.insecure, network.allow_downgrade, network.network) == (False, False, "no-metadata")
