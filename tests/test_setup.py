"""``dlpool setup``: what it writes is what systemd wants, and what others wrote stays."""

from __future__ import annotations

import os
import pty
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from dlpool.cli.setup import PROGRAM, files, unit
from dlpool.config.layers import load
from tests.disks import needs_root, remount, tmpfs
from tests.processes import ROOT, Ended, run, start

MAX_EXPOSURE = 12  # tenths, by systemd-analyze
UNITS = ("dlpool-supervisor.service", "dlpool-supervisor@.service", "dlpool-web.service")


def setup(*arguments: object, **more: Any) -> Ended:
    return run("setup", *arguments, **more)


def said(*command: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; all that it says is its standard output."""
    words = [str(word) for word in command]
    return subprocess.run(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60, env=env, cwd=ROOT
    )


def contents(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()}


WAITS_FOR_HUP = """
import signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
print("ready", flush=True)
print(signal.Signals(signal.sigwait({signal.SIGHUP})).name, flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of an installation with an instance."""
    root = tmp_path_factory.mktemp("installed")
    assert "systemctl enable --now dlpool-web " in setup("--install", root).out
    ended = setup("--install", root, "--instance", "night")
    assert ended.code == 0
    assert "systemctl enable --now dlpool-supervisor@night" in ended.out
    return root


# --- what systemd says ---


@pytest.mark.parametrize("name", UNITS)
def test_the_units_are_right_and_keep_the_service_apart(name: str, installed: Path) -> None:
    path = installed / "etc" / "systemd" / "system" / name
    verified = said("systemd-analyze", "verify", path)
    assert (verified.returncode, verified.stdout) == (0, "")
    secured = said("systemd-analyze", "security", "--offline=true", f"--threshold={MAX_EXPOSURE}", "--no-pager", path)
    assert secured.returncode == 0, secured.stdout
    assert "Overall exposure level" in secured.stdout


@pytest.mark.parametrize("name", UNITS)
def test_a_reload_needs_no_program_but_the_shell(name: str, installed: Path, tmp_path: Path) -> None:
    text = (installed / "etc" / "systemd" / "system" / name).read_text()
    lines = [line.removeprefix("ExecReload=") for line in text.splitlines() if line.startswith("ExecReload=")]
    assert len(lines) == ("supervisor" in name)
    for line in lines:
        command = [word.replace("$$", "$") for word in shlex.split(line)]  # as systemd.service(5) says it
        assert command[:2] == ["/bin/sh", "-c"]
        with subprocess.Popen(
            [sys.executable, "-c", WAITS_FOR_HUP], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as main:
            assert main.stdout is not None
            try:
                assert main.stdout.readline() == "ready\n"
                environment = {"MAINPID": str(main.pid), "PATH": str(tmp_path)}
                assert subprocess.run(command, env=environment, check=False).returncode == 0
                assert main.stdout.readline() == "SIGHUP\n"
            finally:
                main.kill()


def test_a_unit_without_isolation_differs_from_the_shipped_one(installed: Path, tmp_path: Path) -> None:
    text = (installed / "etc" / "systemd" / "system" / UNITS[0]).read_text()
    loose = tmp_path / UNITS[0]
    loose.write_text("\n".join(line for line in text.splitlines() if not line.startswith(("Protect", "System"))))
    checked = said("systemd-analyze", "security", "--offline=true", f"--threshold={MAX_EXPOSURE}", "--no-pager", loose)
    assert checked.returncode != 0


@needs_root
def test_systemd_makes_the_user_and_the_folders(installed: Path, tmp_path: Path) -> None:
    for folder in ("sysusers.d", "tmpfiles.d"):
        (tmp_path / "etc" / folder).mkdir(parents=True)
        (tmp_path / "etc" / folder / "dlpool.conf").write_text((installed / "etc" / folder / "dlpool.conf").read_text())
    made = said("systemd-sysusers", f"--root={tmp_path}")
    assert made.returncode == 0, made.stdout
    [user] = [line.split(":") for line in (tmp_path / "etc" / "passwd").read_text().splitlines()]
    assert (user[0], user[5], user[6]) == ("dlpool", "/var/lib/dlpool", "/usr/sbin/nologin")
    made = said("systemd-tmpfiles", f"--root={tmp_path}", "--create", "dlpool.conf")
    assert made.returncode == 0, made.stdout
    for folder in ("var/lib/dlpool", "var/log/dlpool"):
        found = (tmp_path / folder).stat()
        assert (found.st_uid, found.st_mode & 0o777) == (int(user[2]), 0o750)
    assert (tmp_path / "etc/dlpool/conf.d").stat().st_uid == 0


# --- the files ---


def test_each_instance_has_an_ini_and_folders_of_its_own(installed: Path) -> None:
    folders = [
        (ini["paths"].download_dir, ini["paths"].state_dir, ini["paths"].log_dir)
        for ini in (load(str(installed / "etc" / "dlpool" / name)) for name in ("dlpool.ini", "night.ini"))
    ]
    assert len({path for each in folders for path in each}) == 6
    assert all(path.startswith(("/var/lib/dlpool/", "/var/log/dlpool")) for each in folders for path in each)
    template = unit(PROGRAM, is_template=True)
    assert "-c /etc/dlpool/%i.ini\n" in template
    assert "StateDirectory=dlpool/%i\n" in template and "LogsDirectory=dlpool/%i\n" in template


def test_a_program_of_any_name_is_one_word_of_the_unit(tmp_path: Path) -> None:
    bin_dir = tmp_path / "a b%s"
    bin_dir.mkdir()
    (bin_dir / "python").symlink_to(sys.executable)
    program = bin_dir / "dlpool-supervisor"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(one for one in sys.path if one)}
    printed = said(bin_dir / "python", "-m", "dlpool", "setup", "--print-unit", env=environment)
    assert f'ExecStart="{str(program).replace("%", "%%")}" -c' in printed.stdout, printed.stdout
    path = tmp_path / UNITS[0]
    path.write_text(printed.stdout)
    assert said("systemd-analyze", "verify", path).stdout == ""


def test_a_printed_unit_is_the_installed_one(installed: Path) -> None:
    folder = installed / "etc" / "systemd" / "system"
    assert setup("--print-unit").out == (folder / UNITS[0]).read_text()
    assert setup("--print-unit", "--instance", "x").out == (folder / UNITS[1]).read_text()


def test_a_second_run_changes_nothing_and_keeps_edited_files(tmp_path: Path) -> None:
    assert setup("--install", tmp_path).code == 0
    before = contents(tmp_path)
    again = setup("--install", tmp_path)
    assert (again.code, contents(tmp_path)) == (0, before)
    assert again.out.count("unchanged: ") == len(before) == 6
    ini, user = tmp_path / "etc" / "dlpool" / "dlpool.ini", tmp_path / "etc" / "sysusers.d" / "dlpool.conf"
    ini.write_text("[redis]\n")
    user.unlink()
    refused = setup("--install", tmp_path)
    assert refused.code == 13
    [sentence] = [line for line in refused.err.splitlines() if "warning" not in line]
    assert sentence.startswith(f"dlpool: {ini} was changed and is kept: move it away")
    assert contents(tmp_path) == {**before, "etc/dlpool/dlpool.ini": "[redis]\n"}


# --- private networks ---


def allowed(root: Path, name: str = "dlpool") -> object:
    return load(str(root / "etc" / "dlpool" / f"{name}.ini"))["network"].network_allow


def test_the_ini_lets_jobs_reach_public_addresses_only(installed: Path) -> None:
    assert load(str(installed / "etc" / "dlpool" / "dlpool.ini"))["network"].network == "public-only"
    assert allowed(installed) is None


@pytest.mark.parametrize("networks", ["10.0.0.0/8", "10.0.0.0/8, 192.168.1.1,fd12::/16"])
def test_other_networks_are_given_by_an_option_and_kept(networks: str, tmp_path: Path) -> None:
    assert setup("--install", tmp_path, "--network-allow", networks).code == 0
    assert allowed(tmp_path) == networks
    assert setup("--install", tmp_path).code == 0, "again it is unchanged"
    assert setup("--install", tmp_path, "--network-allow", "127.0.0.1").code == 13
    assert allowed(tmp_path) == networks


def test_an_invalid_network_is_a_usage_error(tmp_path: Path) -> None:
    ended = setup("--install", tmp_path, "--network-allow", "ten")
    assert (ended.code, len(ended.err.splitlines())) == (2, 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("answers", "expected"),
    [([""], None), (["ten", "10.0.0.0/33", " fd12::/16 , 10.1.2.3 "], "fd12::/16 , 10.1.2.3")],
)
def test_on_a_terminal_networks_are_asked_for_once(answers: list[str], expected: str | None, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    os.write(ours, "".join(f"{answer}\n" for answer in [*answers, "192.168.0.0/16"]).encode())
    for _ in range(2):
        process = start("setup", "--install", tmp_path, stdin=theirs, stderr=theirs)
        process.communicate(timeout=60)
        assert process.returncode == 0
        assert allowed(tmp_path) == expected
    shown = os.read(ours, 100_000).decode()
    os.close(ours)
    os.close(theirs)
    assert shown.count("Which other networks may they connect to?") == len(answers)
    assert shown.count("not a list of addresses or networks") == len(answers) - 1


@pytest.mark.parametrize("what", ["folder", "dangling link"])
def test_a_path_that_is_not_a_file_is_kept(what: str, tmp_path: Path) -> None:
    path = tmp_path / "etc" / "dlpool" / "dlpool.ini"
    path.parent.mkdir(parents=True)
    if what == "folder":
        path.mkdir()
    else:
        path.symlink_to("/nowhere/dlpool.ini")
    assert setup("--install", tmp_path).code == 13
    assert path.is_dir() or path.is_symlink()


@needs_root
@pytest.mark.parametrize(("trouble", "code"), [("read-only", 3), ("full", 9)])
def test_a_disk_that_takes_no_file_is_one_sentence(trouble: str, code: int, tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk", "4k") as disk:
        if trouble == "read-only":
            remount(disk, "ro")
        ended = setup("--install", disk)
        assert ended.code == code
        [sentence] = [line for line in ended.err.splitlines() if "warning" not in line]
        assert sentence.startswith(f"dlpool: cannot write {disk}/etc/")
        assert not [path for path in disk.rglob("*") if path.is_file() and path.name.startswith(".")]


def test_the_wheel_has_what_setup_writes(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(ROOT / "dlpool", source / "dlpool", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    built = said(
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-w",
        tmp_path,
        source,
    )
    assert built.returncode == 0, built.stdout
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    ended = setup("--install", tmp_path / "out", cwd=tmp_path, env=environment)
    assert ended.code == 0, ended.err
    assert sorted(contents(tmp_path / "out")) == sorted(files(PROGRAM, None))
