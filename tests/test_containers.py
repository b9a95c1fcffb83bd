"""Containers cannot run here: what their files say is held against the parsers, the settings and a real supervisor."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

from dlpool import __version__
from dlpool.cli import main, supervisor, web
from dlpool.config.layers import load
from dlpool.jobs.keys import QueueKeys
from dlpool.kinds import DURATION, split_address
from tests.conftest import free_port, wait_until
from tests.fleet import Supervisor
from tests.metrics import get
from tests.processes import ROOT, run
from tests.redis_server import RedisServer

DOCKER, KUBERNETES = ROOT / "etc" / "docker", ROOT / "etc" / "kubernetes"
YAMLS = [DOCKER / "compose.yml", *sorted(KUBERNETES.glob("*.yml"))]
RULES = "{extends: default, rules: {line-length: {max: 120}, document-start: disable}}"
SCHEMAS = "1.31"
BUILD_S = 120


def read(name: str) -> dict[str, Any]:
    value: dict[str, Any] = yaml.safe_load((KUBERNETES / f"{name}.yml").read_text())
    return value


def pod() -> dict[str, Any]:
    value: dict[str, Any] = read("deployment")["spec"]["template"]["spec"]
    return value


def container() -> dict[str, Any]:
    (one,) = pod()["containers"]
    return dict(one)


def compose() -> dict[str, Any]:
    value: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yml").read_text())
    return value


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"\\\n", " ", (DOCKER / "Dockerfile").read_text())
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in text.splitlines() if line[:1].isalpha()]


def instruction(name: str) -> str:
    """What the last one of that name says."""
    return [rest for kind, rest in instructions() if kind == name][-1]


def health_command() -> list[str]:
    words: list[str] = json.loads(instruction("HEALTHCHECK").partition("CMD ")[2])
    return words


@pytest.fixture(params=["docker", "kubernetes"])
def ini(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The INI file of a container."""
    path = tmp_path / "dlpool.ini"
    is_docker = request.param == "docker"
    path.write_text((DOCKER / "dlpool.ini").read_text() if is_docker else read("configmap")["data"]["dlpool.ini"])
    return path


# --- the files by themselves ---


def test_yamllint_finds_nothing() -> None:
    command = [sys.executable, "-m", "yamllint", "--strict", "-d", RULES, *map(str, YAMLS)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_S, check=False)
    assert (ended.returncode, ended.stdout + ended.stderr) == (0, "")


@pytest.mark.parametrize("name", ["configmap", "deployment", "pvc", "service"])
def test_the_schemas_of_kubernetes_take_the_manifests(name: str) -> None:
    kubernetes_validate.validate(read(name), SCHEMAS, strict=True)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**read(name), "specs": {}}, SCHEMAS, strict=True)


def test_names_lead_from_one_manifest_to_the_other() -> None:
    labels = read("deployment")["spec"]["template"]["metadata"]["labels"]
    assert read("deployment")["spec"]["selector"]["matchLabels"] == read("service")["spec"]["selector"] == labels
    volumes = {one["name"]: one for one in pod()["volumes"]}
    assert {one["name"] for one in container()["volumeMounts"]} == set(volumes)
    assert volumes["config"]["configMap"]["name"] == read("configmap")["metadata"]["name"]
    assert volumes["downloads"]["persistentVolumeClaim"]["claimName"] == read("pvc")["metadata"]["name"]
    assert container()["image"] == f"dlpool:{__version__}"
    services = compose()["services"]
    mounted = [one.split(":") for service in services.values() for one in service["volumes"]]
    assert {name for name, _ in mounted} == set(compose()["volumes"])
    assert set(services["dlpool"]["depends_on"]) == {"redis"}


def test_the_autoscaler_looks_at_the_list_of_this_redis(tmp_path: Path) -> None:
    spec = read("scaledobject")["spec"]
    assert spec["scaleTargetRef"]["name"] == read("deployment")["metadata"]["name"]
    (trigger,) = spec["triggers"]
    assert trigger["type"] == "redis" and trigger["metadata"]["listName"] == QueueKeys(None).intake
    address, database = trigger["metadata"]["address"], trigger["metadata"]["databaseIndex"]
    assert f"redis://{address}/{database}\n" in read("configmap")["data"]["dlpool.ini"]
    assert all(isinstance(value, str) for value in trigger["metadata"].values())
    assert 1 <= spec["minReplicaCount"] < spec["maxReplicaCount"]
    assert "replicas" not in read("deployment")["spec"], "two would say the number of pods"


# --- what they say of dlpool ---


def commands() -> Iterator[list[str]]:
    yield json.loads(instruction("CMD"))
    yield health_command()
    yield container()["args"]
    for line in re.findall(r"exec dlpool (dlpool .*)", (ROOT / "docs" / "containers.md").read_text()):
        yield shlex.split(line)


def test_their_commands_and_options_exist() -> None:
    found = list(commands())
    assert len(found) == 4
    for program, *arguments in found:
        parser = {"dlpool": main, "dlpool-supervisor": supervisor}[program].build_parser()
        assert parser.parse_args(arguments).config == "/etc/dlpool/dlpool.ini"


def test_their_settings_and_variables_exist(ini: Path) -> None:
    given = {one["name"]: "secret" for one in container()["env"]} | compose()["services"]["dlpool"]["environment"]
    assert len(given) == 3
    environment = {**os.environ, **given}
    assert run("config", "check", "-c", ini, env=environment).code == 0
    wrong = run("config", "check", "-c", ini, env={**environment, "DLPOOL_REDIS_PORT": "tcp://10.0.0.1:6379"})
    assert wrong.code == 78 and pod()["enableServiceLinks"] is False


def test_the_http_side_of_the_compose_file_has_settings_that_hold(tmp_path: Path) -> None:
    service = compose()["services"]["web"]
    given = {**os.environ, **service["environment"]}
    shown = run("config", "show", "-c", DOCKER / "dlpool.ini", "--json", env=given)
    assert shown.code == 0, shown.err
    rows = [json.loads(line) for line in shown.out.splitlines()]
    values = {(row["section"], row["key"]): row["value"] for row in rows}
    port = values["upload", "port"]
    assert service["ports"] == [f"127.0.0.1:{port}:{port}"]
    assert f":{port}/livez" in service["healthcheck"]["test"][-1]
    assert web.build_parser().parse_args(service["command"][1:]).config == "/etc/dlpool/dlpool.ini"
    mounted = tuple(one.split(":")[1] for one in service["volumes"])
    assert all(values["upload", name].startswith(mounted) for name in ("upload_dir", "merged_dir"))
    secret = values["web", "secret_key_file"].rpartition("/")[2]
    assert service["secrets"] == [secret] == list(compose()["secrets"])


def test_all_folders_are_volumes_and_ports_agree(ini: Path) -> None:
    loaded = load(str(ini))
    folders = {loaded["paths"].download_dir, loaded["paths"].state_dir, loaded["paths"].log_dir}
    uploads = "/var/lib/dlpool/uploads"
    assert {*folders, uploads} == set(instruction("VOLUME").split())
    assert folders <= {one["mountPath"] for one in container()["volumeMounts"] if not one.get("readOnly")}
    assert folders == {one.split(":")[1] for one in compose()["services"]["dlpool"]["volumes"]}
    host, port = split_address(loaded["metrics"].listen)
    assert host == "0.0.0.0"
    assert [int(instruction("EXPOSE"))] == [port] == [one["containerPort"] for one in container()["ports"]]
    assert compose()["services"]["dlpool"]["ports"] == [f"127.0.0.1:{port}:{port}"]
    assert [one["port"] for one in read("service")["spec"]["ports"]] == [port]


def test_nobody_is_root_and_all_are_the_same_user() -> None:
    user, group = map(int, instruction("USER").split(":"))
    context = pod()["securityContext"]
    assert (context["runAsUser"], context["runAsGroup"], context["fsGroup"]) == (user, group, group)
    assert user > 0 and f"--uid {user} " in "".join(rest for kind, rest in instructions() if kind == "RUN")


def test_what_ends_a_container_waits_until_it_has_drained(tmp_path: Path) -> None:
    (tmp_path / "dlpool.ini").write_text(read("configmap")["data"]["dlpool.ini"])
    assert pod()["terminationGracePeriodSeconds"] > load(str(tmp_path / "dlpool.ini"))["supervisor"].drain_timeout
    service = compose()["services"]["dlpool"]
    drain = DURATION.parse(service["environment"]["DLPOOL_SUPERVISOR_DRAIN_TIMEOUT"])
    assert DURATION.parse(service["stop_grace_period"]) > drain


def test_a_supervisor_with_these_settings_answers_the_probes(ini: Path, tmp_path: Path) -> None:
    port = free_port()
    text = ini.read_text().replace("0.0.0.0:9108", f"127.0.0.1:{port}")
    for folder in ("/var/lib/dlpool", "/var/log/dlpool"):
        text = text.replace(folder, f"{tmp_path}/node{'/log' if 'log' in folder else ''}")
    with RedisServer(tmp_path / "redis") as redis:
        node = Supervisor(tmp_path / "node", redis.url)
        node.ini.write_text(text.replace("redis://redis:6379/0", redis.url))
        with node:
            paths = [container()[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "liveness", "readiness")]
            wait_until(lambda: [get(port, path) for path in paths] == [(HTTPStatus.OK, "ok\n")] * 3)
            asked = [str(node.ini) if word == "/etc/dlpool/dlpool.ini" else word for word in health_command()[1:]]
            assert run(*asked).code == 0
            assert node.stop() == 0
        assert run(*asked).code == 1


def test_the_image_can_be_built_of_what_its_build_sees(tmp_path: Path) -> None:
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert ignored[0] == "*"
    for name in (word[1:] for word in ignored if word.startswith("!")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    copied = [rest.split()[0] for kind, rest in instructions() if kind == "COPY" and not rest.startswith("--from")]
    assert len(copied) == 2 and all((tmp_path / name).exists() for name in copied)
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    command = [*pip, "-w", str(tmp_path / "dist"), str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_S, check=False)
    assert ended.returncode == 0, ended.stderr
    assert len(list((tmp_path / "dist").glob("*.whl"))) == 1
