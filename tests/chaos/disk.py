"""What a chaos run must leave on the disk, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.chaos.jobs import Job
from tests.chaos.stage import Stage
from tests.conftest import sha256

LEFTOVER = (".part", ".part.meta", ".tmp")
# What multiprocessing says in a worker whose supervisor was killed before it had told it what to do.
ORPHANED = re.compile(
    r"Traceback \(most recent call last\):\n(?: .*\n)*?.*, in spawn_main\n(?: .*\n)*"
    r"(?:EOFError: Ran out of input|_pickle\.UnpicklingError: pickle data was truncated)\n"
)


def leftover_files(downloads: Path) -> list[str]:
    """What no finished job may leave."""
    return [str(path.relative_to(downloads)) for path in _files(downloads) if path.name.endswith(LEFTOVER)]


def wrong_files(stage: Stage, succeeded: Sequence[Job], doubtful: Sequence[Job]) -> Iterator[str]:
    """Each file against what was served. That of a ``doubtful`` job may be there, and whole: it was published, and
    cancelled or given up when nobody could say so any more."""
    wanted = {job.path: job for job in succeeded}
    known = {job.path: job for job in doubtful} | wanted
    found = {str(path.relative_to(stage.downloads)): path for path in _files(stage.downloads)}
    for name in sorted(wanted.keys() - found.keys()):
        yield f"{wanted[name].name}: its file {name} is not there"
    for name in sorted(found.keys() - known.keys()):
        yield f"file {name} should not be there"
    for name in sorted(known.keys() & found.keys()):
        data = found[name].read_bytes()
        if sha256(data) not in stage.jobs.versions(known[name]):
            yield f"{known[name].name}: {len(data)} bytes of {name} are not the {known[name].size} that were served"
    if (stage.downloads.parent / "out of the folder").exists():
        yield "a file has left its folder"


def unclean_states(stage: Stage) -> Iterator[str]:
    """What supervisors that ended well keep: nothing of any job."""
    for node in stage.nodes:
        folder = node.service.state_dir
        yield from (f"{path} is left" for path in (folder / "spool").iterdir())
        yield from (f"{path} is left" for path in folder.iterdir() if path.name.endswith(".tmp"))
        if text := (folder / "journal").read_text():
            yield f"the journal of {node.name} is not empty: {text[:1000]}"
        if (text := (folder / "sids.json").read_text()).strip() != "[]":
            yield f"the sids of {node.name} are not forgotten: {text}"
        said = ORPHANED.sub("", node.service.errors.read_text())
        if "Traceback" in said:
            yield f"supervisor {node.name} said:\n{said[-3000:]}"


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]
