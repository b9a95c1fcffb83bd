"""Dependencies: bounds without known vulnerabilities, and lock files that have all that is wanted, by hash."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distributions, requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from scripts.lock import ALL, BUILD, LOCKS, SOURCES, wanted
from scripts.unlocked import unlocked

ROOT = Path(__file__).resolve().parent.parent
# The first version without a published vulnerability, and the advisory that its predecessors have.
SOUND = {
    "aiohttp": ("3.14.3", "CVE-2026-69244"),
    "certifi": ("2024.7.4", "CVE-2024-39689"),
    "cryptography": ("50.0.0", "CVE-2026-69247"),
    "gunicorn": ("23.0.0", "CVE-2024-6827"),
    "h11": ("0.16.0", "CVE-2025-43859"),
    "idna": ("3.15", "CVE-2026-45409"),
    "multipart": ("1.3.1", "CVE-2026-28356"),
    "orjson": ("3.11.6", "CVE-2025-67221"),
    "protobuf": ("6.33.5", "CVE-2026-0994"),
    "pygments": ("2.20.0", "CVE-2026-4539"),
    "pyjwt": ("2.15.1", "GHSA-ffc3-869f-jxw9, GHSA-r6x4-923q-g947"),
    "pytest": ("9.0.3", "CVE-2025-71176"),
    "pyyaml": ("5.4", "CVE-2020-14343"),
    "redis": ("4.5.5", "CVE-2023-28859"),
    "requests": ("2.33.0", "CVE-2026-25645"),
    "setuptools": ("84.0.0", "CVE-2026-59890"),
    "urllib3": ("2.7.0", "CVE-2026-44431, CVE-2026-44432"),
    "werkzeug": ("3.1.6", "CVE-2026-27199"),
    "wheel": ("0.46.2", "CVE-2026-24049"),
}
FILES = [*LOCKS, BUILD]


def pins(name: str) -> dict[str, list[tuple[Version, Requirement, int]]]:
    """Read a lock file: for each name its version, marker and number of hashes."""
    found: dict[str, list[tuple[Version, Requirement, int]]] = {}
    text = (ROOT / name).read_text(encoding="utf-8").replace("\\\n", " ")
    for line in text.splitlines():
        if "==" not in line:
            assert line.startswith(("#", "--only-binary :all:", "--no-binary ")), line
            continue
        words, *hashes = line.split("--hash=")
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", one.strip()) for one in hashes), line
        requirement = Requirement(words.strip())
        (pin,) = requirement.specifier
        assert pin.operator == "==", line
        found.setdefault(canonicalize_name(requirement.name), []).append(
            (Version(pin.version), requirement, len(hashes))
        )
    return found


def bounds() -> dict[str, Version]:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    found: dict[str, Version] = {}
    for line in wanted(tuple(config["options.extras_require"])):
        requirement = Requirement(line)
        (bound,) = requirement.specifier
        assert bound.operator == ">=", line
        found[canonicalize_name(requirement.name)] = Version(bound.version)
    return found


def test_no_bound_allows_a_version_with_a_known_vulnerability() -> None:
    low = {name: str(bound) for name, bound in bounds().items() if name in SOUND and bound < Version(SOUND[name][0])}
    assert not low, {name: (bound, *SOUND[name]) for name, bound in low.items()}


def test_what_is_installed_has_no_known_vulnerability() -> None:
    old = {}
    for name, (sound, advisory) in SOUND.items():
        try:
            installed = version(name)
        except PackageNotFoundError:
            continue
        if Version(installed) < Version(sound):
            old[name] = (installed, sound, advisory)
    assert not old


@pytest.mark.parametrize("name", FILES)
def test_no_lock_file_has_a_version_with_a_known_vulnerability(name: str) -> None:
    every = [(one, pin) for one, found in pins(name).items() for pin, _, _ in found]
    assert not [(one, str(pin), *SOUND[one]) for one, pin in every if one in SOUND and pin < Version(SOUND[one][0])]


@pytest.mark.parametrize("name", FILES)
def test_each_pin_has_hashes_and_no_file_names_a_host(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert "--only-binary :all:" in text.splitlines() and "://" not in text
    assert {line.split()[1] for line in text.splitlines() if line.startswith("--no-binary")} <= set(SOURCES)
    for one, found in pins(name).items():
        assert all(hashes for _, _, hashes in found), one


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_file_has_all_that_setup_cfg_wants(name: str) -> None:
    """Followed through the requirements of what is installed here, for this Python."""
    locked = pins(name)
    seen: set[str] = set()
    waiting = [Requirement(line) for line in wanted(LOCKS[name])]
    while waiting:
        requirement = waiting.pop()
        if str(requirement) in seen:
            continue
        seen.add(str(requirement))
        applying = [
            pin
            for pin, one, _ in locked.get(canonicalize_name(requirement.name), [])
            if one.marker is None or one.marker.evaluate()
        ]
        assert len(applying) == 1 and requirement.specifier.contains(applying[0], prereleases=True), str(requirement)
        try:
            further = [Requirement(line) for line in requires(requirement.name) or ()]
        except PackageNotFoundError:
            assert name == "scripts/requirements-bench.txt", requirement  # not installed for the tests
            continue
        environments = [{"extra": extra} for extra in requirement.extras or {""}]
        waiting += [one for one in further if one.marker is None or any(map(one.marker.evaluate, environments))]


@pytest.mark.parametrize("name", [one for one in FILES if one != ALL])
def test_the_lock_files_agree(name: str) -> None:
    largest = pins(ALL)
    for one, found in pins(name).items():
        assert one not in largest or [pin for pin, _, _ in found] == [pin for pin, _, _ in largest[one]], one


def test_what_the_tests_run_with_is_what_is_locked() -> None:
    locked = {one: [pin for pin, _, _ in found] for one, found in pins(ALL).items()}
    installed = {canonicalize_name(one.metadata["Name"]): Version(one.version) for one in distributions()}
    assert not {one: str(found) for one, found in installed.items() if one in locked and found not in locked[one]}


def test_pip_refuses_a_file_with_another_hash(tmp_path: Path) -> None:
    """The files are in pip's format, and their hashes count: no index is asked, the wheel is here."""
    wheel = tmp_path / "wheels" / "urllib3-2.7.0-py3-none-any.whl"
    wheel.parent.mkdir()
    wheel.write_bytes(b"not what was locked")
    lock = (ROOT / "scripts" / "requirements-base.txt").read_text(encoding="utf-8")
    (pin,) = re.findall(r"^urllib3==(\S+)", lock, re.MULTILINE)
    wheel.rename(wheel.with_name(f"urllib3-{pin}-py3-none-any.whl"))
    alone = "\n".join(["--only-binary :all:", *re.findall(r"^urllib3==(?:.*\\\n)+.*$", lock, re.MULTILINE)])
    (tmp_path / "lock.txt").write_text(alone + "\n")
    command = [sys.executable, "-m", "pip", "install", "--isolated", "--no-index", "--find-links", str(wheel.parent)]
    command += ["--require-hashes", "--no-deps", "--target", str(tmp_path / "site"), "-r", str(tmp_path / "lock.txt")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode != 0 and "do not match" in " ".join(ended.stderr.lower().split()), ended.stderr


def test_what_a_lock_file_no_longer_has_is_named() -> None:
    assert unlocked(
        "requests==2.34.2 \\\n    --hash=sha256:0\nRuamel.yaml==1\n",
        {"requests", "ruamel_yaml", "left", "pip", "dlpool"},
    ) == ["left"]


def test_the_image_installs_by_hash_from_a_base_by_digest() -> None:
    text = (ROOT / "etc" / "docker" / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    bases = dict(re.findall(r"^ARG (\w+)=(\S+)", text, re.MULTILINE))
    images = [bases.get(name.strip("${}"), name) for name in re.findall(r"^FROM (\S+)", text, re.MULTILINE)]
    assert images and all(re.fullmatch(r"python:3\.\d+[^@]*@sha256:[0-9a-f]{64}", image) for image in images), images
    installs = [part for part in re.split(r"&&|\n", text) if re.search(r"pip (install|wheel) ", part)]
    assert len(installs) == 4
    for part in installs:
        assert "--no-deps" in part, part
        assert "--require-hashes" in part or "--no-index" in part or "--no-build-isolation" in part, part
    for name in re.findall(r"-r (\S+)", text):
        assert (ROOT / name).exists() and f"!{name}" in (ROOT / ".dockerignore").read_text().split(), name
