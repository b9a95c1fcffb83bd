"""What ``dlpool fetch`` is asked for: one URL, or the lines of a list."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlpool.cli.items import ItemDefaults, items_from_lines, parse_header, single_item
from dlpool.engine.batch import BatchItem
from dlpool.errors import UsageError
from dlpool.transfer.job import Checksum, Job

URL = "http://host/file"
MD5 = Checksum("md5", "ab" * 16)


@pytest.fixture
def common(tmp_path: Path) -> ItemDefaults:
    return ItemDefaults(tmp_path, {}, None, None)


def job_of(item: BatchItem) -> Job:
    assert item.error is None
    assert item.job is not None
    return item.job


def from_line(line: str, common: ItemDefaults) -> Job:
    (item,) = items_from_lines([line], common)
    return job_of(item)


def error_of(line: str, common: ItemDefaults) -> str:
    (item,) = items_from_lines([line], common)
    assert item.job is None
    assert isinstance(item.error, UsageError)
    return str(item.error)


# --- one URL ---


def test_a_path_names_the_file(common: ItemDefaults) -> None:
    item = single_item(URL, "dir/a.txt", common)
    assert item == BatchItem(URL, Job(URL, common.folder / "dir" / "a.txt"))


def test_an_absolute_path_is_taken_as_it_is(common: ItemDefaults) -> None:
    assert job_of(single_item(URL, "/some/where", common)).target == Path("/some/where")


@pytest.mark.parametrize("path", [None, ".", "there", "there/", "new/"])
def test_a_folder_is_a_place_for_a_file_that_others_name(common: ItemDefaults, path: str | None) -> None:
    (common.folder / "there").mkdir()
    job = job_of(single_item(URL, path, common))
    assert job.is_folder
    assert job.target == common.folder / (path or "")


@pytest.mark.parametrize("path", ["new", "file", "new/file"])
def test_a_path_that_is_not_a_folder_is_the_file(common: ItemDefaults, path: str) -> None:
    (common.folder / "file").touch()
    assert not job_of(single_item(URL, path, common)).is_folder


def test_the_defaults_of_the_items_are_in_the_job(common: ItemDefaults) -> None:
    shared = replace(common, headers={"X-A": "1"}, user=("me", "secret"), checksum=MD5)
    job = job_of(single_item(URL, "a", shared))
    assert (job.headers, job.user, job.checksum) == ({"X-A": "1"}, ("me", "secret"), MD5)


def test_standard_output_is_not_a_file(common: ItemDefaults) -> None:
    with pytest.raises(UsageError, match="not standard output"):
        single_item(URL, "-", common)


@pytest.mark.parametrize("path", ["a\0b", "\0", "a\0/"])
def test_a_path_with_nul_is_refused(common: ItemDefaults, path: str) -> None:
    with pytest.raises(UsageError, match="NUL"):
        single_item(URL, path, common)


@pytest.mark.parametrize("url", ["", "host/file", "ftp://host/file", "file:///etc/passwd", "http://"])
def test_only_http_and_https_are_fetched(common: ItemDefaults, url: str) -> None:
    with pytest.raises(UsageError, match="URL"):
        single_item(url, "a", common)


# --- lists ---


def test_a_line_is_a_url_and_perhaps_a_path(common: ItemDefaults) -> None:
    assert from_line(URL, common) == Job(URL, common.folder, is_folder=True)
    assert from_line(f"{URL} a.txt", common) == Job(URL, common.folder / "a.txt")
    assert from_line(f"  {URL}\t a b.txt \n", common) == Job(URL, common.folder / "a b.txt")


def test_empty_lines_and_comments_are_skipped(common: ItemDefaults) -> None:
    lines = ["", "  \n", "# a comment", "  # another", f"{URL}#not-one"]
    assert [(item.url, item.line) for item in items_from_lines(lines, common)] == [(f"{URL}#not-one", 5)]


def test_lines_are_read_as_they_are_needed(common: ItemDefaults) -> None:
    def lines() -> Iterator[str]:
        yield URL
        raise AssertionError("read too far")

    assert next(items_from_lines(lines(), common)).url == URL


def test_a_wrong_line_does_not_end_the_list(common: ItemDefaults) -> None:
    items = list(items_from_lines([URL, "{", f"{URL} b"], common))
    assert [item.error is None for item in items] == [True, False, True]
    assert [item.line for item in items] == [1, 2, 3]
    assert str(items[1].error).startswith("line 2: it is not JSON")


def test_a_json_line_may_say_all(common: ItemDefaults) -> None:
    shared = replace(common, headers={"X-A": "1", "X-B": "2"}, user=("me", "secret"))
    line = {"url": URL, "path": "a b", "checksum": str(MD5), "headers": {"X-B": "3", "X-C": "4"}}
    headers = {"X-A": "1", "X-B": "3", "X-C": "4"}
    expected = Job(URL, common.folder / "a b", False, headers, ("me", "secret"), MD5)
    assert from_line(json.dumps(line), shared) == expected


@pytest.mark.parametrize("line", [{"url": URL}, {"url": URL, "path": None, "checksum": None, "headers": None}])
def test_a_json_line_with_a_url_only_equals_a_plain_line(common: ItemDefaults, line: dict[str, object]) -> None:
    shared = replace(common, headers={"X-A": "1"}, checksum=MD5)
    assert from_line(json.dumps(line), shared) == from_line(URL, shared)


def test_the_fields_of_a_line_do_not_apply_to_the_next(common: ItemDefaults) -> None:
    line = json.dumps({"url": URL, "headers": {"X-A": "1"}, "checksum": str(MD5)})
    _, second = items_from_lines([line, URL], common)
    assert (job_of(second).headers, job_of(second).checksum) == ({}, None)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "it is not JSON"),
        ('{"url": "http://h/"} x', "it is not JSON"),
        ('{"a":' * 100_000, "it is not JSON"),
        ("{}", "url is missing"),
        ('{"url": ""}', "url is missing"),
        ('{"url": null}', "url is missing"),
        ('{"url": 5}', "url is not text"),
        ('{"url": "ftp://h/"}', "is not an http or https URL"),
        ('{"url": "http://h/", "path": 5}', "path is not text"),
        ('{"url": "http://h/", "checksum": ["md5"]}', "checksum is not text"),
        ('{"url": "http://h/", "checksum": "md5:1"}', "has not the 32 hexadecimal digits"),
        ('{"url": "http://h/", "headers": "X: y"}', "headers is not an object of texts"),
        ('{"url": "http://h/", "headers": {"X": 1}}', "headers is not an object of texts"),
        ('{"url": "http://h/", "headers": {"X Y": "1"}}', "is not of the form"),
        ('{"url": "http://h/", "headers": {"X": "1\\r\\nY: 2"}}', "is not of the form"),
        ('{"url": "http://h/", "headers": {"Range": "bytes=0-"}}', "is set by dlpool itself"),
        ('{"url": "http://h/", "colour": "blue", "age": 5}', "unknown field age, colour"),
        ('{"url": "http://h/", "path": "a\\u0000b"}', "NUL"),
        ("http://h/a https://h/b", "PATH looks like a URL"),
    ],
    ids=lambda text: text[:40],
)
def test_an_invalid_line_has_its_reason(common: ItemDefaults, line: str, reason: str) -> None:
    message = error_of(line, common)
    assert message.startswith("line 1: ")
    assert reason in message


@pytest.mark.parametrize("headers", [0, False, "", []])
def test_headers_that_are_no_object_are_refused_even_if_empty(common: ItemDefaults, headers: object) -> None:
    assert "headers is not an object" in error_of(json.dumps({"url": URL, "headers": headers}), common)


def test_a_header_name_with_a_colon_is_refused(common: ItemDefaults) -> None:
    assert "is not of the form" in error_of(json.dumps({"url": URL, "headers": {"X:Y": "1"}}), common)


def test_a_path_that_no_file_system_can_hold_is_refused(common: ItemDefaults) -> None:
    assert "line 1: " in error_of('{"url": "http://host/file", "path": "a\\ud800"}', common)


def test_an_over_long_path_is_left_to_the_download_to_refuse(common: ItemDefaults) -> None:
    first, second = items_from_lines([f"{URL} {'a' * 300}", URL], common)
    assert (first.line, job_of(second).url) == (1, URL)


@given(
    st.lists(
        st.text(max_size=40)
        | st.sampled_from(
            [
                "{}",
                '{"url":"http://h/"}',
                '{"url":1}',
                "http://h/ p",
                "http://[::1",
                "http://h:99999/",
                "http://",
                "u p",
            ]
        ),
        max_size=5,
    )
)
@settings(max_examples=150, deadline=None)
def test_any_line_is_a_job_or_an_error(lines: list[str]) -> None:
    common = ItemDefaults(Path("/nonexistent"), {}, None, None)
    for item in items_from_lines(lines, common):
        assert (item.job is None) != (item.error is None)
        assert not lines[item.line - 1].strip().startswith("#")


# --- headers ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("X-A: 1", ("X-A", "1")),
        ("X-A:1", ("X-A", "1")),
        (" X-A :  1 ", ("X-A", "1")),
        ("X-A:", ("X-A", "")),
        ("X-A: b: c", ("X-A", "b: c")),
        ("X-A: a\tb", ("X-A", "a\tb")),
        ("Authorization: Bearer x", ("Authorization", "Bearer x")),
        ("Cookie: a=1; b=2", ("Cookie", "a=1; b=2")),
    ],
)
def test_a_header_is_a_name_and_a_value(text: str, expected: tuple[str, str]) -> None:
    assert parse_header(text) == expected


@pytest.mark.parametrize("text", ["", ":", "X-A", ": 1", "X A: 1", "Ü: 1", "X-A: a\r\nB: c", "X-A: a\0", "X\n: 1\x7f"])
def test_a_text_that_is_not_exactly_one_header_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not of the form"):
        parse_header(text)


@pytest.mark.parametrize(
    "name", ["Range", "if-range", "Accept-Encoding", "Content-Length", "Transfer-Encoding", "CONNECTION"]
)
def test_headers_that_a_right_answer_depends_on_cannot_be_given(name: str) -> None:
    with pytest.raises(UsageError, match="is set by dlpool itself"):
        parse_header(f"{name}: x")


@given(st.text(st.characters(), max_size=40))
def test_no_header_carries_a_line_break(text: str) -> None:
    for candidate in (text, f"X-A: {text}", f"X-A: b{text}c"):
        try:
            name, value = parse_header(candidate)
        except UsageError:
            continue
        assert not set("\r\n\0") & set(name + value)
