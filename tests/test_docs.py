"""What README and the other documents say is true: their commands run, their tables agree with the code."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from dlpool import errors
from dlpool.cli.control_commands import VERBS
from dlpool.cli.main import build_parser
from dlpool.cli.parser import EXIT_CODES
from dlpool.cli.reference import generated
from dlpool.web.openapi_uploads import _CHUNK, _MERGE
from scripts.api_doc import render
from scripts.picture import with_picture
from tests.conftest import free_port, wait_until
from tests.documents import DOCUMENTS, TEXT, commands
from tests.origin import File, Origin
from tests.processes import ROOT, finish, run
from tests.processes import start as begin

DATA = b"the file of the examples"


@pytest.mark.parametrize("command", commands("dlpool fetch"))
def test_every_fetch_of_the_documents_runs(command: str, tmp_path: Path) -> None:
    digest = hashlib.sha256(DATA).hexdigest()
    with Origin(File(DATA)) as origin:
        command = command.replace("https://example.org", origin.url)
        command = re.sub(r"sha256:[0-9a-f]{64}", f"sha256:{digest}", command)
        (tmp_path / "urls.txt").write_text(f"{origin.url}/one\n{origin.url}/two\n")
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        ended = run(*shlex.split(command)[1:], cwd=tmp_path, env=environment)
    assert ended.code == 0, ended.err
    assert any(path.read_bytes() == DATA for path in tmp_path.rglob("*") if path.is_file())


COMMANDS = set(re.findall(r"^    ([a-z]+) ", build_parser().format_help(), re.MULTILINE))
STEERING = {*VERBS, "priority", "failed", "queue", "nodes"}
ELSEWHERE = {
    *STEERING,
    "setup",
    "upload",
}  # test_control.py has jobs in the right states; test_setup.py; test_upload_web.py


def test_the_service_and_its_commands_run_as_the_documents_say(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    shipped = (ROOT / "etc" / "dlpool.ini").read_text()
    assert shipped.count("127.0.0.1:9108") == 1
    (tmp_path / "etc" / "dlpool.ini").write_text(
        shipped.replace(":9108", f":{free_port()}").replace(":6379", f":{free_port()}")
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DLPOOL_NETWORK_NETWORK_ALLOW": "127.0.0.0/8"}
    [start] = commands("dlpool-supervisor")
    with Origin(File(DATA)) as origin:
        (tmp_path / "jobs.txt").write_text(f"{origin.url}/three models/three.bin\n")
        arguments = shlex.split(start)[1:]
        service = begin(*arguments, module="dlpool.cli.supervisor", cwd=tmp_path, env=environment)
        try:
            log = tmp_path / ".dlpool" / "log" / "dlpool.log"
            wait_until(lambda: log.exists() and '"service_ready"' in log.read_text())
            wanted = [line for line in commands("dlpool ") if not line.startswith("dlpool fetch")]
            assert {line.split()[1] for line in wanted} == COMMANDS - {"fetch"}
            pushed = ""
            for line in wanted:
                if line.split()[1] in ELSEWHERE:
                    continue
                words = shlex.split(line.replace("https://example.org", origin.url).replace("job ID", f"job {pushed}"))
                config = [] if "-c" in words else ["-c", "etc/dlpool.ini"]
                ended = run(*words[1:], *config, cwd=tmp_path, env=environment)
                assert ended.code == 0, (line, ended.err)
                pushed = ended.out.split()[0] if words[1] == "push" and not pushed else pushed
            wait_until(lambda: (tmp_path / "downloads" / "models" / "model.bin").exists())
            assert (tmp_path / "downloads" / "models" / "model.bin").read_bytes() == DATA
        finally:
            service.terminate()
            assert finish(service).code == 0


def test_the_demo_shows_the_main_job() -> None:
    ended = subprocess.run([ROOT / "scripts" / "demo"], capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.count("  right") == 5
    assert "resumed from" in ended.stdout + ended.stderr


def test_the_scripts_that_the_documents_name_exist_and_each_is_named() -> None:
    named = set(re.findall(r"scripts/[a-z_-]+(?:\.py|\.txt)?", TEXT))
    assert all((ROOT / name).exists() for name in named)
    scripts = {path for path in (ROOT / "scripts").iterdir() if path.is_file() and not path.suffix}
    assert all(os.access(path, os.X_OK) for path in scripts)
    assert named >= {f"scripts/{path.name}" for path in scripts if path.name != "environment"}  # which those read


def test_every_option_that_the_documents_name_exists() -> None:
    offered = "".join(run(command, "--help").out for command in COMMANDS)
    offered += "".join(run("--help", module=f"dlpool.cli.{module}").out for module in ("supervisor", "web"))
    offered += subprocess.run([ROOT / "scripts" / "chaos", "--help"], capture_output=True, text=True, timeout=60).stdout
    spans = re.findall(r"`((?:dlpool[a-z-]* |scripts/chaos |--)[^`\n]+)`", TEXT)
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", "\n".join([*spans, *commands("dlpool")])))
    assert len(named) > 30
    assert named <= set(re.findall(r"--[a-z][a-z-]+", offered))


def test_the_contract_of_clients_is_the_same_wherever_it_is_said() -> None:
    readme, queue = ((ROOT / name).read_text().splitlines() for name in ("README.md", "docs/queue.md"))
    said = [line for line in readme if re.match(r"\| (push|backlog|success|failure) \|", line)]
    assert len(said) == 4
    assert set(said) <= set(queue)


def test_every_document_is_in_the_table_of_the_readme() -> None:
    table = (ROOT / "README.md").read_text().partition("## Documents")[2]
    assert set(re.findall(r"\((docs/\w[\w-]*\.md)\)", table)) == {f"docs/{path.name}" for path in DOCUMENTS[1:]}


def test_every_field_of_an_upload_is_documented() -> None:
    page = (ROOT / "docs" / "uploads.md").read_text()
    fields = {name for one in (_CHUNK, _MERGE) for name in one["properties"]}
    assert fields <= set(re.findall(r"`([a-z0-9_]+)`", page.partition("| call |")[2].partition("\n\n")[0]))


def test_the_exit_codes_of_readme_help_and_errors_agree() -> None:
    table = (ROOT / "README.md").read_text().partition("## Exit codes")[2].partition("##")[0]
    said = {int(code) for code in re.findall(r"\b(\d{1,3})\b(?=[ ,|])", table) if int(code) < 144}
    leaves = {kind.exit_code for kind in vars(errors).values() if isinstance(kind, type) and hasattr(kind, "exit_code")}
    assert leaves <= said
    helped = {int(code) for code in re.findall(r"(?:^|\s)(\d{1,3}) [a-zA-Z4]", EXIT_CODES)}
    assert helped >= leaves - {401, 403, 404}


def test_what_is_generated_is_up_to_date() -> None:
    found = {**generated(ROOT), **with_picture(ROOT)}
    assert {path.name for path in found} >= {
        "configuration.md",
        "internals.md",
        "dlpool.ini",
        "dlpool-supervisor@.service",
    }
    for path, text in found.items():
        assert path.read_text() == text, f"{path.name} is old: run scripts/generate"


def test_the_links_of_the_documents_lead_somewhere() -> None:
    for document in (*DOCUMENTS, ROOT / "CHANGELOG.md"):
        for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", document.read_text()):
            path = document.parent / target if target else document
            assert path.exists(), f"{document.name}: {target}"
            titles = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE) if anchor else []
            anchors = {re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in titles}
            assert not anchor or anchor in anchors, f"{document.name}: {target}#{anchor}"


def test_the_internals_name_modules_that_exist() -> None:
    text = (ROOT / "docs" / "internals.md").read_text()
    for name in re.findall(r"`((?:[a-z]+/)?[a-z]+\.(?:py|lua))`", text):
        assert any(str(path).endswith(f"/{name}") for path in (ROOT / "dlpool").rglob("*.*")), name


def test_the_documented_api_is_that_of_the_docstrings() -> None:
    assert (ROOT / "docs" / "api.md").read_text() == render(), "run scripts/api_doc.py"


def test_every_dependency_has_its_line() -> None:
    text = (ROOT / "docs" / "development.md").read_text()
    setup = (ROOT / "setup.cfg").read_text()
    for name in re.findall(r"^    ([a-z0-9-]+)>=", setup, re.MULTILINE):
        assert re.search(rf"\b{re.escape(name)}\b", text), name
