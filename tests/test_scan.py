"""The answers of a scanner: only a complete and clean one lets a file pass, and all others are distinguished."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlpool.config import ScanSettings
from dlpool.errors import Cancelled, Infected, NotScanned, ScannerAway
from dlpool.kinds import split_clamd
from dlpool.scan import open_guard
from dlpool.scan.clamd import ClamdScanner
from dlpool.scan.command import CommandScanner, result_of
from dlpool.scan.deadline import ScanDeadline
from dlpool.scan.quarantine import Quarantine, ScanFinding
from dlpool.scan.result import CLEAN, INFECTED, TOO_LARGE, UNAVAILABLE, ScanResult, read_answer
from dlpool.scan.scannedfile import ScannedFile
from tests.clamd import CUSTOM, EICAR, FILE_MAX, MIB, STREAM_MAX, Talk, clamd, guard, played

SMALL = b"some bytes"
LARGE = bytes(3 * MIB)  # more than a socket holds
LONG_S = 60.0


@pytest.fixture(scope="module")
def scanners(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    with clamd(tmp_path_factory.mktemp("clamd")) as addresses:
        yield addresses


@contextmanager
def suspect(folder: Path, data: bytes, name: str = "file.part") -> Iterator[ScannedFile]:
    (folder / name).write_bytes(data)
    descriptor = os.open(folder / name, os.O_RDWR)
    try:
        yield ScannedFile(descriptor, folder / name, len(data))
    finally:
        os.close(descriptor)


def finding(target: str = "/nowhere/file") -> ScanFinding:
    return ScanFinding("", "download", "http://h/f", target, "alice", "job-1")


@pytest.mark.parametrize(
    "data, outcome, signature",
    [
        (b"", CLEAN, ""),
        (SMALL, CLEAN, ""),
        (LARGE, CLEAN, ""),
        (EICAR, INFECTED, "Eicar-Test-Signature"),
        (CUSTOM, INFECTED, "Dlpool.Test.Custom"),
        (LARGE + CUSTOM, INFECTED, "Dlpool.Test.Custom"),
        (bytes(FILE_MAX + 1), TOO_LARGE, None),
        (bytes(STREAM_MAX + MIB), TOO_LARGE, None),
    ],
    ids=["empty", "small", "large", "eicar", "custom", "at-the-end", "above-a-limit", "above-stream-max"],
)
@pytest.mark.parametrize("transport", [0, 1], ids=["unix", "tcp"])
def test_clamd_finds_what_its_database_has(
    scanners: tuple[str, str], transport: int, data: bytes, outcome: str, signature: str | None, tmp_path: Path
) -> None:
    with suspect(tmp_path, data) as file:
        verdict = ClamdScanner(scanners[transport]).scan(file, ScanDeadline(LONG_S))
    assert verdict.outcome == outcome
    if signature is not None:
        assert verdict.detail.startswith(signature)


ANSWERS: list[tuple[bytes, str]] = [
    (b"stream: OK\0", CLEAN),
    (b"stream: Some.Virus-1 FOUND\0", INFECTED),
    (b"stream: with spaces in it FOUND\0", INFECTED),
    (b"stream:  FOUND\0", INFECTED),
    (b"stream: Heuristics.Limits.Exceeded.MaxFileSize FOUND\0", TOO_LARGE),
    (b"INSTREAM size limit exceeded. ERROR\0", TOO_LARGE),
    (b"INSTREAM: Can't create temporary file. ERROR\0", UNAVAILABLE),
    (b"UNKNOWN COMMAND\0", UNAVAILABLE),
    (b"COMMAND READ TIMED OUT\0", UNAVAILABLE),
    (b"stream: OK", UNAVAILABLE),
    (b"stream: OK\n", UNAVAILABLE),
    (b"stream: OK\0\0", UNAVAILABLE),
    (b"stream: OK\0stream: Virus FOUND\0", UNAVAILABLE),
    (b" stream: OK\0", UNAVAILABLE),
    (b"stream: ok\0", UNAVAILABLE),
    (b"stream: NOT OK\0", UNAVAILABLE),
    (b"1: stream: OK\0", UNAVAILABLE),
    (b"other: OK\0", UNAVAILABLE),
    (b"PONG\0", UNAVAILABLE),
    (b"\0", UNAVAILABLE),
    (b"", UNAVAILABLE),
    (b"HTTP/1.1 200 OK\r\n\r\n", UNAVAILABLE),
    (b"\xff\xfe\x00\x1b[2J\0", UNAVAILABLE),
    (b"x" * 100_000, UNAVAILABLE),
    (b"stream: " + b"V" * 3000 + b" FOUND\0", INFECTED),
    (b"stream: \x1b[2J\xe2\x80\xae FOUND\0", INFECTED),
]


@pytest.mark.parametrize("answer, outcome", ANSWERS)
def test_an_answer_is_clean_in_one_form_only(answer: bytes, outcome: str, tmp_path: Path) -> None:
    taken: list[bytes] = []

    def play(talk: Talk) -> None:
        taken.append(talk.take_file())
        talk.say(answer)

    with suspect(tmp_path, SMALL) as file, played(play, tmp_path) as address:
        verdict = ClamdScanner(address).scan(file, ScanDeadline(LONG_S))
    assert taken == [SMALL]
    assert verdict.outcome == outcome
    assert len(verdict.detail) <= 300 and verdict.detail.isprintable()


@pytest.mark.parametrize("answer, outcome", ANSWERS)
def test_before_the_end_of_the_file_no_answer_is_clean(answer: bytes, outcome: str, tmp_path: Path) -> None:
    def play(talk: Talk) -> None:
        talk.take(1000)
        talk.say(answer)

    with suspect(tmp_path, LARGE) as file, played(play, tmp_path) as address:
        verdict = ClamdScanner(address).scan(file, ScanDeadline(LONG_S))
    assert verdict.outcome == (UNAVAILABLE if outcome == CLEAN else outcome)


@given(st.binary(max_size=200), st.booleans())
def test_no_other_answer_is_clean(answer: bytes, is_complete: bool) -> None:
    is_clean = read_answer(answer, is_complete=is_complete).outcome == CLEAN
    assert is_clean == (is_complete and answer == b"stream: OK\0")


def die_at_once(talk: Talk) -> None:
    talk.connection.close()


def die_in_mid_stream(talk: Talk) -> None:
    talk.take(100_000)


def reset_in_mid_stream(talk: Talk) -> None:
    talk.take(1000)
    talk.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def die_before_the_answer(talk: Talk) -> None:
    talk.take_file()


def die_within_the_answer(talk: Talk) -> None:
    talk.take_file()
    talk.say(b"stream: ")


@pytest.mark.parametrize(
    "play", [die_at_once, die_in_mid_stream, reset_in_mid_stream, die_before_the_answer, die_within_the_answer]
)
def test_a_scanner_that_dies_has_given_no_answer(play: Callable[[Talk], None], tmp_path: Path) -> None:
    with suspect(tmp_path, LARGE) as file, played(play, tmp_path) as address:
        assert ClamdScanner(address).scan(file, ScanDeadline(LONG_S)).outcome == UNAVAILABLE


def say_nothing(talk: Talk) -> None:
    talk.take_file()
    talk.take(1)  # until the client goes


def drip_an_answer(talk: Talk) -> None:
    talk.take_file()
    while True:
        talk.say(b"s")


@pytest.mark.parametrize("play", [say_nothing, drip_an_answer])
def test_a_scanner_that_is_too_slow_has_given_no_answer(play: Callable[[Talk], None], tmp_path: Path) -> None:
    with suspect(tmp_path, SMALL) as file, played(play, tmp_path) as address:
        assert ClamdScanner(address).scan(file, ScanDeadline(0.3)).outcome == UNAVAILABLE


def test_a_scanner_that_reads_nothing_is_not_waited_for(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener, suspect(tmp_path, LARGE) as file:
        listener.bind(str(tmp_path / "s"))
        listener.listen(1)
        verdict = ClamdScanner(f"unix:{tmp_path}/s").scan(file, ScanDeadline(0.3))
    assert verdict == ScanResult(UNAVAILABLE, "it did not answer within 0.3 s")


def test_a_scanner_with_a_full_queue_is_not_waited_for(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener, suspect(tmp_path, SMALL) as file:
        listener.bind(str(tmp_path / "s"))
        listener.listen(0)
        with socket.socket(socket.AF_UNIX) as other:
            other.connect(str(tmp_path / "s"))
            assert ClamdScanner(f"unix:{tmp_path}/s").scan(file, ScanDeadline(0.3)).outcome == UNAVAILABLE


def gone(folder: Path) -> str:
    return f"unix:{folder}/gone"


def no_socket(folder: Path) -> str:
    (folder / "plain").write_text("")
    return f"unix:{folder}/plain"


def nobody_listens(folder: Path) -> str:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "dead"))
    return f"unix:{folder}/dead"


def closed_port(_folder: Path) -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{taken.getsockname()[1]}"


def unknown_host(_folder: Path) -> str:
    return "tcp://no-such-host.invalid:3310"


def too_long_a_path(_folder: Path) -> str:
    return f"unix:/{'x' * 200}"


@pytest.mark.parametrize("place", [gone, no_socket, nobody_listens, closed_port, unknown_host, too_long_a_path])
def test_a_scanner_that_is_not_there_is_away(place: Callable[[Path], str], tmp_path: Path) -> None:
    with suspect(tmp_path, SMALL) as file:
        verdict = ClamdScanner(place(tmp_path)).scan(file, ScanDeadline(LONG_S))
    assert verdict.outcome == UNAVAILABLE and verdict.detail


def test_the_caller_can_end_a_scan(tmp_path: Path) -> None:
    def end() -> None:
        raise Cancelled("enough")

    for scanner in (ClamdScanner, lambda _: CommandScanner("sh -c 'sleep 1000'")):
        with suspect(tmp_path, SMALL) as file, played(say_nothing, tmp_path) as address, pytest.raises(Cancelled):
            scanner(address).scan(file, ScanDeadline(LONG_S, end))


@pytest.mark.parametrize(
    "text", ["unix:relative", "unix:", "tcp://host", "tcp://:3310", "tcp://h:0", "http://h:1", "h:1", ""]
)
def test_addresses_of_no_scanner_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="neither unix:/PATH nor tcp://HOST:PORT"):
        split_clamd(text)


def test_addresses_of_scanners() -> None:
    assert split_clamd("unix:/run/clamd") == "/run/clamd"
    assert split_clamd("tcp://h:3310") == ("h", 3310)
    assert split_clamd("tcp://[::1]:3310") == ("::1", 3310)


SHELL = "sh -c '{}' scan"


@pytest.mark.parametrize(
    "script, expected",
    [
        ("exit 0", ScanResult(CLEAN)),
        ("echo scanned; exit 0", ScanResult(CLEAN)),
        ('echo "$1: Some.Virus FOUND"; echo summary; exit 1', ScanResult(INFECTED, "Some.Virus")),
        ("exit 1", ScanResult(INFECTED, "unnamed")),
        ("echo Bad.File; exit 1", ScanResult(INFECTED, "Bad.File")),
        ("yes | head -c 1000000; exit 0", ScanResult(CLEAN)),
        ("echo no database >&2; exit 2", ScanResult(UNAVAILABLE, "it ended with exit code 2: no database")),
        ("exit 126", ScanResult(UNAVAILABLE, "it ended with exit code 126")),
        ("kill -9 $$", ScanResult(UNAVAILABLE, "it ended with signal 9")),
        ('grep -q some "$1" && exit 0; exit 3', ScanResult(CLEAN)),
        ('[ -z "$DLPOOL_SECRET" ] && exit 0; exit 3', ScanResult(CLEAN)),
        ("sleep 1000", ScanResult(UNAVAILABLE, "it did not end within 1 s")),
        ("exec >/dev/null 2>&1; sleep 1000", ScanResult(UNAVAILABLE, "it did not end within 1 s")),
    ],
)
def test_a_command_is_judged_by_its_exit_code(
    script: str, expected: ScanResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DLPOOL_SECRET", "x")
    with suspect(tmp_path, SMALL) as file:
        timeout_s = 1 if "sleep" in script else LONG_S
        assert CommandScanner(SHELL.format(script)).scan(file, ScanDeadline(timeout_s)) == expected


@pytest.mark.parametrize("command", ["/no/such/program", "/etc/passwd", "/"])
def test_a_command_that_cannot_be_started_is_away(command: str, tmp_path: Path) -> None:
    with suspect(tmp_path, SMALL) as file:
        assert CommandScanner(command).scan(file, ScanDeadline(LONG_S)).outcome == UNAVAILABLE


@settings(max_examples=30)
@given(st.integers(-64, 255), st.text(max_size=100))
def test_only_exit_code_0_is_clean(code: int, said: str) -> None:
    verdict = result_of(code, said)
    assert (verdict.outcome == CLEAN) == (code == 0)
    assert verdict.detail.isprintable()


UNCHECKED = [
    ({"clamd": "unix:/no/such/socket"}, ScannerAway),
    ({"command": "false-command-that-is-not-there"}, ScannerAway),
    ({"command": "sh -c 'exit 2'"}, ScannerAway),
    ({"command": "sh -c 'sleep 1000'", "timeout": 0.2}, ScannerAway),
    ({"command": "true", "max_size": len(SMALL) - 1}, NotScanned),
]


@pytest.mark.parametrize("own, error", UNCHECKED)
def test_a_file_that_was_not_checked_is_refused_or_passes_as_the_setting_says(
    own: dict[str, Any], error: type[Exception], tmp_path: Path
) -> None:
    told: list[str] = []

    def tell(outcome: str, /, **fields: object) -> None:
        assert fields["reason"]
        told.append(outcome)

    with suspect(tmp_path, SMALL) as file:
        with pytest.raises(error, match="was not checked for malware"):
            guard(tmp_path, **own).check(file, finding(), report=tell)
        guard(tmp_path, **own, on_unavailable="pass").check(file, finding(), report=tell)
        assert file.is_named()
    assert told == ["refused", "passed"]
    assert not (tmp_path / "quarantine").exists()


@pytest.mark.parametrize("on_unavailable", ["refuse", "pass"])
@pytest.mark.parametrize("scanner", [{"command": "sh -c 'exit 1'"}, {}])
def test_an_infected_file_is_in_quarantine_and_nowhere_else(
    scanner: dict[str, str], on_unavailable: str, scanners: tuple[str, str], tmp_path: Path
) -> None:
    own = {**(scanner or {"clamd": scanners[0]}), "on_unavailable": on_unavailable}
    with suspect(tmp_path, EICAR) as file:
        with pytest.raises(Infected) as caught:
            guard(tmp_path, **own).check(file, finding())
        assert not file.is_named() and not (tmp_path / "file.part").exists()
    [item] = Quarantine(tmp_path / "quarantine", 1 << 30).items()
    assert (caught.value.quarantine, caught.value.signature) == (item.id, item.finding.signature)
    assert item.id in str(caught.value)
    kept = tmp_path / "quarantine" / item.id
    assert kept.read_bytes() == EICAR and kept.stat().st_mode & 0o777 == 0o600


def test_without_a_scanner_there_is_no_guard() -> None:
    assert open_guard(ScanSettings()) is None
