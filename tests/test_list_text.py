"""Lists as editors and shells write them: byte order marks, other encodings, ends of lines, and what is no text."""

from __future__ import annotations

import argparse
import codecs
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlpool.cli.upload_credentials import access_headers
from dlpool.config.layers import credential_values
from dlpool.config.web_access import read_key
from dlpool.errors import ConfigurationError, UsageError
from dlpool.jobs.connection import _password
from dlpool.usertext import NotText, TextLines, read_lines
from tests.conftest import make_data
from tests.origin import File, Origin
from tests.processes import ROOT, Ended, finish, run, start
from tests.redis_server import RedisServer

Serve = Callable[..., Origin]
DATA = make_data(5000)
TEXTS = {
    "plain": "utf-8",
    "UTF-8 with a mark": "utf-8-sig",
    "UTF-16": "utf-16",
    "UTF-16 little": "le",
    "UTF-16 big": "be",
    "UTF-32": "utf-32",
}
MARKED = {"le": (codecs.BOM_UTF16_LE, "utf-16-le"), "be": (codecs.BOM_UTF16_BE, "utf-16-be")}
ENDS = ["\n", "\r\n", "\r"]


def encoded(text: str, encoding: str) -> bytes:
    mark, name = MARKED.get(encoding, (b"", encoding))
    return mark + text.encode(name)


def fetch_list(content: bytes, how: str, tmp_path: Path) -> Ended:
    """Fetch a list from a file, from standard input, or from a named pipe."""
    out = tmp_path / "out"
    path = tmp_path / "list"
    if how == "stdin":
        command = [sys.executable, "-m", "dlpool", "fetch", "-i", "-", str(out), "--no-sync"]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, cwd=ROOT)
        said = process.communicate(content, timeout=60)
        return Ended(process.returncode, said[0].decode(), said[1].decode())
    if how == "file":
        path.write_bytes(content)
        return run("fetch", "-i", path, out, "--no-sync")
    os.mkfifo(path)
    process_of_fifo = start("fetch", "-i", path, out, "--no-sync")
    writer = threading.Thread(target=path.write_bytes, args=(content,), daemon=True)
    writer.start()
    ended = finish(process_of_fifo)
    writer.join(20)
    return ended


@pytest.mark.parametrize("end", ENDS, ids=["LF", "CRLF", "CR"])
@pytest.mark.parametrize("how", ["file", "stdin", "pipe"])
def test_a_list_is_read_whatever_its_encoding_and_ends_of_lines(
    how: str, end: str, serve: Serve, tmp_path: Path
) -> None:
    origin = serve(File(DATA))
    for number, encoding in enumerate(TEXTS.values()):
        names = [f"{number}a", f"{number} ä.bin", f"{number}日本", f"{number}z"]
        lines = [
            f"{origin.url}/{number}a",
            f"{origin.url}/b\t {names[1]} \t",
            "",
            " # no comment",
            "   ",
            json.dumps({"url": f"{origin.url}/c", "path": names[2]}),
            f"  {origin.url}/d  {names[3]}",
        ]
        folder = tmp_path / str(number)
        folder.mkdir()
        ended = fetch_list(encoded(end.join(lines) + (end if number % 2 else ""), encoding), how, folder)
        assert ended.code == 0, (encoding, ended.err)
        assert sorted(os.listdir(os.fsencode(folder / "out"))) == sorted(name.encode() for name in names)


def test_marks_within_a_list_are_those_of_files_that_were_joined(serve: Serve, tmp_path: Path) -> None:
    origin = serve(File(DATA))
    content = "".join(f"\ufeff{origin.url}/{name}\r\n" for name in "ab").encode()
    assert fetch_list(content, "file", tmp_path).code == 0
    assert sorted(os.listdir(tmp_path / "out")) == ["a", "b"]


def test_a_path_may_have_bytes_that_are_no_utf8_where_no_mark_says_otherwise(serve: Serve, tmp_path: Path) -> None:
    origin = serve(File(DATA))
    assert fetch_list(f"{origin.url}/a ".encode() + b"n\xe4me\n", "file", tmp_path).code == 0
    assert os.listdir(os.fsencode(tmp_path / "out")) == [b"n\xe4me"]


NO_TEXTS = {
    "half a letter of UTF-16": (codecs.BOM_UTF16_LE + "http://h/a\nhttp://h/b".encode("utf-16-le")[:-1], 2),
    "half a pair of UTF-16": (codecs.BOM_UTF16_LE + "http://h/a\n".encode("utf-16-le") + b"\x00\xd8\n\0", 2),
    "bytes that are no UTF-8 behind a mark": (codecs.BOM_UTF8 + b"http://h/a\n#\nhttp://h/b \xff\n", 3),
    "UTF-16 without a mark": ("http://h/a\nhttp://h/b\n".encode("utf-16-le"), 1),
    "a NUL": (b"http://h/a\nhttp://h/b\0c\n", 2),
    "NULs between": (b"http://h/a\0http://h/b\0", 1),
    "a program": (b"\x7fELF\x02\x01\x01" + bytes(100), 1),
    "no end of a line": (b"http://h/" + b"a" * 2_000_000, 1),
    "no UTF-32": (codecs.BOM_UTF32_LE + b"\0\0\0\xff", 1),
}


@pytest.mark.parametrize("name", NO_TEXTS)
def test_a_list_that_is_not_text_is_refused_with_file_and_line(name: str, tmp_path: Path) -> None:
    content, line = NO_TEXTS[name]
    ended = fetch_list(content, "file", tmp_path)
    assert ended.code == 2
    assert f"cannot read {tmp_path / 'list'}: line {line}: " in ended.err
    assert "no download was started" in ended.err
    assert not (tmp_path / "out").exists()


def test_a_pipe_that_brings_no_text_ends_the_list_there(serve: Serve, tmp_path: Path) -> None:
    origin = serve(File(DATA))
    ended = fetch_list(f"{origin.url}/a\n".encode() + b"\0\n", "stdin", tmp_path)
    assert ended.code == 2
    assert "cannot read standard input: line 2: " in ended.err
    assert os.listdir(tmp_path / "out") == ["a"]


def test_a_url_that_is_not_utf8_fails_its_line(serve: Serve, tmp_path: Path) -> None:
    origin = serve(File(DATA))
    content = f"{origin.url}/".encode() + b"\xe4\n" + f"{origin.url}/b\n".encode()
    ended = fetch_list(content, "file", tmp_path)
    assert ended.code == 14
    assert "line 1: the URL is not UTF-8" in ended.err
    assert os.listdir(tmp_path / "out") == ["b"]


# --- jobs ---


@pytest.mark.parametrize("end", ENDS, ids=["LF", "CRLF", "CR"])
@pytest.mark.parametrize("encoding", TEXTS.values(), ids=TEXTS)
def test_jobs_are_pushed_from_any_text(encoding: str, end: str, redis_server: RedisServer, tmp_path: Path) -> None:
    lines = ["http://h/a a", json.dumps({"url": "http://h/b", "save_path": "ä"}, ensure_ascii=False), "# no", ""]
    (tmp_path / "jobs").write_bytes(encoded(end.join(lines), encoding))
    ended = run("push", "-i", tmp_path / "jobs", "--redis-url", redis_server.url)
    assert ended.code == 0, ended.err
    found = [json.loads(line) for line in run("jobs", "--json", "--redis-url", redis_server.url).out.splitlines()]
    assert sorted((job["url"], job["save_path"]) for job in found) == [("http://h/a", "a"), ("http://h/b", "ä")]


@pytest.mark.parametrize("name", [name for name in NO_TEXTS if "end of a line" not in name])
def test_a_list_of_jobs_that_is_not_text_is_refused_with_its_line(
    name: str, redis_server: RedisServer, tmp_path: Path
) -> None:
    content, line = NO_TEXTS[name]
    (tmp_path / "jobs").write_bytes(content.replace(b"http://h/a\n", b"http://h/a a\n"))
    ended = run("push", "-i", tmp_path / "jobs", "--redis-url", redis_server.url)
    assert ended.code == 2
    assert f"cannot read {tmp_path / 'jobs'}: line {line}: " in ended.err


# --- the decoder ---


@given(
    st.lists(st.text(st.characters(exclude_characters="\r\n\0\ufeff", exclude_categories=["Cs"]), max_size=20)),
    st.sampled_from([*TEXTS.values()]),
    st.sampled_from(ENDS),
    st.integers(1, 9),
)
def test_lines_are_the_same_however_they_are_encoded_and_cut(
    lines: list[str], encoding: str, end: str, size: int
) -> None:
    content = io.BytesIO(encoded("".join(line + end for line in lines), encoding))
    assert list(read_lines(lambda _: content.read(size))) == lines


def test_a_line_is_there_as_soon_as_it_has_ended() -> None:
    lines = TextLines()
    assert list(lines.feed(b"a")) == []
    assert list(lines.feed(b"b\nc")) == ["ab"]
    assert list(lines.feed(b"\n")) == ["c"]
    with pytest.raises(NotText, match="line 3"):
        list(lines.feed(b"\0", is_end=True))


# --- other files ---


@pytest.mark.parametrize("encoding", TEXTS.values(), ids=TEXTS)
def test_a_secret_may_be_in_any_text_file(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_bytes(encoded("hunter2\r\n", encoding))
    (tmp_path / "web_secret_key").write_bytes(encoded("hunter3\n", encoding))
    arguments = argparse.Namespace(token_file=str(path), secret_key_file=None, header=[], url="http://h/")
    assert access_headers(arguments)["Authorization"] == "Bearer hunter2"
    assert read_key(None, str(path)) == "hunter2"
    assert _password(None, str(path)) == "hunter2"
    assert [given.text for given in credential_values({"CREDENTIALS_DIRECTORY": str(tmp_path)}, [])] == ["hunter3"]


@pytest.mark.parametrize("content", [b"\xff\xfe\xff", b"\xef\xbb\xbf\xff", b"\xe4"])
def test_a_secret_that_is_not_text_is_one_sentence(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_bytes(content)
    with pytest.raises(UsageError):
        access_headers(argparse.Namespace(token_file=str(path), secret_key_file=None, header=[], url="http://h/"))
    with pytest.raises(ConfigurationError, match="not UTF-8"):
        read_key(None, str(path))
    with pytest.raises(ConfigurationError, match="not UTF-8"):
        _password(None, str(path))
