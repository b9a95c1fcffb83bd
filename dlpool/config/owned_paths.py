"""Lists the files and folders that dlpool owns: no job and no upload may write there.

The settings determine these files and folders. Two paths are compared by the places
that they name: links are followed, and folders are compared by device and inode number,
which detects bind mounts. Names that do not exist yet, and names on a file system that
ignores case, are compared without regard to case.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sysconfig
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path

import dlpool
from dlpool.config.sections import SECTIONS, PathSettings, Settings
from dlpool.dataclass import dataclass
from dlpool.disk import Identity, identity_of
from dlpool.errors import ConfigurationError
from dlpool.kinds import COMMAND, PATH, redacted_command

# The settings whose paths are not owned, because jobs write there.
TARGETS = (("paths", "download_dir"), ("paths", "allowed_roots"))
_HOOKS_RUN_IN = "/"  # working directory of commands
_NETRC = (".netrc", "_netrc")
_PATH = re.compile(r"/[^\s'\"`;&|<>(){}$,:=]+")


@dataclass(frozen=True)
class OwnedPath:
    """A file or folder; it need not exist. ``what`` describes it in messages."""

    what: str
    path: str

    @property
    def setting(self) -> str:
        """The description without the value: clients must not see the value."""
        return self.what.partition(" = ")[0]


@dataclass(frozen=True)
class Location:
    """A path with the identities of the folders on it.

    An identity is a device number and an inode number. ``identities`` are those of
    ``/`` and of each existing file or folder on the path. ``rest`` holds the remaining
    names, case-folded. ``folded`` is the whole path, case-folded.
    """

    path: str
    folded: str
    identities: tuple[Identity, ...]
    rest: tuple[str, ...]

    @classmethod
    def of(cls, path: str) -> Location:
        """Return the location of ``path``.

        Follows the links in ``path`` and examines each folder on the path.
        """
        real = resolved(path)
        names = [name for name in real.split("/") if name]
        identities = []
        for count in range(len(names) + 1):
            try:
                identities.append(identity_of(os.stat("/" + "/".join(names[:count]))))
            except OSError:
                break
        rest = names[max(0, len(identities) - 1) :]
        return cls(real, folded(real), tuple(identities), tuple(map(folded, rest)))

    def holds(self, other: Location) -> bool:
        """Return whether ``other`` is this location or lies below it."""
        if is_under(other.path, self.path) or self._is_above(other):
            return True
        return is_under(other.folded, self.folded) and is_under(
            _spelt(other.path), _spelt(self.path)
        )

    def _is_above(self, other: Location) -> bool:
        """Return whether ``other`` is this location or below it; compare identities."""
        if not self.identities or not other.identities:
            return False
        if not self.rest:
            return self.identities[-1] in other.identities
        return (
            self.identities[-1] == other.identities[-1]
            and other.rest[: len(self.rest)] == self.rest
        )


def folded(name: str) -> str:
    """Return a name or path as a case-insensitive file system compares it."""
    return (
        name.casefold()
        if name.isascii()
        else unicodedata.normalize("NFC", name).casefold()
    )


def _spelt(path: str) -> str:
    """Return a path whose existing names are spelt as their folders list them.

    Names that do not exist are folded and marked with NUL. Paths are compared by
    spelling because inode numbers are not sufficient: a file system in user space may
    give a file another inode number for each spelling of its name.
    """
    found = ""
    for name in path.strip("/").split("/"):
        found = f"{found}/{_listed(found or '/', name)}"
    return found


def _listed(folder: str, name: str) -> str:
    if not os.path.lexists(f"{folder}/{name}"):
        return f"\0{folded(name)}"
    try:
        names = os.listdir(folder)
    except OSError:
        return name
    return (
        name
        if name in names
        else next((one for one in names if folded(one) == folded(name)), name)
    )


def is_under(path: str, folder: str) -> bool:
    """Return whether a resolved path is ``folder`` or lies below it; compare names."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def resolved(path: str) -> str:
    """Return a path with its links resolved.

    If the working directory has been deleted, relative paths are resolved against /.
    """
    try:
        return os.path.realpath(path)
    except FileNotFoundError:
        return os.path.normpath(os.path.join("/", path))


def target_roots(paths: PathSettings) -> list[OwnedPath]:
    """Return the folders that jobs may write to, as the settings name them."""
    given = [root for root in (paths.allowed_roots or "").split(":") if root]
    if given:
        return [OwnedPath(f"[paths] allowed_roots = {root}", root) for root in given]
    return [
        OwnedPath(f"[paths] download_dir = {paths.download_dir}", paths.download_dir)
    ]


def owned_paths(
    settings: Settings, environment: Mapping[str, str] = os.environ
) -> tuple[OwnedPath, ...]:
    """Return the files and folders that dlpool owns with these settings."""
    found = [
        *_of_settings(settings),
        *_of_files(settings.files),
        *_of_environment(settings, environment),
        *_program(),
    ]
    return tuple({one.path: one for one in reversed(found)}.values())[::-1]


def check_owned_paths(settings: Settings) -> None:
    """Check that no folder for jobs or clients overlaps an owned path.

    Raises ConfigurationError with a line for each pair that overlaps.
    """
    ours = [(one, Location.of(one.path)) for one in owned_paths(settings)]
    problems = []
    for root in target_roots(settings.paths):
        at = Location.of(root.path)
        problems += [
            f"{root.what} and {one.what} overlap: keep them apart, or a job could "
            f"replace what dlpool owns"
            for one, place in ours
            if at.holds(place) or place.holds(at)
        ]
    problems += _of_uploads(settings, ours)
    if problems:
        raise ConfigurationError("\n".join(problems))


def _of_uploads(
    settings: Settings, ours: list[tuple[OwnedPath, Location]]
) -> list[str]:
    """Return the conflicts of ``merged_dir`` with owned paths.

    Clients name and read the files in ``merged_dir``. Therefore ``merged_dir`` must
    contain no owned path, and must not lie in ``upload_dir``.
    """
    merged, chunks = (
        Location.of(settings.upload.merged_dir),
        Location.of(settings.upload.upload_dir),
    )
    name = f"[upload] merged_dir = {settings.upload.merged_dir}"
    return [
        f"{name} and {one.what} overlap: keep them apart, or a client could read and "
        f"replace what dlpool owns"
        for one, place in ours
        if not one.what.startswith("[upload] merged_dir ")
        and (merged.holds(place) or (place == chunks and chunks.holds(merged)))
    ]


def _of_settings(settings: Settings) -> Iterator[OwnedPath]:
    for section, kind in SECTIONS.items():
        for declared in fields(kind):
            value = getattr(getattr(settings, section), declared.name)
            if not value or (section, declared.name) in TARGETS:
                continue
            what = f"[{section}] {declared.name} = {value}"
            if declared.metadata["kind"] is PATH:
                yield OwnedPath(what, value)
            elif declared.metadata["kind"] is COMMAND:
                what = f"[{section}] {declared.name} = {redacted_command(value)}"
                program, *others = _files_of_command(value)
                yield OwnedPath(what, program)
                yield from (OwnedPath(f"{what} ({path})", path) for path in others)


def _files_of_command(command: str) -> Iterator[str]:
    """Yield the program of a command, and the files that its arguments name.

    An argument may name a script that an interpreter runs. The path of a missing file
    is included, because a job that creates the file would decide what runs. Folders are
    not included. In a longer text, such as shell commands, only existing files are
    found.
    """
    program, *arguments = shlex.split(command)
    yield shutil.which(program) or program
    for argument in arguments:
        for word in (argument, argument.partition("=")[2]):
            path = Path(_HOOKS_RUN_IN, word)
            is_path = (
                "/" in word and not any(map(str.isspace, word)) and not path.is_dir()
            )
            if is_path or (word and path.is_file()):
                yield str(path)
        yield from (word for word in _PATH.findall(argument) if Path(word).is_file())


def _of_files(files: tuple[str, ...]) -> Iterator[OwnedPath]:
    for path in files:
        yield OwnedPath(f"the settings file {path}", path)
    if files:
        folder = str(Path(files[0]).parent / "conf.d")
        yield OwnedPath(f"the settings in {folder}", folder)


def _of_environment(
    settings: Settings, environment: Mapping[str, str]
) -> Iterator[OwnedPath]:
    if folder := environment.get("CREDENTIALS_DIRECTORY"):
        yield OwnedPath(f"the credentials in {folder}", folder)
    if not settings.network.netrc:
        return
    home = environment.get("HOME") or "/"
    named = (
        [environment["NETRC"]]
        if environment.get("NETRC")
        else [f"{home}/{name}" for name in _NETRC]
    )
    yield from (OwnedPath(f"the passwords in {path}", path) for path in named)


def _program() -> Iterator[OwnedPath]:
    """Yield the folders of dlpool's code: a file written there could be run."""
    places = [sysconfig.get_path(name) for name in ("scripts", "purelib", "platlib")]
    for path in (*places, str(Path(dlpool.__file__).parent)):
        yield OwnedPath(f"the program in {path}", path)
