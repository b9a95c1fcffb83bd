"""The rules for file names: a server's name is cleaned, a job's or upload's name is rejected."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import requests
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dlpool.config import PathSettings
from dlpool.errors import PolicyRefused
from dlpool.filenames import clean_file_name, name_fault
from dlpool.jobs.confinement import Confinement
from dlpool.storage.errors import UploadError
from dlpool.storage.names import check_new_names
from dlpool.transfer.target.names import safe_name
from dlpool.web.errors import http_error
from tests.origin import File, Origin
from tests.processes import run
from tests.web import WebServer, multipart

CONTROL, HIDDEN, END, DEVICE = "control characters", "cannot be seen", "ends in a dot or a space", "device on Windows"
FAULTY = {  # the phrase, and what is left of it
    "a\x01b": (CONTROL, "ab"),
    "a\x7fb": (CONTROL, "ab"),
    "a\x80b": (CONTROL, "ab"),
    "a\x9bb": (CONTROL, "ab"),
    "a\nb": (CONTROL, "ab"),
    "\x1b[2Jx": (CONTROL, "[2Jx"),
    "a\u202egpj.exe": (HIDDEN, "agpj.exe"),
    "a\u2066b\u2069": (HIDDEN, "ab"),
    "a\u200eb": (HIDDEN, "ab"),
    "a\u061cb": (HIDDEN, "ab"),
    "a\u200bb": (HIDDEN, "ab"),
    "a\ufeffb": (HIDDEN, "ab"),
    "a\u2060b": (HIDDEN, "ab"),
    "a\xadb": (HIDDEN, "ab"),
    "a\u2028b": (HIDDEN, "ab"),
    "a\u3164b": (HIDDEN, "ab"),
    "a\U000e0041b": (HIDDEN, "ab"),
    "a.": (END, "a"),
    "a ": (END, "a"),
    "a. .": (END, "a"),
    "a.txt ": (END, "a.txt"),
    "CON": (DEVICE, "_CON"),
    "nul": (DEVICE, "_nul"),
    "aux.h": (DEVICE, "_aux.h"),
    "lpt9": (DEVICE, "_lpt9"),
    "Com1.tar.gz": (DEVICE, "_Com1.tar.gz"),
    "COM\xb9": (DEVICE, "_COM\xb9"),
    "CONIN$": (DEVICE, "_CONIN$"),
    "nul .txt": (DEVICE, "_nul .txt"),
}
OLD, SAID, IN_URL = "aux\u202e.", "nul\u202e.txt\u200b", "aux.h\u202e"
OCTETS = {"Content-Type": "application/octet-stream"}
ORDINARY = [
    "a",
    "model-00001-of-00002.safetensors",
    "a b",
    "a.tar.gz",
    "..a",
    "-a",
    "~a",
    "console",
    "com10",
    "nullable.txt",
    "auxiliary",
    "con-1",
    "Größe.pdf",
    "日本語.txt",
    "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645.txt",
    "\U0001f469\u200d\U0001f4bb.png",
    "\u2764\ufe0f.png",
    "a" * 240,
    "a:b",
    "a*b?",
    "#a%20b&c=d",
]


@pytest.mark.parametrize("name", FAULTY)
def test_a_fault_is_named_and_cleaned(name: str) -> None:
    phrase, left = FAULTY[name]
    assert phrase in name_fault(name)
    assert clean_file_name(name) == left == safe_name(name)


@pytest.mark.parametrize("name", ORDINARY)
def test_an_ordinary_name_is_none(name: str) -> None:
    assert name_fault(name) == "" and clean_file_name(name) == name


def test_a_name_may_have_so_many_bytes() -> None:
    assert name_fault("ü" * 127) == "" and "longer than 255 bytes" in name_fault("ü" * 128)


@given(st.text() | st.lists(st.sampled_from([*FAULTY, ".", " ", "_", "C:", "\ud800", "x" * 200])).map("".join))
@example("con\u200b.")
@example("\u202eNUL .")
@example("x" * 240 + ". .")
@settings(max_examples=500, deadline=None)
def test_what_is_cleaned_has_no_fault(name: str) -> None:
    safe = safe_name(name)
    assert name_fault(safe) == ""
    assert not {unicodedata.category(letter) for letter in safe} & {"Cc", "Cs", "Zl", "Zp"}
    assert clean_file_name(clean_file_name(name)) == clean_file_name(name)


# --- jobs ---


@pytest.mark.parametrize("name", FAULTY)
@pytest.mark.parametrize("place", ["{}", "a/{}", "{}/a", "/ROOT/{}"])
def test_a_job_with_a_faulty_name_is_refused(name: str, place: str, tmp_path: Path) -> None:
    paths = PathSettings(
        download_dir=str(tmp_path / "nul" / "out"), state_dir=str(tmp_path / "s"), log_dir=str(tmp_path / "l")
    )
    own = Confinement(paths, owned=())
    root = own.roots[0].lstrip("/")
    with pytest.raises(PolicyRefused) as raised:
        own.target(place.format(name).replace("ROOT", root))
    assert FAULTY[name][0] in str(raised.value) and str(raised.value).isprintable()
    assert own.target(place.format("a").replace("ROOT", root)).path.is_relative_to(own.roots[0])


@pytest.mark.parametrize("name", [*ORDINARY, "../out/a", "./a", "a/", "caf\udce9"])
def test_a_job_with_an_ordinary_name_is_not(name: str, tmp_path: Path) -> None:
    paths = PathSettings(download_dir=str(tmp_path / "out"), state_dir=str(tmp_path / "s"), log_dir=str(tmp_path / "l"))
    assert str(Confinement(paths, owned=()).target(name).path).startswith(str(tmp_path / "out"))


# --- uploads ---


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebServer]:
    limits: dict[str, dict[str, Any]] = {"web": {"request_rate": "100000/s", "request_burst": 100000}}
    with WebServer(tmp_path_factory.mktemp("web"), limits) as server:
        yield server


def test_no_upload_has_a_faulty_name(server: WebServer) -> None:
    with requests.Session() as session:

        def chunk(**fields: object) -> requests.Response:
            kind, form = multipart({"file_id": "a", "chunk_index": "0", **fields}, b"x")
            return session.post(f"{server.url}/upload_chunk", data=form, headers={"Content-Type": kind}, timeout=20)

        for number, name in enumerate(name for name in FAULTY if "\n" not in name):
            merge: dict[str, Any] = {"file_id": f"m{number}", "filename": name, "total_chunks": 1}
            query: dict[str, Any] = {"file_id": "a", "chunk_index": 0, "filename": name}
            raw = session.post(f"{server.url}/upload_chunk", params=query, data=b"x", headers=OCTETS, timeout=20)
            named = [chunk(filename=name), raw, session.post(f"{server.url}/merge_chunks", json=merge, timeout=20)]
            merge |= {"filename": "a", "relative_path": f"a/{name}"}
            placed = [
                chunk(relative_path=f"{name}/a"),
                session.post(f"{server.url}/merge_chunks", json=merge, timeout=20),
            ]
            for code, answers in (("bad_filename", named), ("bad_path", placed)):
                for answer in answers:
                    assert (answer.status_code, answer.json()["code"]) == (400, code), (name, answer.text)
                    assert f"{FAULTY[name][0]}" in answer.json()["error"] and answer.json()["error"].isprintable()
        for number, name in enumerate(ORDINARY):
            assert chunk(file_id=f"o{number}", filename=name).ok, name
            done = session.post(
                f"{server.url}/merge_chunks",
                timeout=20,
                json={"file_id": f"o{number}", "filename": name, "total_chunks": 1},
            )
            assert done.ok and (server.merged_dir / name).read_bytes() == b"x", (name, done.text)


def test_files_that_have_such_names_can_be_read(server: WebServer) -> None:
    (server.merged_dir / OLD).write_bytes(b"old")
    assert requests.get(f"{server.url}/files/{quote(OLD)}", timeout=20).content == b"old"


@pytest.mark.parametrize("name", FAULTY)
def test_a_store_refuses_each(name: str) -> None:
    """Which all protocols ask, tus too."""
    for filename, path, code in ((name, "", "bad_filename"), (None, f"a/{name}", "bad_path"), ("a", name, "bad_path")):
        with pytest.raises(UploadError) as raised:
            check_new_names(filename, path)
        assert (http_error(raised.value).status, raised.value.code) == (400, code)


# --- fetch ---


def test_what_a_server_says_is_cleaned_and_what_the_user_types_is_not(tmp_path: Path) -> None:
    said = File(b"x", extra={"Content-Disposition": f"attachment; filename*=UTF-8''{quote(SAID)}"})
    with Origin(said) as origin:
        assert run("fetch", origin.url, f"{tmp_path}/said/", "--network", "any").code == 0
        said.extra.clear()
        assert run("fetch", f"{origin.url}/{quote(IN_URL)}", f"{tmp_path}/url/", "--network", "any").code == 0
        assert run("fetch", f"{origin.url}/a", tmp_path / "typed" / "aux\u202e.h", "--network", "any").code == 0
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert found == ["said/_nul.txt", "typed/aux\u202e.h", "url/_aux.h"]
