"""Who may read what dlpool creates: the mode of every file and folder that a run leaves, whatever the umask was."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import requests

from dlpool.jobs import embedded_socket
from dlpool.kinds import parse_umask
from tests.conftest import wait_until
from tests.fleet import Client, Supervisor
from tests.origin import Connection, File, Origin, Request
from tests.processes import ROOT, run
from tests.web import WebServer, multipart

DATA = b"x" * 3_000_000
INFECTED = b"INFECTED" + DATA
HOOK = "sh -c 'mkdir -p {0}/hooked && cat >{0}/hooked/seen'"
SCAN = "sh -c 'grep -q INFECTED \"$0\" && exit 1; exit 0'"
GROUP = {"d": "d750", "f": "f640"}  # umask 027
OWNER = {"d": "d700", "f": "f600", "s": "s700"}


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short name, as the one of a socket must be."""
    with tempfile.TemporaryDirectory(prefix="dlp-", dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture(autouse=True)
def _open_umask() -> Iterator[None]:
    """What starts the programs takes no rights away: they have to do that themselves."""
    before = os.umask(0)
    yield
    os.umask(before)


def modes(folder: Path, *names: str) -> dict[str, str]:
    """The mode of all that is in the folders, and of these, by path below ``folder``."""
    paths = [one for name in names for one in (folder / name, *(folder / name).rglob("*"))]
    return {
        str(path.relative_to(folder)): f"{_kind(path)}{stat.S_IMODE(path.stat().st_mode):03o}"
        for path in sorted(paths)
        if not path.is_symlink()
    }


def _kind(path: Path) -> str:
    return "d" if path.is_dir() else "s" if path.is_socket() else "f"


def origin(request: Request, connection: Connection) -> None:
    """Serves ``/cut`` up to its middle."""
    file = File(INFECTED if request.path == "/bad" else DATA)
    if request.path != "/cut":
        file(request, connection)
        return
    span = request.range
    if span is None or span.start > 0:
        connection.answer(404)
        return
    end = span.end or len(DATA)
    head = {**file.headers(), "Content-Range": f"bytes 0-{end - 1}/{len(DATA)}", "Content-Length": str(end)}
    connection.answer(206, head, length=False)
    connection.send(DATA[: end // 2])
    connection.hang_up()


def test_all_that_the_service_leaves(folder: Path) -> None:
    settings: dict[str, dict[str, Any]] = {
        "hooks": {"on_success": HOOK.format(folder)},
        "scan": {"command": SCAN, "quarantine_dir": folder / "quarantine"},
        "paths": {"download_dir": folder / "made" / "out"},
    }
    with Origin(origin) as source, Supervisor(folder, "embedded", settings) as node:
        with redis.Redis.from_url(embedded_socket.socket_url(node.state_dir)) as connection:
            client = Client(connection)
            client.push(f"{source.url}/good", "a/b/good")
            client.push(f"{source.url}/bad", "bad", scan=True)
            client.push(f"{source.url}/cut", "cut")
            client.wait_for(f"{source.url}/good")
            client.wait_for_failure(f"{source.url}/bad")
            client.wait_for_failure(f"{source.url}/cut")
        wait_until((folder / "hooked" / "seen").exists)
        running = modes(folder, "made", "log", "state", "hooked", "quarantine")
        assert node.stop() == 0
    found = {**running, **modes(folder, "made", "log", "state", "hooked", "quarantine")}
    assert {"made/out/a/b/good", "hooked/seen", "log/dlpool.log", "state/redis/redis.sock", "state/journal"} <= set(
        found
    )
    for path, mode in found.items():
        if path.startswith(("made", "hooked", "log")) and not path.endswith(".part.meta"):
            assert mode == GROUP[mode[0]], path
        elif not path.startswith("state/"):
            assert mode == OWNER[mode[0]], path
    assert found["state"] == "d700"  # so what is in it is its owner's alone
    secret = re.compile(r"state/(redis|spool|lock|node_id|sids\.json|journal|workers\.lock)")
    bare = {path: mode for path, mode in found.items() if secret.fullmatch(path) and mode != OWNER[mode[0]]}
    assert bare == {}


def test_all_that_dlpool_web_leaves(folder: Path) -> None:
    settings = {"scan": {"command": SCAN, "quarantine_dir": folder / "quarantine"}}
    with WebServer(folder, settings) as server:
        for name, data, total in (("whole", DATA, 1), ("bad", INFECTED, 1), ("half", DATA, 2)):
            kind, form = multipart({"file_id": name, "chunk_index": "0", "relative_path": "a/b"}, data)
            sent = requests.post(f"{server.url}/upload_chunk", data=form, headers={"Content-Type": kind}, timeout=20)
            assert sent.ok, sent.text
            asked: dict[str, Any] = {"file_id": name, "filename": name, "total_chunks": total, "relative_path": "a/b"}
            requests.post(f"{server.url}/merge_chunks", json=asked, timeout=20)
        size = {"Tus-Resumable": "1.0.0", "Upload-Length": "9"}
        assert requests.post(f"{server.root}/files/", headers=size, timeout=20).status_code == 201
        found = modes(folder, "upload", "merged", "log", "state", "quarantine")
    assert {"merged/a/b/whole", "upload/tmp", "log/web/dlpool.log", "state/web/rates"} <= set(found)
    assert len([path for path in found if path.endswith("/record.json")]) == 4
    for path, mode in found.items():
        is_own = re.match(r"quarantine|state/web/(.*lock|transfers|rates)", path)
        assert mode == (OWNER if is_own else GROUP)[mode[0]], path


@pytest.mark.parametrize(
    ("umask", "folders", "files"), [("007", 0o770, 0o660), ("077", 0o700, 0o600), ("0022", 0o755, 0o644)]
)
def test_the_setting_says_who_may_read(umask: str, folders: int, files: int, folder: Path) -> None:
    """In both programs, and in what they start: what a hook makes is made by a child of the supervisor."""
    code = (
        "import os, sys; from dlpool.cli.options import apply_umask, load_settings\n"
        "apply_umask(load_settings(sys.argv[1]).settings)\n"
        "os.mkdir('made'); os.close(os.open('made/file', os.O_CREAT, 0o666))"
    )
    (folder / "dlpool.ini").write_text(f"[paths]\numask = {umask}\n")
    subprocess.run(
        [sys.executable, "-c", code, folder / "dlpool.ini"],
        cwd=folder,
        check=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert modes(folder, "made") == {"made": f"d{folders:03o}", "made/file": f"f{files:03o}"}


@pytest.mark.parametrize("umask", ["", "8", "0o27", "700", "1027", "-1", "u=rwx", "00027"])
def test_what_is_no_umask_is_refused(umask: str) -> None:
    with pytest.raises(ValueError, match="not an octal number from 000 to 077"):
        parse_umask(umask)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_a_download_has_the_rights_that_its_user_gives(umask: int, mode: int, folder: Path) -> None:
    os.umask(umask)
    with Origin(origin) as source:
        (folder / "urls").write_text(f"{source.url}/good good\n{source.url}/cut cut\n")
        made, session = folder / "made", folder / "session"
        ended = run("fetch", "-i", folder / "urls", made, "--session", session, "-c", 1, "--network", "any")
    assert ended.code == 14, ended.err
    found = modes(folder, "made", "session")
    folders, part = f"d{0o777 & ~umask:03o}", f"f{(mode | 0o600):03o}"
    assert found == {
        "made": folders,
        "made/good": f"f{mode:03o}",
        "made/cut.part": part,
        "made/cut.part.meta": "f600",
        "session": "f600",
    }
