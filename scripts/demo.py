"""What scripts/demo shows. Everything it starts ends with it; its files are in a temporary folder."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.conftest import NGINX_CONFIG, free_port, wait_for_port  # noqa: E402
from tests.origin import FolderOrigin  # noqa: E402

DLPOOL = [sys.executable, "-m", "dlpool"]
SIZES = {"1B.bin": 1, "3K.bin": 3_000, "1M.bin": 1_048_577, "20M.bin": 20_000_000, "200M.bin": 200_000_000}


def say(text: str) -> None:
    print(f"\n== {text}", flush=True)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while data := file.read(1 << 20):
            digest.update(data)
    return digest.hexdigest()


def make_files(folder: Path) -> dict[str, str]:
    """The remote files and their SHA-256."""
    chance = random.Random(1)
    for name, size in SIZES.items():
        with (folder / name).open("wb") as file:
            for start in range(0, size, 1 << 20):
                file.write(chance.randbytes(min(1 << 20, size - start)))
    return {name: sha256(folder / name) for name in SIZES}


@contextmanager
def server(folder: Path, www: Path) -> Iterator[tuple[str, str]]:
    """A server with ranges over ``www``: its name and URL. nginx where it is installed, else the tests' origin."""
    binary = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if binary is None:
        with FolderOrigin(www, rate=60_000_000) as origin:
            yield "the tests' own server", origin.url
        return
    port = free_port()
    listen = f"server {{ listen 127.0.0.1:{port}; root {www}; limit_rate 15m; }}"
    (folder / "nginx.conf").write_text(NGINX_CONFIG.format(folder=folder, servers=listen))
    user = ["-g", "user root;"] if os.geteuid() == 0 else []
    process = subprocess.Popen([binary, "-c", folder / "nginx.conf", *user], stderr=subprocess.DEVNULL)
    try:
        wait_for_port(port, process)
        yield "nginx", f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def kill_one(url: str, target: Path) -> None:
    """Begin a download and SIGKILL it in the middle."""
    process = subprocess.Popen([*DLPOOL, "fetch", url, target, "--progress", "none"], stderr=subprocess.DEVNULL)
    meta = target.with_name(target.name + ".part.meta")
    deadline = time.monotonic() + 30
    while not meta.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    if process.returncode != -signal.SIGKILL or not meta.exists():
        sys.exit("the download ended before it could be killed")


def show(folder: Path) -> None:
    www, out = folder / "www", folder / "downloads"
    www.mkdir()
    out.mkdir()
    say("making five files of 1 B to 200 MB")
    digests = make_files(www)
    with server(folder, www) as (name, url):
        say(f"{name} serves them at {url}")
        say("dlpool fetch 200M.bin, killed with SIGKILL on the way")
        kill_one(f"{url}/200M.bin", out / "200M.bin")
        print(f"left behind: {', '.join(sorted(os.listdir(out)))}")
        say("dlpool fetch -i list: all five files, the killed one goes on where it was")
        lines = "".join(f"{url}/{file}\n" for file in SIZES)
        ended = subprocess.run([*DLPOOL, "fetch", "-i", "-", out], input=lines, text=True, check=False)
        if ended.returncode != 0:
            sys.exit(f"dlpool fetch ended with {ended.returncode}")
    say("checking each SHA-256")
    for file, digest in digests.items():
        if sha256(out / file) != digest:
            sys.exit(f"{file} is not what was served")
        print(f"{digest}  {file}  right")
    if sorted(os.listdir(out)) != sorted(SIZES):
        sys.exit(f"there is more than the five files: {os.listdir(out)}")
    say("done: five files fetched, one of them killed and resumed, all exact; nothing is left running or behind")


def main() -> int:
    if urls := sys.argv[1:]:
        command = [*DLPOOL, "fetch", "-i", "-", "downloads"]
        return subprocess.run(command, input="\n".join(urls) + "\n", text=True, check=False).returncode
    folder = Path(tempfile.mkdtemp(prefix="dlpool-demo-"))
    folder.chmod(0o755)
    try:
        show(folder)
    finally:
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
