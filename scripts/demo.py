"""What scripts/demo shows. Everything it starts ends with it; its files are in a temporary folder."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import redis

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from dlpool.jobs.embedded_socket import socket_url  # noqa: E402
from tests.conftest import free_port, run_nginx  # noqa: E402
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
    if shutil.which("nginx") is None and shutil.which("nginx", path="/usr/sbin") is None:
        with FolderOrigin(www, rate=60_000_000) as origin:
            yield "the tests' own server", origin.url
        return
    port = free_port()
    listen = f"server {{ listen 127.0.0.1:{port}; root {www}; limit_rate 15m; }}"
    with run_nginx(folder, listen, port):
        yield "nginx", f"http://127.0.0.1:{port}"


INI = """\
[redis]
url = embedded
embedded_listen =
[supervisor]
lease = 6s
grace = 3s
[paths]
download_dir = {folder}/downloads
state_dir = {folder}/state
log_dir = {folder}/log
[network]
network = any
"""


def dlpool(*arguments: object) -> str:
    """Run a command as a person would; its output."""
    ended = subprocess.run([*DLPOOL, *map(str, arguments)], capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        sys.exit(f"dlpool {arguments[0]} ended with {ended.returncode}: {ended.stderr}")
    return ended.stdout


def wait_for(what: str, condition: Callable[[], bool], service: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        if service.poll() is not None or time.monotonic() > deadline:
            sys.exit(f"{what} did not happen")
        time.sleep(0.05)


@contextmanager
def supervisor(folder: Path, ini: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The service with its own Redis, ready for work; ended at the end."""
    service = subprocess.Popen([sys.executable, "-m", "dlpool.cli.supervisor", "-c", str(ini)])
    try:
        log = folder / "log" / "dlpool.log"
        wait_for("the start", lambda: log.exists() and '"service_ready"' in log.read_text(), service)
        yield service
        service.send_signal(signal.SIGTERM)
        if service.wait(30) != 0:
            sys.exit("the service did not end well")
    finally:
        service.kill()
        service.wait()


def push(url: str, ini: Path, connection: redis.Redis) -> None:
    """Three jobs as any client of the queue pushes them, two by the command."""
    for name in ("1B.bin", "3K.bin", "1M.bin"):
        job = json.dumps({"url": f"{url}/{name}", "save_path": f"raw/{name}"})
        connection.lpush("go_download_urls", job)
        print(f"LPUSH go_download_urls {job}")
    for name in ("20M.bin", "200M.bin"):
        identity = dlpool("push", "-c", ini, f"{url}/{name}", f"pushed/{name}").strip()
        print(f"dlpool push {url}/{name} pushed/{name}   -> job {identity}")


def has_open(pid: int, part: Path) -> bool:
    """Tell whether the process has the file open; by its inode, as it may have been opened under another name."""
    with suppress(OSError):
        return any(part.samefile(descriptor) for descriptor in Path(f"/proc/{pid}/fd").iterdir() if descriptor.exists())
    return False


def kill_worker(part: Path, service: subprocess.Popen[bytes]) -> None:
    """SIGKILL the worker that writes ``part``, as soon as something of it is committed."""
    state = part.with_name(part.name + ".meta")
    wait_for("a checkpoint", state.exists, service)
    for worker in psutil.Process(service.pid).children():
        if has_open(worker.pid, part):
            worker.kill()
            print(f"worker {worker.pid} killed with SIGKILL while it wrote {part.name}")
            return
    sys.exit("no worker wrote the large file any more")


def watch(url: str, connection: redis.Redis, ini: Path, service: subprocess.Popen[bytes]) -> None:
    """Say how far the jobs are until all have their records."""
    said = 0.0

    def are_done() -> bool:
        nonlocal said
        if time.monotonic() - said > 2:
            said = time.monotonic()
            print(dlpool("jobs", "-c", ini, "--state", "running").rstrip(), flush=True)
        return all(connection.exists(f"success:{url}/{name}") for name in SIZES)

    wait_for("the end of all jobs", are_done, service)


def show(folder: Path) -> None:
    www = folder / "www"
    www.mkdir()
    say("making five files of 1 B to 200 MB")
    digests = make_files(www)
    ini = folder / "dlpool.ini"
    ini.write_text(INI.format(folder=folder))
    with server(folder, www) as (name, url):
        say(f"{name} serves them at {url}; dlpool-supervisor starts with a Redis of its own")
        with supervisor(folder, ini) as service:
            connection = redis.Redis.from_url(socket_url(folder / "state"), decode_responses=True)
            say("five jobs are pushed")
            push(url, ini, connection)
            say("a worker is killed on the way")
            kill_worker(folder / "downloads" / "pushed" / "200M.bin.part", service)
            watch(url, connection, ini, service)
            say("the records in Redis, as clients read them")
            for file in SIZES:
                print(connection.get(f"success:{url}/{file}"))
            print(dlpool("stats", "-c", ini).rstrip())
    check(folder, digests)


def check(folder: Path, digests: dict[str, str]) -> None:
    """Each SHA-256, the resumed job in the log, and that nothing is left over."""
    say("checking each SHA-256")
    found = {path.name: path for path in (folder / "downloads").rglob("*") if path.is_file()}
    for file, digest in digests.items():
        if sha256(found[file]) != digest:
            sys.exit(f"{file} is not what was served")
        print(f"{digest}  {file}  right")
    if set(found) != set(SIZES):
        sys.exit(f"there is more than the five files: {sorted(found)}")
    records = [json.loads(line) for line in (folder / "log" / "dlpool.log").read_text().splitlines()]
    resumed = [record["dlpool.resumed_from"] for record in records if record.get("dlpool.resumed_from")]
    if not resumed:
        sys.exit("the killed download was not resumed")
    say(f"200M.bin was resumed from byte {max(resumed):,} after its worker was killed")
    print(f"the log: {len(records)} lines of JSON; the last one of a job:")
    print(next(json.dumps(record) for record in reversed(records) if record["message"] == "job_succeeded"))
    say("done: five jobs, one worker killed, all files exact; nothing is left running or behind")


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
