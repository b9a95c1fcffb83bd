"""The service's INI file, its options, and what keeps it from starting: one sentence and the right exit code."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dlpool import __version__
from tests.conftest import free_port, wait_until
from tests.desk import DATA, Desk, answer, desk_of, running
from tests.disks import needs_root, remount, tmpfs
from tests.fleet import Client, Supervisor
from tests.origin import File, Origin
from tests.processes import ROOT, Ended, finish, start
from tests.redis_server import RedisServer

SUPERVISOR = "dlpool.cli.supervisor"
PRIVATE = "http://10.0.0.1:9/f"


def supervise(*options: object, **more: Any) -> Ended:
    """Run the service, which must end by itself; it never shows a traceback."""
    ended = finish(start(*options, module=SUPERVISOR, **more))
    assert "Traceback" not in ended.out + ended.err
    return ended


def refused(tmp_path: Path, text: str) -> str:
    """What the service says of an INI file that it does not start with."""
    ini = tmp_path / "dlpool.ini"
    ini.write_text(text)
    ended = supervise("-c", ini)
    assert ended.code == 78
    assert ended.out == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dlpool.ini"]
    return ended.err


# --- the INI file ---


def test_all_errors_of_an_ini_are_said_at_once_with_section_and_key(tmp_path: Path) -> None:
    said = refused(
        tmp_path,
        "[supervisor]\nmax_concurrent_downloads = 0\nlease = soon\nspeed = 1\n"
        "[transfer]\nconnections = 65\nif_exists = maybe\n[network]\ninsecure = perhaps\n[redis]\ngroup = a b\n"
        "[logging]\nrotate_size = -5\n[colours]\nred = 1\n",
    )
    for problem in (
        "[supervisor] max_concurrent_downloads = 0: it is below 1",
        "[supervisor] lease = soon: it is not a number with a unit",
        "[supervisor] speed: there is no such key",
        "[transfer] connections = 65: it is above 64",
        "[transfer] if_exists = maybe: it is not one of",
        "[network] insecure = perhaps: it is neither yes nor no",
        "[redis] group = a b: it is not",
        "[logging] rotate_size = -5: it is negative",
        "[colours]: there is no such section",
    ):
        assert problem in said
    assert len(said.splitlines()) == 9


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("no section\n", "is not an INI file"),
        ("[transfer]\nretries = 1\nretries = 2\n", "is not an INI file"),
        ("[transfer]\nretries = 1\n[transfer]\n", "is not an INI file"),
        ("[DEFAULT]\nretries = 1\n", "[DEFAULT]: there is no such section"),
        ("[redis]\nurl = http://localhost\n", "it is none of redis://"),
        ("[redis]\nurl = redis://:hunter2@localhost:port\n", "it cannot be used"),
        ("[redis]\npassword_file = /nowhere/password\n", "password_file = /nowhere/password: No such file"),
        ("[network]\ncacert = /nowhere/ca.pem\n", "/nowhere/ca.pem"),
        ("[transfer]\nretries = 1\0\n", "retries"),
    ],
)
def test_an_ini_that_cannot_be_used_is_one_sentence(text: str, reason: str, tmp_path: Path) -> None:
    if "paths" not in text:
        text += f"[paths]\nstate_dir = {tmp_path / 'state'}\nlog_dir = {tmp_path / 'log'}\n"
    ini = tmp_path / "dlpool.ini"
    ini.write_text(text)
    ended = supervise("-c", ini)
    assert ended.code == 78
    assert reason in ended.err
    assert len(ended.err.splitlines()) == 1
    assert "hunter2" not in ended.err


@pytest.mark.parametrize("kind", ["missing", "a folder", "not UTF-8"])
def test_an_ini_that_cannot_be_read_is_one_sentence(kind: str, tmp_path: Path) -> None:
    ini = tmp_path / "dlpool.ini"
    if kind == "a folder":
        ini.mkdir()
    elif kind == "not UTF-8":
        ini.write_bytes(b"[redis]\nurl = \xff\n")
    ended = supervise("-c", ini)
    assert ended.code == 78
    assert str(ini) in ended.err
    assert len(ended.err.splitlines()) == 1


# --- options ---


def test_help_and_version(tmp_path: Path) -> None:
    ended = supervise("--help", cwd=tmp_path, env=None)
    assert ended.code == 0
    for option in ("--config", "--redis-addr", "--redis-password", "--max-concurrent-downloads", "--group"):
        assert option in ended.out
    assert "78 configuration" in ended.out
    assert supervise("--version").out == f"dlpool {__version__}\n"


@pytest.mark.parametrize(
    "options",
    [
        ["--bogus"],
        ["--max-concurrent-downloads", "0"],
        ["--max-concurrent-downloads", "many"],
        ["--redis-addr", "host"],
        ["--group", "a b"],
        ["--redis-addr", "a:1", "--redis-url", "redis://b"],
        ["word"],
        ["--drain-timeout", "-1"],
    ],
)
def test_a_wrong_option_is_one_sentence(options: list[str]) -> None:
    ended = supervise(*options)
    assert ended.code == 2
    assert len(ended.err.splitlines()) == 1


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Desk, Path, Ended]]:
    """A service without INI in a working directory of its own, over TCP and with a password, that has ended."""
    folder = tmp_path_factory.mktemp("life")
    (folder / "cwd").mkdir()
    port = free_port()
    with RedisServer(folder / "redis", port=port, password="hunter2") as server, Origin(File(DATA)) as origin:
        options = [
            "--redis-addr",
            f"127.0.0.1:{port}",
            "--redis-password",
            "hunter2",
            "--group",
            "team",
            "--max-concurrent-downloads",
            "3",
        ]
        process = start(*options, module=SUPERVISOR, cwd=folder / "cwd", env=environment())
        service = Supervisor(folder / "unused", server.url)
        service.log_file = folder / "cwd" / ".dlpool" / "log" / "dlpool.log"
        desk = Desk(service, Client(server.client(), "team"), origin)
        try:
            desk.push("f", save_path="new/f")
            desk.push("g", save_path="new/g", headers={"Authorization": "Bearer hunter3"})
            desk.client.wait_for(desk.url("f"), desk.url("g"))
            origin.handler = answer(404)
            secret = desk.url("h?token=hunter4")
            desk.client.push(secret, "new/h")
            desk.client.wait_for_failure(secret)
            desk.client.push(PRIVATE, "new/i")
            desk.client.wait_for_failure(PRIVATE)
            process.send_signal(signal.SIGTERM)
            ended = finish(process)
        finally:
            process.kill()
        yield desk, folder / "cwd", ended


def environment() -> dict[str, str]:

    return {**os.environ, "PYTHONPATH": str(ROOT), "DLPOOL_NETWORK_NETWORK_ALLOW": "127.0.0.0/8"}


Life = tuple[Desk, Path, Ended]


def test_without_an_ini_the_download_folder_is_below_the_working_directory(life: Life) -> None:
    _, folder, ended = life
    assert ended.code == 0
    new = folder / "downloads" / "new"
    assert (new / "f").read_bytes() == (new / "g").read_bytes() == DATA
    assert sorted(path.name for path in folder.iterdir()) == [".dlpool", "downloads"]
    assert sorted(path.name for path in new.iterdir()) == ["f", "g"]


def test_jobs_reach_public_addresses_and_those_that_are_allowed(life: Life) -> None:
    """All others of this service go to 127.0.0.0/8, which its environment allows."""
    refused = [one for one in life[0].service.events("job_failed") if one["error.code"] == "policy"]
    assert len(refused) == 1
    assert "10.0.0.1 is not a public address" in refused[0]["error.message"]
    assert "network_allow" in refused[0]["error.message"]


def test_a_password_on_the_command_line_is_warned_of(life: Life) -> None:
    warned, *_, ready = life[2].err.splitlines()
    assert warned == (
        "dlpool: warning: others on this machine can see a password on the command line; use password_file in the INI"
    )
    assert ready == "dlpool-supervisor: ready"


def test_the_log_says_version_queue_and_the_effective_configuration_at_the_start(life: Life) -> None:
    desk, _, _ = life
    first = desk.service.records()[0]
    assert first["event.action"] == "service_started"
    assert first["service.version"] == __version__
    assert first["dlpool.queue"] == "team:go_download_urls"
    assert first["dlpool.redis"].startswith("redis://127.0.0.1:")
    shown = first["dlpool.configuration"]
    assert shown["supervisor"]["max_concurrent_downloads"] == 3
    assert shown["redis"]["group"] == "team"
    assert shown["transfer"]["retries"] == 5


def test_no_secret_is_in_the_log(life: Life) -> None:
    assert "hunter" not in life[0].service.log_file.read_text()


def test_every_line_of_the_log_is_one_json_object_of_a_known_shape(life: Life) -> None:
    lines = life[0].service.log_file.read_text().splitlines()
    assert len(lines) > 5
    for line in lines:
        record = json.loads(line)
        assert {"@timestamp", "log.level", "message", "event.action", "service.name", "process.pid"} <= set(record)


def test_no_key_is_left_but_what_remembers_ended_jobs(life: Life) -> None:
    assert life[0].client.leftovers() == []


def test_options_win_over_the_ini(tmp_path: Path) -> None:
    with RedisServer(tmp_path / "redis") as server:
        service = Supervisor(
            tmp_path / "node",
            "redis://127.0.0.1:1",
            {
                "supervisor": {"max_concurrent_downloads": 2},
                "redis": {"group": "ini", "password": "wrong"},
                "network": {"proxy": "http://me:hunter2@127.0.0.1:3128", "network": "any"},
            },
        )
        try:
            service.start(
                "--redis-url",
                server.url,
                "--group",
                "flag",
                "--max-concurrent-downloads",
                "6",
                "--redis-password",
                "",
                is_ready=False,
            )
            wait_until(lambda: bool(service.events("service_started")))
            started = service.events("service_started")[0]
            assert started["dlpool.queue"] == "flag:go_download_urls"
            assert started["dlpool.redis"] == server.url
            assert started["dlpool.configuration"]["supervisor"]["max_concurrent_downloads"] == 6
            assert "hunter2" not in service.log_file.read_text()
        finally:
            service.kill()


# --- folders ---


def ini_of(folder: Path, url: str, **paths: object) -> Path:
    own = {"download_dir": folder / "out", "state_dir": folder / "state", "log_dir": folder / "log", **paths}
    ini = folder / "dlpool.ini"
    ini.write_text("\n".join(["[redis]", f"url = {url}", "[paths]", *(f"{key} = {path}" for key, path in own.items())]))
    return ini


@pytest.mark.parametrize("name", ["state_dir", "log_dir"])
@pytest.mark.parametrize("how", ["below a file", "is a file", pytest.param("read-only", marks=needs_root)])
def test_a_folder_that_cannot_be_used_is_one_sentence(name: str, how: str, tmp_path: Path) -> None:
    def said(folder: Path) -> Ended:
        return supervise("-c", ini_of(tmp_path, "redis://127.0.0.1:1", **{name: folder}))

    (tmp_path / "file").write_text("x")
    if how == "read-only":
        with tmpfs(tmp_path / "disk", "1m") as disk:
            remount(disk, "ro")
            ended = said(disk / "new")
    else:
        ended = said(tmp_path / "file" / "new" if how == "below a file" else tmp_path / "file")
    assert ended.code == 3
    assert len(ended.err.splitlines()) == 1
    assert str(tmp_path) in ended.err


def test_a_missing_download_folder_is_made_with_the_first_job(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "yet"
    with running(tmp_path, paths={"download_dir": folder}) as both, desk_of(*both) as desk:
        desk.push()
        desk.client.wait_for(desk.url())
        assert (folder / desk.path()).read_bytes() == DATA


def test_a_second_supervisor_on_the_same_state_folder_is_refused(tmp_path: Path) -> None:
    with running(tmp_path) as (service, _):
        ended = supervise("-c", service.ini)
        assert ended.code == 75
        assert f"another supervisor (pid {service.pid}) uses" in ended.err
        assert len(ended.err.splitlines()) == 1
        assert service.stop() == 0
