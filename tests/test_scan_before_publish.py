"""Every download and every upload is scanned for malware before it gets its name."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dlpool.cli.main import main
from dlpool.config import TransferSettings
from dlpool.engine.engine import DownloadEngine, core_of
from dlpool.errors import Cancelled, DlpoolError, Infected, NotScanned, ScannerAway
from dlpool.jobs.pushed_job import PushedJob, compose_job
from dlpool.scan.guard import Guard
from dlpool.scan.quarantine import Quarantine, QuarantinedFile
from dlpool.service.wire.frames import JobFrame
from dlpool.service.worker.job_run import settings_for_job
from dlpool.storage import executables
from dlpool.storage.disk.backend import DiskBackend
from dlpool.storage.disk.scanning import UploadScanner
from dlpool.storage.executables import executable_types
from dlpool.storage.upload_requests import FINAL, PARTIAL, TusUploadRequest
from dlpool.storage.values import UploadEvent
from dlpool.transfer.job import Job, TransferCallbacks
from dlpool.transfer.transfer import Transfer
from tests.clamd import CUSTOM, EICAR, MIB, Talk, clamd, guard, played
from tests.conftest import FAST, Fetcher, make_data, wait_until
from tests.desk import desk_of, running
from tests.fakes import Events
from tests.handlers import cut_after, first
from tests.origin import File, Origin
from tests.processes import ROOT
from tests.uploads import (
    files_below,
    leftovers,
    md5,
    merge,
    open_append,
    refused,
    send,
    send_all,
    state,
    store_in,
    uploaded,
)

CLEAN = make_data(2 * MIB + 17)
BAD = CLEAN + CUSTOM
Serve = Callable[..., Origin]
KILLED = """
import os, sys
from pathlib import Path
from tests.clamd import guard
from tests.conftest import Fetcher
from tests.test_scan_before_publish import transfer
target = Path(sys.argv[2])
own = guard(target.parent, command=f"sh -c 'kill -9 {os.getpid()}'")
transfer(Fetcher(), sys.argv[1], target, own).run()
"""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with clamd(tmp_path_factory.mktemp("clamd")) as (unix, _):
        yield unix


def kept(folder: Path) -> list[QuarantinedFile]:
    return Quarantine(folder / "quarantine", 1 << 40).items()


def transfer(
    fetch: Fetcher, url: str, target: Path, own: Guard | None, notify: Any = None, **settings: Any
) -> Transfer:
    job = Job(url, target, is_folder=target.is_dir(), id="job-1", owner="alice")
    options = replace(FAST, **{"scan": True, **settings})
    return Transfer(job, options, fetch.client(), TransferCallbacks(notify or fetch._note), guard=own)


# --- downloads ---

HANDLERS: dict[str, Callable[[bytes], Any]] = {
    "ranges": File,
    "one stream": lambda data: File(data, serves_ranges=False),
    "no validators": lambda data: File(data, etag=None, last_modified=None),
    "cut and resumed": lambda data: first(1, cut_after(1000, reset=True), File(data)),
}


@pytest.mark.parametrize("handler", HANDLERS.values(), ids=HANDLERS)
@pytest.mark.parametrize("data", [EICAR, BAD, b"<" + CUSTOM], ids=["eicar", "large", "small"])
def test_an_infected_download_gets_no_name(
    data: bytes, handler: Callable[[bytes], Any], address: str, fetch: Fetcher, serve: Serve, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    url = serve(handler(data)).url + "/f.bin"
    with pytest.raises(Infected) as caught:
        transfer(fetch, url + "?key=secret", tmp_path / "out" / "f.bin", guard(tmp_path, clamd=address)).run()
    assert os.listdir(tmp_path / "out") == []
    [item] = kept(tmp_path)
    assert (tmp_path / "quarantine" / item.id).read_bytes() == data
    assert (item.finding.source, item.finding.owner, item.finding.job_id) == (url, "alice", "job-1")
    assert (item.finding.kind, item.finding.target) == ("download", str(tmp_path / "out" / "f.bin"))
    assert caught.value.quarantine == item.id


@pytest.mark.parametrize("if_exists", ["overwrite", "rename", "skip", "fail"])
def test_an_infected_download_leaves_an_earlier_file_alone(
    if_exists: str, address: str, fetch: Fetcher, serve: Serve, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    target = tmp_path / "out" / "f"
    if if_exists in ("overwrite", "rename"):
        target.write_bytes(b"old")
    with pytest.raises(Infected):
        transfer(fetch, serve(File(BAD)).url, target, guard(tmp_path, clamd=address), if_exists=if_exists).run()
    assert os.listdir(tmp_path / "out") == (["f"] if if_exists in ("overwrite", "rename") else [])


@pytest.mark.parametrize("handler", HANDLERS.values(), ids=HANDLERS)
def test_a_clean_download_is_published(
    handler: Callable[[bytes], Any], address: str, fetch: Fetcher, serve: Serve, tmp_path: Path
) -> None:
    transfer(fetch, serve(handler(CLEAN)).url, tmp_path / "f", guard(tmp_path, clamd=address)).run()
    assert (tmp_path / "f").read_bytes() == CLEAN
    assert len(fetch.named("file_scanned")) == 1 and fetch.named("file_infected") == []
    assert not (tmp_path / "quarantine").exists()


def test_without_scan_nobody_is_asked(fetch: Fetcher, serve: Serve, tmp_path: Path) -> None:
    own = guard(tmp_path, clamd="unix:/no/such/socket")
    transfer(fetch, serve(File(BAD)).url, tmp_path / "f", own, scan=False).run()
    assert (tmp_path / "f").read_bytes() == BAD and fetch.named("file_scanned") == []


def test_without_a_scanner_nothing_is_requested(fetch: Fetcher, serve: Serve, tmp_path: Path) -> None:
    origin = serve(File(CLEAN))
    with pytest.raises(NotScanned, match="set clamd or command"):
        transfer(fetch, origin.url, tmp_path / "f", None).run()
    assert origin.requests == [] and os.listdir(tmp_path) == []


def test_a_complete_download_waits_for_its_scanner(address: str, fetch: Fetcher, serve: Serve, tmp_path: Path) -> None:
    origin = serve(File(CLEAN))
    with pytest.raises(ScannerAway):
        transfer(fetch, origin.url, tmp_path / "f", guard(tmp_path, clamd="unix:/no/such/socket")).run()
    assert not (tmp_path / "f").exists()
    requests = len(origin.requests)
    outcome = transfer(fetch, origin.url, tmp_path / "f", guard(tmp_path, clamd=address)).run()
    assert (tmp_path / "f").read_bytes() == CLEAN
    assert outcome.resumed_from == len(CLEAN) and len(origin.requests) <= requests + 1


def test_a_file_that_is_too_large_fails_for_good(fetch: Fetcher, serve: Serve, tmp_path: Path) -> None:
    with pytest.raises(NotScanned, match="max_size"):
        transfer(fetch, serve(File(CLEAN)).url, tmp_path / "f", guard(tmp_path, command="true", max_size=100)).run()
    assert not (tmp_path / "f").exists()


def test_a_download_can_be_cancelled_while_it_is_scanned(fetch: Fetcher, serve: Serve, tmp_path: Path) -> None:
    def wait(talk: Talk) -> None:
        talk.take_file()
        download.cancel()
        talk.take(1)

    with played(wait, tmp_path) as place:
        download = transfer(fetch, serve(File(CLEAN)).url, tmp_path / "f", guard(tmp_path, clamd=place))
        with pytest.raises(Cancelled):
            download.run()
    assert download.progress().phase == "scanning" and not (tmp_path / "f").exists()


def test_the_target_is_locked_and_nameless_while_it_is_scanned(fetch: Fetcher, serve: Serve, tmp_path: Path) -> None:
    seen: list[list[str]] = []

    def look(talk: Talk) -> None:
        talk.take_file()
        seen.append(os.listdir(tmp_path / "out"))
        talk.say(b"stream: OK\0")

    (tmp_path / "out").mkdir()
    with played(look, tmp_path) as place:
        transfer(fetch, serve(File(CLEAN)).url, tmp_path / "out" / "f", guard(tmp_path, clamd=place)).run()
    assert "f" not in seen[0] and "f.part" in seen[0]


@pytest.mark.parametrize("data", [CLEAN, BAD], ids=["clean", "infected"])
def test_a_download_that_was_killed_in_its_scan_is_scanned_again(
    data: bytes, address: str, fetch: Fetcher, serve: Serve, tmp_path: Path
) -> None:
    origin = serve(File(data))
    command = [sys.executable, "-c", KILLED, origin.url, str(tmp_path / "f")]
    assert (
        subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=60).returncode == -signal.SIGKILL
    )
    assert not (tmp_path / "f").exists() and (tmp_path / "f.part").exists()
    requests = len(origin.requests)
    again = transfer(fetch, origin.url, tmp_path / "f", guard(tmp_path, clamd=address))
    if data == CLEAN:
        assert again.run().resumed_from == len(data) and (tmp_path / "f").read_bytes() == data
    else:
        with pytest.raises(Infected):
            again.run()
        assert len(kept(tmp_path)) == 1 and os.listdir(tmp_path) == ["quarantine"]
    assert len(origin.requests) <= requests + 1


@pytest.mark.parametrize("wanted", [False, True])
@pytest.mark.parametrize("usual", [False, True])
def test_a_job_can_ask_for_a_scan_and_not_forbid_one(usual: bool, wanted: bool) -> None:
    frame = JobFrame("a.1", "a", 1, 0.0, 1, "http://h/", "f", "t", scan=wanted)
    assert settings_for_job(TransferSettings(scan=usual), frame).scan == (usual or wanted)
    job = PushedJob.parse(compose_job("http://h/", "f", scan=wanted))
    assert job.scan == wanted
    assert (job.digest == PushedJob.parse(compose_job("http://h/", "f")).digest) == (not wanted)


def test_the_engine_reads_the_section(address: str, serve: Serve, tmp_path: Path) -> None:
    ini = tmp_path / "dlpool.ini"
    ini.write_text(
        f"[scan]\nclamd = {address}\nquarantine_dir = {tmp_path}/quarantine\n[transfer]\nscan = yes\n"
        "[network]\nnetwork = any\n"
    )
    with DownloadEngine.from_config(ini) as engine:
        assert engine.download(serve(File(CLEAN)).url, tmp_path, "a").result(60) == tmp_path / "a"
        with pytest.raises(Infected):
            engine.download(serve(File(BAD)).url, tmp_path, "b").result(60)
        assert (
            core_of(engine).look_up_target(Job(f"{serve(File(BAD)).url}/name", tmp_path, is_folder=True))
            == tmp_path / "name"
        )
    assert (tmp_path / "a").read_bytes() == CLEAN and not (tmp_path / "b").exists()
    assert len(kept(tmp_path)) == 1


def test_fetch_says_what_was_found(
    address: str, serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ini = tmp_path / "dlpool.ini"
    ini.write_text(f"[scan]\nclamd = {address}\nquarantine_dir = {tmp_path}/quarantine\n[network]\nnetwork = any\n")
    command = ["fetch", f"{serve(File(EICAR)).url}/f", str(tmp_path / "f"), "--config", str(ini), "--scan"]
    assert main(command) == 16
    [item] = kept(tmp_path)
    assert f"infected: Eicar-Test-Signature.UNOFFICIAL; it is in quarantine as {item.id}" in capsys.readouterr().err
    assert main([*command[:3], "--scan"]) == 78
    assert "scan = yes (option --scan) needs clamd or command in [scan]" in capsys.readouterr().err


@pytest.fixture(scope="module")
def service(address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("service")
    scan = {"clamd": address, "quarantine_dir": folder / "quarantine", "max_size": 4 * MIB}
    with running(folder, scan=scan, supervisor={"max_concurrent_downloads": 2}) as both:
        yield folder, both


def test_a_service_scans_the_jobs_that_want_it(service: Any) -> None:
    folder, both = service
    with desk_of(*both) as desk:
        desk.serve(File(BAD))
        unscanned, infected = desk.push("unscanned"), desk.push("infected", scan=True, id="wants")
        desk.client.wait_for(unscanned)
        said = desk.client.wait_for_failure(infected)["error_message"]
        [item] = kept(folder)
        assert said == f"the file is infected: Dlpool.Test.Custom.UNOFFICIAL; it is in quarantine as {item.id}"
        assert (item.finding.job_id, item.finding.kind) == ("wants", "download")
        assert (desk.folder / "unscanned").read_bytes() == BAD and not (desk.folder / "infected").exists()
        assert desk.client.ends("wants") == 1
        events = [fields for _, fields in desk.client.redis.xrange(desk.client.keys.events)]
        [failed] = [one for one in events if one[b"event"] == b"job_failed" and one[b"id"] == b"wants"]
        assert json.loads(failed[b"note"])["label"] == "infected"
        desk.serve(File(CLEAN))
        desk.client.wait_for(desk.push("clean", scan=True))
        assert (desk.folder / "clean").read_bytes() == CLEAN
        supervisor, _ = both
        wait_until(lambda: len(supervisor.events("file_infected")) == 1)


# --- uploads ---


def screening(folder: Path, told: Events | None = None, **settings: object) -> UploadScanner:
    return UploadScanner(guard(folder, **settings), Events() if told is None else told)


def by_chunks(store: DiskBackend, data: bytes) -> None:
    send_all(store, [data[:1000], data[1000:]] if len(data) > 1000 else [data], owner="alice")
    merge(store, 2 if len(data) > 1000 else 1, owner="alice")


def by_tus(store: DiskBackend, data: bytes) -> None:
    file_id = grown(store, data, "")
    store.tus.finish(file_id, "alice")


def by_parts(store: DiskBackend, data: bytes) -> None:
    parts = [grown(store, part, PARTIAL) for part in (data[:10], data[10:])]
    wish = TusUploadRequest("alice", len(data), "file.bin", concat=FINAL)
    store.concatenator.concatenate(wish, parts)


def grown(store: DiskBackend, data: bytes, concat: str) -> str:
    file_id = store.tus.create(TusUploadRequest("alice", len(data), "" if concat else "file.bin", concat=concat))
    with open_append(store, file_id, "alice", 0, size=len(data)) as appending:
        appending.write(data)
        appending.commit()
    return file_id


@pytest.mark.parametrize("way", [by_chunks, by_tus, by_parts])
@pytest.mark.parametrize("data", [EICAR, BAD], ids=["eicar", "large"])
def test_an_infected_upload_gets_no_name(
    data: bytes, way: Callable[[DiskBackend, bytes], None], address: str, tmp_path: Path
) -> None:
    told = Events()
    store = store_in(tmp_path, screening(tmp_path, told, clamd=address))
    with refused(422, "infected") as refusal:
        way(store, data)
    assert files_below(tmp_path / "merged") == []
    [item] = kept(tmp_path)
    assert (tmp_path / "quarantine" / item.id).read_bytes() == data
    assert (item.finding.kind, item.finding.owner) == ("upload", "alice")
    assert item.finding.target == str(tmp_path / "merged" / "file.bin")
    assert refusal.details == {"signature": item.finding.signature, "quarantine": item.id}
    assert [outcome for outcome, _ in told] == ["infected"]


@pytest.mark.parametrize("way", [by_chunks, by_tus, by_parts])
def test_a_clean_upload_is_published(way: Callable[[DiskBackend, bytes], None], address: str, tmp_path: Path) -> None:
    told = Events()
    way(store_in(tmp_path, screening(tmp_path, told, clamd=address)), CLEAN)
    assert (tmp_path / "merged" / "file.bin").read_bytes() == CLEAN
    assert [outcome for outcome, _ in told] == ["clean"]


def test_an_infected_upload_has_failed_and_fills_no_disk(address: str, tmp_path: Path) -> None:
    heard: list[UploadEvent] = []
    plain = store_in(tmp_path)
    store = DiskBackend(plain.settings, heard.append, scanner=screening(tmp_path, clamd=address))
    for _ in range(2):
        send_all(store, [EICAR[:20], EICAR[20:]])
        with refused(422, "infected"):
            merge(store, 2)
        assert (state(store), uploaded(store), leftovers(store)) == ("failed", [], [])
        with refused(400, "chunks_missing"):
            merge(store, 2)
    failed = [event for event in heard if event.name == "upload_failed" and event.details["label"] == "infected"]
    assert [event.details["quarantine"] for event in failed] == [item.id for item in kept(tmp_path)]
    assert failed[0].details["signature"] == "Eicar-Test-Signature.UNOFFICIAL"
    send_all(store, [b"clean ", b"now"])
    assert merge(store, 2).md5 == md5(b"clean now")


@pytest.mark.parametrize(
    "own, status, code",
    [
        ({"clamd": "unix:/no/such/socket"}, 503, "scanner_away"),
        ({"command": "sh -c 'exit 2'"}, 503, "scanner_away"),
        ({"command": "true", "max_size": 5}, 413, "not_scanned"),
    ],
)
def test_an_upload_that_was_not_checked_can_be_merged_later(
    own: dict[str, Any], status: int, code: str, tmp_path: Path
) -> None:
    store = store_in(tmp_path, screening(tmp_path, **own))
    send_all(store, [b"some ", b"bytes"])
    with refused(status, code):
        merge(store, 2)
    assert files_below(tmp_path / "merged") == [] and uploaded(store) == [0, 1]
    later = store_in(tmp_path, screening(tmp_path, **own, on_unavailable="pass"))
    assert merge(later, 2).md5 == md5(b"some bytes")


def test_an_upload_that_was_killed_in_its_scan_is_scanned_again(address: str, tmp_path: Path) -> None:
    store = store_in(tmp_path, screening(tmp_path, clamd=address))
    send_all(store, [EICAR[:20], EICAR[20:]])
    child = os.fork()
    if child == 0:
        merge(store_in(tmp_path, screening(tmp_path, command=f"sh -c 'kill -9 {os.getpid()}'")), 2)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert [name for name in files_below(tmp_path / "merged") if ".merging" in name]
    with refused(422, "infected"):
        merge(store, 2)
    assert files_below(tmp_path / "merged") == [] and len(kept(tmp_path)) == 1


# --- kinds of content that are refused ---

PE = b"MZ" + bytes(58) + (64).to_bytes(4, "little") + b"PE\0\0" + bytes(100)
PROGRAMS = {
    "ELF": b"\x7fELF\2\1\1" + bytes(9),
    "ELF of 32 bits, big-endian": b"\x7fELF\1\2\1" + bytes(100),
    "PE": PE,
    "PE whose header comes later": PE[:60] + (100_000).to_bytes(4, "little") + bytes(5000),
    "DOS": b"MZ" + bytes(200),
    "DOS with the other mark": b"ZM" + bytes(200),
    "PE that is a shell script too": b"MZqFpD='\n" + bytes(100),
    "PE with a head of letters": b"MZ" + b"A" * 5000,
    "Mach-O 32": b"\xce\xfa\xed\xfe" + bytes(20),
    "Mach-O 64": b"\xcf\xfa\xed\xfe" + bytes(20),
    "Mach-O big-endian": b"\xfe\xed\xfa\xce" + bytes(20),
    "Mach-O 64 big-endian": b"\xfe\xed\xfa\xcf" + bytes(20),
    "Mach-O for two machines": b"\xca\xfe\xba\xbe\0\0\0\2" + bytes(20),
    "Mach-O for two machines, 64": b"\xca\xfe\xba\xbf\0\0\0\2" + bytes(20),
    "Java class": b"\xca\xfe\xba\xbe\0\0\0\x34" + bytes(20),
    "Android": b"dex\n035\0" + bytes(20),
    "WebAssembly": b"\0asm\1\0\0\0",
    "shell script": b"#!/bin/sh\necho\n",
    "script without a line end": b"#! /usr/bin/env python3",
    "script after a mark": b"\xef\xbb\xbf#!/bin/sh\n",
    "script after empty lines": b"\n \t\r\n#!/bin/sh\n",
    "script in UTF-16": "\ufeff#!/bin/sh\n".encode("utf-16-le"),
    "script in UTF-16, big-endian": "#!/bin/sh\n".encode("utf-16-be"),
    "PHP": b"<?PHP echo 1;",
    "PHP after spaces": b"  \n<?php echo 1;",
    "batch": b"@ECHO OFF\r\ndel *",
    "script host": b"<job><script>",
    "shortcut": b"L\0\0\0\x01\x14\x02\0\0\0\0\0\xc0\0\0\0\0\0\0F" + bytes(20),
}
HARMLESS = {
    "empty": b"",
    "text": b"just text, and #!/bin/sh later\n",
    "text that begins with MZ": b"MZ,intensity\n100.1,20\n",
    "PNG": b"\x89PNG\r\n\x1a\n" + bytes(50),
    "gzip": b"\x1f\x8b\x08" + bytes(20),
    "zip": b"PK\x03\x04" + bytes(26),
    "PDF": b"%PDF-1.4\n",
    "XML": b"<?xml version='1.0'?><a/>",
    "HTML": b"<!DOCTYPE html><p>",
    "zeros": bytes(100),
    "random": make_data(5000),
}


@pytest.mark.parametrize("head", PROGRAMS.values(), ids=PROGRAMS)
@pytest.mark.parametrize("settings", ["!executable", "!executable,image/png", "application/zip,!executable"])
def test_programs_are_refused(settings: str, head: bytes, tmp_path: Path) -> None:
    store = store_in(tmp_path, allowed_content_types=settings)
    with refused(415, "content_not_allowed"):
        send(store, 0, head)


@pytest.mark.parametrize("head", HARMLESS.values(), ids=HARMLESS)
def test_other_files_are_no_programs(head: bytes, tmp_path: Path) -> None:
    assert executable_types(head) == set()
    store = store_in(tmp_path, allowed_content_types="!executable")
    send(store, 0, head)
    assert merge(store, 1).size == len(head)


@pytest.mark.parametrize("head", PROGRAMS.values(), ids=PROGRAMS)
def test_a_program_in_pieces_is_refused_by_the_merge(head: bytes, tmp_path: Path) -> None:
    store = store_in(tmp_path, allowed_content_types="!executable")
    pieces = [head[:1], head[1:]]
    for index, piece in enumerate(pieces):
        send(store, index, piece)
    with refused(415, "content_not_allowed"):
        merge(store, 2)
    assert files_below(tmp_path / "merged") == []


@pytest.mark.parametrize(
    "allowed, head, is_taken",
    [
        ("!image/png", HARMLESS["PNG"], False),
        ("!image/*", HARMLESS["PNG"], False),
        ("!image/*", HARMLESS["gzip"], True),
        ("image/*", HARMLESS["PNG"], True),
        ("image/*", HARMLESS["gzip"], False),
        ("image/*,!image/png", HARMLESS["PNG"], False),
        ("!application/x-elf", PROGRAMS["ELF"], False),
        ("!application/x-elf", PROGRAMS["PE"], True),
        ("!text/plain", b"text", False),
        ("!Application/X-ELF", PROGRAMS["ELF"], False),
        ("application/x-elf", PROGRAMS["ELF"], True),
    ],
)
def test_kinds_are_taken_and_refused_by_name(allowed: str, head: bytes, is_taken: bool, tmp_path: Path) -> None:
    store = store_in(tmp_path, allowed_content_types=allowed)
    if is_taken:
        send(store, 0, head)
        return
    with refused(415, "content_not_allowed"):
        send(store, 0, head)


@pytest.mark.parametrize(
    "text", ["executable", "!", "!!executable", "png", "image/", "/png", "image/**", "a b/c", "x,,y"]
)
def test_lists_without_a_meaning_are_refused(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "dlpool.ini").write_text(f"[upload]\nallowed_content_types = {text}\n")
    assert main(["config", "check", "-c", str(tmp_path / "dlpool.ini")]) == 78
    assert "allowed_content_types" in capsys.readouterr().err


def test_the_quarantine_is_apart_from_what_clients_fetch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "dlpool.ini").write_text(f"[upload]\nmerged_dir = {tmp_path}\n[scan]\nquarantine_dir = {tmp_path}/q\n")
    assert main(["config", "check", "-c", str(tmp_path / "dlpool.ini")]) == 78
    assert "overlap" in capsys.readouterr().err


def test_all_errors_of_scans_are_told_apart() -> None:
    kinds: list[type[DlpoolError]] = [Infected, NotScanned, ScannerAway]
    assert len({kind.label for kind in kinds}) == len({kind.exit_code for kind in kinds}) == 3


@pytest.mark.parametrize(("tail", "is_windows"), [(b"PE\0\0", True), (b"PE\0\1", False), (b"PE\0", True)])
def test_a_header_at_the_very_end_of_the_first_bytes_is_compared(tail: bytes, is_windows: bool) -> None:
    """One that reaches beyond them is taken for a PE header."""
    head = b"MZ" + bytes(58) + (64).to_bytes(4, "little") + tail
    assert executable_types(head) == {executables.PE if is_windows else executables.DOS}
