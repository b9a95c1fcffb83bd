"""``dlpool fetch`` as a person uses it: processes, exit codes, messages, progress, interruption."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dlpool import __version__
from tests.conftest import make_data, sha256, wait_until
from tests.handlers import nth
from tests.origin import Connection, File, Origin, Request
from tests.processes import ROOT, finish, run, start

Serve = Callable[..., Origin]

SIZE = 2 * 1024 * 1024
DATA = make_data(SIZE)


def slow(pause_s: float = 0.05) -> File:
    return File(DATA, block=32 * 1024, pause_s=pause_s)


# --- help and usage ---


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["fetch", "--help"]])
def test_help_and_version_import_no_library(arguments: list[str]) -> None:
    code = (
        "import sys, atexit\n"
        "heavy = ('requests', 'urllib3', 'redis', 'rich', 'structlog', 'psutil', 'prometheus_client')\n"
        "atexit.register(lambda: print('loaded:', *[name for name in heavy if name in sys.modules]))\n"
        "from dlpool.cli.main import main\n"
        f"main({arguments!r})\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert ended.returncode == 0
    assert ended.stdout.strip().endswith("loaded:")


def test_the_version_is_the_packages() -> None:
    assert run("--version").out == f"dlpool {__version__}\n"


def test_help_lists_every_exit_code() -> None:
    text = run("fetch", "--help").out
    for code in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 20, 21, 75, 78, 130, 143):
        assert f" {code} " in text


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--limit-rate", "5X", "http://h/"], "'5X' is in an unknown unit ('X'; known are K, M, G, T)"),
        (["--limit-rate", "-5K", "http://h/"], "'-5K' is negative"),
        (["--retries", "-1", "http://h/"], "'-1' is negative"),
        (["--retry-delay", "5 parsecs", "http://h/"], "known are ms, s, m, h"),
        (["-c", "0", "http://h/"], "'0' is below 1"),
        (["-c", "many", "http://h/"], "'many' is neither a whole number nor auto"),
        (["--if-exists", "maybe", "http://h/"], "not one of overwrite, skip, fail, rename"),
        (["--network", "some", "http://h/"], "not one of any, no-metadata, public-only"),
        (["--checksum", "crc32:00", "http://h/"], "does not begin with one of md5, sha1, sha256, sha512, blake2b"),
        (["--checksum", "md5:00", "http://h/"], "has not the 32 hexadecimal digits of md5"),
        (["-H", "no colon", "http://h/"], "is not of the form 'Name: value'"),
        (["-H", "Range: bytes=0-1", "http://h/"], "set by dlpool itself"),
        (["-H", "A: b\nC: d", "http://h/"], "is not of the form"),
        (["ftp://h/x"], "is not an http or https URL"),
        (["/etc/passwd"], "is not an http or https URL"),
        (["http://"], "is not a URL"),
        (["http://[::1/x"], "is not a URL"),
        (["http://h:99999/x"], "is not a URL"),
        (["http://h/", "-"], "not standard output"),
        ([], "a URL is missing"),
        (["-i", "list", "folder", "extra"], "the only argument is the folder"),
        (["http://h/a", "http://h/b"], "PATH looks like a URL; several URLs go into a list: -i FILE"),
        (["-i", "-", "http://h/a"], "PATH looks like a URL; several URLs go into a list: -i FILE"),
        (["http://h/", "-j", "3"], "-j is for a list (-i)"),
        (["http://h/", "-c", "etc/dlpool.ini"], "(for an INI: --config)"),
        (["http://h/", "-q", "a", "-v", "b"], "unrecognized arguments: b"),
        (["--user", "me", "http://h/"], "no password for user me"),
        (["--no-such-option", "http://h/"], "--no-such-option"),
        (["--conn", "4", "http://h/"], "--conn"),
    ],
)
def test_bad_usage_is_one_sentence_and_exit_2(arguments: list[str], sentence: str, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "DLPOOL_PASSWORD"}
    ended = run("fetch", *arguments, cwd=tmp_path, env={**environment, "PYTHONPATH": str(ROOT)})
    assert ended.code == 2
    assert sentence in ended.err
    assert len(ended.err.splitlines()) == 1
    assert os.listdir(tmp_path) == []


def test_a_url_of_100_kb_ends_with_an_error_and_not_a_page_of_it(serve: Serve, tmp_path: Path) -> None:
    origin = serve(lambda _r, connection: connection.answer(414))
    ended = run("fetch", f"{origin.url}/{'x' * 100_000}", tmp_path / "f")
    assert ended.code == 8
    assert len(ended.err) < 1000


def test_a_url_with_unicode_and_spaces_is_fetched(serve: Serve, tmp_path: Path) -> None:
    origin = serve(File(DATA))
    ended = run("fetch", f"{origin.url}/naïve file.bin?q=ü", tmp_path)
    assert ended.code == 0, ended.err
    assert (tmp_path / "naïve file.bin").read_bytes() == DATA
    assert origin.requests[0].path == "/na%C3%AFve%20file.bin?q=%C3%BC"


# --- where the file goes ---


def test_without_a_path_the_file_lands_in_the_current_folder(serve: Serve, tmp_path: Path) -> None:
    origin = serve(File(DATA))
    ended = run("fetch", f"{origin.url}/a/b.bin", cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert ended.code == 0, ended.err
    assert (tmp_path / "b.bin").read_bytes() == DATA


def test_options_may_stand_anywhere(serve: Serve, tmp_path: Path) -> None:
    url = f"{serve(File(DATA)).url}/f"
    for number, words in enumerate(([url, "-c", "2", "OUT"], ["-q", url, "OUT", "-c", "2"], ["-q", "--", url, "OUT"])):
        target = tmp_path / f"{number}.bin"
        ended = run("fetch", *(target if word == "OUT" else word for word in words))
        assert ended.code == 0, ended.err
        assert target.read_bytes() == DATA


def test_the_result_is_one_json_object_on_standard_output(serve: Serve, tmp_path: Path) -> None:
    origin = serve(File(DATA))
    ended = run("fetch", f"{origin.url}/f", tmp_path / "f", "--json", "--checksum", f"sha256:{sha256(DATA)}")
    result = ended.json
    assert result["status"] == "done"
    assert (result["path"], result["size"], result["received"]) == (str(tmp_path / "f"), SIZE, SIZE)
    assert result["checksum"] == f"sha256:{sha256(DATA)}"
    assert result["error"] is None


@pytest.mark.parametrize("algorithm", ["md5", "sha1", "sha256", "sha512", "blake2b"])
def test_every_checksum_algorithm_verifies_and_refuses(algorithm: str, serve: Serve, tmp_path: Path) -> None:
    import hashlib

    origin = serve(File(DATA))
    right = hashlib.new(algorithm, DATA).hexdigest()
    assert run("fetch", f"{origin.url}/f", tmp_path / "f", "--checksum", f"{algorithm}:{right.upper()}").code == 0
    wrong = ("0" if right[0] != "0" else "1") + right[1:]
    ended = run("fetch", f"{origin.url}/f", tmp_path / "g", "--checksum", f"{algorithm}:{wrong}", "--json")
    assert ended.code == 11
    assert ended.json["error"]["label"] == "checksum"
    assert os.listdir(tmp_path) == ["f"]


def test_remote_time_sets_the_modification_time(serve: Serve, tmp_path: Path) -> None:
    origin = serve(File(DATA))
    run("fetch", f"{origin.url}/f", tmp_path / "f", "--remote-time")
    run("fetch", f"{origin.url}/f", tmp_path / "g")
    assert int((tmp_path / "f").stat().st_mtime) == 1727776800
    assert (tmp_path / "g").stat().st_mtime > 1727776800


@pytest.mark.parametrize("how", ["auto", "falloc", "truncate", "none"])
def test_every_way_to_preallocate_gives_the_same_file(how: str, serve: Serve, tmp_path: Path) -> None:
    origin = serve(File(DATA))
    assert run("fetch", f"{origin.url}/f", tmp_path / "f", "--preallocate", how).code == 0
    assert (tmp_path / "f").read_bytes() == DATA


# --- limits ---


@pytest.mark.parametrize("serves_ranges", [True, False])
def test_a_file_above_max_file_size_is_refused(serves_ranges: bool, serve: Serve, tmp_path: Path) -> None:
    origin = serve(File(DATA, serves_ranges=serves_ranges))
    ended = run("fetch", f"{origin.url}/f", tmp_path / "f", "--max-file-size", "1M")
    assert ended.code == 12
    assert "max_file_size" in ended.err
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("more", [0, 1])
@pytest.mark.parametrize("how", ["ranges", "one stream", "no length"])
def test_a_file_of_exactly_max_file_size_is_taken_and_one_byte_more_is_not(
    how: str, more: int, serve: Serve, tmp_path: Path
) -> None:
    data = DATA[: 1024 * 1024 + more]
    file = File(data, serves_ranges=how == "ranges")

    def handle(_request: Request, connection: Connection) -> None:
        connection.answer(200, {"Connection": "close"}, data, length=False)
        connection.hang_up()

    origin = serve(handle if how == "no length" else file)
    ended = run("fetch", f"{origin.url}/f", tmp_path / "f", "--max-file-size", "1M")
    assert ended.code == (12 if more else 0), ended.err
    assert (tmp_path / "f").exists() == (not more)
    if not more:
        assert (tmp_path / "f").read_bytes() == data


def test_an_endless_body_is_cut_at_max_file_size(serve: Serve, tmp_path: Path) -> None:
    def handle(_request: Request, connection: Connection) -> None:
        connection.answer(200, {"Connection": "close"}, length=False)
        while True:
            connection.send(b"x" * 65536)

    origin = serve(handle)
    assert run("fetch", f"{origin.url}/f", tmp_path / "f", "--max-file-size", "1M").code == 12
    assert os.listdir(tmp_path) == []


def test_a_deadline_ends_the_download_resumably(serve: Serve, tmp_path: Path) -> None:
    file = slow(0.3)
    origin = serve(file)
    ended = run("fetch", f"{origin.url}/f", tmp_path / "f", "--deadline", "1s", "--json")
    assert ended.code == 4
    assert ended.json["error"]["label"] == "deadline"
    file.pause_s = 0
    assert run("fetch", f"{origin.url}/f", tmp_path / "f", "--json").json["resumed_from"] > 0
    assert (tmp_path / "f").read_bytes() == DATA


def test_the_rate_limit_holds_for_the_download(serve: Serve, tmp_path: Path) -> None:
    origin = serve(File(DATA))
    result = run("fetch", f"{origin.url}/f", tmp_path / "f", "--limit-rate", "1M", "--json").json
    assert result["seconds"] > 1.5  # 2 MiB at 1 MiB/s, less the burst
    assert (tmp_path / "f").read_bytes() == DATA


def test_a_refused_connection_is_exit_4_after_its_retries(tmp_path: Path) -> None:
    from tests.conftest import free_port

    ended = run("fetch", f"http://127.0.0.1:{free_port()}/f", tmp_path / "f", "--retries", "1", "--retry-delay", "10ms")
    assert ended.code == 4
    assert "cannot be reached" in ended.err
    assert os.listdir(tmp_path) == []


def test_a_name_that_does_not_resolve_is_exit_4(tmp_path: Path) -> None:
    ended = run("fetch", "http://nowhere.invalid/f", tmp_path / "f", "--retries", "0", "--json")
    assert ended.code == 4
    assert ended.json["error"]["label"] == "dns"


# --- network policy ---


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest/meta-data/",
        "http://[fd00:ec2::254]/",
        "http://[::ffff:169.254.169.254]/",
        "http://[fe80::1]/",
        "http://2852039166/",
        "http://0xa9fea9fe/",
        "http://100.100.100.200/",
    ],
)
def test_metadata_and_link_local_addresses_are_refused_in_every_spelling(url: str, tmp_path: Path) -> None:
    ended = run("fetch", url, tmp_path / "f", "--json")
    assert ended.code == 12, ended
    assert ended.json["error"]["label"] == "policy"


def test_a_redirect_to_a_metadata_address_is_refused(serve: Serve, tmp_path: Path) -> None:
    origin = serve(lambda _r, c: c.answer(302, {"Location": "http://169.254.169.254/"}))
    assert run("fetch", f"{origin.url}/f", tmp_path / "f").code == 12


def test_public_only_refuses_loopback(serve: Serve, tmp_path: Path) -> None:
    origin = serve(File(DATA))
    assert run("fetch", f"{origin.url}/f", tmp_path / "f", "--network", "public-only").code == 12
    assert origin.requests == []


# --- headers and credentials ---


def test_headers_agent_and_referer_are_sent_once(serve: Serve, tmp_path: Path) -> None:
    origin = serve(File(b"x"))
    run(
        "fetch",
        f"{origin.url}/f",
        tmp_path / "f",
        "-H",
        "X-One: 1",
        "-H",
        "accept: text/x",
        "-A",
        "me/1",
        "--referer",
        "http://r/",
    )
    headers = origin.requests[0].headers
    assert (headers["x-one"], headers["accept"], headers["user-agent"], headers["referer"]) == (
        "1",
        "text/x",
        "me/1",
        "http://r/",
    )


def test_a_password_comes_from_the_environment_or_warns_on_the_command_line(serve: Serve, tmp_path: Path) -> None:
    origin = serve(File(b"x"))
    quiet = run("fetch", f"{origin.url}/f", tmp_path / "f", "--user", "me", env={**os.environ, "DLPOOL_PASSWORD": "pw"})
    assert quiet.code == 0
    assert "warning" not in quiet.err
    warned = run("fetch", f"{origin.url}/f", tmp_path / "f", "--user", "me:pw")
    assert "others on this machine can see a password" in warned.err
    assert {request.headers["authorization"] for request in origin.requests} == {"Basic bWU6cHc="}


def test_netrc_needs_its_option_and_applies_to_its_origin(serve: Serve, tmp_path: Path) -> None:
    other = serve(File(b"x"))
    origin = serve(lambda _r, c: c.answer(302, {"Location": f"http://localhost:{other.port}/f"}))
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password pw\nmachine localhost login a password b\n")
    environment = {**os.environ, "NETRC": str(tmp_path / "netrc")}
    run("fetch", f"{origin.url}/f", tmp_path / "f", env=environment)
    run("fetch", f"{origin.url}/f", tmp_path / "f", "--netrc", env=environment)
    assert "authorization" not in origin.requests[0].headers
    assert origin.requests[1].headers["authorization"] == "Basic bWU6cHc="
    assert not any("authorization" in request.headers for request in other.requests)


def test_no_password_reaches_the_output(serve: Serve, tmp_path: Path) -> None:
    origin = serve(lambda _r, c: c.answer(404))
    url = f"http://me:hunter2@127.0.0.1:{origin.port}/f"
    ended = run("fetch", url, tmp_path / "f", "-v", "--json")
    assert "hunter2" not in ended.out + ended.err


# --- interruption ---


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_checkpoints_and_the_same_command_resumes(
    number: signal.Signals, code: int, serve: Serve, tmp_path: Path
) -> None:
    file = slow()
    origin = serve(file)
    process = start("fetch", f"{origin.url}/f", tmp_path / "f", "--json")
    wait_until(lambda: file.sent > SIZE // 4)
    process.send_signal(number)
    ended = finish(process)
    assert ended.code == code
    assert "run the same command again to resume" in ended.err
    assert (ended.json["status"], ended.json["exit_code"]) == ("interrupted", code)
    file.pause_s = 0
    again = run("fetch", f"{origin.url}/f", tmp_path / "f", "--json")
    assert again.json["resumed_from"] > SIZE // 8
    assert (tmp_path / "f").read_bytes() == DATA


def test_a_second_signal_ends_at_once(serve: Serve, tmp_path: Path) -> None:
    file = slow()
    origin = serve(file)
    process = start(
        tmp_path / "log",
        "hang",
        "checkpoint:fdatasync:1",
        "--",
        "fetch",
        f"{origin.url}/f",
        tmp_path / "f",
        module="tests.faults",
    )
    wait_until(lambda: (tmp_path / "log").exists() and "checkpoint" in (tmp_path / "log").read_text())
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    process.send_signal(signal.SIGINT)
    assert process.wait(5) == 130
    process.communicate()


# --- lists ---


def test_a_list_of_every_form_is_fetched(serve: Serve, tmp_path: Path) -> None:
    origin = serve(File(DATA))
    (tmp_path / "list").write_text(
        f"# a comment\n\n{origin.url}/one\n{origin.url}/x sub/two with spaces\n"
        + json.dumps({"url": f"{origin.url}/y", "path": "three", "checksum": f"sha256:{sha256(DATA)}"})
        + "\n"
    )
    ended = run("fetch", "-i", tmp_path / "list", tmp_path / "out", "--json")
    assert ended.code == 0, ended.err
    names = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert names == {"one", "sub/two with spaces", "three"}
    assert {entry["status"] for entry in ended.json["files"]} == {"done"}


def test_one_failure_in_a_list_does_not_stop_the_others(serve: Serve, tmp_path: Path) -> None:
    file = File(DATA)

    def handle(request: Request, connection: Connection) -> None:
        connection.answer(404) if request.path == "/bad" else file(request, connection)

    origin = serve(handle)
    lines = f'{origin.url}/a\n{origin.url}/bad\nnonsense\n{{"url": 5}}\n{{broken\n{origin.url}/b\n'
    process = start("fetch", "-i", "-", tmp_path / "out", "--json", stdin=subprocess.PIPE)
    out, err = process.communicate(lines, timeout=60)
    assert process.returncode == 14
    assert sorted(os.listdir(tmp_path / "out")) == ["a", "b"]
    assert [entry["error"]["label"] for entry in json.loads(out)["files"] if entry["error"]].count("usage") == 3
    for number in (3, 4, 5):
        assert f"line {number}: " in err
    assert "2 of 6 files done, 4 failed" in err


def test_two_lines_of_one_list_never_write_the_same_file(serve: Serve, tmp_path: Path) -> None:
    origin = serve(File(DATA))
    (tmp_path / "list").write_text(f"{origin.url}/a/f\n{origin.url}/b/f\n")
    ended = run("fetch", "-i", tmp_path / "list", tmp_path / "out", "-j", "1")
    assert ended.code == 14
    assert "line 2 would overwrite" in ended.err
    assert run("fetch", "-i", tmp_path / "list", tmp_path / "out2", "-j", "1", "--if-exists", "rename").code == 0
    assert sorted(os.listdir(tmp_path / "out2")) == ["f", "f.1"]


def test_a_list_that_cannot_be_read_is_exit_3(tmp_path: Path) -> None:
    ended = run("fetch", "-i", tmp_path / "nowhere")
    assert ended.code == 3
    assert "cannot read the list" in ended.err


# --- progress ---


def test_plain_progress_is_a_line_now_and_then(serve: Serve, tmp_path: Path) -> None:
    origin = serve(slow(0.01))
    code = (
        "import dlpool.cli.progress as p, sys; p.PlainDisplay.every_s = 0.2; from dlpool.cli.main import main; main()"
    )
    command = [sys.executable, "-c", code, "fetch", f"{origin.url}/f", str(tmp_path / "f"), "-c", "1"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    lines = [line for line in ended.stderr.splitlines() if line.startswith("f: ")]
    assert len(lines) >= 2
    assert "% " in lines[-1] or "%," in lines[-1]
    assert "of 2.0M" in lines[-1]
    assert "1 connection" in lines[-1]


def test_json_progress_never_goes_back_nor_beyond_the_end(serve: Serve, tmp_path: Path) -> None:
    origin = serve(slow(0.1))
    ended = run("fetch", f"{origin.url}/f", tmp_path / "f", "-c", "2", "--progress", "json")
    shown = [json.loads(line) for line in ended.err.splitlines() if line.startswith("{")]
    assert len(shown) >= 2
    done = [line["done"] for line in shown]
    assert done == sorted(done)
    assert all(0 <= line["percent"] <= 100 for line in shown if line["percent"] is not None)


def test_bars_are_drawn_on_a_terminal(serve: Serve, tmp_path: Path) -> None:
    origin = serve(slow(0.03))
    main_end, other_end = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    process = start("fetch", f"{origin.url}/f", tmp_path / "f", stderr=other_end, env=environment)
    os.close(other_end)
    shown = b""
    try:
        while data := os.read(main_end, 65536):
            shown += data
    except OSError:  # the terminal's other end has closed
        pass
    finally:
        os.close(main_end)
    process.communicate(timeout=30)
    assert process.returncode == 0
    assert "━".encode() in shown
    assert b" 2 conn" in shown
    assert b"2.0M in" in shown


def test_quiet_prints_nothing_and_verbose_prints_events(serve: Serve, tmp_path: Path) -> None:
    origin = serve(File(DATA))
    assert run("fetch", f"{origin.url}/f", tmp_path / "f", "-q").err == ""
    said = run("fetch", f"{origin.url}/f", tmp_path / "f", "-v", "--progress", "none").err
    assert "job_started" in said
    assert f"job_succeeded path='{tmp_path}/f' " in said


def test_a_restarted_stream_is_counted(serve: Serve, tmp_path: Path) -> None:
    def half(_request: Request, connection: Connection) -> None:
        connection.answer(200, {"Content-Length": str(SIZE)}, DATA[: SIZE // 2], length=False)
        connection.hang_up()

    origin = serve(nth({1}, half, File(DATA, serves_ranges=False)))
    ended = run("fetch", f"{origin.url}/f", tmp_path / "f", "-v", "--retry-delay", "10ms")
    assert "download_restarted" in ended.err
    assert " restarts=1 " in ended.err
