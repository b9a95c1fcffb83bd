"""The commands of dlpool and of the tools it is compared with."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

BIN = Path(sys.executable).parent
DLPOOL = [str(BIN / "dlpool"), "fetch", "-q"]
ARIA2 = ["aria2c", "-q", "--no-conf", "--check-certificate=false", "--allow-overwrite=true"]
RCLONE = ["rclone", "--config", "", "--no-check-certificate"]
PYPDL = (
    "import sys, pypdl; url, path, count = sys.argv[1:]; done = pypdl.Pypdl().start("
    "url, path, segments=int(count), display=False, ssl=False); sys.exit(not done)"
)

Command = Callable[[Path], list[str]]  # from the folder for the output


def installed(commands: Mapping[str, Command]) -> dict[str, Command]:
    """Return the commands whose programs are installed."""
    if find_spec("pypdl") is None:
        commands = {name: command for name, command in commands.items() if name != "pypdl"}
    return {name: command for name, command in commands.items() if shutil.which(command(Path("/"))[0])}


def version(program: str) -> str:
    """Return the first line that the program prints of its version, or an empty text."""
    path = shutil.which(program) or shutil.which(program, path=f"{BIN}:/usr/sbin")
    if path is None:
        return ""
    option = {"nginx": "-v", "openssl": "version", "rclone": "version"}.get(program, "--version")
    done = subprocess.run([path, option], capture_output=True, text=True, check=False)
    lines = (done.stdout + done.stderr).strip().splitlines()
    return lines[0].strip() if lines else ""


def one_file(url: str, *, connections: int = 4, options: tuple[str, ...] = ()) -> dict[str, Command]:
    """Return the commands that fetch one large file. ``options``: of dlpool."""
    count = str(connections)
    return {
        "dlpool": lambda out: [*DLPOOL, url, f"{out}/", *options],
        "aria2": lambda out: [*ARIA2, f"-x{count}", f"-s{count}", "-k1M", "-d", str(out), url],
        "curl": lambda out: ["curl", "-sfk", "-o", f"{out}/file", url],
        "wget": lambda out: ["wget", "-q", "--no-check-certificate", "-O", f"{out}/file", url],
        "wget2": lambda out: ["wget2", "-q", "--no-check-certificate", "-O", f"{out}/file", url],
        "axel": lambda out: ["axel", "-q", "-k", "-n", count, "-o", f"{out}/file", url],
        "pypdl": lambda out: [sys.executable, "-c", PYPDL, url, f"{out}/file", count],
        "rclone": lambda out: [*RCLONE, "copyurl", url, f"{out}/file"],
    }


def list_of_files(base: str, names: list[str], folder: Path) -> dict[str, Command]:
    """Return the commands that fetch files of one server, eight at once. ``folder``: for the list files."""
    (folder / "urls").write_text("".join(f"{base}/{name}\n" for name in names))
    (folder / "names").write_text("".join(f"{name}\n" for name in names))
    (folder / "curl").write_text("".join(f'url = "{base}/{name}"\nremote-name\n' for name in names))
    urls = f"{folder}/urls"
    return {
        "dlpool": lambda out: [*DLPOOL, "-i", urls, str(out), "-j", "8", "--no-sync"],
        "aria2": lambda out: [*ARIA2, "-j8", "-i", urls, "-d", str(out)],
        "curl": lambda out: ["curl", "-sfZ", "--parallel-max", "8", "--output-dir", str(out), "-K", f"{folder}/curl"],
        "wget": lambda out: ["wget", "-q", "-P", str(out), "-i", urls],
        "wget2": lambda out: ["wget2", "-q", "--max-threads=8", "-P", str(out), "-i", urls],
        "rclone": lambda out: [
            *[*RCLONE, "copy", "--http-url", base, ":http:", str(out), "--files-from-raw", f"{folder}/names"],
            *["--no-traverse", "--transfers", "8"],
        ],
    }
