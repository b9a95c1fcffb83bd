"""What scripts/package builds is whole: each artefact runs without the project beside it."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

from dlpool import __version__
from tests.fleet import Client, Supervisor
from tests.origin import File, Origin
from tests.processes import ROOT
from tests.redis_server import RedisServer

DATA = b"a small file for each artefact\n"
BUILD_S = 240  # pip may have to fetch what goes into the executable


def said(*command: object, **options: str) -> str:
    """What a program that knows nothing of this environment says; it must succeed."""
    environment = {name: text for name, text in os.environ.items() if not name.startswith("PYTHON")}
    ended = subprocess.run(
        [*map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd="/",
        timeout=BUILD_S,
        check=False,
        env={**environment, **options},
    )
    assert ended.returncode == 0, ended.stdout
    return ended.stdout


def new_environment(folder: Path) -> Path:
    """An environment with nothing in it; its Python."""
    said(sys.executable, "-m", "venv", "--without-pip", folder)
    return folder / "bin" / "python"


def installed(artefact: Path, folder: Path) -> Path:
    """The folder of the programs of an artefact in an environment of its own, which has only dlpool's libraries."""
    python = new_environment(folder)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    said(
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "-q",
        "--no-index",
        "--no-deps",
        "--no-build-isolation",
        "--ignore-installed",
        artefact,
    )
    where = said(python, "-c", "import dlpool; print(dlpool.__file__)")
    assert where.startswith(str(site)), where
    assert (folder / "share" / "man" / "man1" / "dlpool-fetch.1").exists()
    assert (folder / "share" / "bash-completion" / "completions" / "dlpool").exists()
    return python.parent


def check(dlpool: list[Path], supervisor: list[Path], url: str, target: Path, **options: str) -> None:
    assert said(*dlpool, "--version", **options) == f"dlpool {__version__}\n"
    assert "--drain-timeout" in said(*supervisor, "--help", **options)
    said(*dlpool, "fetch", "-q", "--network", "any", url, target, **options)
    assert target.read_bytes() == DATA


def test_each_artefact_runs_by_itself(tmp_path: Path) -> None:
    dist = tmp_path / "dist"
    said(sys.executable, ROOT / "scripts" / "package.py", dist)
    name = f"dlpool-{__version__}"
    assert {path.name for path in dist.iterdir()} == {f"{name}.tar.gz", f"{name}-py3-none-any.whl", "dlpool.pyz"}
    with Origin(File(DATA)) as origin:
        for artefact in (f"{name}.tar.gz", f"{name}-py3-none-any.whl"):
            programs = installed(dist / artefact, tmp_path / artefact.rpartition(".")[2])
            check([programs / "dlpool"], [programs / "dlpool-supervisor"], f"{origin.url}/f", tmp_path / artefact)
        python = new_environment(tmp_path / "empty")
        single, link = dist / "dlpool.pyz", tmp_path / "dlpool-supervisor"
        link.symlink_to(single)
        options = {"SHIV_ROOT": str(tmp_path / "shiv")}
        check([python, single], [python, link], f"{origin.url}/f", tmp_path / "single", **options)
        check_service([str(python), str(link)], origin, tmp_path, **options)
    assert single.read_bytes().startswith(b"#!/usr/bin/env python%d.%d\n" % sys.version_info[:2])
    with zipfile.ZipFile(single) as archive:
        assert not [one for one in archive.namelist() if one.startswith("site-packages/pytest")]


def check_service(command: list[str], origin: Origin, folder: Path, **options: str) -> None:
    """The single file starts workers that are of it, and they work."""
    with RedisServer(folder / "redis") as redis:
        ini = Supervisor(folder / "node", redis.url).ini
        service = subprocess.Popen([*command, "-c", ini], cwd="/", env={"PATH": os.defpath, **options})
        try:
            client = Client(redis.client())
            client.push(f"{origin.url}/job", "job")
            client.wait_for(f"{origin.url}/job")
            service.terminate()
            assert service.wait(30) == 0
        finally:
            service.kill()
            service.wait()
    assert (folder / "node" / "out" / "job").read_bytes() == DATA
