"""The copy of a body from its connection to the part file: buffered, and spliced through a pipe."""

from __future__ import annotations

import gzip
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dlpool import errors
from dlpool.transfer import body_copy, pipe
from dlpool.transfer.pipe import MAX_PIPES
from tests.conftest import IN_FLIGHT, Authority, Fetcher, Nginx, make_data, sha256, wait_until
from tests.disks import needs_root, tmpfs
from tests.handlers import Drip, Serve, check_file, first
from tests.origin import Connection, File, Handler, Request
from tests.processes import ROOT, finish, run, start
from tests.splicing import Copying, splice_all

MIB = 1024 * 1024
SIZE = 4 * MIB + 3
DATA = make_data(SIZE)
ONE: dict[str, Any] = {"connections": 1}
SEVERAL: dict[str, Any] = {"connections": 3, "min_split_size": 256 * 1024}


@pytest.fixture(autouse=True)
def _no_pipe_stays_open() -> Iterator[None]:
    yield
    wait_until(lambda: pipe._free._value == MAX_PIPES)


def head(request: Request, length: int | None = None) -> bytes:
    """The head of an answer to a range of ``DATA``; it announces ``length`` bytes."""
    asked = request.range
    assert asked is not None
    end = min(asked.end or SIZE, SIZE)
    return (
        f'HTTP/1.1 206 Partial Content\r\nETag: "v1"\r\nContent-Range: bytes {asked.start}-{end - 1}/{SIZE}\r\n'
        f"Content-Length: {end - asked.start if length is None else length}\r\n\r\n"
    ).encode()


def body(request: Request) -> bytes:
    """The bytes of ``DATA`` that were asked for."""
    assert request.range is not None
    return DATA[request.range.start : request.range.end]


# --- the bytes ---


@pytest.mark.parametrize("options", [ONE, SEVERAL])
def test_a_file_is_the_same_in_both_ways(
    options: dict[str, Any], copying: Copying, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    fetch(f"{serve(File(DATA)).url}/f", tmp_path / "f", checksum=f"sha256:{sha256(DATA)}", **options)
    check_file(tmp_path / "f", DATA)
    assert (copying.spliced > MIB) is copying.is_spliced


def test_a_body_without_ranges_is_the_same_in_both_ways(
    copying: Copying, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    fetch(f"{serve(File(DATA, serves_ranges=False)).url}/f", tmp_path / "f")
    check_file(tmp_path / "f", DATA)
    assert (copying.spliced > MIB) is copying.is_spliced


def test_bytes_beyond_the_announced_length_are_not_written(
    copying: Copying, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    def pours(request: Request, connection: Connection) -> None:
        connection.send(head(request) + body(request) + b"x" * 100_000)

    fetch(f"{serve(pours).url}/f", tmp_path / "f", **SEVERAL)
    check_file(tmp_path / "f", DATA)


@pytest.mark.parametrize("end", ["close", "reset", "silence"])
def test_a_body_that_breaks_off_is_fetched_from_there(
    end: str, copying: Copying, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    broken = Drip(64 * 1024, 0.001, blocks=20, end=end, data=DATA)
    origin = serve(first(2, broken, File(DATA)))
    outcome = fetch(f"{origin.url}/f", tmp_path / "f", network={"read_timeout": 0.5}, **ONE)
    check_file(tmp_path / "f", DATA)
    starts = [span.start for span in origin.ranges()]
    assert starts == sorted(set(starts)), "what was received is kept"
    assert outcome.received <= SIZE + 2 * IN_FLIGHT


def test_a_trickle_is_received(copying: Copying, serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    origin = serve(Drip(997, 0.0001, blocks=500, data=DATA))
    fetch(f"{origin.url}/f", tmp_path / "f", **ONE)
    check_file(tmp_path / "f", DATA)


def test_a_pipe_full_of_small_segments_blocks_nothing(
    copying: Copying, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    """A pipe has 256 buffers, and a segment takes one, however short it is."""

    def sends_small(request: Request, connection: Connection) -> None:
        connection.send(head(request))
        data = body(request)
        for low in range(0, 200_000, 100):
            connection.send(data[low : low + 100])
        connection.send(data[200_000:])

    fetch(f"{serve(sends_small).url}/f", tmp_path / "f", **ONE)
    check_file(tmp_path / "f", DATA)


def test_urgent_data_are_no_part_of_the_body(copying: Copying, serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    """splice(2) stops before an urgent byte, recv(2) skips it."""

    def is_urgent(request: Request, connection: Connection) -> None:
        data = body(request)
        connection.send(head(request) + data[:MIB])
        connection._socket.send(b"!", socket.MSG_OOB)
        connection.send(data[MIB:])

    fetch(f"{serve(is_urgent).url}/f", tmp_path / "f", **ONE)
    check_file(tmp_path / "f", DATA)


def test_a_stolen_end_is_written_once(copying: Copying, serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    origin = serve(File(DATA, block=32 * 1024, pause_s=0.005))
    fetch(f"{origin.url}/f", tmp_path / "f", connections=4, min_split_size=MIB, checksum=f"sha256:{sha256(DATA)}")
    check_file(tmp_path / "f", DATA)


# --- stops ---


def test_a_cancel_wakes_a_connection_that_waits_for_bytes(
    copying: Copying, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    def stalls(request: Request, connection: Connection) -> None:
        connection.send(head(request) + body(request)[:MIB])
        if len(body(request)) > MIB:
            connection.wait_for_client_to_go(300.0)

    transfer = fetch.transfer(f"{serve(stalls).url}/f", tmp_path / "f", network={"read_timeout": 300.0}, **ONE)
    failed: list[BaseException] = []

    def work() -> None:
        try:
            transfer.run()
        except errors.Cancelled as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    wait_until(lambda: transfer.received >= MIB // 2)
    transfer.cancel()
    thread.join(20.0)
    assert len(failed) == 1
    assert (copying.spliced > 0) is copying.is_spliced


def test_a_killed_process_leaves_what_the_next_run_needs(serve: Serve, tmp_path: Path) -> None:
    """Bytes in the pipe are not counted as written."""
    size = 24 * MIB
    data = make_data(size)
    origin = serve(File(data, block=MIB, pause_s=0.4))
    target = tmp_path / "f"
    arguments = ("fetch", "-q", "--json", "-c", "2", f"{origin.url}/f", target)
    process = start(*arguments)
    wait_until(lambda: (tmp_path / "f.part.meta").exists())
    process.send_signal(signal.SIGKILL)
    assert finish(process).code == -signal.SIGKILL
    assert not target.exists()
    origin.handler = File(data)
    ended = run(*arguments)
    assert ended.code == 0, ended.err
    check_file(target, data)


# --- what cannot be spliced ---


def chunked(_request: Request, connection: Connection) -> None:
    connection.answer(200, {"Transfer-Encoding": "chunked"}, length=False)
    for low in range(0, SIZE, MIB):
        block = DATA[low : low + MIB]
        connection.send(b"%x\r\n%s\r\n" % (len(block), block))
    connection.send(b"0\r\n\r\n")


def without_length(_request: Request, connection: Connection) -> None:
    connection.answer(200, {"Connection": "close"}, DATA, length=False)
    connection.hang_up()


@pytest.mark.parametrize("handler", [chunked, without_length])
def test_a_body_with_another_framing_is_buffered(
    handler: Handler, monkeypatch: pytest.MonkeyPatch, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    copying = splice_all(monkeypatch)
    fetch(f"{serve(handler).url}/f", tmp_path / "f")
    check_file(tmp_path / "f", DATA)
    assert copying.spliced == 0


def test_a_body_over_tls_is_buffered(
    monkeypatch: pytest.MonkeyPatch, authority: Authority, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    copying = splice_all(monkeypatch)
    origin = serve(File(DATA), tls=authority.server_context())
    fetch(f"{origin.url}/f", tmp_path / "f", network={"cacert": str(authority.ca_file)}, **SEVERAL)
    check_file(tmp_path / "f", DATA)
    assert copying.spliced == 0


def test_a_body_that_is_decoded_is_buffered(
    monkeypatch: pytest.MonkeyPatch, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    copying = splice_all(monkeypatch)
    origin = serve(File(gzip.compress(DATA), extra={"Content-Encoding": "gzip"}, serves_ranges=False))
    fetch(f"{origin.url}/f", tmp_path / "f")
    check_file(tmp_path / "f", DATA)
    assert copying.spliced == 0


def test_a_body_that_trickles_is_buffered(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    data = DATA[: 1500 * 1024]
    origin = serve(Drip(16 * 1024, 0.03, data=data))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(body_copy, "Pipe", lambda: pytest.fail("a pipe was opened"))
        fetch(f"{origin.url}/f", tmp_path / "f", **ONE)
    check_file(tmp_path / "f", data)


def test_a_low_rate_limit_needs_no_pipe(monkeypatch: pytest.MonkeyPatch, serve: Serve, tmp_path: Path) -> None:
    monkeypatch.setattr(body_copy, "Pipe", lambda: pytest.fail("a pipe was opened"))
    fetch = Fetcher()
    client = fetch.client()
    client.rate_limit.rate = 4 * MIB  # a read takes a tenth of it at most
    fetch(f"{serve(File(DATA[: 2 * MIB])).url}/f", tmp_path / "f", client=client, **ONE)
    assert (tmp_path / "f").read_bytes() == DATA[: 2 * MIB]


@pytest.mark.parametrize("lack", ["pipes", "size", "descriptors"])
def test_without_a_large_pipe_a_body_is_buffered(
    lack: str, monkeypatch: pytest.MonkeyPatch, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    copying = splice_all(monkeypatch)
    if lack == "pipes":
        monkeypatch.setattr(pipe, "_free", threading.BoundedSemaphore(MAX_PIPES))
        for _ in range(MAX_PIPES):
            pipe._free.acquire()
    elif lack == "size":
        monkeypatch.setattr(pipe, "CAPACITY", 2**31 - 1)  # which no user gets
    else:
        monkeypatch.setattr(body_copy, "_DESCRIPTORS", 1 << 20)
    fetch(f"{serve(File(DATA)).url}/f", tmp_path / "f", **ONE)
    check_file(tmp_path / "f", DATA)
    assert copying.spliced == 0
    monkeypatch.undo()


# --- outputs ---


@needs_root
def test_a_disk_that_fills_up_is_named(copying: Copying, serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk", "6m") as disk:

        def fills(request: Request, connection: Connection) -> None:
            connection.send(head(request) + body(request)[:MIB])
            (disk / "other").write_bytes(b"x" * 4 * MIB)
            connection.send(body(request)[MIB:])

        origin = serve(first(1, fills, File(DATA)))
        with pytest.raises(errors.NoSpace, match=r"the disk is full|bytes free"):
            fetch(f"{origin.url}/f", disk / "f", preallocate="none", **ONE)
        assert not (disk / "f").exists()
        (disk / "other").unlink()
        fetch(f"{origin.url}/f", disk / "f", preallocate="none", **ONE)
        assert (disk / "f").read_bytes() == DATA


def test_a_file_above_the_limit_of_the_process_is_named(copying: Copying, serve: Serve, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    origin = serve(File(DATA))
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * MIB, hard))
    try:
        with pytest.raises(errors.LocalFault, match="larger than the file system or a limit allows"):
            Fetcher()(f"{origin.url}/f", tmp_path / "f", preallocate="none", **ONE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (tmp_path / "f").exists()


# --- the work ---


def traced(folder: Path, *arguments: object) -> Counter[str]:
    """The system calls of ``dlpool ARGUMENTS`` that move bytes: how often, and as "NAME bytes" how many."""
    log = folder / "strace"
    names = "splice,recvfrom,read,write,pwrite64,poll,sync_file_range"
    command = ["strace", "-f", "-qq", "-e", f"trace={names}", "-o", log, sys.executable, "-m", "dlpool", *arguments]
    subprocess.run(list(map(str, command)), cwd=ROOT, check=True, timeout=60, capture_output=True)
    found = Counter[str]()
    for name, result in re.findall(
        r"^\d+ +(?:<\.\.\. )?(\w+)(?:\(| resumed).* = (-?\d+)", log.read_text(), re.MULTILINE
    ):
        found[name] += 1
        found[f"{name} bytes"] += max(0, int(result))
    return found


@pytest.mark.parametrize("options", [[], ["--no-sync"]])
def test_the_bytes_of_a_large_body_do_not_enter_the_process(options: list[str], nginx: Nginx, tmp_path: Path) -> None:
    size = 64 * MIB
    (nginx.root / "large").write_bytes(make_data(size))
    calls = traced(tmp_path, "fetch", "-q", *options, f"{nginx.url}/large", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == (nginx.root / "large").read_bytes()
    (nginx.root / "large").unlink()
    assert calls["splice bytes"] > 2 * 0.8 * size, calls  # into a pipe, and out of it
    assert calls["recvfrom bytes"] < 0.2 * size, calls
    assert calls["write bytes"] + calls["pwrite64 bytes"] < 0.2 * size, calls
    assert sum(calls[name] for name in ("splice", "recvfrom", "write", "pwrite64", "poll")) < 6 * size / 128 / 1024
    if options:
        assert calls["sync_file_range"] == 0
    else:
        assert 2 <= calls["sync_file_range"] <= 8, calls
