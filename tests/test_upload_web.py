"""``dlpool upload`` against a real dlpool-web: what is killed, cut or lost on the way, and the way back."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests

from tests.conftest import make_data, wait_until
from tests.processes import Ended, finish, run, start
from tests.proxy import Proxy
from tests.web import WebServer

MIB = 1 << 20
SIZE = 24 * MIB
DATA = make_data(SIZE)
PATIENT = ("--chunk-size", "1M", "--retries", "1000", "--retry-delay", "20ms", "--retry-max-delay", "200ms")
SLOW = ("--limit-rate", "16M")  # so that what strikes finds it at work


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebServer]:
    """A server for the tests that leave it alive."""
    with WebServer(tmp_path_factory.mktemp("web"), {"upload": {"enable_atomic_operations": "no"}}) as web:
        yield web


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / f"{tmp_path.name}.bin"  # a name of its own at the server
    path.write_bytes(DATA)
    return path


def begin(file: Path, url: str, *options: object) -> subprocess.Popen[str]:
    return start("upload", file, url, *PATIENT, "--json", *options)


def stored(web: WebServer) -> int:
    """How many chunks lie at the server."""
    return sum(1 for _ in web.upload_dir.glob("tasks/*/*.chunk"))


def check(ended: Ended, web: WebServer, file: Path) -> None:
    assert ended.code == 0, ended.err
    assert (web.merged_dir / file.name).read_bytes() == DATA
    assert requests.get(f"{web.url}/tasks/{ended.json['file_id']}", timeout=10).json()["status"] == "completed"


def test_a_file_arrives_and_can_be_fetched_from_where_it_says(shared: WebServer, file: Path, tmp_path: Path) -> None:
    ended = finish(begin(file, shared.url, "--path", "models/a b", "--name", f"ü {file.name}"))
    assert ended.code == 0, ended.err
    assert ended.json["path"] == f"models/a b/ü {file.name}"
    assert run("fetch", ended.json["location"], tmp_path / "back").code == 0
    assert (tmp_path / "back").read_bytes() == DATA


def test_an_empty_file_arrives(shared: WebServer, file: Path) -> None:
    file.write_bytes(b"")
    assert finish(begin(file, shared.url)).code == 0
    assert (shared.merged_dir / file.name).read_bytes() == b""


def test_who_is_killed_goes_on_with_the_next_run(shared: WebServer, file: Path) -> None:
    process, before = begin(file, shared.url, *SLOW), stored(shared)
    wait_until(lambda: stored(shared) >= before + 3)
    process.kill()
    finish(process)
    ended = finish(begin(file, shared.url))
    check(ended, shared, file)
    assert ended.json["resumed_from"] >= 3 * MIB
    assert ended.json["sent"] == SIZE - ended.json["resumed_from"]


def test_a_server_that_is_killed_and_restarted_costs_only_what_was_on_its_way(tmp_path: Path, file: Path) -> None:
    with WebServer(tmp_path / "web") as web:
        process = begin(file, web.url, *SLOW)
        wait_until(lambda: stored(web) >= 3)
        web.kill()
        web.start()
        ended = finish(process)
        check(ended, web, file)
    assert ended.json["sent"] == SIZE
    assert ended.json["retries"] >= 1


@pytest.mark.parametrize("fault", [Proxy.drop, Proxy.refuse], ids=["cut", "away"])
def test_a_network_that_fails_again_and_again_only_delays(
    fault: Callable[[Proxy], None], shared: WebServer, file: Path
) -> None:
    before = stored(shared)
    with Proxy(("127.0.0.1", shared.port)) as proxy:
        process = begin(file, f"http://127.0.0.1:{proxy.port}/go-uploader", *SLOW)
        for count in (2, 6, 10):
            wait_until(lambda count=count: stored(shared) >= before + count)  # type: ignore[misc]
            fault(proxy)
            threading.Event().wait(0.3)
            proxy.pass_on()
        ended = finish(process)
    check(ended, shared, file)
    assert ended.json["retries"] >= 1


def test_a_chunk_that_is_cut_behind_the_servers_back_is_sent_again(shared: WebServer, file: Path) -> None:
    known = set(shared.upload_dir.glob("tasks/*"))
    process = begin(file, shared.url, *SLOW)
    wait_until(lambda: stored(shared) > 0)
    process.terminate()
    assert finish(process).code == 143
    [task] = set(shared.upload_dir.glob("tasks/*")) - known
    first = min(task.glob("*.chunk"))
    os.truncate(first, 1000)
    check(finish(begin(file, shared.url)), shared, file)


def test_a_chunk_that_rots_at_the_server_is_found_by_the_merge_and_sent_again(shared: WebServer, file: Path) -> None:
    known = set(shared.upload_dir.glob("tasks/*"))
    process = begin(file, shared.url, *SLOW)
    wait_until(lambda: stored(shared) > 0)
    process.kill()
    finish(process)
    [task] = set(shared.upload_dir.glob("tasks/*")) - known
    with min(task.glob("*.chunk")).open("r+b") as chunk:
        chunk.write(b"rotten")
    ended = finish(begin(file, shared.url))
    check(ended, shared, file)
    assert ended.json["sent"] == SIZE - ended.json["resumed_from"] + MIB


def test_a_task_that_is_paused_there_takes_nothing_until_it_is_resumed(shared: WebServer, file: Path) -> None:
    known = set(shared.upload_dir.glob("tasks/*"))
    process = begin(file, shared.url, *SLOW)
    wait_until(lambda: bool(set(shared.upload_dir.glob("tasks/*")) - known) and stored(shared) > 0)
    tasks = requests.get(f"{shared.url}/tasks", timeout=10).json()["tasks"]
    [task] = [task["task_id"] for task in tasks if task["status"] == "uploading"]
    assert requests.post(f"{shared.url}/tasks/{task}/pause", timeout=10).status_code == 200
    ended = finish(process)
    assert ended.code == 13
    assert "paused" in ended.err
    assert finish(begin(file, shared.url)).code == 13
    assert requests.post(f"{shared.url}/tasks/{task}/resume", timeout=10).status_code == 200
    check(finish(begin(file, shared.url)), shared, file)


def test_another_file_of_that_name_is_never_replaced(shared: WebServer, file: Path) -> None:
    check(finish(begin(file, shared.url)), shared, file)
    os.utime(file, ns=(1, 1))  # another upload
    ended = finish(begin(file, shared.url))
    assert ended.code == 13
    assert len(ended.err.splitlines()) == 1
    assert (shared.merged_dir / file.name).read_bytes() == DATA


def test_who_has_no_key_is_told_before_anything_is_sent(tmp_path: Path, file: Path) -> None:
    (tmp_path / "key").write_text("open sesame, said Ali Baba")
    (tmp_path / "key").chmod(0o600)
    settings: dict[str, dict[str, object]] = {
        "web": {"auth": "on", "secret_key_file": tmp_path / "key"},
        "upload": {"max_chunk_size": "512K"},
    }
    with WebServer(tmp_path / "web", settings) as web:
        assert finish(begin(file, web.url)).code == 6
        ended = finish(begin(file, web.url, "--secret-key-file", tmp_path / "key"))
        assert (ended.code, len(ended.err.splitlines())) == (12, 1)
        assert "use a smaller --chunk-size" in ended.err
        assert stored(web) == 0
        ended = finish(begin(file, web.url, "--secret-key-file", tmp_path / "key", "--chunk-size", "512K"))
        assert ended.code == 0, ended.err


def test_a_server_that_admits_few_bodies_is_not_asked_for_more_again_and_again(tmp_path: Path, file: Path) -> None:
    """It admits two at once: who is turned away does not make all others wait."""
    with WebServer(tmp_path / "web", {"web": {"threads": 4, "processes": 1}}) as web:
        ended = run("upload", file, web.url, "-c", "8", "--chunk-size", "96K", "--json")
        check(ended, web, file)
    assert ended.json["retries"] < 128  # of 256 chunks


def test_connections_that_are_cut_before_a_chunk_is_through_become_fewer(shared: WebServer, file: Path) -> None:
    """Four at once would need a second each, and have half of one; one alone needs a quarter."""
    ended = threading.Event()
    with Proxy(("127.0.0.1", shared.port)) as proxy:

        def cut() -> None:
            while not ended.wait(0.5):
                proxy.drop()

        cutting = threading.Thread(target=cut)
        url, hasty = (
            f"http://127.0.0.1:{proxy.port}/go-uploader",
            ("--retry-delay", "10ms", "--retry-max-delay", "50ms"),
        )
        process = start("upload", file, url, "--chunk-size", "1M", "-c", "4", "--limit-rate", "4M", "--json", *hasty)
        cutting.start()
        try:
            result = finish(process)
        finally:
            ended.set()
            cutting.join()
    check(result, shared, file)


def test_two_clients_with_the_same_file_both_end_well(shared: WebServer, file: Path) -> None:
    processes = [begin(file, shared.url, *SLOW) for _ in range(2)]
    for process in processes:
        check(finish(process), shared, file)


def test_a_merged_file_that_was_moved_away_is_sent_again(shared: WebServer, file: Path) -> None:
    check(finish(begin(file, shared.url)), shared, file)
    (shared.merged_dir / file.name).unlink()
    ended = finish(begin(file, shared.url))
    check(ended, shared, file)
    assert ended.json["sent"] == SIZE
    ended = finish(begin(file, shared.url))
    assert (ended.code, ended.json["sent"]) == (0, 0)


def test_there_and_back_again_both_killed_on_the_way(tmp_path: Path) -> None:
    """300 MB with ``dlpool upload``, back with ``dlpool fetch``: each is killed once, and the SHA-256 is the same."""
    file, back = tmp_path / "300m.bin", tmp_path / "back.bin"
    with file.open("wb") as made:
        for number in range(300):
            made.write(number.to_bytes(8, "big") + DATA[: MIB - 8])  # no two alike
    with WebServer(tmp_path / "web", {"upload": {"enable_atomic_operations": "no"}}) as web:
        process = start("upload", file, web.url, "-q", "--chunk-size", "4M", "--limit-rate", "200M")
        wait_until(lambda: stored(web) >= 10)
        process.kill()
        finish(process)
        ended = run("upload", file, web.url, "--chunk-size", "4M", "--json")
        assert ended.code == 0, ended.err
        assert ended.json["resumed_from"] >= 40 * MIB
        process = start("fetch", ended.json["location"], back, "-q", "--limit-rate", "60M")
        wait_until(lambda: has_checkpoint(back.with_name("back.bin.part.meta")))
        process.kill()
        finish(process)
        ended = run("fetch", ended.json["location"], back, "--json")
        assert ended.code == 0, ended.err
        assert ended.json["resumed_from"] > 0
    assert sha256(back) == sha256(file)


def has_checkpoint(state: Path) -> bool:
    """Whether a download has committed bytes."""
    if not state.exists():
        return False
    return any(chunk["position"] > chunk["start"] for chunk in json.loads(state.read_text())["chunks"])


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(MIB):
            digest.update(data)
    return digest.hexdigest()
