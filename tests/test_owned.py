"""What dlpool owns is no target of a download or an upload, at the start and for each job, by whichever name."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

import dlpool
from dlpool.config import SECTIONS, PathSettings, Settings
from dlpool.config.layers import load_effective
from dlpool.config.owned_paths import TARGETS, OwnedPath, check_owned_paths, owned_paths
from dlpool.errors import ConfigurationError, PolicyRefused
from dlpool.jobs.confinement import Confinement
from dlpool.kinds import COMMAND, PATH
from dlpool.service.reload import reload_settings
from dlpool.service.wire.frames import ConfigFrame, config_frame, decode, encode
from tests.disks import exfat, needs_root
from tests.processes import ROOT, Ended, finish, run, start

PATHS = [
    (section, declared.name, declared.metadata["kind"])
    for section, kind in SECTIONS.items()
    for declared in fields(kind)
    if declared.metadata["kind"] in (PATH, COMMAND) and (section, declared.name) not in TARGETS
]
PLACED = [
    pytest.param(where, section, name, kind, id=f"{where}-{section}-{name}")
    for section, name, kind in PATHS
    for where in ("within", "the same", "around", "by a link")
    if kind is PATH or where in ("within", "by a link")  # a program is no folder
]


def settings_of(tmp_path: Path, **given: dict[str, object]) -> Settings:
    """Settings whose folders lie side by side below ``tmp_path``, with what is ``given`` over that, by section."""
    sections: dict[str, dict[str, object]] = {
        "paths": {name: f"{tmp_path}/{name}" for name in ("download_dir", "state_dir", "log_dir")},
        "upload": {name: f"{tmp_path}/{name}" for name in ("upload_dir", "merged_dir")},
    }
    settings = Settings()
    for section in sections.keys() | given.keys():
        values: Any = {**sections.get(section, {}), **given.get(section, {})}
        settings = replace(settings, **{section: replace(getattr(settings, section), **values)})
    return settings


def refusal(settings: Settings) -> list[str]:
    """What the start says of them, a line for each pair; empty if it has nothing to say."""
    try:
        check_owned_paths(settings)
    except ConfigurationError as error:
        assert error.exit_code == 78
        return str(error).splitlines()
    return []


def with_place(settings: Settings, section: str, name: str, kind: object, path: Path) -> Settings:
    """The settings with that path there; for a command a program."""
    if kind is COMMAND:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
    return replace(settings, **{section: replace(getattr(settings, section), **{name: str(path)})})


# --- at the start ---


def test_the_defaults_can_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Settings().paths.download_dir == "./downloads"
    assert refusal(Settings()) == []
    assert refusal(settings_of(tmp_path)) == []


@pytest.mark.parametrize(("where", "section", "name", "kind"), PLACED)
def test_each_path_of_the_settings_is_kept_apart_from_the_roots(
    where: str, section: str, name: str, kind: object, tmp_path: Path
) -> None:
    root = tmp_path / "root" / "of" / "jobs"
    root.mkdir(parents=True)
    (tmp_path / "link").symlink_to(root)
    place = {"within": root / "a" / "b", "the same": root, "around": root.parent, "by a link": tmp_path / "link" / "b"}
    settings = settings_of(tmp_path, paths={"download_dir": str(root)})
    settings = with_place(settings, section, name, kind, place[where])
    [said] = refusal(settings)
    assert said.startswith(f"[paths] download_dir = {root} and [{section}] {name} = {place[where]} overlap: ")


@pytest.mark.parametrize(
    "section, name", [("hooks", "on_success"), ("hooks", "on_failure"), ("logging", "archive_command")]
)
@pytest.mark.parametrize("command", ["/bin/sh {}", "/bin/sh -e {}", "/usr/bin/env A=b {} --fast", "'{}' x"])
def test_the_script_of_an_interpreter_is_a_program(command: str, section: str, name: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    script = root / "a hook"
    root.mkdir()
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    given = command.format(f"'{script}'").replace("''", "'")
    sections: Any = {"paths": {"download_dir": str(root)}, section: {name: given}}
    settings = settings_of(tmp_path, **sections)
    [said] = refusal(settings)
    shown = f"{script} ..." if given[0] == "'" else f"{given.partition(' ')[0]} ... ({script})"
    assert f"[{section}] {name} = {shown} overlap" in said


@pytest.mark.parametrize(
    "command, is_refused",
    [
        ("/bin/sh {}/not/there", True),
        ("/usr/bin/python3 --script={}/not-there", True),
        ("/usr/bin/python3 --script={}/there", True),
        ("/bin/sh -c 'exec {}/there >/dev/null'", True),
        ("/bin/sh -c '. {}/there;exit'", True),
        ("/bin/sh -c 'cp a {}/not-there'", False),
        ("/bin/ls --folder={}", False),
        ("/bin/ls {}/", False),
        ("/bin/ls -l relative https://example.org/a ''", False),
    ],
)
def test_a_file_that_a_command_names_is_its_program_also_if_it_is_not_there_yet(
    command: str, is_refused: bool, tmp_path: Path
) -> None:
    root = tmp_path / "download_dir"
    root.mkdir()
    (root / "there").write_text("#!/bin/sh\n")
    said = refusal(settings_of(tmp_path, hooks={"on_success": command.format(root)}))
    assert bool(said) == is_refused, said
    assert all(f"[hooks] on_success = {command.partition(' ')[0]} ... ({root}/" in line for line in said)


def test_a_folder_that_a_hook_is_given_is_not_its_program(tmp_path: Path) -> None:
    (tmp_path / "download_dir").mkdir()
    assert refusal(settings_of(tmp_path, hooks={"on_success": f"/bin/ls {tmp_path}/download_dir"})) == []


@pytest.mark.parametrize("place", ["dlpool.ini", "conf.d", "conf.d/50.ini", "elsewhere/conf.d", "by a link"])
def test_the_files_of_the_settings_are_kept_apart(place: str, tmp_path: Path) -> None:
    folder = tmp_path / "root"
    (folder / "conf.d").mkdir(parents=True)
    ini = folder / "dlpool.ini"
    ini.write_text("")
    roots = {"dlpool.ini": folder, "conf.d": folder / "conf.d", "conf.d/50.ini": folder / "conf.d" / "50.ini"}
    if place == "elsewhere/conf.d":
        ini = tmp_path / "dlpool.ini"
        ini.write_text("")
        (tmp_path / "conf.d").symlink_to(folder)
    if place == "by a link":
        (tmp_path / "dlpool.ini").symlink_to(ini)
        ini = tmp_path / "dlpool.ini"
    (ini.parent / "conf.d").mkdir(exist_ok=True)
    with (ini.parent / "conf.d" / "50.ini").open("w") as file:
        file.write(f"[paths]\ndownload_dir = {roots.get(place, folder)}\nstate_dir = /s\nlog_dir = /l\n")
    settings = load_effective(str(ini), environment={}).settings
    said = refusal(settings)
    assert said and all("the settings" in line and str(ini.parent) in line for line in said)


@pytest.mark.parametrize("value", ["{root}/x:{out}", "{out}:{root}", "{out}::{root}/"])
def test_each_allowed_root_is_checked(value: str, tmp_path: Path) -> None:
    roots = value.format(root=tmp_path / "state_dir", out=tmp_path / "out")
    [said] = refusal(settings_of(tmp_path, paths={"allowed_roots": roots}))
    assert said.startswith(f"[paths] allowed_roots = {tmp_path}/state_dir")


@pytest.mark.parametrize("name", ["CREDENTIALS_DIRECTORY", "NETRC", "HOME"])
def test_secrets_that_the_environment_names_are_owned(name: str, tmp_path: Path) -> None:
    settings = settings_of(tmp_path, network={"netrc": True})
    found = [one.path for one in owned_paths(settings, {name: str(tmp_path / "secret")})]
    assert [path for path in found if path.startswith(str(tmp_path / "secret"))]


@pytest.mark.parametrize("folder", [Path(dlpool.__file__).parent, Path(dlpool.__file__).parent / "cli", Path("/")])
def test_the_program_itself_is_owned(folder: Path, tmp_path: Path) -> None:
    said = refusal(settings_of(tmp_path, paths={"download_dir": str(folder)}))
    assert [line for line in said if " and the program in " in line]


@pytest.mark.parametrize(
    ("root", "own", "is_refused"),
    [
        ("Downloads", "downloads/state", True),
        ("DOWNLOADS/x", "downloads", True),
        ("stra\u00dfe", "STRASSE", True),
        ("e\u0301", "\u00e9", True),
        ("down", "downloads", False),
        ("downloads", "down/loads", False),
    ],
)
def test_what_is_not_there_yet_is_compared_without_case(root: str, own: str, is_refused: bool, tmp_path: Path) -> None:
    settings = settings_of(tmp_path, paths={"download_dir": f"{tmp_path}/{root}", "state_dir": f"{tmp_path}/{own}"})
    assert bool(refusal(settings)) is is_refused


def test_folders_that_are_two_are_two(tmp_path: Path) -> None:
    """The file system says so."""
    for name in ("Downloads", "downloads"):
        (tmp_path / name).mkdir()
    paths: dict[str, object] = {"download_dir": f"{tmp_path}/Downloads", "state_dir": f"{tmp_path}/downloads"}
    assert refusal(settings_of(tmp_path, paths=paths)) == []


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[Path, Path], None]]:
    """Bind mounts, which end with the test."""
    points: list[Path] = []

    def mount(source: Path, point: Path) -> None:
        point.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "--bind", source, point], check=True, timeout=30)
        points.append(point)

    yield mount
    for point in reversed(points):
        subprocess.run(["umount", "-l", point], check=True, timeout=30)


@needs_root
@pytest.mark.parametrize("root", ["mount", "mount/deeper/than/that"])
def test_a_bind_mount_is_the_same_place(root: str, tmp_path: Path, mounted: Callable[[Path, Path], None]) -> None:
    (tmp_path / "state_dir").mkdir()
    mounted(tmp_path / "state_dir", tmp_path / "mount")
    [said] = refusal(settings_of(tmp_path, paths={"download_dir": f"{tmp_path}/{root}"}))
    assert "[paths] state_dir" in said


UPLOADED = [
    ({"merged_dir": "x", "upload_dir": "x/upload"}, {}, "[upload] upload_dir"),
    ({"merged_dir": "x", "upload_dir": "x"}, {}, "[upload] upload_dir"),
    ({"merged_dir": "x/merged", "upload_dir": "x"}, {}, "[upload] upload_dir"),
    ({"merged_dir": "x"}, {"state_dir": "x/y/state"}, "[paths] state_dir"),
    ({"merged_dir": "link"}, {"log_dir": "x/log"}, "[paths] log_dir"),
    ({"merged_dir": "etc"}, {}, "the settings"),
    ({"merged_dir": "x/merged", "upload_dir": "x/upload"}, {"state_dir": "x", "log_dir": "x/log"}, ""),
    ({"merged_dir": "x", "upload_dir": "xy"}, {}, ""),
]


@pytest.mark.parametrize(("upload", "paths", "other"), UPLOADED)
def test_merged_files_hold_nothing_else_of_ours(
    upload: dict[str, str], paths: dict[str, str], other: str, tmp_path: Path
) -> None:
    """Else one client could fetch, and replace, what belongs to others."""
    (tmp_path / "x").mkdir()
    (tmp_path / "link").symlink_to("x")
    given: Any = {
        section: {name: f"{tmp_path}/{value}" for name, value in values.items()}
        for section, values in (("upload", upload), ("paths", paths))
    }
    settings = replace(settings_of(tmp_path, **given), files=(f"{tmp_path}/etc/dlpool.ini",))
    said = refusal(settings)
    assert bool(said) == bool(other)
    assert all(f"merged_dir = {tmp_path}/{upload['merged_dir']} and {other}" in line for line in said)


# --- the commands ---


def ini(tmp_path: Path) -> Path:
    """Settings of which the download folder holds all others, as they were by default."""
    path = tmp_path / "dlpool.ini"
    path.write_text("[paths]\ndownload_dir = .\n[metrics]\nlisten =\n[redis]\nembedded_listen =\n")
    return path


def in_folder(tmp_path: Path, module: str) -> Ended:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return finish(start("-c", ini(tmp_path), module=module, cwd=tmp_path, env=environment))


@pytest.mark.parametrize("module", ["dlpool.cli.supervisor", "dlpool.cli.web"])
def test_no_service_starts_with_an_overlap(module: str, tmp_path: Path) -> None:
    ended = in_folder(tmp_path, module)
    assert ended.code == 78
    for own in ("[paths] state_dir = .dlpool", "[upload] merged_dir = ./merged", "the settings file", "/conf.d"):
        assert [line for line in ended.err.splitlines() if "[paths] download_dir = . and" in line and own in line]
    assert [path.name for path in tmp_path.iterdir()] == ["dlpool.ini"]


def test_the_check_of_the_settings_tells_it_with_its_line(tmp_path: Path) -> None:
    ended = run("config", "check", "-c", ini(tmp_path), cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert ended.code == 78
    assert f"{tmp_path}/dlpool.ini:2: [paths] download_dir = . and [paths] state_dir = .dlpool overlap" in ended.err


def test_a_reload_is_refused_whose_root_holds_what_waits_for_a_restart(tmp_path: Path) -> None:
    present = settings_of(tmp_path)
    moved = settings_of(tmp_path, paths={"download_dir": f"{tmp_path}/state_dir", "state_dir": f"{tmp_path}/new"})
    new, problems = reload_settings(present, lambda: moved)
    assert new is None
    assert [line for line in problems if f"[paths] state_dir = {tmp_path}/state_dir" in line]


# --- each job ---


@pytest.fixture
def shop(tmp_path: Path) -> Settings:
    """A root that holds all of dlpool's own, as only settings can have it that the start would refuse."""
    for folder in ("etc/conf.d", "state_dir", "log_dir", "upload_dir", "merged_dir", "bin", "files"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("etc/dlpool.ini", "etc/key", "bin/hook", "state_dir/sids.json", "merged_dir/f"):
        (tmp_path / file).write_text("ours")
    (tmp_path / "bin" / "hook").chmod(0o755)
    settings = settings_of(
        tmp_path,
        paths={"download_dir": str(tmp_path)},
        web={"secret_key_file": f"{tmp_path}/etc/key"},
        hooks={"on_success": f"{tmp_path}/bin/hook --now"},
        redis={"password_file": f"{tmp_path}/new/secrets/password"},
    )
    return replace(settings, files=(f"{tmp_path}/etc/dlpool.ini",))


OWN = [
    "etc/dlpool.ini",
    "etc/conf.d/99.ini",
    "etc/conf.d/",
    "etc/key",
    "bin/hook",
    "state_dir/x",
    "state_dir/",
    "state_dir",
    "log_dir/dlpool.log",
    "upload_dir/tasks/a/record",
    "merged_dir/f",
    "merged_dir/new",
    "new/secrets/password",
    "new/secrets/password/deeper",
    "files/../etc/conf.d/99.ini",
    "./etc//conf.d/99.ini",
]
FREE = ["etc/other", "etc/dlpool.ini.txt", "bin/hooks", "files/f", "state_dirs/f", "new/secrets/other", "files/", "f"]


@pytest.mark.parametrize("path", OWN)
def test_a_job_does_not_write_to_what_dlpool_owns(path: str, shop: Settings) -> None:
    with pytest.raises(PolicyRefused, match="itself uses") as raised:
        Confinement.of(shop).target(path)
    assert raised.value.exit_code == 12


@pytest.mark.parametrize("path", OWN)
def test_nor_after_a_reload_has_told_the_workers(path: str, shop: Settings) -> None:
    frame = decode(encode(config_frame(shop)))
    assert isinstance(frame, ConfigFrame)
    rules = Confinement(PathSettings(**frame.paths), [OwnedPath(**one) for one in frame.owned])
    with pytest.raises(PolicyRefused, match="itself uses"):
        rules.target(path)


@pytest.mark.parametrize("path", FREE)
def test_a_job_may_write_beside_it(path: str, shop: Settings, tmp_path: Path) -> None:
    assert Confinement.of(shop).target(path).path == tmp_path / path


@pytest.mark.parametrize("path", [path for path in OWN if not path.endswith("/")])
def test_nor_does_a_file_that_the_server_names(path: str, shop: Settings, tmp_path: Path) -> None:
    with pytest.raises(PolicyRefused, match="itself uses"):
        Confinement.of(shop).check_resolved_name(tmp_path / path)


@pytest.mark.parametrize("leads_to", ["etc/conf.d", "state_dir", "upload_dir", "merged_dir", "log_dir"])
@pytest.mark.parametrize("behind", ["/f", "/deeper/f", "/", ""])
def test_no_link_leads_there(leads_to: str, behind: str, shop: Settings, tmp_path: Path) -> None:
    (tmp_path / "files" / "link").symlink_to(f"../{leads_to}")
    with pytest.raises(PolicyRefused, match="itself uses"):
        Confinement.of(shop).target(f"files/link{behind}")


@pytest.mark.parametrize("file", ["etc/dlpool.ini", "etc/key", "bin/hook"])
def test_no_hard_link_is_another_name_of_it(file: str, shop: Settings, tmp_path: Path) -> None:
    rules = Confinement.of(shop)
    os.link(tmp_path / file, tmp_path / "files" / "innocent")
    with pytest.raises(PolicyRefused, match="itself uses"):
        rules.target("files/innocent")
    new = tmp_path / "new"  # as an editor replaces a file
    new.write_text("ours, edited")
    new.rename(tmp_path / file)
    os.link(tmp_path / file, tmp_path / "files" / "later")
    with pytest.raises(PolicyRefused, match="itself uses"):
        rules.target("files/later")
    assert rules.target("files/innocent").path == tmp_path / "files" / "innocent"  # no longer


@needs_root
@pytest.mark.parametrize("own", ["state_dir", "etc", "upload_dir"])
def test_no_bind_mount_is_another_way_to_it(
    own: str, shop: Settings, tmp_path: Path, mounted: Callable[[Path, Path], None]
) -> None:
    mounted(tmp_path / own, tmp_path / "files" / "mount")
    with pytest.raises(PolicyRefused, match="itself uses"):
        Confinement.of(shop).target(f"files/mount/{'conf.d/9.ini' if own == 'etc' else 'f'}")


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system that ignores case, and through FUSE has another inode number for each spelling of a name."""
    with exfat(tmp_path_factory.mktemp("exfat") / "disk", 8 * 1024 * 1024) as folder:
        yield folder


@pytest.fixture
def caseless(disk: Path) -> Iterator[Path]:
    """An empty folder there."""
    folder = disk / secrets.token_hex(4)
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


@needs_root
@pytest.mark.parametrize("path", ["ETC/Conf.D/99.ini", "etc/DLPOOL.INI", "State_Dir/f", "STATE_DIR", "etc/CONF.D"])
@pytest.mark.parametrize("are_there", [True, False])
def test_another_case_is_no_other_name_where_case_is_ignored(path: str, are_there: bool, caseless: Path) -> None:
    (caseless / "etc").mkdir()
    if are_there:
        for folder in ("etc/conf.d", "state_dir"):
            (caseless / folder).mkdir()
        (caseless / "etc" / "dlpool.ini").write_text("ours")
    settings = settings_of(caseless, paths={"download_dir": str(caseless)})
    rules = Confinement.of(replace(settings, files=(f"{caseless}/etc/dlpool.ini",)))
    with pytest.raises(PolicyRefused, match="itself uses"):
        rules.target(path)
    if are_there:  # replaced, it is another file
        (caseless / "etc" / "dlpool.ini").unlink()
        (caseless / "etc" / "dlpool.ini").write_text("ours, edited")
        with pytest.raises(PolicyRefused, match="itself uses"):
            rules.target("etc/DLPOOL.INI")


@needs_root
@pytest.mark.parametrize(("root", "is_refused"), [("STATE_DIR", True), ("State_dir/x", True), ("other", False)])
@pytest.mark.parametrize("is_there", [True, False])
def test_nor_at_the_start(root: str, is_refused: bool, is_there: bool, caseless: Path) -> None:
    if is_there:
        (caseless / "state_dir").mkdir()
    settings = settings_of(caseless, paths={"download_dir": f"{caseless}/{root}"})
    assert bool(refusal(settings)) is is_refused


@pytest.mark.parametrize("is_there", [True, False])
def test_a_name_that_differs_in_case_is_another_where_case_counts(is_there: bool, tmp_path: Path) -> None:
    (tmp_path / "state_dir").mkdir()
    if is_there:
        (tmp_path / "State_Dir").mkdir()
    rules = Confinement.of(settings_of(tmp_path, paths={"download_dir": str(tmp_path)}))
    assert rules.target("State_Dir/f").path == tmp_path / "State_Dir" / "f"
