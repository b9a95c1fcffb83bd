"""Standard streams, locale and environment as they may be: the file is right, and the exit code tells of the file."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dlpool.jobs.keys import QueueKeys
from tests.conftest import free_port, make_data, wait_until
from tests.origin import File, Origin
from tests.processes import ROOT
from tests.redis_server import RedisServer
from tests.upload_origin import UploadOrigin

Serve = Callable[..., Origin]
DATA = make_data(300_000)
TIMEOUT_S = 60
ASCII = "LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0"
CONDITIONS = {
    "stdout closed": ("", ">&-"),
    "stderr closed": ("", "2>&-"),
    "all closed": ("", "<&- >&- 2>&-"),
    "stdout full": ("", ">/dev/full"),
    "stderr full": ("", "2>/dev/full"),
    "both full": ("", ">/dev/full 2>&1"),
    "stdout read-only": ("", "1</dev/null"),
    "stderr read-only": ("", "2</dev/null"),
    "stdout without a reader": ("", "| true"),
    "stdout with a short reader": ("", "| head -c 1 >/dev/null"),
    "both without a reader": ("", "2>&1 | true"),
    "C locale": ("LC_ALL=C", ""),
    "ascii": (ASCII, ""),
    "other encoding": ("PYTHONIOENCODING=latin-1", ""),
    "strict ascii": ("PYTHONIOENCODING=ascii:strict", ""),
    "unbuffered": ("PYTHONUNBUFFERED=1", ">/dev/full"),
    "dumb terminal": ("TERM=dumb", ""),
    "no terminal type": ("-u TERM", ""),
    "no HOME": ("-u HOME", ""),
    "HOME is gone": ("HOME=/nonexistent/home", ""),
    "empty environment": ("-i", ""),
}
LOSES_STDOUT = {"stdout full", "both full", "stdout read-only", "unbuffered"}


def shell(
    arguments: list[str], environment: str, redirection: str, cwd: Path, module: str = "dlpool"
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m MODULE ARGUMENTS`` by a shell; the exit code is the program's, also before a pipe."""
    script = f'env {environment} PYTHONPATH="$ROOT" "$@" {redirection}; exit "${{PIPESTATUS[0]}}"'
    command = ["bash", "-c", script, "bash", sys.executable, "-m", module, *arguments]
    return subprocess.run(
        command,
        cwd=cwd,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=TIMEOUT_S,
        check=False,
        env={**os.environ, "ROOT": str(ROOT)},
        stdin=subprocess.DEVNULL,
    )


def check_quiet(ended: subprocess.CompletedProcess[str]) -> None:
    """No traceback, no complaint of the interpreter, no defect of ours."""
    for words in ("Traceback", "Exception ignored", "unexpected", "Error:"):
        assert words not in ended.stderr + ended.stdout, ended.stderr + ended.stdout


@pytest.fixture(scope="module")
def origin() -> Iterator[Origin]:
    with Origin(File(DATA, pause_s=0.001)) as made:
        yield made


STREAMS = [name for name, (_, redirection) in CONDITIONS.items() if redirection]


@pytest.mark.parametrize(
    ("how", "name"),
    [
        *(("--json", name) for name in CONDITIONS),
        *(("--json --progress json -v", name) for name in STREAMS[::2]),
        *(("--progress bar", name) for name in ("both full", "all closed", "ascii", "dumb terminal")),
    ],
)
def test_a_file_is_fetched_whatever_becomes_of_the_output(how: str, name: str, origin: Origin, tmp_path: Path) -> None:
    environment, redirection = CONDITIONS[name]
    ended = shell(["fetch", f"{origin.url}/a", str(tmp_path / "ä.bin"), *how.split()], environment, redirection, ROOT)
    check_quiet(ended)
    assert (tmp_path / "ä.bin").read_bytes() == DATA
    assert ended.returncode == 0
    if "--json" in how and not redirection:
        assert json.loads(ended.stdout)["status"] == "done"


@pytest.mark.parametrize("name", CONDITIONS)
def test_a_list_is_fetched_whatever_becomes_of_the_output(name: str, serve: Serve, tmp_path: Path) -> None:
    origin, names = serve(File(DATA)), [f"{number} 日本.bin" for number in range(4)]
    (tmp_path / "list").write_text("".join(f"{origin.url}/{one[0]} {one}\n" for one in names))
    environment, redirection = CONDITIONS[name]
    ended = shell(["fetch", "-i", str(tmp_path / "list"), str(tmp_path / "out")], environment, redirection, ROOT)
    check_quiet(ended)
    assert sorted(os.listdir(os.fsencode(tmp_path / "out"))) == sorted(one.encode() for one in names)
    assert ended.returncode == 0


@pytest.mark.parametrize("name", STREAMS)
def test_a_failure_keeps_its_exit_code(name: str, serve: Serve, tmp_path: Path) -> None:
    origin = serve(lambda _, connection: connection.answer(404, {}, b""))
    environment, redirection = CONDITIONS[name]
    ended = shell(["fetch", f"{origin.url}/a", str(tmp_path / "a"), "--json"], environment, redirection, ROOT)
    check_quiet(ended)
    assert ended.returncode == 10
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("name", STREAMS)
def test_a_file_is_uploaded_whatever_becomes_of_the_output(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(DATA)
    environment, redirection = CONDITIONS[name]
    with UploadOrigin() as server:
        ended = shell(["upload", str(path), server.api, "--json"], environment, redirection, ROOT)
        assert server.merged["model.bin"] == DATA
    check_quiet(ended)
    assert ended.returncode == 0


@pytest.mark.parametrize("name", STREAMS)
def test_jobs_are_pushed_whatever_becomes_of_the_output(name: str, redis_server: RedisServer, tmp_path: Path) -> None:
    (tmp_path / "jobs").write_text("".join(f"http://h/{number} {number}\n" for number in range(1200)))
    environment, redirection = CONDITIONS[name]
    ended = shell(
        ["push", "-i", str(tmp_path / "jobs"), "--redis-url", redis_server.url], environment, redirection, ROOT
    )
    check_quiet(ended)
    assert ended.returncode == 0
    assert redis_server.client().llen(QueueKeys().ready("normal")) == 1200


@pytest.mark.parametrize(
    ("command", "name"),
    [
        *(("config show", name) for name in CONDITIONS),
        *(
            (command, name)  # they print in the same way: each under some conditions, all conditions at some command
            for number, command in enumerate(("fetch --help", "--version", "jobs", "stats --json"))
            for name in STREAMS[number::4]
        ),
    ],
)
def test_what_only_prints_fails_only_where_that_is_lost(command: str, name: str, redis_server: RedisServer) -> None:
    environment, redirection = CONDITIONS[name]
    queue = ["--redis-url", redis_server.url] if command.startswith(("jobs", "stats")) else []
    ended = shell([*command.split(), *queue], environment, redirection, ROOT)
    check_quiet(ended)
    assert ended.returncode == (3 if name in LOSES_STDOUT else 0)
    if ended.returncode and "2>" not in redirection:
        assert ended.stderr.startswith("dlpool: cannot write to standard output: ")


@pytest.mark.parametrize("name", ["all closed", "both full", "both without a reader", "ascii"])
@pytest.mark.parametrize(("command", "code"), [("config check -c bad.ini", 78), ("nonsense", 2), ("job absent", 21)])
def test_an_error_is_told_or_not_but_keeps_its_code(
    command: str, code: int, name: str, redis_server: RedisServer, tmp_path: Path
) -> None:
    (tmp_path / "bad.ini").write_text("[transfer]\nconnections = many\n")
    environment, redirection = CONDITIONS[name]
    queue = ["--redis-url", redis_server.url] if command.startswith("job") else []
    ended = shell([*command.split(), *queue], environment, redirection, tmp_path)
    check_quiet(ended)
    assert ended.returncode == code


# --- a working directory that has been deleted ---


def gone(tmp_path: Path, command: list[str], module: str = "dlpool") -> subprocess.CompletedProcess[str]:
    folder = tmp_path / "gone"
    folder.mkdir()
    script = 'rmdir "$PWD"; exec "$@"'
    return subprocess.run(
        ["bash", "-c", script, "bash", sys.executable, "-m", module, *command],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def test_a_deleted_working_directory_is_no_obstacle_for_an_absolute_path(origin: Origin, tmp_path: Path) -> None:
    ended = gone(tmp_path, ["fetch", f"{origin.url}/a", str(tmp_path / "a")])
    check_quiet(ended)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "a").read_bytes() == DATA


@pytest.mark.parametrize("path", [[], ["b"], ["c/"]])
def test_a_relative_path_in_a_deleted_working_directory_is_one_sentence(
    path: list[str], origin: Origin, tmp_path: Path
) -> None:
    ended = gone(tmp_path, ["fetch", f"{origin.url}/a", *path])
    check_quiet(ended)
    assert ended.returncode == 3
    assert len([line for line in ended.stderr.splitlines() if line.startswith("dlpool: ")]) == 1


@pytest.mark.parametrize("command", ["--help", "config show", "config check", "jobs", "stats", "doctor"])
def test_other_commands_in_a_deleted_working_directory(command: str, redis_server: RedisServer, tmp_path: Path) -> None:
    queue = ["--redis-url", redis_server.url] if command in ("jobs", "stats") else []
    ended = gone(tmp_path, [*command.split(), *queue])
    check_quiet(ended)


# --- the services ---


@pytest.mark.parametrize(
    "name", ["all closed", "both full", "both without a reader", "ascii", "no HOME", "empty environment"]
)
@pytest.mark.parametrize("module", ["dlpool.cli.supervisor", "dlpool.cli.web"])
def test_a_service_starts_and_stops_whatever_its_output_is(
    module: str, name: str, redis_server: RedisServer, tmp_path: Path
) -> None:
    port = free_port()
    (tmp_path / "dlpool.ini").write_text(
        f"[redis]\nurl = {redis_server.url}\n[paths]\nstate_dir = {tmp_path}/state\nlog_dir = {tmp_path}/log\n"
        f"[metrics]\nlisten = 127.0.0.1:{port}\n"
        f"[upload]\nport = {free_port()}\nupload_dir = {tmp_path}/u\nmerged_dir = {tmp_path}/m\n"
    )
    environment, redirection = CONDITIONS[name]
    is_web = module.endswith("web")
    log = tmp_path / "log" / ("web" if is_web else "") / "dlpool.log"
    script = f'exec env {environment} PYTHONPATH="$ROOT" "$@" {redirection.partition("|")[0]}'
    command = ["bash", "-c", script, "bash", sys.executable, "-m", module, "-c", str(tmp_path / "dlpool.ini")]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env={**os.environ, "ROOT": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    if "|" in redirection:
        process.stdout.close()
        process.stderr.close()
        process.stdout = process.stderr = None
    try:
        begun = '"web_started"' if is_web else '"service_ready"'
        wait_until(lambda: process.poll() is not None or (log.exists() and begun in log.read_text()), TIMEOUT_S)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=TIMEOUT_S)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    assert process.returncode in (0, -signal.SIGTERM)  # it may come before there is a handler
    assert "Traceback" not in (said or "") + log.read_text()


# --- names in a locale that has no such letters ---


@pytest.fixture(scope="module")
def latin1(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A locale whose file names are Latin-1; plain C without UTF-8 mode where it cannot be made."""
    folder = tmp_path_factory.mktemp("locales")
    if shutil.which("localedef") is not None:
        made = subprocess.run(
            ["localedef", "-i", "en_US", "-f", "ISO-8859-1", str(folder / "en_US.ISO-8859-1")],
            capture_output=True,
            check=False,
        )
        if made.returncode == 0:
            return f"LOCPATH={folder} LC_ALL=en_US.ISO-8859-1"
    return ASCII


NAMES = ["%E6%97%A5%E6%9C%AC.bin", "%C3%A4.bin", "%F0%9F%98%80", "%FF%FE.bin", "e%CC%81"]


def test_the_names_in_urls_are_the_same_on_disk_in_any_locale(latin1: str, origin: Origin, tmp_path: Path) -> None:
    (tmp_path / "list").write_text("".join(f"{origin.url}/{name}\n" for name in NAMES))
    found: dict[str, list[bytes]] = {}
    for variant in ("LC_ALL=C.UTF-8", "LC_ALL=C", ASCII, latin1):
        folder = tmp_path / str(len(found))
        ended = shell(["fetch", "-i", str(tmp_path / "list"), f"{folder}/"], variant, "", ROOT)
        check_quiet(ended)
        assert ended.returncode == 0, ended.stderr
        found[variant] = sorted(os.listdir(os.fsencode(folder)))
        assert len(found[variant]) == len(NAMES)
    assert len({tuple(names) for names in found.values()}) == 1, found
