"""A disk of uploads that fills up is reported once for each change: in the log, as a metric, and by an alert."""

from __future__ import annotations

import errno
import itertools
import os
import re
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import requests

from dlpool.config import LoggingSettings, UploadSettings
from dlpool.observe.log import Log
from dlpool.observe.processors import LogOrigin
from dlpool.storage.disk import capacity
from dlpool.storage.values import HEALTHY, UNHEALTHY, WARNING
from dlpool.web.disk_monitor import CHECK_INTERVAL_S, DiskMonitor, next_health
from tests.conftest import wait_until
from tests.disks import needs_root, ramfs, remount, tmpfs
from tests.log_docs import EVENTS
from tests.processes import ROOT
from tests.web import WebServer

PROMETHEUS = ROOT / "etc" / "prometheus"
NAMES = ("upload_disk_low", "upload_disk_available")
MIB = 1024 * 1024


@pytest.mark.parametrize(
    ("before", "used", "after"),
    [
        (HEALTHY, 0.0, HEALTHY),
        (HEALTHY, 0.849, HEALTHY),
        (HEALTHY, 0.85, WARNING),
        (HEALTHY, 0.949, WARNING),
        (HEALTHY, 0.95, UNHEALTHY),
        (HEALTHY, 1.0, UNHEALTHY),
        (WARNING, 0.85, WARNING),
        (WARNING, 0.84, WARNING),
        (WARNING, 0.8301, WARNING),
        (WARNING, 0.829, HEALTHY),
        (WARNING, 0.95, UNHEALTHY),
        (UNHEALTHY, 0.95, UNHEALTHY),
        (UNHEALTHY, 0.94, UNHEALTHY),
        (UNHEALTHY, 0.929, WARNING),
        (UNHEALTHY, 0.84, WARNING),
        (UNHEALTHY, 0.5, HEALTHY),
    ],
)
def test_health_gets_worse_at_a_threshold_and_better_only_below_it(before: str, used: float, after: str) -> None:
    assert next_health(before, used, UploadSettings()) == after


def test_a_use_that_goes_up_and_down_at_a_threshold_changes_it_once() -> None:
    health, changes = HEALTHY, 0
    for used in itertools.islice(itertools.cycle([0.851, 0.849, 0.84, 0.86]), 100):
        after = next_health(health, used, UploadSettings())
        changes, health = changes + (after != health), after
    assert (changes, health) == (1, WARNING)


class Watched:
    """A file system that two processes of dlpool-web check in turn, each with its own monitor."""

    def __init__(self, folder: Path, disk: Path) -> None:
        self.disk = disk
        self.folder = folder
        self.now = 0.0
        self.log = Log(folder / "log", LoggingSettings(), LogOrigin("dlpool-web", "n", version="1"))
        (folder / "state").mkdir()
        self.settings = UploadSettings(upload_dir=str(disk / "u"), merged_dir=str(disk / "m"))
        self.turns = itertools.cycle([self.watch(), self.watch()])

    def watch(self) -> DiskMonitor:
        volumes = partial(capacity.list_volumes, self.settings)
        return DiskMonitor(self.settings, volumes, self.folder / "state", self.log.logger("web"), lambda: self.now)

    def use(self, mebibytes: float) -> None:
        """Fill the disk to ``mebibytes``, and let both monitors check it."""
        with (self.disk / "filler").open("wb") as file:
            file.write(b"x" * round(mebibytes * MIB))
        for _ in range(2):
            self.now += CHECK_INTERVAL_S
            next(self.turns).check()

    def told(self) -> list[tuple[str, str]]:
        found = re.findall(r'"message":"(upload_disk_\w+)".*?"dlpool\.health":"(\w+)"', self.log.path.read_text())
        return [(name, health) for name, health in found if name in NAMES]


@needs_root
def test_each_change_is_logged_once_by_all_processes(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk", "10m") as disk:
        watched = Watched(tmp_path, disk)
        for used in (5, 9, 9.1, 8.4, 9.6, 9.4, 9, 8, 5):
            watched.use(used)
        assert watched.told() == [
            ("upload_disk_low", WARNING),
            ("upload_disk_low", UNHEALTHY),
            ("upload_disk_available", WARNING),
            ("upload_disk_available", HEALTHY),
        ]


@needs_root
def test_a_restart_logs_nothing_again_unless_the_state_file_is_lost(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk", "10m") as disk:
        watched = Watched(tmp_path, disk)
        watched.use(9)
        for content, count in ((None, 1), (b"", 2), (b"[1]", 3), (b'{"upload_dir": "odd"}', 4)):
            if content is not None:
                (tmp_path / "state" / "disks.json").write_bytes(content)
            watched.watch().check()
            assert watched.told() == [("upload_disk_low", WARNING)] * count


@needs_root
def test_each_process_logs_a_change_once_without_a_state_folder(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk", "10m") as disk:
        watched = Watched(tmp_path, disk)
        (tmp_path / "state").rmdir()
        for _ in range(3):
            watched.use(9)
        assert watched.told() == [("upload_disk_low", WARNING)] * 2


@needs_root
def test_a_file_system_without_figures_is_neither_low_nor_full(tmp_path: Path) -> None:
    with ramfs(tmp_path / "disk") as disk:
        watched = Watched(tmp_path, disk)
        watched.use(1)
        assert watched.told() == []


def test_the_disk_is_not_read_between_two_checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[str] = []
    monkeypatch.setattr(capacity, "capacity_of", looks.append)
    watched = Watched(tmp_path, tmp_path)
    watch = watched.watch()
    for _ in range(50):
        watched.now += CHECK_INTERVAL_S / 10
        watch.check()
    assert 2 <= len(looks) <= 2 * 6


@needs_root
def test_an_unwritable_folder_is_logged_once_and_its_recovery_too(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk", "10m") as disk:
        for name in ("u", "m"):
            (disk / name).mkdir()
        watched = Watched(tmp_path, disk)
        for mode in ("ro", "ro", "rw", "rw"):
            remount(disk, mode)
            for _ in range(2):
                watched.now += CHECK_INTERVAL_S
                next(watched.turns).check()
        found = re.findall(r'"message":"(upload_folder_\w+)".*?"dlpool\.folder":"(\S+?)"', watched.log.path.read_text())
        both = [str(disk / "u"), str(disk / "m")]
        assert found == [(name, one) for name in ("upload_folder_unusable", "upload_folder_available") for one in both]


@needs_root
def test_health_and_metric_agree_on_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk", "10m") as disk:
        for name in ("u", "m"):
            (disk / name).mkdir()
        settings: Any = {"upload": {"upload_dir": disk / "u", "merged_dir": tmp_path / "m"}}
        with WebServer(tmp_path / "web", settings) as server:
            remount(disk, "ro")
            try:
                assert requests.get(f"{server.url}/health", timeout=10).status_code == 503
                text = metrics(server)
                assert 'dlpool_web_disk_health{folder="upload_dir"} 2.0' in text
                assert 'dlpool_web_disk_health{folder="merged_dir"} 2.0' not in text
                wait_until(lambda: bool(server.events("upload_folder_unusable")))
            finally:
                remount(disk, "rw")
            wait_until(lambda: bool(server.events("upload_folder_available")))
            assert len(server.events("upload_folder_unusable")) == 1


@pytest.mark.parametrize(
    ("number", "status"),
    [
        (errno.ENOSYS, HEALTHY),
        (errno.EOPNOTSUPP, HEALTHY),
        (errno.EIO, UNHEALTHY),
        (errno.ESTALE, UNHEALTHY),
        (errno.EACCES, UNHEALTHY),
        (errno.ENOENT, WARNING),
    ],
)
def test_a_file_system_that_knows_no_statvfs_is_healthy_and_a_broken_one_is_not(
    number: int, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_path: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("os.statvfs", fail)
    assert capacity.check_folder(str(tmp_path))[0] == status


@needs_root
def test_a_server_logs_exposes_and_reports_a_full_disk(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk", "10m") as disk:
        (disk / "filler").write_bytes(b"x" * (9 * MIB))
        settings: Any = {"upload": {"upload_dir": disk / "u", "merged_dir": disk / "m"}, "web": {"processes": 3}}
        with WebServer(tmp_path / "web", settings) as server:
            wait_until(lambda: len(server.events("upload_disk_low")) == 1)
            record = server.events("upload_disk_low")[0]
            assert set(record) >= EVENTS["upload_disk_low"].fields
            assert (record["log.level"], record["dlpool.health"], record["dlpool.folder"]) == (
                "warning",
                WARNING,
                str(disk / "u"),
            )
            assert record["dlpool.used_percent"] >= 90
            assert 'dlpool_web_disk_health{folder="upload_dir"} 1.0' in metrics(server)
            for _ in range(20):
                assert requests.get(f"{server.url}/health", timeout=10).json()["status"] == WARNING
            (disk / "filler").unlink()
            wait_until(lambda: len(server.events("upload_disk_available")) == 1)
            assert 'dlpool_web_disk_health{folder="upload_dir"} 0.0' in metrics(server)
            assert len(server.events("upload_disk_low")) == 1


def metrics(server: WebServer) -> str:
    return requests.get(f"{server.url}/metrics", timeout=10).text


def test_the_rules_do_what_their_tests_say_and_the_document_names_them() -> None:
    command = ["promtool", "test", "rules", "dlpool-web.rules.test.yml"]
    ended = subprocess.run(command, cwd=PROMETHEUS, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    text = (PROMETHEUS / "dlpool-web.rules.yml").read_text()
    alerts = re.findall(r"alert: (\w+)", text)
    assert len(alerts) == 2
    tested = (PROMETHEUS / "dlpool-web.rules.test.yml").read_text()
    page = (ROOT / "docs" / "metrics.md").read_text()
    for alert in alerts:
        assert f"- alertname: {alert}\n" in tested
        assert f"- `{alert}`: " in page


def test_each_metric_of_the_rules_is_served_and_documented(tmp_path: Path) -> None:
    used = set(re.findall(r"expr: (dlpool_\w+)", (PROMETHEUS / "dlpool-web.rules.yml").read_text()))
    assert used == {"dlpool_web_disk_health"}
    with WebServer(tmp_path) as server:
        text = metrics(server)
    page = (ROOT / "docs" / "metrics.md").read_text()
    served = set(re.findall(r"^# TYPE (dlpool_\w+)", text, re.MULTILINE))
    assert used <= served
    assert {name for name in served if f"`{name}`" not in page} == set()
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert "error" not in checked.stderr


def test_prometheus_loads_both_files_of_rules() -> None:
    command = ["promtool", "check", "config", "prometheus.yml"]
    ended = subprocess.run(command, cwd=PROMETHEUS, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "dlpool-web.rules.yml" in ended.stdout
