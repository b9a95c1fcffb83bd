"""What scripts/lock does: writes the lock files that scripts/environment, scripts/package and the image install from.

Each has all distributions of some extras of setup.cfg, transitive ones too, at one version, with the SHA-256 of each
of their files: pip installs nothing else. Only wheels are allowed, so that no code of a dependency runs while it is
installed; the exceptions are ``SOURCES``, which are built with what ``BUILD`` has. One resolution serves all Python
versions of ``PYTHONS`` (by markers), and each is checked to have wheels for each of ``MACHINES``.
"""

from __future__ import annotations

import configparser
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
MACHINES = ("x86_64-manylinux_2_28", "aarch64-manylinux_2_28")
SOURCES = ("argparse-manpage",)  # (dev) has no wheels
ALL = "scripts/requirements.txt"
BUILD = "scripts/requirements-build.txt"
LOCKS: dict[str, tuple[str, ...]] = {  # the first is the largest: the others take its versions
    ALL: ("dev", "embedded", "otel", "web"),
    "scripts/requirements-web.txt": ("web",),
    "scripts/requirements-base.txt": (),
    "scripts/requirements-bench.txt": ("bench",),
}
HEADER = "# Written by scripts/lock."


def wanted(extras: tuple[str, ...]) -> list[str]:
    """Return the requirements of setup.cfg that dlpool has with ``extras``."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    texts = [config["options"]["install_requires"], *(config["options.extras_require"][extra] for extra in extras)]
    return [line.strip() for text in texts for line in text.splitlines() if line.strip()]


def _compile(requirements: list[str], output: Path, *options: str) -> None:
    options = ("--no-config", "--no-emit-index-url", "--no-annotate", "--only-binary", ":all:", *options)
    sources = [option for name in SOURCES for option in ("--no-binary", name)]
    subprocess.run(
        [sys.executable, "-m", "uv", "pip", "compile", "-q", *options, *sources, "--output-file", str(output), "-"],
        input="\n".join(requirements),
        text=True,
        check=True,
        cwd=ROOT,
    )


def _lock(name: str, requirements: list[str], upgrade: bool) -> None:
    options = ["--universal", "--python-version", PYTHONS[0], "--generate-hashes"]
    if name != ALL:
        options += ["--constraints", ALL]
    elif upgrade:
        options.append("--upgrade")
    _compile(requirements, ROOT / name, *options)
    path = ROOT / name
    text = path.read_text(encoding="utf-8")
    sources = [source for source in SOURCES if f"\n{source}==" in text]
    binary = ["--only-binary :all:", *(f"--no-binary {source}" for source in sources)]  # pip: the later one counts
    pins = [line for line in text.splitlines() if not line.startswith(("#", "--"))]
    path.write_text("\n".join([HEADER, *binary, *pins]) + "\n", encoding="utf-8")


def _check(name: str) -> None:
    """Resolve the pins of ``name`` for each Python and machine: fails where one of them has no wheel."""
    pins = [line.split(" \\")[0] for line in (ROOT / name).read_text(encoding="utf-8").splitlines() if "==" in line]
    with tempfile.TemporaryDirectory(prefix="dlpool-lock-") as temporary:
        for python in PYTHONS:
            for machine in MACHINES:
                _compile(pins, Path(temporary, "lock"), "--python-version", python, "--python-platform", machine)


def main(upgrade: bool) -> None:
    """Write all lock files; with ``upgrade``, with the newest versions. Raises CalledProcessError if uv fails."""
    for name, extras in LOCKS.items():
        _lock(name, wanted(extras), upgrade)
        _check(name)
    _lock(BUILD, ["setuptools", "wheel"], upgrade)


if __name__ == "__main__":
    try:
        main("--upgrade" in sys.argv[1:])
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)
