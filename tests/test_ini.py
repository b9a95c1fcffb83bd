"""The INI file: everything wrong with it is said at once, with section and key."""

from __future__ import annotations

from pathlib import Path

import pytest

from dlpool.config import SECTIONS, NetworkSettings, RedisSettings, TransferSettings
from dlpool.config.ini import default_ini, load
from dlpool.errors import ConfigurationError
from tests.origin import File, Origin
from tests.processes import ROOT, run


def test_the_shipped_file_says_the_defaults_and_is_up_to_date() -> None:
    shipped = ROOT / "etc" / "dlpool.ini"
    assert shipped.read_text() == default_ini()
    defaults = {name: kind() for name, kind in SECTIONS.items()}
    assert load(str(shipped)) == defaults | {"redis": RedisSettings(url="embedded"), "hosts": {}}


def test_what_differs_from_the_defaults_says_so() -> None:
    [notice] = [line for line in default_ini().splitlines() if "not the default" in line]
    assert notice.startswith("# ") and notice.endswith("not the default, which is redis://localhost:6379)")
    own = default_ini({"log_dir": "/var/log/dlpool"})
    assert "not the default, which is .dlpool/log)\nlog_dir = /var/log/dlpool\n" in own


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
        "[transfer] retries = -1: it is negative", "[netwrk]: there is no such section",
        "[network] insecure = maybe: it is neither yes nor no",
    ):  # fmt: skip
        assert any(part in line for line in lines), (part, lines)


@pytest.mark.parametrize("text", ["connections = 4\n", "[transfer\n", "[transfer]\nx = 1\nx = 2\n", "[transfer]\n\xff"])
def test_what_is_no_ini_file_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "x.ini"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigurationError, match=r"x\.ini"):
        load(str(path))


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot read"):
        load(str(tmp_path / "nowhere"))


def test_an_option_goes_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "x.ini").write_text("[transfer]\nmax_file_size = 10\n")
    with Origin(File(b"x" * 100)) as origin:
        url = f"{origin.url}/f"
        assert run("fetch", url, tmp_path / "f", "--config", tmp_path / "x.ini").code == 12
        assert run("fetch", url, tmp_path / "f", "--config", tmp_path / "x.ini", "--max-file-size", "1K").code == 0
