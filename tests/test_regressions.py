"""Defects that were there once: hostile framing, stolen part files, lost stops, endless retries, told secrets."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dlpool import errors
from dlpool.errors import Cancelled
from tests.conftest import Fetcher, make_data, wait_until
from tests.origin import Connection, File, Origin, Request
from tests.processes import run, start

Serve = Callable[..., Origin]

SIZE = 1_000_003
DATA = make_data(SIZE)


# --- framing ---


@pytest.mark.parametrize("coding", ["chunked ", "gzip, chunked", "identity, chunked", "xchunked", "chunked, chunked"])
@pytest.mark.parametrize("status", [200, 206])
def test_framing_that_is_not_understood_is_never_content(
    coding: str, status: int, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    def handle(request: Request, connection: Connection) -> None:
        headers = {"Transfer-Encoding": coding, "ETag": '"v1"'}
        if status == 206:
            headers["Content-Range"] = "bytes 0-999/1000"
        connection.answer(status, headers, b"3e8\r\n" + DATA[:1000] + b"\r\n0\r\n\r\n", length=False)

    origin = serve(handle)
    try:
        fetch(f"{origin.url}/f", tmp_path / "f", retries=1)
    except errors.BadAnswer:
        assert os.listdir(tmp_path) == []
    else:
        assert (tmp_path / "f").read_bytes() == DATA[:1000]


# --- part files that others touch ---


def test_a_part_file_that_another_replaced_is_never_published(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    origin = serve(File(DATA, block=16 * 1024, pause_s=0.02))
    transfer = fetch.transfer(f"{origin.url}/f", tmp_path / "f", connections=2)

    def replace() -> None:
        wait_until(lambda: transfer.progress().done > SIZE // 4)
        (tmp_path / "f.part").unlink()
        (tmp_path / "f.part").write_bytes(b"another's")

    thread = threading.Thread(target=replace)
    thread.start()
    with pytest.raises(errors.LocalFault, match="another program removed or replaced"):
        transfer.run()
    thread.join()
    assert (tmp_path / "f.part").read_bytes() == b"another's"
    assert not (tmp_path / "f").exists()


def test_a_part_name_that_still_means_the_published_file_does_not_empty_it(
    serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    """As a kill leaves it between the link to the target and the removal of the part's name."""
    (tmp_path / "f").write_bytes(b"published")
    os.link(tmp_path / "f", tmp_path / "f.part")
    (tmp_path / "keep").hardlink_to(tmp_path / "f")
    origin = serve(File(DATA))
    fetch(f"{origin.url}/f", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == DATA
    assert (tmp_path / "keep").read_bytes() == b"published"


@pytest.mark.parametrize("if_exists", ["skip", "fail", "rename"])
@pytest.mark.parametrize(
    ("way", "when", "step"),
    [
        ("rename", "kill-after", "publish:rename_noreplace:1"),
        ("rename", "kill-before", "publish:unlink:1"),
        ("link", "kill-after", "publish:link:1"),
        ("link", "kill-after", "publish:unlink:1"),
        ("link", "kill-before", "publish:unlink:2"),
    ],
)
def test_killed_around_a_publish_that_may_not_overwrite_the_next_run_is_done(
    if_exists: str, way: str, when: str, step: str, tmp_path: Path
) -> None:
    target = tmp_path / "f"
    options = ["--if-exists", if_exists, "--json", "-q", "--min-split-size", "256K"]
    with Origin(File(DATA, block=64 * 1024, pause_s=0.05)) as origin:
        arguments = ["fetch", f"{origin.url}/f", target, *options]
        environment = {**os.environ, **({"WITHOUT_NOREPLACE": "1"} if way == "link" else {})}
        killed = run(tmp_path / "log", when, step, "--", *arguments, module="tests.faults", env=environment)
        assert killed.code == -9
        ended = run(*arguments)
    assert (ended.code, ended.json["received"], ended.json["path"]) == (0, 0, str(target))
    assert target.read_bytes() == DATA
    assert sorted(os.listdir(tmp_path)) == ["f", "log"]


# --- resuming ---


@pytest.mark.parametrize("status", [400, 405, 501])
def test_a_refused_resume_keeps_what_was_committed(status: int, serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    file = File(DATA, block=16 * 1024, pause_s=0.05)
    origin = serve(file)
    with pytest.raises(errors.DeadlineExceeded):
        fetch(f"{origin.url}/f", tmp_path / "f", deadline=0.5)
    origin.handler = lambda _r, connection: connection.answer(status)
    with pytest.raises(errors.DlpoolError):
        fetch(f"{origin.url}/f", tmp_path / "f")
    file.pause_s = 0.0
    origin.handler = file
    assert fetch(f"{origin.url}/f", tmp_path / "f").resumed_from > 0
    assert (tmp_path / "f").read_bytes() == DATA


def test_a_size_from_a_head_of_another_version_is_not_believed(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    def handle(request: Request, connection: Connection) -> None:
        span = request.range
        if request.method == "HEAD":
            connection.answer(200, {"ETag": '"old"', "Content-Length": "300000"})
        elif span is None:
            connection.answer(200, {"ETag": '"new"'}, DATA)
        else:
            end = min(SIZE, span.end or SIZE)
            headers = {"ETag": '"new"', "Content-Range": f"bytes {span.start}-{end - 1}/*"}
            connection.answer(206, headers, DATA[span.start : end])

    fetch(f"{serve(handle).url}/f", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == DATA


def test_a_weak_etag_that_changes_is_a_change_where_there_is_no_date(
    serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    other = make_data(SIZE, seed=2)
    before, after = File(DATA, 'W/"1"', None), File(other, 'W/"2"', None)
    origin = serve(lambda request, connection: (before if request.number < 3 else after)(request, connection))
    fetch(f"{origin.url}/f", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == other


def test_a_416_with_another_size_in_mid_download_begins_anew(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    before, after = File(DATA), File(DATA[:70_000], '"v2"')
    origin = serve(lambda request, connection: (before if request.number < 2 else after)(request, connection))
    assert fetch(f"{origin.url}/f", tmp_path / "f").restarts == 1
    assert (tmp_path / "f").read_bytes() == DATA[:70_000]


@pytest.mark.parametrize("status", [401, 410, 204, 406, 451])
def test_head_is_only_a_hint_whatever_it_says(status: int, serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    file = File(DATA)

    def handle(request: Request, connection: Connection) -> None:
        connection.answer(status) if request.method == "HEAD" else file(request, connection)

    fetch(f"{serve(handle).url}/f", tmp_path / "f", probe="head")
    assert (tmp_path / "f").read_bytes() == DATA


# --- attempts that end ---


@pytest.mark.parametrize("how", ["always from 0", "no bytes"])
def test_parts_of_no_use_count_as_attempts(how: str, serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    data = make_data(4 * 1024 * 1024)

    def handle(request: Request, connection: Connection) -> None:
        span = request.range
        assert span is not None
        start = 0 if how == "always from 0" else span.start
        end = min(len(data), span.end or len(data))
        headers = {"ETag": '"v1"', "Content-Range": f"bytes {start}-{end - 1}/{len(data)}"}
        if how == "no bytes" and span.start > 0:
            connection.answer(206, {**headers, "Content-Length": "0"})
        else:
            connection.answer(206, headers, data[start:end])

    origin = serve(handle)
    with pytest.raises(errors.BadAnswer):
        fetch(f"{origin.url}/f", tmp_path / "f", connections=2, min_split_size=1024 * 1024)
    assert len(origin.requests) < 40


def test_connections_that_all_stall_do_not_excuse_each_other(
    serve: Serve, fetch: Fetcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dlpool.transfer.scheduler.RECENT_S", 0.5)

    def handle(request: Request, connection: Connection) -> None:
        span = request.range
        assert span is not None and span.end is not None
        end = min(SIZE, span.end)
        headers = {"ETag": '"v1"', "Content-Range": f"bytes {span.start}-{end - 1}/{SIZE}"}
        connection.answer(206, {**headers, "Content-Length": str(end - span.start)}, length=False)
        connection.wait_for_client_to_go()

    origin = serve(handle)
    with pytest.raises(errors.TimedOut):
        fetch(f"{origin.url}/f", tmp_path / "f", retries=2, network={"read_timeout": 0.3})
    assert len(origin.requests) < 40


def test_a_range_that_is_slow_to_answer_is_waited_for(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    file = File(DATA)

    def handle(request: Request, connection: Connection) -> None:
        span = request.range
        if span is not None and span.start >= SIZE * 3 // 4:
            time.sleep(4)
        file(request, connection)

    fetch(f"{serve(handle).url}/f", tmp_path / "f", retries=1)
    assert (tmp_path / "f").read_bytes() == DATA


# --- stops that arrive ---


def test_a_body_that_ends_with_its_connection_can_be_cancelled(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    def handle(_request: Request, connection: Connection) -> None:
        connection.answer(200, {"Connection": "close"}, DATA[:100_000], length=False)
        connection.wait_for_client_to_go()

    transfer = fetch.transfer(f"{serve(handle).url}/f", tmp_path / "f")
    timer = threading.Timer(0.5, transfer.cancel)
    timer.start()
    began = time.monotonic()
    with pytest.raises(Cancelled):
        transfer.run()
    assert time.monotonic() - began < 5  # the read timeout is 10
    with pytest.raises(Cancelled):  # and the lock is free again
        again = fetch.transfer(f"{serve(handle).url}/f", tmp_path / "f")
        threading.Timer(0.3, again.cancel).start()
        again.run()


def test_an_interruption_in_the_callers_thread_leaves_nobody_writing(tmp_path: Path) -> None:
    code = (
        "import sys, threading, time, signal\n"
        "from pathlib import Path\n"
        "from tests.conftest import Fetcher\n"
        "try:\n"
        "    Fetcher()(sys.argv[1], Path(sys.argv[2]), connections=3)\n"
        "except KeyboardInterrupt:\n"
        "    lanes = [t for t in threading.enumerate() if t.name.startswith('dlpool-connection')]\n"
        "    print('left:', len(lanes), Path(sys.argv[2] + '.part.meta').exists())\n"
    )
    import sys

    from tests.processes import ROOT

    file = File(DATA, block=16 * 1024, pause_s=0.05)
    with Origin(file) as origin:
        command = [sys.executable, "-c", code, f"{origin.url}/f", str(tmp_path / "f")]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        wait_until(lambda: file.sent > SIZE // 4)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=20)
    assert out == "left: 0 True\n"


def test_an_interruption_ends_a_list_that_waits_for_its_next_line(serve: Serve, tmp_path: Path) -> None:
    origin = serve(File(DATA))
    process = start("fetch", "-i", "-", tmp_path / "out", stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(f"{origin.url}/f\n")
    process.stdin.flush()
    wait_until(lambda: (tmp_path / "out" / "f").exists())
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 143
    process.communicate()


# --- secrets ---


def test_secrets_of_urls_and_headers_stay_out_of_messages_and_state(serve: Serve, tmp_path: Path) -> None:
    origin = serve(lambda _r, c: c.answer(302, {"Location": "ftp://joe:SECRET@h/x?token=SECRET"}))
    lines = (
        f"{origin.url}/f?token=SECRET\nhttp://joe:SECRET@[bad/x?y=SECRET\n"
        '{"url": "http://h/", "headers": {"Authorization": "Bearer SECRET\\n"}}\n{"url": "joe:SECRET@h"\n'
    )
    process = start("fetch", "-i", "-", tmp_path, "-v", "--json", stdin=subprocess.PIPE)
    out, err = process.communicate(lines, timeout=60)
    assert process.returncode == 14
    assert "SECRET" not in out + err
    for url in ("joe:SECRET@h/x", "ftp://joe:SECRET@h/x", "http://joe:SECRET@[bad"):
        ended = run("fetch", url, tmp_path / "f")
        assert ended.code == 2
        assert "SECRET" not in ended.err


# --- odd input ---


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["-H", "X: ✓"], 2),
        (["-A", "✓"], 2),
        (["--referer", "✓"], 2),
        (["--connect-timeout", "10000000000h"], 2),
        (["--proxy", "socks5://127.0.0.1:1"], 78),
        (["--key", "/nowhere"], 78),
    ],
)
def test_what_cannot_be_sent_or_waited_for_is_said_at_once(arguments: list[str], code: int, tmp_path: Path) -> None:
    ended = run("fetch", "http://127.0.0.1:1/f", tmp_path / "f", *arguments)
    assert ended.code == code
    assert len(ended.err.splitlines()) == 1


def test_a_list_that_is_not_utf_8_is_read_nevertheless(serve: Serve, tmp_path: Path) -> None:
    origin = serve(File(DATA))
    (tmp_path / "list").write_bytes(f"{origin.url}/f ".encode() + b"caf\xe9\n" + f"{origin.url}/g\n".encode())
    ended = run("fetch", "-i", tmp_path / "list", tmp_path / "out")
    assert ended.code == 0, ended.err
    assert sorted(os.listdir(os.fsencode(tmp_path / "out"))) == [b"caf\xe9", b"g"]


def test_an_ipv6_literal_is_fetched(fetch: Fetcher, tmp_path: Path) -> None:
    import socket

    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    with Origin(File(DATA), host="::1") as origin:
        fetch(f"http://[::1]:{origin.port}/f", tmp_path / "f")
        assert origin.requests[0].headers["host"] == f"[::1]:{origin.port}"
    assert (tmp_path / "f").read_bytes() == DATA


def test_a_batch_on_a_quiet_pipe_ends_when_nobody_reads_it(serve: Serve, tmp_path: Path) -> None:
    file = File(DATA, block=16 * 1024, pause_s=0.02)
    origin = serve(file)
    process = start("fetch", f"{origin.url}/f", tmp_path / "f", "-v")
    assert process.stderr is not None
    wait_until(lambda: file.sent > SIZE // 10)
    process.stderr.close()
    process.stderr = None
    ended = finish_without_error_text(process)
    assert ended in (0, 1)
    assert (tmp_path / "f").exists() or (tmp_path / "f.part.meta").exists()


def finish_without_error_text(process: subprocess.Popen[str]) -> int:
    process.communicate(timeout=30)
    return process.returncode


# --- our own network ---


def lose_the_network(monkeypatch: pytest.MonkeyPatch, lost: threading.Event) -> None:
    """Name look-ups answer as without a network while ``lost`` is set; the real thing needs a machine of its own."""
    import socket

    real = socket.getaddrinfo

    def look_up(*arguments: object, **options: object) -> object:
        if lost.is_set():
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return real(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)


@pytest.mark.parametrize("comes_back", [True, False])
def test_a_network_that_goes_away_uses_up_no_attempts_but_is_not_waited_for_without_end(
    comes_back: bool, serve: Serve, fetch: Fetcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dlpool.transfer.worker.NETWORK_POLL_S", 0.1)
    lost = threading.Event()
    lose_the_network(monkeypatch, lost)
    file, begun = File(DATA), threading.Event()

    def come_back() -> None:
        wait_until(lambda: bool(fetch.named("network_away")))
        lost.clear()

    def handle(request: Request, connection: Connection) -> None:
        """Half of what the first one asks for, then the network goes; whoever has a connection yet loses it, too."""
        if request.number > 1:
            begun.wait(20)
            if lost.is_set():
                connection.reset()
            file(request, connection)
            return
        head = {"Content-Length": str(SIZE), "Content-Range": f"bytes 0-{SIZE - 1}/{SIZE}", **file.headers()}
        connection.answer(206, head, DATA[: SIZE // 16], length=False)
        lost.set()
        begun.set()
        if comes_back:
            threading.Thread(target=come_back, daemon=True).start()
        connection.reset()

    transfer = fetch.transfer(f"{serve(handle).url}/f", tmp_path / "f", retries=1, network_wait=20 if comes_back else 1)
    if comes_back:
        transfer.run()
        assert (tmp_path / "f").read_bytes() == DATA
    else:
        with pytest.raises(errors.NameNotResolved):
            transfer.run()
    assert fetch.named("network_away")
