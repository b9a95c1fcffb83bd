"""Where settings come from: files, credentials, the environment, options; which wins, and what contradicts what."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from dlpool.cli.main import build_parser
from dlpool.cli.upload_credentials import access_headers
from dlpool.config import SECTIONS, RedisSettings, Settings
from dlpool.config.ini import read_settings_file
from dlpool.config.layers import credential_values, load_effective
from dlpool.config.sourced import ConfigProblem, SourcedValue
from dlpool.config.web_access import read_key
from dlpool.errors import ConfigurationError
from dlpool.jobs.connection import connect
from tests.processes import Ended, run

SECRET = "hunter2-s3cr3t"


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def clean_environment(**more: str) -> dict[str, str]:
    return {**{name: value for name, value in os.environ.items() if not name.startswith("DLPOOL_")}, **more}


def problems(config: Path | None, options: tuple[SourcedValue, ...] = (), **environment: str) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        load_effective(None if config is None else str(config), options, environment)
    return str(caught.value).splitlines()


def shown(*arguments: object, **environment: str) -> dict[tuple[str, str], dict[str, Any]]:
    """What ``config show`` says of each setting."""
    ended = run("config", "show", "--json", *arguments, env=clean_environment(**environment))
    assert ended.code == 0, ended.err
    found = [json.loads(line) for line in ended.out.splitlines()]
    return {(row["section"], row["key"]): row for row in found}


@pytest.fixture
def ini(tmp_path: Path) -> Path:
    """An INI file with two files in its conf.d, and two that are none of them."""
    write(tmp_path / "conf.d" / "20-b.ini", "[transfer]\nretries = 22\nconnections = 22\n")
    write(
        tmp_path / "conf.d" / "10-a.ini", "# a\n[transfer]\nretries = 21\ndeadline = 1h\n[host:B]\nmax_per_host = 3\n"
    )
    write(tmp_path / "conf.d" / ".#hidden.ini", "[transfer]\nretries = 99\n")
    write(tmp_path / "conf.d" / "notes.txt", "no INI")
    return write(
        tmp_path / "dlpool.ini",
        "[transfer]\nretries = 20\nconnections = 20\nmin_split_size = 2M\n[redis]\ngroup = g\n"
        "[limits]\nmax_per_host = 8\n[host:b]\nmax_per_host = 2\nrate_per_host = 5\n",
    )


# --- which wins ---


def test_a_later_place_wins_and_each_is_named(ini: Path, tmp_path: Path) -> None:
    credentials = write(tmp_path / "credentials" / "redis_password", f"{SECRET}\n").parent
    rows = shown(
        "-c",
        ini,
        "--group",
        "option",
        "--drain-timeout",
        "2m",
        DLPOOL_TRANSFER_CONNECTIONS="23",
        DLPOOL_REDIS_GROUP="environment",
        CREDENTIALS_DIRECTORY=str(credentials),
    )
    expected = {
        ("transfer", "retries"): (22, f"{tmp_path}/conf.d/20-b.ini:2"),
        ("transfer", "deadline"): (3600.0, f"{tmp_path}/conf.d/10-a.ini:4"),
        ("transfer", "connections"): (23, "environment DLPOOL_TRANSFER_CONNECTIONS"),
        ("transfer", "min_split_size"): (2 * 1024 * 1024, f"{ini}:4"),
        ("transfer", "sync"): (True, "default"),
        ("redis", "group"): ("option", "option --group"),
        ("redis", "password"): ("...", "credential redis_password"),
        ("supervisor", "drain_timeout"): (120.0, "option --drain-timeout"),
        ("host:b", "max_per_host"): (3, f"{tmp_path}/conf.d/10-a.ini:6"),
        ("host:b", "rate_per_host"): (5.0, f"{ini}:11"),
    }
    assert {key: (rows[key]["value"], rows[key]["origin"]) for key in expected} == expected
    assert SECRET not in json.dumps(list(rows.values()))


def test_lines_are_right_with_comments_continuations_and_colons(tmp_path: Path) -> None:
    path = write(
        tmp_path / "x.ini",
        "; c\n\n[hooks]\non_success = /bin/true\n   and more\n\n# c\non_failure: x\n[redis]\ngroup=g",
    )
    lines = {one.name: one.origin.rpartition(":")[2] for one in read_settings_file(str(path), [])}
    assert lines == {"on_success": "4", "on_failure": "8", "group": "10"}
    assert len(problems(path)) == 1


def test_a_host_has_the_limits_of_all_where_its_own_say_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "x.ini", "[limits]\nmax_per_host = 8\n[host:A]\nrate_per_host = 5\n")
    settings = load_effective(str(path), (), {}).settings
    assert (settings.hosts["a"].max_per_host, settings.hosts["a"].rate_per_host) == (8, 5.0)


@pytest.mark.parametrize(
    ("group", "variable", "expected"),
    [(None, None, 5), ("a", None, 1), ("b", None, 2), ("A", None, 5), ("a", "7", 7), ("c", None, 5)],
)
def test_a_group_has_settings_of_transfers_of_its_own(
    group: str | None, variable: str | None, expected: int, tmp_path: Path
) -> None:
    path = write(
        tmp_path / "x.ini",
        "[group:b]\nmax_file_size = 2\n[transfer]\nmax_file_size = 5\nretries = 9\n[group:a]\nmax_file_size = 1\n",
    )
    environment = {
        "DLPOOL_REDIS_GROUP": group,
        "DLPOOL_TRANSFER_MAX_FILE_SIZE": variable,
    }
    settings = load_effective(str(path), (), {name: text for name, text in environment.items() if text}).settings
    assert (settings.transfer.max_file_size, settings.transfer.retries) == (expected, 9)


def test_a_section_of_a_group_is_checked_as_that_of_transfers(tmp_path: Path) -> None:
    path = write(tmp_path / "x.ini", "[group:]\nretries = 1\n[group:x]\nretris = 2\nmax_file_size = y\n")
    said = problems(path)
    assert [line.partition(": ")[2].partition(":")[0] for line in said] == ["[group", "[group", "[group"]
    assert "it names no group" in said[0] and "there is no such key" in said[1] and "not a number" in said[2]


def test_an_empty_variable_unsets_what_has_no_default(tmp_path: Path) -> None:
    path = write(tmp_path / "x.ini", "[transfer]\ndeadline = 1h\n")
    assert load_effective(str(path), (), {"DLPOOL_TRANSFER_DEADLINE": ""}).settings.transfer.deadline is None


def test_variables_of_no_section_are_others_business() -> None:
    others = {"DLPOOL_PASSWORD": "x", "DLPOOL_JOB_ID": "1", "DLPOOL_TRANSFER": "y", "dlpool_transfer_retries": "7"}
    assert load_effective(None, (), others).settings == Settings()


@pytest.mark.parametrize("name", ["password", "password_file"])
def test_a_password_replaces_those_of_earlier_places_however_given(name: str, tmp_path: Path) -> None:
    both = {"password": "new", "password_file": "/new"}
    for text in ("password = old", "password_file = /old", "url = redis://me:old@h/1"):
        path = write(tmp_path / "x.ini", f"[redis]\n{text}\n")
        redis = load_effective(str(path), (), {f"DLPOOL_REDIS_{name.upper()}": both[name]}).settings.redis
        assert {"password": redis.password, "password_file": redis.password_file} == {
            **dict.fromkeys(both),
            name: both[name],
        }
        assert "old" not in redis.url
        assert redis.url.endswith("h/1") or "url" not in text


def test_fetch_goes_by_the_environment_too(tmp_path: Path) -> None:
    ended = run("fetch", "http://h/", tmp_path / "f", env=clean_environment(DLPOOL_TRANSFER_RETRIES="many"))
    assert ended.code == 78
    assert ended.err == (
        "dlpool: environment DLPOOL_TRANSFER_RETRIES: [transfer] retries = many: it is not a whole number\n"
    )


# --- what is wrong ---


def test_all_that_is_wrong_is_said_at_once_with_its_place(ini: Path, tmp_path: Path) -> None:
    write(tmp_path / "conf.d" / "30.ini", "[network]\ninsecure = perhaps\n[colours]\nred = 1\n")
    write(tmp_path / "conf.d" / "40.ini", "no section\n")
    write(tmp_path / "credentials" / "redis_password", "a\0b")
    control = "it is text with control characters"
    said = problems(
        ini,
        DLPOOL_TRANSFER_RETRYS="3",
        DLPOOL_LOGGING_ROTATE_DAILY="2",
        DLPOOL_REDIS_SENTINEL_PASSWORD=f"{SECRET}\x01",
        CREDENTIALS_DIRECTORY=str(tmp_path / "credentials"),
    )
    broken = next(line for line in said if line.startswith(f"{tmp_path}/conf.d/40.ini is not an INI file: "))
    assert sorted(said) == sorted(
        [
            broken,
            f"{tmp_path}/conf.d/30.ini:2: [network] insecure = perhaps: it is neither yes nor no",
            f"{tmp_path}/conf.d/30.ini:3: [colours]: there is no such section",
            "environment DLPOOL_TRANSFER_RETRYS: [transfer] retrys: there is no such key",
            "environment DLPOOL_LOGGING_ROTATE_DAILY: [logging] rotate_daily = 2: it is neither yes nor no",
            f"environment DLPOOL_REDIS_SENTINEL_PASSWORD: [redis] sentinel_password = ...: {control}",
            f"credential redis_password: [redis] password = ...: {control}",
        ]
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "[supervisor]\nworker_memory_hard = 2M\n",
            "[supervisor] worker_memory_hard = 2M (INI:2) is below worker_memory_soft = 512M (default): "
            "raise the one, or lower the other",
        ),
        (
            "[supervisor]\njob_retry_delay = 1h\n",
            "[supervisor] job_retry_max_delay = 15m (default) is below job_retry_delay = 1h (INI:2): "
            "raise the one, or lower the other",
        ),
        (
            "[transfer]\nretry_delay = 2m\n",
            "[transfer] retry_max_delay = 60s (default) is below retry_delay = 2m (INI:2): "
            "raise the one, or lower the other",
        ),
        (
            "[logging]\nkeep_size = 1M\n",
            "[logging] keep_size = 1M (INI:2) is below rotate_size = 100M (default): raise the one, or lower the other",
        ),
        ("[network]\nkey = /k\n", "[network] key = /k (INI:2) needs cert: give both, or none"),
        ("[redis]\ntls_key = /k\n", "[redis] tls_key = /k (INI:2) needs tls_cert: give both, or none"),
        (
            "[redis]\npassword = p\npassword_file = /p\n",
            "[redis] password_file = /p (INI:3) and password (INI:2) are both given: keep one of them",
        ),
        (
            "[redis]\nsentinel_password = p\nsentinel_password_file = /p\n",
            "[redis] sentinel_password_file = /p (INI:3) and sentinel_password (INI:2) are both given: keep one of "
            "them",
        ),
        (
            "[redis]\nurl = redis://:p@h\npassword = p\n",
            "[redis] url holds a password, and another one is given: keep one of them",
        ),
    ],
)
def test_a_contradiction_is_one_sentence(text: str, sentence: str, tmp_path: Path) -> None:
    path = write(tmp_path / "x.ini", text)
    assert problems(path) == [sentence.replace("INI", str(path))]


def test_contradictions_are_said_at_once_and_an_option_can_end_one(tmp_path: Path) -> None:
    path = write(tmp_path / "x.ini", "[transfer]\nretry_delay = 2m\n[supervisor]\nworker_memory_soft = 2G\n")
    assert len(problems(path)) == 2
    raised = SourcedValue("transfer", "retry_max_delay", "5m", "option --retry-max-delay", 300.0)
    assert len(problems(path, (raised,))) == 1


def test_a_wrong_value_hides_neither_the_others_nor_what_they_contradict(tmp_path: Path) -> None:
    path = write(
        tmp_path / "x.ini",
        "[colours]\nred = 1\n[transfer]\nretry_delay = 2m\nretries = -1\n[supervisor]\nmax_slots = none\n"
        "worker_memory_soft = 2G\nworker_memory_hard = 1G\n",
    )
    write(tmp_path / "conf.d" / "1.ini", "[transfer]\nretry_max_delay = soon\n")
    assert [line.replace(str(tmp_path), "") for line in problems(path, DLPOOL_PATHS_X="1")] == [
        "/x.ini:1: [colours]: there is no such section",
        "/x.ini:5: [transfer] retries = -1: it is negative",
        "/x.ini:7: [supervisor] max_slots = none: it is not a whole number",
        "[supervisor] worker_memory_hard = 1G (/x.ini:9) is below worker_memory_soft = 2G (/x.ini:8): "
        "raise the one, or lower the other",
        "/conf.d/1.ini:2: [transfer] retry_max_delay = soon: it is not a number with a unit (ms, s, m, h)",
        "environment DLPOOL_PATHS_X: [paths] x: there is no such key",
    ]


def test_a_variable_of_no_section_is_others_business() -> None:
    assert load_effective(None, (), {"DLPOOL_COLOURS_RED": "1"}).values == {}


def test_a_limit_without_its_counterpart_contradicts_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "x.ini", "[supervisor]\nworker_memory_soft = 1G\nworker_memory_hard = 1G\n")
    assert load_effective(str(path), (), {}).settings.supervisor.worker_memory_hard == 1024**3


def test_a_credential_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "redis_password").mkdir()
    [said] = problems(None, CREDENTIALS_DIRECTORY=str(tmp_path))
    assert said == f"credential redis_password: cannot read {tmp_path}/redis_password: Is a directory"


# --- dlpool config ---


def config(*arguments: object, **environment: str) -> Ended:
    return run("config", *arguments, env=clean_environment(**environment))


def test_check_says_what_was_read(ini: Path, tmp_path: Path) -> None:
    ended = config("check", "-c", ini)
    files = [str(ini), f"{tmp_path}/conf.d/10-a.ini", f"{tmp_path}/conf.d/20-b.ini"]
    assert (ended.code, ended.out) == (0, f"the settings are valid; read: {', '.join(files)}\n")
    assert config("check", "-c", ini, "--json").json == {"is_usable": True, "files": files, "problems": []}
    assert sorted(os.listdir(tmp_path)) == ["conf.d", "dlpool.ini"]


def test_check_also_finds_what_only_a_start_would(tmp_path: Path) -> None:
    path = write(
        tmp_path / "x.ini",
        "[redis]\npassword_file = /nowhere/p\n[network]\ncacert = /nowhere/ca\n[hooks]\non_success = /nowhere/hook\n",
    )
    ended = config("check", "-c", path)
    assert (ended.code, ended.out) == (78, "")
    assert [line.startswith("dlpool: ") for line in ended.err.splitlines()] == [True] * 3
    for part in ("/nowhere/p", "/nowhere/ca", "/nowhere/hook"):
        assert part in ended.err
    report = config("check", "-c", path, "--json")
    assert (report.code, report.json["is_usable"], len(report.json["problems"])) == (78, False, 3)


def test_check_names_everything_in_one_pass_in_the_order_of_lines(tmp_path: Path) -> None:
    path = write(
        tmp_path / "x.ini",
        "[hooks]\non_success = /nowhere/hook\n[network]\ncolour = red\ncacert = /nowhere/ca\n"
        "[redis]\ntls_key = /nowhere/k\n[web]\nbind = 0.0.0.0\n"
        "[supervisor]\nworkers = many\n[logging]\narchive_command = /nowhere/archive\n",
    )
    said = config("check", "-c", path, "--json").json["problems"]
    assert [line.replace(f"{path}", "INI").partition(" ")[0] for line in said] == [
        "INI:2:",
        "INI:4:",
        "INI:5:",
        "[redis]",
        "INI:9:",
        "INI:11:",
        "INI:13:",
    ]
    assert said[3] == f"[redis] tls_key = /nowhere/k ({path}:7) needs tls_cert: give both, or none"
    assert said[4].endswith("can be reached by others, and no key is given: set jwt_key_file or secret_key_file")


def test_show_hides_secrets_and_says_origins_when_asked(tmp_path: Path) -> None:
    path = write(
        tmp_path / "x.ini",
        f"[redis]\nurl = redis://me:{SECRET}@h:1/2\nsentinel_password = {SECRET}\n"
        f"[network]\nproxy = http://me:{SECRET}@p:3128\n",
    )
    plain, full = config("show", "-c", path), config("show", "--origin", "-c", path)
    assert SECRET not in plain.out + full.out
    assert plain.out.splitlines()[0] == "section\tkey\tvalue"
    assert "redis\turl\tredis://h:1/2" in plain.out.splitlines()
    assert f"redis\tsentinel_password\t...\t{path}:3" in full.out.splitlines()
    assert f"network\tproxy\thttp://p:3128\t{path}:5" in full.out.splitlines()
    assert "transfer\tdeadline\t\tdefault" in full.out.splitlines()


def test_show_says_every_setting() -> None:
    rows = shown()
    others = {key: row["origin"] for key, row in rows.items() if row["origin"] != "default"}
    assert others == {("network", "network"): "default of the service"}
    assert list(rows) == [(section, one.name) for section, kind in SECTIONS.items() for one in fields(kind)]


# --- files that hold a secret ---


def of_a_key(path: Path) -> str | None:
    return read_key(None, str(path))


def of_redis(path: Path) -> str | None:
    client = connect(RedisSettings(password_file=str(path)), path.parent)
    password: str | None = client.connection_pool.connection_kwargs["password"]
    return password


def of_a_credential(path: Path) -> str | None:
    (path.parent / "redis_password").write_bytes(path.read_bytes())
    found: list[ConfigProblem] = []
    (given,) = credential_values({"CREDENTIALS_DIRECTORY": str(path.parent)}, found)
    assert found == []
    return given.text


def of_an_upload(path: Path) -> str | None:
    arguments = build_parser().parse_args(["upload", "f", "http://h/", "--secret-key-file", str(path)])
    return access_headers(arguments)["X-Secret-Key"]


@pytest.mark.parametrize("read_secret", [of_a_key, of_redis, of_a_credential, of_an_upload])
@pytest.mark.parametrize("content", ["hunter2", "hunter2\n", "\ufeffhunter2\r\n", "  hunter2  "])
def test_a_secret_is_what_its_file_says_without_marks_and_line_ends(
    read_secret: Callable[[Path], str | None], content: str, tmp_path: Path
) -> None:
    path = tmp_path / "secret"
    path.write_bytes(content.encode())
    assert read_secret(path) == "hunter2"


@pytest.mark.parametrize(
    ("ini", "variable", "of_service", "expected"),
    [
        ("", None, False, "no-metadata"),
        ("", None, True, "public-only"),
        ("network = any", None, True, "any"),
        ("network = no-metadata", None, True, "no-metadata"),
        ("", "any", True, "any"),
        ("network = no-metadata", "public-only", False, "public-only"),
    ],
)
def test_the_service_has_defaults_of_its_own_which_all_places_go_over(
    ini: str, variable: str | None, of_service: bool, expected: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "dlpool.ini", f"[network]\n{ini}\n")
    environment = {} if variable is None else {"DLPOOL_NETWORK_NETWORK": variable}
    for config in [str(path)] if ini else [str(path), None]:
        found = load_effective(config, environment=environment, for_service=of_service)
        assert found.settings.network.network == expected


def test_config_show_has_the_defaults_of_the_service() -> None:
    shown = [json.loads(line) for line in run("config", "show", "--json", env=clean_environment()).out.splitlines()]
    row = {"section": "network", "key": "network", "value": "public-only", "origin": "default of the service"}
    assert row in shown
