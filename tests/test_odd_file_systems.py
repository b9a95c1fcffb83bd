"""Downloads on file systems that lack features, and faults that are reported late: at a close or a sync."""

from __future__ import annotations

import errno
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dlpool import disk, errors
from dlpool.transfer.job import Job
from dlpool.transfer.target.file.output import FileOutput
from dlpool.transfer.target.file.partfile import PartFile
from dlpool.transfer.target.protocol import TargetOptions
from tests import disk_command
from tests.conftest import Fetcher, make_data
from tests.disk_faults import ALWAYS, FAIL, Fault, build
from tests.disks import exfat, needs_root, ramfs
from tests.origin import Connection, File, Origin, Request
from tests.processes import ROOT, finish

Serve = Callable[..., Origin]

SIZE = 3 * 1024 * 1024
DATA = make_data(SIZE)
OPTIONS = ("--json", "-q", "-c", "3", "--min-split-size", "256K")


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("faults"))


# --- close(2) ---


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.EIO, errno.ENOSPC])
def test_an_error_that_close_reports_comes_before_the_file_has_its_name(
    number: int, library: Path, tmp_path: Path
) -> None:
    """Whichever of the descriptors of the part file reports it first."""
    label, code = ("disk_failed", 3) if number == errno.EIO else ("no_space", 9)
    with Origin(File(DATA, block=64 * 1024, pause_s=0.005)) as origin:
        for nth in range(2, 6):  # the first is that of the check of the lock
            folder = tmp_path / str(nth)
            folder.mkdir()
            fault = Fault("close", nth, FAIL, number, ALWAYS, "(deleted)")
            arguments = ("fetch", f"{origin.url}/f", folder / "f", *OPTIONS)
            ended = finish(disk_command.start(library, folder, [fault], *arguments))
            assert ended.code in (0, code), (nth, ended)
            assert (folder / "f").exists() == (ended.code == 0), nth
            assert nth > 2 or ended.code == code
            if ended.code:
                assert ended.json["error"]["label"] == label
                assert finish(disk_command.start(library, folder, [], *arguments)).code == 0
            assert (folder / "f").read_bytes() == DATA
            assert os.listdir(folder) == ["f"]


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
@pytest.mark.parametrize("reported", [None, errno.EDQUOT, errno.EIO])
def test_without_a_free_descriptor_the_file_system_is_asked_by_a_sync(
    reported: int | None, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is complete is not refused for want of a descriptor, nor published without having asked."""
    part = PartFile(tmp_path / "f", sync=False)

    def fail(wanted: int | None) -> None:
        if wanted is not None:
            raise OSError(wanted, os.strerror(wanted))

    monkeypatch.setattr(os, "dup", lambda _: fail(number))
    monkeypatch.setattr(os, "fdatasync", lambda _: fail(reported))
    try:
        if reported is None:
            part.report_delayed_errors()
        else:
            with pytest.raises(errors.LocalFault, match="quota" if reported == errno.EDQUOT else "input/output"):
                part.report_delayed_errors()
    finally:
        part.close()


# --- folders that cannot be synced ---


@pytest.mark.parametrize(
    "number", [errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EACCES, errno.EINVAL, errno.EPERM, errno.EIO]
)
def test_a_file_whose_folder_cannot_be_synced_is_good(number: int, library: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    with Origin(File(DATA[:10_000])) as origin:
        fault = Fault("fsync", 1, FAIL, number, ALWAYS, "/")
        ended = finish(disk_command.start(library, folder, [fault], "fetch", f"{origin.url}/f", folder / "f", "--json"))
    assert (ended.code, ended.json["status"]) == (0, "done"), ended
    assert (folder / "f").read_bytes() == DATA[:10_000]
    assert ended.err.count(f"cannot force the names in {folder} to disk") == 1


def test_it_is_told_once_for_a_file_system(
    serve: Serve, fetch: Fetcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin, real = serve(File(DATA[:10_000])), os.fsync

    def fsync(descriptor: int) -> None:
        if os.path.isdir(descriptor):
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(disk, "_reported", set())
    for number in range(3):
        fetch(f"{origin.url}/f", tmp_path / str(number), sync=True)
    told = fetch.named("folder_not_synced")
    assert [fields["folder"] for fields in told] == [str(tmp_path)]
    assert "not supported" in str(told[0]["reason"])


# --- no figures, no links, one case ---


@needs_root
@pytest.mark.parametrize("preallocate", ["auto", "truncate", "none"])
def test_a_file_system_without_figures_is_not_full(
    preallocate: str, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    with ramfs(tmp_path / "disk") as folder:
        fetch(f"{serve(File(DATA)).url}/f", folder / "f", preallocate=preallocate)
        assert (folder / "f").read_bytes() == DATA
        assert os.listdir(folder) == ["f"]


@needs_root
@pytest.mark.parametrize("if_exists", ["overwrite", "fail", "skip", "rename"])
def test_exfat_over_fuse_takes_downloads(if_exists: str, serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    with exfat(tmp_path / "disk", 32 << 20) as folder:
        url = f"{serve(File(DATA)).url}/f"
        fetch(url, folder / "f", if_exists=if_exists, sync=True)
        assert (folder / "f").read_bytes() == DATA
        assert os.listdir(folder) == ["f"]


@needs_root
def test_two_names_that_are_one_file_conflict(tmp_path: Path) -> None:
    """On a file system that does not tell upper from lower case."""

    def place(name: str, if_exists: str = "overwrite") -> FileOutput:
        job = Job(f"http://h/{name}", folder / name)
        return FileOutput(
            job, job.target, TargetOptions(if_exists, resume=True, sync=False), notify=lambda *_a, **_k: None
        )

    with exfat(tmp_path / "disk", 16 << 20) as folder:
        first = place("A.bin")
        with pytest.raises(errors.Locked):
            place("a.bin")
        first.part.publish(overwrite=False)
        first.close()
        with pytest.raises(errors.TargetExists):
            place("a.BIN", "fail")


# --- what disappears ---


@pytest.mark.parametrize("connections", [1, 3])
def test_a_folder_that_is_removed_meanwhile_is_one_clear_error(
    connections: int, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    file = File(DATA, block=64 * 1024, pause_s=0.01)

    def handle(request: Request, connection: Connection) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        file(request, connection)

    with pytest.raises(errors.LocalFault, match=r"cannot continue with .*: the folder .*out was removed") as raised:
        fetch(f"{serve(handle).url}/f", folder / "f", connections=connections, min_split_size=256 * 1024)
    assert raised.value.exit_code == 3
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO])
def test_a_first_error_is_not_hidden_by_later_ones(number: int, library: Path, tmp_path: Path) -> None:
    """From the middle of the download on, the file system fails at everything."""
    folder = tmp_path / "out"
    folder.mkdir()
    kinds = ("write", "fdatasync", "fsync", "close", "rename", "unlink", "stat")
    with Origin(File(DATA, block=64 * 1024)) as origin:
        faults = [Fault(kind, 12 if kind == "stat" else 2, FAIL, number, ALWAYS) for kind in kinds]
        ended = finish(disk_command.start(library, folder, faults, "fetch", f"{origin.url}/f", folder / "f", *OPTIONS))
    assert ended.code == 3, ended
    assert ended.json["error"]["label"] == "disk_failed"
    assert "Traceback" not in ended.err
    assert not (folder / "f").exists()


# --- no /proc ---


@needs_root
@pytest.mark.parametrize("connections", ["1", "3"])
def test_a_download_does_without_proc(connections: str, tmp_path: Path) -> None:
    """In a mount namespace of its own, with an empty folder over /proc."""
    script = 'mount -t tmpfs none /proc && exec "$@"'
    with Origin(File(DATA, block=64 * 1024)) as origin:
        command = ["fetch", f"{origin.url}/f", str(tmp_path / "f"), "--json", "-c", connections]
        options = ["--min-split-size", "256K", "--checksum", f"sha256:{sha256()}"]
        ended = subprocess.run(
            ["unshare", "-m", "sh", "-c", script, "sh", sys.executable, "-m", "dlpool", *command, *options],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert ended.returncode == 0, ended
    assert (tmp_path / "f").read_bytes() == DATA
    assert os.listdir(tmp_path) == ["f"]


def sha256() -> str:
    import hashlib

    return hashlib.sha256(DATA).hexdigest()


# --- permissions ---


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o666, 0o444, 0o400, 0o755, 0o000])
@pytest.mark.parametrize("sync", [True, False])
def test_a_file_that_is_replaced_passes_on_its_mode(
    mode: int, sync: bool, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    (tmp_path / "f").write_bytes(b"old")
    (tmp_path / "f").chmod(mode)
    fetch(f"{serve(File(DATA)).url}/f", tmp_path / "f", sync=sync)
    assert (tmp_path / "f").stat().st_mode & 0o7777 == mode
    (tmp_path / "f").chmod(0o600)
    assert (tmp_path / "f").read_bytes() == DATA


def test_bits_that_give_rights_to_a_program_are_not_passed_on(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"old")
    (tmp_path / "f").chmod(0o6755)
    fetch(f"{serve(File(DATA)).url}/f", tmp_path / "f")
    assert (tmp_path / "f").stat().st_mode & 0o7777 == 0o755


def test_a_private_file_is_never_open_to_others_while_it_is_replaced(
    serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    (tmp_path / "f").write_bytes(b"old")
    (tmp_path / "f").chmod(0o600)
    modes: set[int] = set()
    file = File(DATA, block=64 * 1024)

    def handle(request: Request, connection: Connection) -> None:
        modes.add((tmp_path / "f.part").stat().st_mode & 0o777)
        file(request, connection)

    fetch(f"{serve(handle).url}/f", tmp_path / "f")
    assert modes == {0o600}


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_a_new_file_has_the_mode_that_the_umask_leaves(
    umask: int, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    before = os.umask(umask)
    try:
        fetch(f"{serve(File(DATA)).url}/f", tmp_path / "f")
    finally:
        os.umask(before)
    assert (tmp_path / "f").stat().st_mode & 0o7777 == 0o666 & ~umask


@pytest.mark.parametrize(("mode", "is_published"), [(0o600, False), (0o640, False), (0o644, True), (0o666, True)])
@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_where_no_mode_can_be_set_nothing_is_opened_to_others(
    mode: int, is_published: bool, number: int, library: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "f").write_bytes(b"old")
    (folder / "f").chmod(mode)
    with Origin(File(DATA[:10_000])) as origin:
        fault = Fault("chmod", 1, FAIL, number, ALWAYS)
        ended = finish(disk_command.start(library, folder, [fault], "fetch", f"{origin.url}/f", folder / "f", "--json"))
    assert ended.code == (0 if is_published else 3), ended
    assert (folder / "f").read_bytes() == (DATA[:10_000] if is_published else b"old")
    assert os.listdir(folder) == ["f"]


@needs_root
def test_root_keeps_owner_and_group(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"old")
    os.chown(tmp_path / "f", 1234, 2345)
    (tmp_path / "f").chmod(0o640)
    fetch(f"{serve(File(DATA)).url}/f", tmp_path / "f")
    status = (tmp_path / "f").stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (1234, 2345, 0o640)


def test_an_access_control_list_is_kept(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    """The user 1234 may read; as the kernel keeps what acl(5) describes: version, then tag, rights and id of each."""
    entries = [(1, 6, -1), (2, 4, 1234), (4, 4, -1), (16, 4, -1), (32, 0, -1)]
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
    (tmp_path / "f").write_bytes(b"old")
    try:
        os.setxattr(tmp_path / "f", "system.posix_acl_access", acl)
    except OSError:
        pytest.skip("no access control lists here")
    fetch(f"{serve(File(DATA)).url}/f", tmp_path / "f")
    assert os.getxattr(tmp_path / "f", "system.posix_acl_access") == acl


def test_the_part_file_of_a_restart_has_the_mode_as_well(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"old")
    (tmp_path / "f").chmod(0o600)
    versions = iter(["v1", "v1", *["v2"] * 100])
    other = make_data(SIZE, seed=3)

    def handle(request: Request, connection: Connection) -> None:
        etag = next(versions)
        File(DATA if etag == "v1" else other, etag=f'"{etag}"', block=64 * 1024)(request, connection)

    outcome = fetch(f"{serve(handle).url}/f", tmp_path / "f", connections=3, min_split_size=256 * 1024)
    assert outcome.restarts >= 1
    assert (tmp_path / "f").stat().st_mode & 0o7777 == 0o600
    assert (tmp_path / "f").read_bytes() == other
