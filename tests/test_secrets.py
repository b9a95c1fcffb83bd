"""What may be secret is shown nowhere: not of header fields, URLs, commands of the operator, files of the service."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dlpool.config import HookSettings, LoggingSettings, ScanSettings, Settings
from dlpool.errors import ConfigurationError, UsageError
from dlpool.jobs.failure_records import FailureRecord
from dlpool.jobs.pushed_job import PushedJob, compose_job
from dlpool.jobs.transitions import ClaimedJob, JobLease
from dlpool.observe.values import safe_text, to_json
from dlpool.redaction import is_secret, split_user_info, without_password, without_secrets
from dlpool.service.hooks.archiving import check_archive_command
from dlpool.service.hooks.runner import HookCall, HookRunner, check_hooks
from dlpool.service.inflight import InFlightJob, cleanup_entry
from dlpool.service.journal import CleanupJournal
from dlpool.service.service import shown_settings
from dlpool.transfer.http.urls import display_url, split_credentials
from dlpool.transfer.target.state import url_digest

SECRET = "s3cr3t"
FIELDS = [
    "Authorization",
    "Proxy-Authorization",
    "Cookie",
    "Set-Cookie",
    "Cookie2",
    "Set-Cookie2",
    "X-Secret-Key",
    "X-Api-Key",
    "Api-Key",
    "ApiKey",
    "X-Auth-Token",
    "X-Auth-Key",
    "X-Access-Token",
    "X-Amz-Security-Token",
    "X-Vault-Token",
    "PRIVATE-TOKEN",
    "JOB-TOKEN",
    "X-CSRF-Token",
    "X-Goog-Signature",
    "X-Hub-Signature-256",
    "X-Client-Secret",
    "X-Password",
    "Ocp-Apim-Subscription-Key",
    "x-functions-key",
    "X-Amz-Server-Side-Encryption-Customer-Key",
    "Access-Token",
    "token-id",
    "X-Authorization",
]


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize(
    "form",
    [
        "{}: {}",
        "{}:{}",
        "sent {}: Basic {}",
        "'{}': '{}', 'Accept': '*/*'",
        '{{"{}": "{}"}}',
        "{} = {}",
        "GET / HTTP/1.1\r\n{}: {}\r\nHost: h",
    ],
)
def test_the_value_of_a_secret_field_is_in_no_text(field: str, form: str) -> None:
    for name in (field, field.lower(), field.upper()):
        shown = without_secrets(form.format(name, f"{SECRET} a/{SECRET}"))
        assert SECRET not in shown and name in shown
        assert "Host: h" in shown or "Host" not in form


@pytest.mark.parametrize("field", FIELDS)
def test_the_value_of_a_secret_field_is_in_no_record(field: str) -> None:
    assert is_secret(field)
    assert SECRET not in json.dumps(to_json({"headers": {field: SECRET}, "raw": [(field, SECRET)]}))


@pytest.mark.parametrize(
    "said",
    [
        "the server answered 404: not found",
        "cannot read /etc/dlpool/jwt-key: Permission denied",
        "X-Secret-Key is not the secret",
        "the token is not good: its sub is no name",
        "[redis] password_file: no such file",
        "Content-Length: 5",
        "the key: value form",
        "monkey: banana",
    ],
)
def test_a_sentence_is_shown_as_it_is(said: str) -> None:
    assert without_secrets(said) == said


URLS = [
    ("https://user:{}@host/path", "https://host/path"),
    ("https://{}@host/path", "https://host/path"),
    ("https://user:a/{}@host/path", "https://host/path"),
    ("https://user:a/b/{}@host:81/path", "https://host:81/path"),
    ("https://user:a?{}@host/path", "https://host/path"),
    ("https://user:a#{}@host/path", "https://host/path"),
    ("https://user:{}/a?b#c@host/path", "https://host/path"),
    ("https://user:{}@x@host/path", "https://host/path"),
    ("https://user:123456/{}@host/path", "https://host/path"),
    ("https://host/path?sig={}", "https://host/path"),
    ("https://host/path#{}", "https://host/path"),
    ("https://user:{}@[::1]:8080/path", "https://[::1]:8080/path"),
]
KEPT = [
    "https://host/@scope/pkg",
    "https://host:8080/@scope/pkg",
    "https://host:8080/a@b",
    "https://[::1]:8080/a@b",
    "https://[::1]/a",
    "https://host/a:b@c",
    "https://host:/a",
    "https://host:0abc/a",
]


@pytest.mark.parametrize(("url", "shown"), URLS)
def test_a_url_is_shown_without_what_is_secret(url: str, shown: str) -> None:
    url = url.format(SECRET)
    assert display_url(url) == shown
    assert without_secrets(f"cannot get {url} now") == f"cannot get {shown} now"
    assert SECRET not in safe_text(repr(UsageError(url)))
    try:
        split_credentials(url)
    except UsageError as error:
        assert SECRET not in str(error)


@pytest.mark.parametrize("url", KEPT)
def test_a_url_without_secrets_is_shown_as_it_is(url: str) -> None:
    assert display_url(url) == url
    assert without_secrets(url) == url


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:{}@host:6379/0", "redis://host:6379/0"),
        ("redis://user:{}@host:6379/0", "redis://user@host:6379/0"),
        ("redis://user:a/{}@host:6379/0", "redis://user@host:6379/0"),
        ("redis://:{}/a?b@host", "redis://host"),
        ("rediss://user:a#{}@host", "rediss://user@host"),
        ("unix:///run/redis.sock?password={}", "unix:///run/redis.sock?"),
        ("REDIS://:a/{}@host", "REDIS://host"),
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("redis://host:6379/0?Password={}", "redis://host:6379/0?"),
    ],
)
def test_the_url_of_redis_is_shown_without_its_password(url: str, shown: str) -> None:
    assert without_password(url.format(SECRET)) == shown


@pytest.mark.parametrize(
    ("text_", "parts"),
    [
        ("u:p@h/a", ("u:p", "h/a")),
        ("h/a@b", ("", "h/a@b")),
        ("u:p/w@h", ("u:p/w", "h")),
        ("", ("", "")),
        ("u:p", ("", "u:p")),
    ],
)
def test_user_info_is_split_off(text_: str, parts: tuple[str, str]) -> None:
    assert split_user_info(text_) == parts


# --- commands of the operator ---


def test_of_a_command_only_its_program_is_told() -> None:
    command = f"/nowhere/hook -H 'X-Secret-Key: {SECRET}' https://hooks.example.org/{SECRET}"
    with pytest.raises(ConfigurationError) as refused:
        check_hooks(HookSettings(on_success=command, on_failure=command))
    assert "/nowhere/hook" in str(refused.value) and SECRET not in str(refused.value)
    scan = ScanSettings(command=command)
    shown = shown_settings(
        replace(Settings(), hooks=HookSettings(command), scan=scan, logging=LoggingSettings(archive_command=command))
    )
    assert shown["hooks"]["on_success"] == "/nowhere/hook ..." and SECRET not in json.dumps(shown, default=str)
    with pytest.raises(ConfigurationError) as refused:
        check_archive_command(LoggingSettings(archive_command=command))
    assert "/nowhere/hook" in str(refused.value) and SECRET not in str(refused.value)


@pytest.mark.parametrize("program", ["true", "false", "/nowhere/hook"])
def test_the_line_of_a_hook_has_no_arguments_of_it(program: str) -> None:
    lines: list[dict[str, Any]] = []
    log: Any = type("Lines", (), {name: lambda _, event, **more: lines.append(more) for name in ("warning", "debug")})()
    hooks = HookRunner(HookSettings(), "n", log)
    hooks._run(HookCall(f"{program} {SECRET}", "j", "t", "success", b""))
    assert [line["command"] for line in lines] == [program]
    assert SECRET not in json.dumps(lines)


# --- files of the service ---

URL = f"https://user:{SECRET}@host/a?sig={SECRET}"


def test_the_journal_holds_no_url(tmp_path: Path) -> None:
    raw = compose_job(URL, "a", headers={"Cookie": SECRET})
    held = InFlightJob(ClaimedJob(JobLease("j", 1), raw, len(raw), 1, 0, 0, 0, "normal"), 0.0, trace_id="t")
    ended = cleanup_entry(held, PushedJob.parse(raw), None, has_failed=True)
    journal = CleanupJournal(tmp_path)
    journal.add(ended)
    assert SECRET.encode() not in (tmp_path / "journal").read_bytes()
    assert CleanupJournal(tmp_path).entries() == {"j": ended}
    assert ended.url_sha256 == url_digest(URL)


def test_a_failure_record_is_shown_without_the_values_of_headers() -> None:
    raw = compose_job("https://host/a", "a", headers={"X-Anything": SECRET})
    value = b'{"task_data":' + raw + b',"error_message":"e","failed_at":"2024-01-01T00:00:00Z"}'
    found = FailureRecord.parse(b"https://host/a", value)
    assert found.raw == raw
    assert SECRET not in json.dumps(found.as_json())
    assert found.as_json()["job"]["dlpool"]["headers"] == {"X-Anything": "[redacted]"}
    assert replace(found, raw=None).as_json()["job"] is None
