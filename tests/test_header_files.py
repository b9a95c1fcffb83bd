"""Header fields out of files, so that secrets do not stand on a command line: one reader for fetch, push and upload."""

from __future__ import annotations

import os
import threading
from argparse import ArgumentParser, Namespace
from pathlib import Path

import pytest

from dlpool.cli.headers import MAX_FILE, read_headers
from dlpool.cli.options import add_header_options
from dlpool.errors import LocalFault, UsageError
from tests.origin import File, Origin
from tests.processes import run

SECRET = "hush-9f86d081"


def parsed(*words: object) -> Namespace:
    parser = ArgumentParser()
    parser.add_argument("-i", "--input-file")
    add_header_options(parser)
    return parser.parse_args([*map(str, words)])


@pytest.mark.parametrize(
    ("content", "fields"),
    [
        (b"A: 1\nB:2\n", {"A": "1", "B": "2"}),
        (b"A: 1\r\n\r\nB: 2", {"A": "1", "B": "2"}),
        (b"\xef\xbb\xbfA: 1\n", {"A": "1"}),
        ("A: 1\nB: 2\n".encode("utf-16"), {"A": "1", "B": "2"}),
        (b"A: 1\nA: 2\n", {"A": "2"}),
        (b"#A: 1\n", {"#A": "1"}),  # a name may begin so (RFC 9110, 5.6.2)
        (b"A:\n", {"A": ""}),
        (b"\n \n", {}),
        (b"", {}),
        (b"A: " + b"x" * (MAX_FILE - 4) + b"\n", {"A": "x" * (MAX_FILE - 4)}),
    ],
)
@pytest.mark.parametrize("option", ["-H@", "--header-file="])
def test_a_file_has_a_field_on_each_line(option: str, content: bytes, fields: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "headers"
    path.write_bytes(content)
    assert read_headers(parsed(f"{option}{path}")) == fields


def test_options_count_in_their_order(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("A: file\nB: file\n")
    given = parsed("-H", "A: before", "--header-file", tmp_path / "one", "-H", "B: after")
    assert read_headers(given) == {"A": "file", "B": "after"}
    (tmp_path / "one").unlink()
    assert read_headers(given) == {"A": "file", "B": "after"}  # read once


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (f"A: 1\n{SECRET}\n".encode(), "headers, line 2: not a header"),
        (f"A: 1\n\n{SECRET} x: y\n".encode(), "headers, line 3: not a header"),
        (f"A: {SECRET}\x01\n".encode(), "headers, line 1: not a header"),
        (f"A: {SECRET}\u20ac\n".encode(), "headers, line 1: not a header"),
        (f"Range: {SECRET}\n".encode(), "headers, line 1: not a header"),
        (f"A: {SECRET}\0\n".encode(), "line 1: it holds a NUL"),
        (b"\xff\xfe\x00\xd8\n\0", "line 1: not UTF-16"),
        (f"A: {SECRET}\n".encode() * MAX_FILE, f"longer than {MAX_FILE} bytes"),
    ],
)
def test_a_bad_file_is_named_by_its_line_but_not_its_content(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "headers"
    path.write_bytes(content)
    with pytest.raises(UsageError) as raised:
        read_headers(parsed("--header-file", path))
    assert said in str(raised.value) and SECRET not in str(raised.value)


@pytest.mark.parametrize("name", ["missing", "", ".", "a\0b"])
def test_a_file_that_cannot_be_read(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LocalFault, match="cannot read the headers in"):
        read_headers(parsed("--header-file", name))


def test_standard_input_is_used_once() -> None:
    with pytest.raises(UsageError, match="cannot be both"):
        read_headers(parsed("-i", "-", "-H", "@-"))


def test_an_endless_pipe_is_read_to_the_bound_only(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)

    def write() -> None:
        with pytest.raises(BrokenPipeError), path.open("wb", buffering=0) as pipe:
            while True:
                pipe.write(b"A: 1\n")

    writer = threading.Thread(target=write)
    writer.start()
    with pytest.raises(UsageError, match="longer than"):
        read_headers(parsed("--header-file", path))
    writer.join(10)
    assert not writer.is_alive()


def test_the_fields_are_sent_and_nothing_shows_them(tmp_path: Path) -> None:
    path, urls = tmp_path / "headers", tmp_path / "urls"
    path.write_text(f"Authorization: Bearer {SECRET}\n")
    with Origin(File(b"x")) as origin, path.open("rb") as stdin:
        urls.write_text(f"{origin.url}/one\n{origin.url}/two\n")
        ended = run("fetch", "-v", "-i", urls, tmp_path, "-H", "@-", stdin=stdin)
        assert ended.code == 0, ended.err
        assert {request.headers["authorization"] for request in origin.requests} == {f"Bearer {SECRET}"}
    assert SECRET not in ended.out + ended.err


@pytest.mark.parametrize(
    "words",
    [("fetch", "http://h/"), ("push", "http://h/", "p"), ("upload", __file__, "http://h/")],
    ids=lambda words: words[0],
)
def test_each_command_reads_files(words: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "headers"
    path.write_text(f"X-Secret-Key: 1\n{SECRET}\n")
    ended = run(*words, "--header-file", path)
    assert ended.code == 2
    assert f"{path}, line 2" in ended.err and SECRET not in ended.err
    ended = run(*words, "-H", f"@{tmp_path}/missing")
    assert ended.code == 3
    assert "cannot read the headers in" in ended.err
