"""What scripts/package does. It builds from a copy, so that nothing but the result is left in the project.

The sdist is built first, and the wheel out of it: so nothing is missing there. The executable has the wheel and its
dependencies in it, which pip gets from its index by the versions and hashes of scripts/requirements-base.txt; some are
compiled, so it is for this machine's kind and this Python.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = (
    "dlpool",
    "docs",
    "etc",
    "share",
    "CHANGELOG.md",
    "LICENSE",
    "MANIFEST.in",
    "README.md",
    "pyproject.toml",
    "setup.cfg",
    "setup.py",
)
PYTHON = f"/usr/bin/env python{sys.version_info[0]}.{sys.version_info[1]}"  # no other can load what is compiled


def package(dist: Path) -> None:
    """Build all three; they come into ``dist`` when all are whole. Raises OSError; a builder that fails ends it."""
    with tempfile.TemporaryDirectory(prefix="dlpool-package-") as temporary:
        source, built = Path(temporary, "source"), Path(temporary, "built")
        for name in SOURCES:
            _copy(ROOT / name, source / name)
        _run("build", "--no-isolation", "--outdir", built, source)
        (wheel,) = built.glob("*.whl")
        site = Path(temporary, "site")
        install = ("install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-compile", "--target", site)
        _run("pip", *install, "--require-hashes", "-r", ROOT / "scripts" / "requirements-base.txt")
        _run("pip", *install, "--no-index", wheel)
        options = ("--compressed", "--reproducible", "-p", PYTHON, "-e", "dlpool.cli.main:single_file_main")
        _run("shiv", *options, "--site-packages", site, "-o", built / "dlpool.pyz")
        dist.mkdir(parents=True, exist_ok=True)
        for path in sorted(built.iterdir()):
            new = dist / f".{path.name}.new"
            try:
                shutil.copy(path, new)
                new.replace(dist / path.name)
            finally:
                new.unlink(missing_ok=True)
            print(f"{dist / path.name}  {path.stat().st_size:,} bytes")


def _copy(path: Path, copy: Path) -> None:
    if path.is_dir():
        shutil.copytree(path, copy, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        copy.parent.mkdir(exist_ok=True)
        shutil.copy(path, copy)


def _run(module: str, *arguments: object) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    if ended.returncode != 0:
        sys.exit(f"{module} ended with {ended.returncode}:\n{ended.stdout}{ended.stderr}")


if __name__ == "__main__":
    try:
        package(Path(sys.argv[1]).absolute())
    except OSError as error:
        sys.exit(f"scripts/package: cannot write {error.filename}: {error.strerror}")
