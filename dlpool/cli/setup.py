"""``dlpool setup``: installs units, user, folders and INI file for systemd."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
from contextlib import suppress
from dataclasses import fields
from importlib import resources
from pathlib import Path

from dlpool.cli.console import reporting_result, show_lines
from dlpool.config import NetworkSettings, parse_setting
from dlpool.config.sample import default_ini
from dlpool.disk import atomic_write, make_folders
from dlpool.disk_errors import translated
from dlpool.errors import TargetExists

PROGRAM = "/usr/bin/dlpool-supervisor"  # in the shipped units
UNIT = "dlpool-supervisor.service"
TEMPLATE = "dlpool-supervisor@.service"
WEB_UNIT = "dlpool-web.service"
# Folders that ProtectHome and PrivateTmp hide from the service.
_HIDDEN = (
    "/home/",
    "/root/",
    "/run/user/",
    "/tmp/",
    "/var/tmp/",
)
_NEXT = """\
next, as root:
  systemd-sysusers && systemd-tmpfiles --create && systemctl daemon-reload
  systemctl enable --now {unit}\
"""
_QUESTION = """\
Jobs may connect to public addresses only. Which other networks may they connect to?
Addresses or networks separated by commas, such as 10.0.0.0/8,192.168.0.0/16 \
(Enter: none): """
_NETWORK_ALLOW = next(
    one for one in fields(NetworkSettings) if one.name == "network_allow"
)
_NEXT_WEB = (
    "  systemctl enable --now dlpool-web   # with the extra web: uploads, job API, "
    "dashboard"
)


def run(arguments: argparse.Namespace) -> int:
    """Print a unit, or install the files, and return the exit code.

    Raises LocalFault, TargetExists.
    """
    program = program_line()
    if arguments.print_unit:
        show_lines(
            [
                unit(program, is_template=arguments.instance is not None).removesuffix(
                    "\n"
                )
            ]
        )
        return 0
    root = Path(arguments.install)
    allow = allowed_networks(
        root / ini_path(arguments.instance), arguments.network_allow
    )
    changed = install(root, files(program, arguments.instance, allow))
    if program.lstrip('"').startswith(_HIDDEN):
        print(
            f"dlpool: warning: the service will not find {program}: its unit hides "
            f"that folder from it; install "
            "dlpool elsewhere, such as below /opt",
            file=sys.stderr,
        )
    if changed:
        raise TargetExists(
            "\ndlpool: ".join(
                f"{path} was changed and is kept: move it away to have it written (of "
                f"a unit, own settings belong "
                "into a drop-in, see systemctl edit)"
                for path in changed
            )
        )
    name = (
        UNIT
        if arguments.instance is None
        else TEMPLATE.replace("@", f"@{arguments.instance}")
    )
    with reporting_result():
        show_lines(
            [
                _NEXT.format(unit=name.removesuffix(".service")),
                *([_NEXT_WEB] if arguments.instance is None else []),
            ]
        )
    return 0


def allowed_networks(ini: Path, given: str | None) -> str:
    """Return the private networks that jobs may connect to.

    Returns the value of the option, ``given``. If ``given`` is None, returns the value
    in the INI file if the file exists; otherwise asks the user on the terminal until
    the answer is valid. Returns "" if there is neither an INI file nor a terminal.
    """
    if (
        given is not None
        or ini.exists()
        or not (sys.stdin.isatty() and sys.stderr.isatty())
    ):
        return _allowed_in(ini) if given is None else given
    while True:
        print(_QUESTION, end="", file=sys.stderr, flush=True)
        answer = sys.stdin.readline().strip()
        try:
            return parse_setting(_NETWORK_ALLOW, answer) or ""
        except ValueError as error:
            print(f"dlpool: {answer[:80]!r} is {error}", file=sys.stderr)


def _allowed_in(ini: Path) -> str:
    """Return the value of ``network_allow`` in an INI file; "" if there is no value.

    Because of this function, a repeated ``dlpool setup`` keeps the value.
    """
    with suppress(OSError, UnicodeDecodeError):
        if found := re.search(
            r"^network_allow *=(.*)$", ini.read_text(encoding="utf-8"), re.MULTILINE
        ):
            return found[1].strip()
    return ""


def ini_path(instance: str | None) -> str:
    """Return the path of the INI file of an instance, relative to the root."""
    return f"etc/dlpool/{instance or 'dlpool'}.ini"


def files(
    program: str, instance: str | None, network_allow: str = ""
) -> dict[str, str]:
    """Return the texts of an installation's files, by path relative to its root.

    ``program`` is the command that starts the supervisor. ``instance`` is the
    name of the service's instance, None for the instance without a name.
    """
    below = f"/{instance}" if instance else ""
    ini = default_ini(
        {
            "download_dir": f"/var/lib/dlpool{below}/downloads",
            "state_dir": f"/var/lib/dlpool{below}/state",
            "log_dir": f"/var/log/dlpool{below}",
            "upload_dir": f"/var/lib/dlpool{below}/upload",
            "merged_dir": f"/var/lib/dlpool{below}/merged",
            "network_allow": network_allow,
            "quarantine_dir": f"/var/lib/dlpool{below}/quarantine",
        }
    )
    return {
        f"etc/systemd/system/{UNIT}": unit(program, is_template=False),
        f"etc/systemd/system/{TEMPLATE}": unit(program, is_template=True),
        f"etc/systemd/system/{WEB_UNIT}": web_unit(program),
        "etc/sysusers.d/dlpool.conf": _read_shipped("sysusers.conf"),
        "etc/tmpfiles.d/dlpool.conf": _read_shipped("tmpfiles.conf"),
        ini_path(instance): ini,
    }


def unit(program: str, *, is_template: bool) -> str:
    """Return the unit of the service, or the template of its instances."""
    text = _read_shipped(UNIT).replace(PROGRAM, program)
    if not is_template:
        return text
    text = re.sub(
        r"^(WorkingDirectory|StateDirectory|LogsDirectory)=(\S+)$",
        r"\1=\2/%i",
        text,
        flags=re.MULTILINE,
    )
    return (
        text.replace("/dlpool.ini", "/%i.ini")
        .replace(
            "systemctl edit dlpool-supervisor", "systemctl edit dlpool-supervisor@NAME"
        )
        .replace(
            "Description=dlpool download service",
            "Description=dlpool download service %i",
        )
    )


def web_unit(program: str) -> str:
    """Return the unit of dlpool-web.

    ``program`` is the command that starts the supervisor. The unit starts the
    dlpool-web of the same installation.
    """
    head, _, tail = program.rpartition("supervisor")
    return _read_shipped(WEB_UNIT).replace("/usr/bin/dlpool-web", f"{head}web{tail}")


def program_line() -> str:
    """Return the command that starts the supervisor of this installation."""
    for found in (
        Path(sys.executable).with_name("dlpool-supervisor"),
        shutil.which("dlpool-supervisor"),
    ):
        if found and os.access(found, os.X_OK):
            return _quoted(str(Path(found).absolute()))
    return f"{_quoted(sys.executable)} -m dlpool.cli.supervisor"


def install(root: Path, contents: dict[str, str]) -> list[Path]:
    """Write the files that do not exist yet below ``root``, each atomically.

    ``contents`` holds the texts by path. Existing files are kept. Returns the existing
    files whose text differs from ``contents``. Raises LocalFault.
    """
    changed = []
    for name, text in contents.items():
        path = root / name
        with translated(f"write {path}"):
            if not os.path.lexists(path):
                _write(path, text)
                message = f"written: {path}"
            elif path.is_file() and path.read_bytes() == text.encode():
                message = f"unchanged: {path}"
            else:
                changed.append(path)
                continue
        with reporting_result():
            show_lines([message])
    return changed


def _write(path: Path, text: str) -> None:
    make_folders(path.parent, sync=True)
    new = path.with_name(f".{path.name}.new")
    atomic_write(path, text.encode(), sync=True, mode=0o644, temporary=new)
    path.chmod(0o644)  # whatever the umask is


def _quoted(path: str) -> str:
    """Quote a path for a command line in a unit; see systemd.service(5)."""
    path = path.replace("%", "%%").replace("\\", "\\\\").replace('"', '\\"')
    return f'"{path}"' if re.search(r"[^\w./%-]", path) else path


def _read_shipped(name: str) -> str:
    return (resources.files("dlpool.cli") / "systemd" / name).read_text(
        encoding="utf-8"
    )
