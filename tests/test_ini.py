"""The INI file: everything wrong with it is said at once, with section and key."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dlpool.config import SECTIONS, NetworkSettings, RedisSettings, TransferSettings
from dlpool.config.layers import load
from dlpool.config.sample import default_ini
from dlpool.errors import ConfigurationError
from tests.origin import File, Origin
from tests.processes import ROOT, run


def test_the_shipped_file_says_the_defaults_and_is_up_to_date() -> None:
    shipped = ROOT / "etc" / "dlpool.ini"
    assert shipped.read_text() == default_ini()
    defaults = {name: kind() for name, kind in SECTIONS.items()}
    differs = {"redis": RedisSettings(url="auto"), "network": NetworkSettings(network="public-only"), "hosts": {}}
    assert load(str(shipped)) == defaults | differs


def test_what_differs_from_the_defaults_says_so() -> None:
    notices = [line for line in default_ini().splitlines() if "; default: " in line]
    assert all(line.startswith("# ") for line in notices)
    defaults = [line.partition("; default: ")[2] for line in notices]
    assert defaults == ["redis://localhost:6379)", "no-metadata)"]
    own = default_ini({"log_dir": "/var/log/dlpool"})
    assert "; default: .dlpool/log)\nlog_dir = /var/log/dlpool\n" in own


def test_values_are_parsed_and_the_rest_keeps_its_defaults(tmp_path: Path) -> None:
    (tmp_path / "x.ini").write_text("[transfer]\nlimit_rate = 2M\nsync = no\n[network]\nconnect_timeout = 500ms\n")
    settings = load(str(tmp_path / "x.ini"))
    assert settings["transfer"] == TransferSettings(limit_rate=2 * 1024 * 1024, sync=False)
    assert settings["network"] == NetworkSettings(connect_timeout=0.5)


def test_all_errors_are_said_at_once_with_section_and_key(tmp_path: Path) -> None:
    path = tmp_path / "x.ini"
    path.write_text(
        "[transfer]\nconnections = many\nconections = 4\nretries = -1\n[netwrk]\n[network]\ninsecure=maybe\n"
    )
    ended = run("fetch", "http://h/", "--config", path)
    assert ended.code == 78
    lines = ended.err.splitlines()
    assert len(lines) == 5
    for part in (
        "[transfer] connections = many: it is neither a whole number nor auto",
        "[transfer] conections: there is no such key",
        "[transfer] retries = -1: it is negative",
        "[netwrk]: there is no such section",
        "[network] insecure = maybe: it is neither yes nor no",
    ):
        assert any(part in line for line in lines), (part, lines)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"connections = 4\n", " is not an INI file: line 1: 'connections...' comes before the first [section]"),
        (b"[transfer\n", " is not an INI file: line 1: '[transfer' comes before the first [section]"),
        (
            b"[transfer]\nretries 5\n",
            " is not an INI file: line 2: 'retries...' is neither a [section] nor NAME = VALUE",
        ),
        (b"[transfer]\nretries = 1\nretries = 2\n", " is not an INI file: line 3: [transfer] retries is given twice"),
        (b"[transfer]\nRetries = 1\nretries = 2\n", " is not an INI file: line 3: [transfer] retries is given twice"),
        (b"[redis]\n[transfer]\n[redis]\n", " is not an INI file: line 3: the section [redis] is there twice"),
        (b"[transfer]\n# \xff\n", " is not an INI file: line 2: not UTF-8: save it in that encoding"),
        ("[transfer]\nretries = 1\n".encode("utf-16-le"), " is not an INI file: it has NUL characters"),
        (b"[transfer]\n\0\n", " is not an INI file: it has NUL characters"),
        (b"\xff\xfe[\0t\0r", " is not an INI file: line 1: not UTF-8"),
        (b'{"port": }', ":1: it begins like JSON, but is not valid JSON"),
        (b'["transfer"]', " is JSON, but not an object"),
        (b"transfer:\n  retries: 5\n", " is not an INI file: line 1: 'transfer...' comes before the first [section]"),
    ],
)
def test_what_is_no_ini_file_is_one_sentence_with_its_line(data: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "x.ini"
    path.write_bytes(data)
    with pytest.raises(ConfigurationError) as caught:
        load(str(path))
    assert str(caught.value).startswith(f"{path}{said}")
    assert "\n" not in str(caught.value)


def test_an_invalid_line_is_shown_in_part(tmp_path: Path) -> None:
    (tmp_path / "x.ini").write_text("[redis]\npassword hunter2\n")
    with pytest.raises(ConfigurationError) as caught:
        load(str(tmp_path / "x.ini"))
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_byte_order_mark_says_the_encoding(encoding: str, end: str, tmp_path: Path) -> None:
    text = "[transfer]\n# \N{SNOWMAN}\nretries = 7\nsync = no\n".replace("\n", end)
    (tmp_path / "x.ini").write_bytes(text.encode(encoding))
    assert load(str(tmp_path / "x.ini"))["transfer"] == TransferSettings(retries=7, sync=False)


@pytest.mark.parametrize("program", ["dlpool", "dlpool.cli.web", "dlpool.cli.supervisor"])
@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("absent", "No such file or directory"),
        ("folder", "it is a folder, not a file with settings"),
        ("closed", "Permission denied"),
        ("below a file", "Not a directory"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_sentence(kind: str, said: str, program: str, tmp_path: Path) -> None:
    path = tmp_path / "x.ini"
    if kind == "folder":
        path.mkdir()
    elif kind == "closed":
        path.touch(0o000)
        if os.access(path, os.R_OK):
            pytest.skip("root may read it")
    elif kind == "below a file":
        path.touch()
        path = path / "y.ini"
    arguments = ["config", "check", "-c", path] if program == "dlpool" else ["-c", path]
    ended = run(*arguments, module=program)
    name = {"dlpool": "dlpool", "dlpool.cli.web": "dlpool-web"}.get(program, "dlpool-supervisor")
    assert (ended.code, ended.err) == (78, f"{name}: cannot read {path}: {said}\n")


# --- limits of times ---


@pytest.mark.parametrize(
    ("section", "name", "milliseconds"),
    [
        ("upload", "retry_initial_delay", 2000),
        ("upload", "cleanup_interval", 3_600_000),
        ("upload", "task_expiry", 604_800_000),
        ("downloader", "retry_delay", 5000),
        ("downloader", "timeout", 30_000),
        ("downloader", "progress_interval", 500),
        ("transfer", "retry_delay", 1000),
        ("transfer", "retry_max_delay", 60_000),
        ("transfer", "max_retry_after", 900_000),
        ("transfer", "network_wait", 300_000),
        ("transfer", "deadline", 3_600_000),
        ("network", "connect_timeout", 10_000),
        ("network", "read_timeout", 30_000),
        ("network", "low_speed_time", 30_000),
        ("supervisor", "lease", 30_000),
        ("supervisor", "grace", 15_000),
        ("supervisor", "job_retry_delay", 5000),
        ("supervisor", "job_retry_max_delay", 900_000),
        ("supervisor", "locked_delay", 5000),
        ("supervisor", "fault_delay", 30_000),
        ("supervisor", "worker_timeout", 30_000),
        ("logging", "progress_interval", 10_000),
        ("logging", "archive_timeout", 600_000),
        ("logging", "archive_retry_delay", 60_000),
        ("web", "body_timeout", 30_000),
        ("web", "head_timeout", 10_000),
    ],
)
def test_a_time_that_was_meant_in_milliseconds_is_refused_with_its_unit(
    section: str, name: str, milliseconds: int, tmp_path: Path
) -> None:
    """The default of each, as who has another program's settings would write it."""
    (tmp_path / "x.ini").write_text(f"[{section}]\n{name} = {milliseconds}\n")
    with pytest.raises(ConfigurationError) as caught:
        load(str(tmp_path / "x.ini"))
    hint = f"without a unit it is in seconds; milliseconds are {milliseconds}ms"
    assert f"[{section}] {name} = {milliseconds}: it is " in str(caught.value)
    assert hint in str(caught.value)
    (tmp_path / "x.ini").write_text(f"[{section}]\n{name} = {milliseconds}ms\n")
    assert getattr(load(str(tmp_path / "x.ini"))[section], name) == milliseconds / 1000


def test_an_option_goes_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "x.ini").write_text("[transfer]\nmax_file_size = 10\n")
    with Origin(File(b"x" * 100)) as origin:
        url = f"{origin.url}/f"
        assert run("fetch", url, tmp_path / "f", "--config", tmp_path / "x.ini").code == 12
        assert run("fetch", url, tmp_path / "f", "--config", tmp_path / "x.ini", "--max-file-size", "1K").code == 0
