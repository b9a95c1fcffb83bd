"""The ``config.json`` of the Go upload server: which settings it means, and how it becomes an INI file."""

from __future__ import annotations

import json
import os
import string
from pathlib import Path
from typing import Any

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from dlpool import DownloadEngine
from dlpool.cli.conversion import ini_lines, read_go_settings
from dlpool.config import UploadSettings
from dlpool.config.ini import checked
from dlpool.config.ini import read_settings_file as read_ini
from dlpool.config.layers import EffectiveSettings, load_effective
from dlpool.errors import ConfigurationError
from tests.processes import ROOT, Ended, run
from tests.web import WebServer

GIB, MIB = 1 << 30, 1 << 20
REPORTED = {
    "upload_dir": "./upload",
    "merged_dir": "./merged",
    "port": "18101",
    "max_file_size": 10 * GIB,
    "max_chunk_size": 100 * MIB,
    "cleanup_interval": 3_600_000,
    "retry_max_attempts": 5,
    "retry_initial_delay": 2000,
    "concurrent_uploads": 3,
    "enable_integrity_check": True,
    "enable_atomic_operations": False,
}


def written(folder: Path, value: object, name: str = "config.json") -> Path:
    path = folder / name
    path.write_text(value if isinstance(value, str) else json.dumps(value, indent=2))
    return path


def loaded(path: Path) -> EffectiveSettings:
    return load_effective(str(path), environment={})


def problem(path: Path) -> str:
    with pytest.raises(ConfigurationError) as caught:
        loaded(path)
    assert caught.value.exit_code == 78
    return str(caught.value)


def outside() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("DLPOOL_")}


# --- what it means ---


def test_all_keys_of_that_server_are_read_in_its_units(tmp_path: Path) -> None:
    found = loaded(written(tmp_path, REPORTED))
    assert found.settings.upload == UploadSettings(
        upload_dir="./upload",
        merged_dir="./merged",
        port=18101,
        max_file_size=10 * GIB,
        max_chunk_size=100 * MIB,
        cleanup_interval=3600.0,
        retry_max_attempts=5,
        retry_initial_delay=2.0,
        concurrent_uploads=3,
        enable_integrity_check=True,
        enable_atomic_operations=False,
    )
    assert found.values["upload", "port"].origin == f"{tmp_path}/config.json:4"


@pytest.mark.parametrize(
    ("key", "value", "name", "expected"),
    [
        ("port", 18222, "port", 18222),
        ("port", "18222", "port", 18222),
        ("port", ":18222", "port", 18222),
        ("Port", " 18222 ", "port", 18222),
        ("uploadDir", "/srv/u", "upload_dir", "/srv/u"),
        ("UploadDir", "/srv/u", "upload_dir", "/srv/u"),
        ("MERGED_DIR", "m/\N{SNOWMAN}", "merged_dir", "m/\N{SNOWMAN}"),
        ("max-file-size", 1, "max_file_size", 1),
        ("maxFileSize", 1.073741824e10, "max_file_size", 10 * GIB),
        ("max_file_size", "10GB", "max_file_size", 10 * GIB),
        ("max_file_size", "1073741824", "max_file_size", GIB),
        ("max_chunk_size", "50M", "max_chunk_size", 50 * MIB),
        ("retry_initial_delay", 500, "retry_initial_delay", 0.5),
        ("retry_initial_delay", 0, "retry_initial_delay", 0.0),
        ("retry_initial_delay", 1500.5, "retry_initial_delay", 1.5005),
        ("retry_initial_delay", "2000", "retry_initial_delay", 2.0),
        ("retry_initial_delay", "2s", "retry_initial_delay", 2.0),
        ("retry_initial_delay", "1m0.5s", "retry_initial_delay", 60.5),
        ("retry_initial_delay", "250ms", "retry_initial_delay", 0.25),
        ("retry_initial_delay", 500_000_000, "retry_initial_delay", 0.5),  # time.Duration of Go
        ("retry_initial_delay", 2_000_000_000, "retry_initial_delay", 2.0),
        ("cleanup_interval", 60_000, "cleanup_interval", 60.0),
        ("cleanup_interval", 86_400_000, "cleanup_interval", 86400.0),
        ("cleanup_interval", "1h30m", "cleanup_interval", 5400.0),
        ("cleanupInterval", "1h0m0s", "cleanup_interval", 3600.0),
        ("cleanup_interval", 3_600_000_000_000, "cleanup_interval", 3600.0),
        ("concurrentUploads", 8, "concurrent_uploads", 8),
        ("enableIntegrityCheck", False, "enable_integrity_check", False),
        ("allowed_extensions", [".zip", ".bin"], "allowed_extensions", ".zip,.bin"),
        ("disk_warn", 0.5, "disk_warn", 0.5),
        ("merged_dir", None, "merged_dir", "./merged"),
    ],
)
def test_spellings_types_and_units(key: str, value: object, name: str, expected: object, tmp_path: Path) -> None:
    assert getattr(loaded(written(tmp_path, {key: value})).settings.upload, name) == expected


@pytest.mark.parametrize(
    "value",
    [
        {"upload": {"max_file_size": 5, "retry": {"max_attempts": 7}}},
        {"server": {"storage": {"maxFileSize": 5}}, "retryMaxAttempts": 7},
        {"max": {"file": {"size": 5}}, "retry": {"max": {"attempts": 7}}},
    ],
)
def test_objects_within_objects_are_read(value: dict[str, Any], tmp_path: Path) -> None:
    found = loaded(written(tmp_path, value)).settings.upload
    assert (found.max_file_size, found.retry_max_attempts) == (5, 7)


@pytest.mark.parametrize("mark", ["", "\ufeff", "\n\t "])
def test_it_is_known_by_its_content_whatever_its_name(mark: str, tmp_path: Path) -> None:
    path = written(tmp_path, f'{mark}{{"port": 1}}', "settings.ini")
    assert loaded(path).settings.upload.port == 1


def test_conf_d_and_the_environment_go_over_it(tmp_path: Path) -> None:
    written(tmp_path, REPORTED)
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "a.ini").write_text("[upload]\nport = 7\n[web]\nthreads = 9\n")
    found = load_effective(
        str(tmp_path / "config.json"), environment={"DLPOOL_UPLOAD_CONCURRENT_UPLOADS": "2"}
    ).settings
    assert (found.upload.port, found.web.threads, found.upload.concurrent_uploads) == (7, 9, 2)


# --- what is wrong with it ---


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"port": True}, "port = true: it is not a whole number"),
        ({"port": 1.5}, "port = 1.5: it is not a whole number"),
        ({"port": "http"}, 'port = "http": it is not a whole number'),
        ({"port": 70000}, "[upload] port = 70000: it is above 65535"),
        ({"port": "127.0.0.1:18101"}, "write the port here, and the address as bind in [web]"),
        ({"port": [1]}, "port = [1]: it is not a whole number"),
        ({"port": {"a": 1}}, "port = {...}: it is an object"),
        ({"upload_dir": 5}, "upload_dir = 5: it is not a text"),
        ({"upload_dir": ""}, 'upload_dir = "": it is empty'),
        ({"upload_dir": "a\nb"}, "control characters"),
        ({"upload_dir": " a"}, "spaces around it"),
        ('{"upload_dir": "\\ud800"}', "not text that UTF-8 can encode"),
        ({"max_file_size": -1}, "max_file_size = -1: it is negative"),
        ({"max_file_size": 0}, "max_file_size = 0: it is below 1"),
        ({"max_file_size": "much"}, "max_file_size = much: it is not a number with a unit"),
        ({"max_chunk_size": False}, "max_chunk_size = false: it is not a whole number"),
        ({"retry_initial_delay": "soon"}, 'retry_initial_delay = "soon": it is not a duration'),
        ({"retry_initial_delay": "1.2.3"}, 'retry_initial_delay = "1.2.3": it is not a duration'),
        ({"retry_initial_delay": 400_000}, "it is above 5m"),
        ({"retry_initial_delay": -5}, "retry_initial_delay = -5: it is negative"),
        ({"retry_initial_delay": True}, "it is not a number of milliseconds"),
        ({"cleanup_interval": 1}, "cleanup_interval = 1ms: it is below 0.1"),
        ({"enable_integrity_check": "yes"}, 'enable_integrity_check = "yes": it is neither true nor false'),
        ({"enable_atomic_operations": 1}, "enable_atomic_operations = 1: it is neither true nor false"),
        ({"concurrent_uploads": 65}, "concurrent_uploads = 65: it is above 64"),
        ('{"port": NaN}', "NaN is not a number of JSON"),
        ('{"port": 1, "port": 2}', "port is given twice"),
        ('{"upload_dir": "a", "uploadDir": "b"}', "uploadDir: upload_dir is given twice"),
        ('{\n"port": 1,\n// comment\n}', "config.json:3: it begins like JSON, but is not valid JSON"),
        ('{"port": 1', "config.json:1: it begins like JSON"),
        ("[1, 2]", "is JSON, but not an object"),
        ("18101", "is JSON, but not an object"),
        ('["upload"]', "is JSON, but not an object"),
        ('{"a":' * 10_000, "config.json"),
    ],
)
def test_what_is_wrong_is_said_with_file_key_and_reason(value: object, said: str, tmp_path: Path) -> None:
    path = written(tmp_path, value)
    sentence = problem(path)
    assert said in sentence
    assert sentence.startswith(str(path))
    assert len(sentence.splitlines()) == 1


def test_all_that_is_wrong_is_said_at_once_in_the_order_of_lines(tmp_path: Path) -> None:
    path = written(tmp_path, {"upload_dir": 1, "max_file_size": 0, "port": "x"})
    assert [line.split(": ")[0] for line in problem(path).splitlines()] == [f"{path}:{line}" for line in (2, 3, 4)]


def test_unknown_keys_are_named_and_ignored(tmp_path: Path) -> None:
    path = written(tmp_path, {"colour": "red", "log": {"level": 1, "file": None}, "port": 5, "data": [{"port": 6}]})
    found = loaded(path)
    assert found.settings.upload.port == 5
    assert found.notes[-1] == f"{path}: unknown keys are ignored: colour, log.level, log.file, data"


# --- who reads it ---


@pytest.mark.parametrize("arguments", [("config", "check", "-c"), ("jobs", "-c"), ("fetch", "http://h/", "--config")])
def test_other_commands_read_it_too_and_say_that_it_is_of_uploads(arguments: tuple[str, ...], tmp_path: Path) -> None:
    ended = run(*arguments, written(tmp_path, REPORTED), env=outside())
    assert "is read as the configuration of the Go upload server" in ended.err
    broken = run(*arguments, written(tmp_path, {"port": "x"}), env=outside())
    assert broken.code == 78
    assert 'port = "x": it is not a whole number' in broken.err


def test_a_python_program_is_warned(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="all other sections have their defaults"):
        DownloadEngine.from_config(written(tmp_path, REPORTED)).shutdown()


def test_dlpool_web_serves_with_it(tmp_path: Path) -> None:
    server = WebServer(tmp_path)
    own = {"upload_dir": str(tmp_path / "u"), "merged_dir": str(tmp_path / "m"), "max_file_size": 1000, "x": 1}
    server.ini = written(tmp_path, own | {"port": str(server.port)})
    places = {"DLPOOL_PATHS_STATE_DIR": str(tmp_path / "state"), "DLPOOL_PATHS_LOG_DIR": str(tmp_path / "log")}
    try:
        server.start(environment=places)
        answer = requests.post(
            f"{server.url}/upload_chunk?file_id=f&chunk_index=0&file_size=1001",
            data=b"x",
            headers={"Content-Type": "application/octet-stream"},
            timeout=10,
        )
    finally:
        server.kill()
    assert answer.status_code == 413
    assert (tmp_path / "u").is_dir()
    assert "unknown keys are ignored: x" in server.errors.read_text()


def test_a_config_json_that_was_not_named_gets_a_hint(tmp_path: Path) -> None:
    written(tmp_path, REPORTED)
    environment = {**outside(), "DLPOOL_WEB_BIND": "0.0.0.0", "PYTHONPATH": str(ROOT)}  # refused: no key
    ended = run(module="dlpool.cli.web", cwd=tmp_path, env=environment)
    assert ended.code == 78
    assert ended.err.startswith(
        "dlpool-web: warning: config.json in this folder is not read: dlpool-web -c config.json"
    )


# --- convert ---


def converted(*arguments: object) -> Ended:
    return run("config", "convert", *arguments, env=outside())


def test_convert_writes_an_ini_file_with_the_same_settings(tmp_path: Path) -> None:
    source = written(tmp_path, REPORTED | {"colour": 1})
    ended = converted(source)
    assert (ended.code, ended.err) == (0, f"dlpool: warning: {source}: unknown keys are ignored: colour\n")
    assert ended.out.splitlines()[1:5] == ["[upload]", "upload_dir = ./upload", "merged_dir = ./merged", "port = 18101"]
    for line in (
        "max_file_size = 10G",
        "cleanup_interval = 1h",
        "retry_initial_delay = 2s",
        "enable_atomic_operations = no",
    ):
        assert line in ended.out.splitlines()
    written(tmp_path, ended.out, "dlpool.ini")
    assert loaded(tmp_path / "dlpool.ini").settings == loaded(source).settings


def test_convert_into_a_file_keeps_one_that_is_there(tmp_path: Path) -> None:
    source, target = written(tmp_path, REPORTED), tmp_path / "dlpool.ini"
    assert converted(source, "-o", target).code == 0
    assert loaded(target).settings == loaded(source).settings
    target.write_text("mine")
    assert converted("-o", target, source).code == 13
    assert target.read_text() == "mine"
    assert converted(source, "-o", tmp_path / "absent" / "x.ini").code == 3


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ((), 2),
        (("config.json",), 78),
        (("x.ini",), 78),
        (("absent",), 78),
        (("wrong.json",), 78),
    ],
)
def test_convert_refuses_what_it_cannot_read(arguments: tuple[str, ...], code: int, tmp_path: Path) -> None:
    written(tmp_path, "[upload]\nport = 1\n", "x.ini")
    written(tmp_path, {"port": "x"}, "wrong.json")
    written(tmp_path, "{", "config.json")
    ended = converted(*(tmp_path / name for name in arguments))
    assert (ended.code, ended.out) == (code, "")
    assert len(ended.err.splitlines()) == 1


def test_the_other_actions_take_no_file_of_convert(tmp_path: Path) -> None:
    assert run("config", "check", written(tmp_path, REPORTED)).code == 2


PATHS = st.text(string.ascii_letters + "./\N{SNOWMAN}#;=%[", min_size=1, max_size=12)
SIZES = st.one_of(st.integers(1, 1 << 50), st.sampled_from(["10G", "1.5M", "512"]))
COUNTS = st.integers(1, 64)
TIMES = st.one_of(st.integers(100, 300_000), st.floats(100, 300_000), st.sampled_from(["1m30s", "2s", "500ms", "0.5h"]))
RIGHT = {
    "upload_dir": PATHS,
    "merged_dir": PATHS,
    "port": st.one_of(st.integers(1, 65535), st.sampled_from(["1", ":65535"])),
    "max_file_size": SIZES,
    "max_chunk_size": SIZES,
    "cleanup_interval": TIMES,
    "retry_max_attempts": COUNTS,
    "retry_initial_delay": st.integers(0, 300_000),
    "concurrent_uploads": COUNTS,
    "enable_integrity_check": st.booleans(),
    "enable_atomic_operations": st.booleans(),
    "disk_refuse": st.floats(0.85, 1).map(lambda one: round(one, 9)),
    "allowed_extensions": st.lists(st.sampled_from([".zip", ".bin"]), min_size=1),
}


@given(st.fixed_dictionaries({}, optional=RIGHT))
def test_whatever_is_read_survives_the_conversion(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    source = written(tmp_path_factory.getbasetemp(), value, "some.json")
    read = read_go_settings(str(source), [])
    assert {one.name for one in read} == value.keys()
    text = "\n".join(ini_lines(str(source), read))
    again = checked(read_ini(str(written(source.parent, text, "some.ini")), []), [])
    assert {one.name: one.value for one in again} == {one.name: one.value for one in read}
