"""``dlpool doctor``: finds what is wrong with real servers, folders and limits, and leaves nothing behind."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from dlpool.cli.doctor_disk import check_file_system
from dlpool.cli.doctor_findings import (
    FAILED,
    OK,
    WARNING,
    DoctorFinding,
    clock_finding,
    exit_code,
    files_needed,
    latency_finding,
    open_files_finding,
    verdict,
)
from dlpool.config import PathSettings, Settings, SupervisorSettings, TransferSettings
from dlpool.transfer.server_inspection import clock_offset_s
from tests.conftest import Nginx, make_data, wait_until
from tests.disks import needs_root, remount, tmpfs
from tests.origin import Connection, File, Origin, Request
from tests.processes import Ended, finish, run, start
from tests.redis_server import RedisServer

PASSWORD = "hunter2-s3cr3t"
DATA = make_data(9_000_011)


LOCAL: dict[str, object] = {"network_allow": "127.0.0.0/8"}


class Doctor:
    """Runs the command with an INI of its own."""

    def __init__(self, folder: Path, redis_url: str) -> None:
        self.folder = folder
        self.redis_url = redis_url
        self.ini = folder / "dlpool.ini"

    def write(self, **sections: dict[str, object]) -> None:
        """``sections`` go over a Redis and folders that are well."""
        paths = {f"{name}_dir": self.folder / name for name in ("download", "state", "log")}
        known: dict[str, dict[str, object]] = {"redis": {"url": self.redis_url}, "paths": {**paths}, "network": LOCAL}
        for name, own in sections.items():
            known[name] = {**known.get(name, {}), **own}
        texts = [f"[{name}]\n" + "".join(f"{key} = {one}\n" for key, one in own.items()) for name, own in known.items()]
        self.ini.write_text("".join(texts))

    def __call__(self, *arguments: object, **options: Any) -> tuple[int, dict[str, dict[str, str]]]:
        """The exit code, and the findings by their checks."""
        if not self.ini.exists():
            self.write()
        ended = run("doctor", "--json", "-c", self.ini, *arguments, **options)
        assert ended.json["exit_code"] == ended.code, ended.err
        return ended.code, {one["check"]: one for one in ended.json["checks"]}

    def states(self, *arguments: object) -> dict[str, str]:
        """The state of each check."""
        return {name: one["state"] for name, one in self(*arguments)[1].items()}


@pytest.fixture
def doctor(redis_server: RedisServer, tmp_path: Path) -> Doctor:
    return Doctor(tmp_path, redis_server.url)


def spoken(doctor: Doctor, *arguments: object) -> Ended:
    doctor.write()
    return run("doctor", "-c", doctor.ini, *arguments)


# --- what was found, in short -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("states", "code", "said"),
    [
        ({"a": OK}, 0, "all right"),
        ({"a": OK, "b": WARNING}, 0, "all right, 1 warning"),
        ({"a": FAILED, "b": WARNING, "c": WARNING}, 1, "1 of 3 checks failed, 2 warnings"),
        ({"configuration": FAILED, "a": FAILED}, 78, "2 of 2 checks failed, 0 warnings"),
        ({"configuration": OK, "a": FAILED}, 1, "1 of 2 checks failed, 0 warnings"),
    ],
)
def test_the_verdict_and_the_exit_code_follow_from_the_lines(states: dict[str, str], code: int, said: str) -> None:
    findings = [DoctorFinding(check, state, "") for check, state in states.items()]
    assert (exit_code(findings), verdict(findings)) == (code, said)


@pytest.mark.parametrize(
    ("offset", "is_proof", "state"),
    [
        (0.0, True, OK),
        (-1.9, True, OK),
        (2.1, True, WARNING),
        (-400.0, True, FAILED),
        (4.0, False, OK),
        (9e6, False, WARNING),
    ],
)
def test_a_differing_clock_is_reported(offset: float, is_proof: bool, state: str) -> None:
    found = clock_finding("clock", offset, is_proof=is_proof)
    assert found.state == state
    assert state == OK or ("ahead of" if offset > 0 else "behind") in found.found


def test_the_clock_of_an_origin_is_read_also_through_a_cache() -> None:
    now = datetime(2030, 1, 1, 12, 0, tzinfo=timezone.utc)
    headers = {"Date": "Tue, 01 Jan 2030 11:00:00 GMT"}
    assert clock_offset_s(headers, now) == -3600
    assert clock_offset_s({**headers, "Age": "3600"}, now + timedelta(seconds=1)) == -1
    assert clock_offset_s({**headers, "Age": "much"}, now) == -3600
    assert clock_offset_s({"Date": "yesterday"}, now) is None


def test_a_slow_redis_is_reported() -> None:
    assert [latency_finding(seconds).state for seconds in (0.0001, 0.02, 0.021)] == [OK, OK, WARNING]


def test_the_open_files_that_are_needed_follow_the_divide_slots_the_busiest_worker() -> None:
    settings = Settings(supervisor=SupervisorSettings(max_concurrent_downloads=5), transfer=TransferSettings())
    auto = Settings(
        supervisor=SupervisorSettings(max_concurrent_downloads="auto", max_slots=64),
        transfer=TransferSettings(connections="auto", max_connections=16),
    )
    assert files_needed(settings, cores=2) == 64 + 3 * 4 * 3
    assert files_needed(auto, cores=4) == 64 + 3 * 16 * 16
    assert [open_files_finding(100, hard).state for hard in (None, 100, 99)] == [OK, OK, FAILED]


# --- this machine -------------------------------------------------------------------------------------------------


def test_a_healthy_node_passes_and_nothing_is_changed(doctor: Doctor, tmp_path: Path) -> None:
    (tmp_path / "download").mkdir()
    with RedisServer(tmp_path / "redis", appendonly=True) as server:
        doctor.redis_url = server.url
        before = server.client().dbsize()
        ended = spoken(doctor)
        assert (server.client().dbsize(), before) == (0, 0)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.endswith("verdict: all right\n")
    assert {line.split("\t")[1] for line in ended.out.splitlines()[1:-1]} == {OK}
    assert list((tmp_path / "download").iterdir()) == []
    assert not (tmp_path / "state").exists()


def test_all_invalid_settings_are_reported_together(doctor: Doctor) -> None:
    doctor.write(transfer={"connections": "many", "retries": "-1"})
    ended = run("doctor", "-c", doctor.ini)
    assert ended.code == 78
    assert "connections" in ended.out and "retries" in ended.out
    assert ended.out.endswith("verdict: 2 of 2 checks failed, 0 warnings\n")


def test_an_invalid_setting_does_not_stop_the_other_checks(doctor: Doctor) -> None:
    doctor.write(network={"cacert": "/missing.pem"})
    code, found = doctor()
    assert code == 78
    assert "/missing.pem" in found["configuration"]["found"]
    assert found["rename"]["state"] == OK


def test_quiet_prints_failed_checks_only(doctor: Doctor) -> None:
    assert spoken(doctor, "-q").out == ""
    doctor.redis_url = "redis://127.0.0.1:1"
    assert spoken(doctor, "-q").out.splitlines()[1].startswith("redis\tfailed\t")


@pytest.mark.parametrize(
    ("options", "eviction", "persistence"),
    [
        ({"appendonly": True}, OK, OK),
        ({}, OK, WARNING),
        ({"appendonly": True, "maxmemory": "100mb", "maxmemory_policy": "allkeys-lru"}, WARNING, OK),
    ],
)
def test_a_redis_that_may_lose_jobs_is_reported(
    options: dict[str, Any], eviction: str, persistence: str, tmp_path: Path
) -> None:
    with RedisServer(tmp_path / "redis", **options) as server:
        code, found = Doctor(tmp_path, server.url)()
    assert code == 0
    assert (found["redis eviction"]["state"], found["redis persistence"]["state"]) == (eviction, persistence)
    assert all(one["advice"] for one in found.values() if one["state"] != OK)
    assert found["redis"]["found"].startswith("version ") and found["redis clock"]["state"] == OK


@pytest.mark.parametrize(
    ("options", "state"),
    [
        ({"replicaof": "127.0.0.1 1"}, FAILED),
        ({"replicaof": "127.0.0.1 1", "replica_read_only": "no"}, OK),
        ({}, OK),
    ],
)
def test_a_read_only_replica_cannot_be_the_queue(options: dict[str, Any], state: str, tmp_path: Path) -> None:
    with RedisServer(tmp_path / "redis", appendonly=True, **options) as server:
        code, found = Doctor(tmp_path, server.url)()
    assert (code, found["redis"]["state"]) == (int(state == FAILED), state)
    assert ("127.0.0.1:1" in found["redis"]["found"]) == (state == FAILED)
    assert ("master" in found["redis"]["advice"]) == (state == FAILED)


def test_a_redis_with_a_password_is_checked_with_it_and_refuses_another(tmp_path: Path) -> None:
    with RedisServer(tmp_path / "redis", password=PASSWORD) as server:
        doctor = Doctor(tmp_path, server.url)
        doctor.write(redis={"password": PASSWORD})
        assert doctor()[1]["redis"]["state"] == OK
        doctor.write(redis={"password": "another"})
        code, found = doctor()
    assert (code, found["redis"]["state"]) == (1, FAILED)
    assert "user and password are in [redis]" in found["redis"]["found"]


def test_a_redis_user_without_info_is_reported(redis_server: RedisServer, doctor: Doctor) -> None:
    acl = ["ACL", "SETUSER", "blind", "on", f">{PASSWORD}", "~*", "+@all", "-info", "-config"]
    redis_server.client().execute_command(*acl)  # type: ignore[no-untyped-call]
    doctor.write(redis={"username": "blind", "password": PASSWORD})
    code, found = doctor()
    assert code == 0
    assert found["redis persistence"]["found"] == "hidden from this user"


def test_an_embedded_redis_that_was_never_started_is_no_fault(tmp_path: Path) -> None:
    code, found = Doctor(tmp_path, "embedded")()
    assert (code, found["redis"]["state"]) == (0, OK)
    (tmp_path / "state" / "redis").mkdir(parents=True)
    code, found = Doctor(tmp_path, "embedded")()
    assert (code, found["redis"]["state"]) == (0, WARNING)


@needs_root
def test_a_read_only_disk_is_reported(doctor: Doctor, tmp_path: Path) -> None:
    with tmpfs(tmp_path / "download", "8m") as disk:
        remount(disk, "ro")
        code, found = doctor()
    assert code == 1
    assert found["download_dir"]["state"] == found["file system"]["state"] == FAILED
    assert "read-only" in found["file system"]["found"]


@needs_root
def test_a_full_disk_is_reported_and_no_file_stays(doctor: Doctor, tmp_path: Path) -> None:
    with tmpfs(tmp_path / "download", "8m") as disk:
        (disk / "large").write_bytes(bytes(7 * 1024 * 1024))
        code, found = doctor()
        assert [path.name for path in disk.iterdir()] == ["large"]
    assert code == 1
    assert found["file system"]["state"] == FAILED


@needs_root
def test_free_space_below_min_free_is_reported(doctor: Doctor, tmp_path: Path) -> None:
    with tmpfs(tmp_path / "download", "8m"):
        doctor.write(supervisor={"min_free": "16M"})
        code, found = doctor()
    assert (code, found["free space"]["state"], found["rename"]["state"]) == (1, FAILED, OK)


@needs_root
def test_a_folder_of_another_user_is_reported(doctor: Doctor, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    os.chown(tmp_path / "state", 1, 1)
    code, found = doctor()
    assert (code, found["state_dir"]["state"]) == (0, WARNING)


def test_a_file_instead_of_a_folder_is_reported(doctor: Doctor, tmp_path: Path) -> None:
    (tmp_path / "log").write_text("")
    code, found = doctor()
    assert (code, found["log_dir"]["state"]) == (1, FAILED)


def test_the_temporary_file_goes_when_the_check_is_broken_off(tmp_path: Path) -> None:
    checks = check_file_system(Settings(paths=replace(PathSettings(), download_dir=str(tmp_path))))
    while next(checks).check != "lock":
        assert list(tmp_path.iterdir()) == []
    assert len(list(tmp_path.iterdir())) == 1
    checks.close()  # type: ignore[attr-defined]
    assert list(tmp_path.iterdir()) == []


def test_a_terminated_doctor_leaves_no_file(doctor: Doctor, serve: Callable[..., Origin], tmp_path: Path) -> None:
    (tmp_path / "download").mkdir()
    doctor.write()
    origin = serve(lambda _, connection: connection.wait_for_client_to_go())
    process = start("doctor", "-c", doctor.ini, f"{origin.url}/silent")
    wait_until(lambda: origin.requests != [])
    process.terminate()
    assert finish(process).code == 143
    assert list((tmp_path / "download").iterdir()) == []


def test_too_few_open_files_are_reported(doctor: Doctor) -> None:
    doctor.write(transfer={"connections": 64}, supervisor={"workers": 1})
    limit = 256
    code, found = doctor(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit)))
    assert (code, found["open files"]["state"]) == (1, FAILED)
    assert f"{limit} at most, {64 + 3 * 64 * 5} needed" in found["open files"]["found"]


# --- a server -----------------------------------------------------------------------------------------------------


def test_nginx_is_all_right(doctor: Doctor, nginx: Nginx) -> None:
    (nginx.root / "doctor").write_bytes(DATA)
    code, found = doctor(f"{nginx.url}/doctor")
    assert code == 0
    checks = ("head", "size", "ranges", "validator", "if-range", "connections", "origin clock", "speed", "plan")
    assert {name: found[name]["state"] for name in checks} == dict.fromkeys(checks, OK)
    assert found["connections"]["found"] == "4 at once answered"
    assert found["if-range"]["found"] == "honoured"
    assert found["plan"]["found"].startswith("4 connections,") and "by its strong ETag" in found["plan"]["found"]


def test_a_server_without_ranges_gets_one_stream(doctor: Doctor, serve: Callable[..., Origin]) -> None:
    origin = serve(File(DATA, serves_ranges=False))
    code, found = doctor(f"{origin.url}/file")
    assert (code, found["ranges"]["state"]) == (0, WARNING)
    assert found["plan"]["found"].startswith("one connection, one stream, not resumable")


class LyingFile(File):
    """Sends a part of the file whatever If-Range says."""

    def matches_if_range(self, request: Request) -> bool:
        return True


class DistrustfulFile(File):
    """Sends the whole file as soon as there is an If-Range."""

    def matches_if_range(self, request: Request) -> bool:
        return "if-range" not in request.headers


@pytest.mark.parametrize(("kind", "said"), [(LyingFile, "another version"), (DistrustfulFile, "the same version")])
def test_a_server_that_lies_about_if_range_is_found_out(
    kind: type[File], said: str, doctor: Doctor, serve: Callable[..., Origin]
) -> None:
    _, found = doctor(f"{serve(kind(DATA)).url}/file")
    assert found["if-range"]["state"] == WARNING
    assert said in found["if-range"]["found"]


def test_a_file_without_a_validator_is_not_resumable_in_a_later_run(
    doctor: Doctor, serve: Callable[..., Origin]
) -> None:
    origin = serve(File(DATA, etag='W/"v1"', last_modified=None))
    _, found = doctor(f"{origin.url}/file")
    assert (found["validator"]["state"], found["validator"]["found"]) == (WARNING, "only a weak ETag")
    assert found["plan"]["found"].endswith("not resumable in a later run")


def test_a_server_that_admits_two_connections_is_found_out(doctor: Doctor, serve: Callable[..., Origin]) -> None:
    file = File(DATA)

    def two_only(request: Request, connection: Connection) -> None:
        if origin.open_connections > 2:
            connection.answer(429)
            connection.hang_up()
        file(request, connection)

    origin = serve(two_only)
    code, found = doctor(f"{origin.url}/file")
    assert (code, found["connections"]["state"]) == (0, WARNING)
    assert found["connections"]["found"].endswith("of 4 at once answered; else: the server answered 429")
    assert "connections = auto" in found["connections"]["advice"]
    assert "are admitted" in found["plan"]["found"]


def test_a_server_that_refuses_head_is_no_worse(doctor: Doctor, serve: Callable[..., Origin]) -> None:
    file = File(DATA)

    def without_head(request: Request, connection: Connection) -> None:
        if request.method == "HEAD":
            connection.answer(405)
        else:
            file(request, connection)

    url = f"{serve(without_head).url}/file"
    assert doctor.states(url)["head"] == OK
    doctor.write(transfer={"probe": "head"})
    assert doctor.states(url)["head"] == WARNING


def test_an_empty_file_is_no_fault(doctor: Doctor, serve: Callable[..., Origin]) -> None:
    code, found = doctor(f"{serve(File(b'')).url}/file")
    assert (code, found["size"]["state"]) == (0, OK)


def test_a_file_above_the_limit_would_be_refused(doctor: Doctor, serve: Callable[..., Origin]) -> None:
    doctor.write(transfer={"max_file_size": "1M"})
    code, found = doctor(f"{serve(File(DATA)).url}/file")
    assert (code, found["size"]["state"]) == (1, FAILED)


def test_a_missing_file_and_an_unreachable_server_fail(doctor: Doctor, serve: Callable[..., Origin]) -> None:
    origin = serve(lambda _, connection: connection.answer(404))
    code, found = doctor(f"{origin.url}/missing?token={PASSWORD}")
    assert (code, found["url"]["state"]) == (1, FAILED)
    assert found["url"]["found"] == f"{origin.url}/missing: the server answered 404"
    assert doctor.states("http://127.0.0.1:1/")["url"] == FAILED


def test_an_invalid_url_is_a_usage_error(doctor: Doctor) -> None:
    assert spoken(doctor, "ftp://example.org/").code == 2
