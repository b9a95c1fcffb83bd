"""Change the code in one place at a time, and check whether a test fails.

Which tests call which function is recorded once, a test file at a time, and again for a file that has changed; it is
kept in ``.mutants``. Each mutant then runs the tests that cover its function, quickest first, until one
fails. A failure counts only if the same test passes on the unchanged code. What is known to change no behaviour stands
in ``tests/equivalent_mutants.txt`` with the reason.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import Counter, defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from queue import SimpleQueue

from scripts.mutants import Mutant, mutants_of
from scripts.mutate_recorder import instrumented

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / ".mutants"
EQUIVALENT = ROOT / "tests" / "equivalent_mutants.txt"
PACKAGES = ("transfer", "jobs", "service", "storage")
COPIED = ("dlpool", "tests", "scripts", "etc", "share", "docs")
GOAL = 0.95
SLACK_S = 90.0  # beyond a multiple of the recorded seconds, before a run counts as hanging
SLACK = 5
RECORDING_S = 1800.0  # the longest run of one test file
PLUGIN = "scripts.mutate_plugin"
TIMEOUT, COLLECTION = "timeout", "collection"  # in place of the failed test: the run hung, or could not begin
APART = (  # what these test lies outside the packages, or they take long and cover what quicker ones cover
    "chaos dashboard dashboard_files dashboard_fleet dashboard_uploads dashboard_views docs doctor doctor_folder"
    " examples house layers ini log_docs log_files log_records log_rotation log_service manuals mutants package"
    " redis_tls rsyslog scale sentinel setup shipping"
)
SKIPPED = {f"tests/test_{name}.py" for name in APART.split()}


@dataclass
class Record:
    """Which tests cover which function, how long each takes, and how many functions each test file covers.

    ``covering`` has (module, function) as keys.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    covering: dict[tuple[str, str], set[str]] = field(default_factory=lambda: defaultdict(set))
    breadth: Counter[str] = field(default_factory=Counter)

    def tests_for(self, mutant: Mutant, most_s: float) -> list[list[str]]:
        """Return the tests that cover the mutant's function, of at most ``most_s`` recorded seconds, in batches.

        A batch is one pytest run, which imports its test files. Those that cover the fewest functions come first, as
        they are the likeliest to fail; within a batch the quickest tests.
        """
        by_file: dict[str, list[str]] = defaultdict(list)
        for test in sorted(self.covering.get((mutant.module, mutant.function), ())):
            if test in self.seconds:  # else it failed while it was recorded
                by_file[test.partition("::")[0]].append(test)
        files = sorted(by_file, key=lambda file: self.breadth[file])
        batches, total = [], 0.0
        for some in (files[:2], files[2:6], files[6:]):
            batch = []
            for test in sorted((test for file in some for test in by_file[file]), key=self.seconds.__getitem__):
                total += self.seconds[test]
                if total > most_s:
                    break
                batch.append(test)
            batches.append(batch)
        return [batch for batch in batches if batch]


@dataclass(frozen=True)
class Verdict:
    """The result of one mutant: ``killed``, ``survived``, ``uncovered`` or ``equivalent``."""

    mutant: Mutant
    identity: str
    ending: str
    by: str = ""


class Copies:
    """Copies of the project in which mutants run, one a thread.

    They hold the bytecode of all modules: a run of one test would spend most of its time compiling. A changed module
    has another modification time than its bytecode, and is compiled.
    """

    def __init__(self, folder: Path, number: int) -> None:
        _compile_all()
        self._free: SimpleQueue[Path] = SimpleQueue()
        for index in range(number):
            self._free.put(_copied(folder / f"copy{index}"))

    def run(self, mutant: Mutant, tests: list[str], seconds: float) -> str:
        """Run ``tests`` on the changed code; returns the one that failed, "" if none did. Thread-safe."""
        copy = self._free.get()
        path = copy / mutant.module
        text, original = path.read_text(encoding="utf-8"), ROOT / mutant.module
        try:
            path.write_text(mutant.applied(text), encoding="utf-8")
            failed = _failing_test(copy, tests, seconds)
            shutil.copy2(original, path)
            if failed not in ("", TIMEOUT, COLLECTION) and _failing_test(copy, [failed], SLACK_S):
                others = [test for test in tests if test != failed]  # it fails without the change too
                path.write_text(mutant.applied(text), encoding="utf-8")
                failed = _failing_test(copy, others, seconds) if others else ""
            return failed
        finally:
            shutil.copy2(original, path)
            self._free.put(copy)


def _copied(copy: Path) -> Path:
    """Make a copy of the project, with its bytecode."""
    copy.mkdir()
    for name in COPIED:
        shutil.copytree(ROOT / name, copy / name)
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy2(path, copy)
    return copy


def _modules(packages: Iterable[str]) -> list[Path]:
    """Return the modules of packages, which may also be single modules."""
    places = [ROOT / "dlpool" / package for package in packages]
    return [path for place in places for path in ([place] if place.is_file() else sorted(place.rglob("*.py")))]


def _compile_all() -> None:
    """Make Python and pytest keep the bytecode of all modules."""
    for command in (["compileall", "-q", "dlpool"], ["pytest", "-q", "--collect-only", "-p", "no:valkey", "tests"]):
        subprocess.run([sys.executable, "-m", *command], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)


def _failing_test(copy: Path, tests: list[str], seconds: float) -> str:
    """Run the tests in the copy until one fails; returns its name, TIMEOUT, COLLECTION, or "" if all passed."""
    with tempfile.TemporaryDirectory(dir=copy, prefix="run", ignore_cleanup_errors=True) as folder:
        arguments, report = Path(folder, "tests"), Path(folder, "failed")
        arguments.write_text("\n".join(tests) + "\n", encoding="utf-8")
        variables = {"PYTHONDONTWRITEBYTECODE": "1", "DLPOOL_FAILED_TEST": str(report)}
        try:
            ended = _pytest(copy, folder, ["-x", f"@{arguments}"], variables, seconds)
        except subprocess.TimeoutExpired:
            return TIMEOUT
        if ended == 0:
            return ""
        return report.read_text(encoding="utf-8") if report.exists() else COLLECTION


def _pytest(copy: Path, folder: str, arguments: list[str], variables: dict[str, str], seconds: float) -> int:
    """Run pytest in the copy, with its files below ``folder``, and return its exit code. Raises TimeoutExpired."""
    options = ["-q", "-p", "no:valkey", "-p", "no:cacheprovider", "-p", PLUGIN, f"--basetemp={folder}/t", *arguments]
    return subprocess.run(
        [*_isolation(), sys.executable, "-m", "pytest", *options],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy), "CI": "true", **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=seconds,
    ).returncode


def _isolation() -> list[str]:
    """Return the command that gives a run process ids of its own, so that no process outlives it; only as root."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return []
    return ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]


def record(files: Iterable[Path], jobs: int) -> Record:
    """Return the recorded coverage of the test files; record new and changed files first."""
    KEPT.mkdir(exist_ok=True)
    stale = [path for path in files if not _record_of(path).exists()]
    if stale:
        print(f"recording what {len(stale)} test files cover, in {jobs} processes ...", flush=True)
        with tempfile.TemporaryDirectory(prefix="dlpool-mutants-", ignore_cleanup_errors=True) as folder:
            _compile_all()
            copy = _copied(Path(folder, "copy"))
            for path in _modules(PACKAGES):
                module = str(path.relative_to(ROOT))
                (copy / module).write_text(instrumented(module, path.read_text(encoding="utf-8")), encoding="utf-8")
            with ThreadPoolExecutor(jobs) as pool:
                list(pool.map(partial(_record_file, copy), stale))
    result = Record()
    for path in files:
        data = json.loads(_record_of(path).read_text(encoding="utf-8"))
        result.seconds |= data["seconds"]
        for module, functions in data["covered"].items():
            for function, tests in functions.items():
                result.covering[module, function].update(tests)
            result.breadth[str(path.relative_to(ROOT))] += len(functions)
    return result


def _record_of(path: Path) -> Path:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    return KEPT / f"{path.stem}.{digest}.json"


def _record_file(copy: Path, path: Path) -> None:
    """Run one test file in the instrumented copy, and record which functions each test and its processes call."""
    with tempfile.TemporaryDirectory(prefix="dlpool-mutants-", ignore_cleanup_errors=True) as folder:
        calls, seconds = Path(folder, "calls"), Path(folder, "seconds")
        calls.touch()
        for shared in (Path(folder), calls):
            shared.chmod(0o777)  # some tests start processes of other users
        variables = {"DLPOOL_CALLS": str(calls), "DLPOOL_TEST_SECONDS": str(seconds)}
        relative = path.relative_to(ROOT)
        with suppress(subprocess.TimeoutExpired):  # what was called until then counts
            _pytest(copy, folder, [str(relative)], variables, RECORDING_S)
        taken = dict(line.rsplit(" ", 1) for line in seconds.read_text().splitlines()) if seconds.exists() else {}
        data = {"seconds": {test: float(value) for test, value in taken.items()}, "covered": _covered(calls)}
        for old in KEPT.glob(f"{path.stem}.*.json"):
            old.unlink()
        _record_of(path).write_text(json.dumps(data), encoding="utf-8")
        print(f"  {relative}: {len(taken)} tests", flush=True)


def _covered(calls: Path) -> dict[str, dict[str, list[str]]]:
    """Return the tests by module and function from the calls of one run."""
    covered: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for line in calls.read_text(encoding="utf-8").splitlines():
        test, called = line.split("\t")
        module, _, function = called.partition(" ")
        covered[module][function].add(test)
    return {module: {function: sorted(tests) for function, tests in of.items()} for module, of in covered.items()}


def chosen_mutants(packages: Iterable[str], seed: int, number: int) -> list[Mutant]:
    """Return ``number`` mutants of the packages, chosen with equal probability."""
    every = []
    for path in _modules(packages):
        every += mutants_of(str(path.relative_to(ROOT)), path.read_text(encoding="utf-8"))
    return random.Random(seed).sample(every, min(number, len(every)))


def equivalents() -> dict[str, str]:
    """Return the mutants that are known to change no behaviour, with the reason for each."""
    lines = EQUIVALENT.read_text(encoding="utf-8").splitlines() if EQUIVALENT.exists() else []
    pairs = (line.rpartition(" | ") for line in lines if line.strip() and not line.startswith("#"))
    return {identity.strip(): reason.strip() for identity, _, reason in pairs}


def judge(mutants: list[Mutant], known: Record, jobs: int, most_s: float) -> list[Verdict]:
    """Run every mutant, ``jobs`` at once, and print each that no test detects."""
    reasons, lock, done = equivalents(), threading.Lock(), Counter[str]()

    def judged(mutant: Mutant) -> Verdict:
        identity = mutant.identity((ROOT / mutant.module).read_text(encoding="utf-8"))
        batches = known.tests_for(mutant, most_s)
        if identity in reasons:
            verdict = Verdict(mutant, identity, "equivalent", reasons[identity])
        elif not batches:
            verdict = Verdict(mutant, identity, "uncovered")
        else:
            limits = [SLACK_S + SLACK * sum(known.seconds[test] for test in batch) for batch in batches]
            runs = (copies.run(mutant, batch, limit) for batch, limit in zip(batches, limits, strict=True))
            by = next(filter(None, runs), "")
            verdict = Verdict(mutant, identity, "killed" if by else "survived", by)
        with lock:
            done[verdict.ending] += 1
            if verdict.ending != "killed":
                print(f"{verdict.ending}: {mutant.module}:{mutant.line} {identity}", flush=True)
            if done.total() % 10 == 0:
                print(f"  {done.total()} of {len(mutants)}: {dict(done)}", flush=True)
        return verdict

    with tempfile.TemporaryDirectory(prefix="dlpool-mutants-", ignore_cleanup_errors=True) as folder:
        copies = Copies(Path(folder), jobs)
        with ThreadPoolExecutor(jobs) as pool:
            return list(pool.map(judged, mutants))


def main() -> int:
    """Run from the command line; exit code 0 if enough of the mutants that change behaviour were detected."""
    parser = argparse.ArgumentParser(prog="scripts/mutate", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seed", type=int, default=1, help="which mutants are chosen (default 1)")
    parser.add_argument("--mutants", type=int, default=100, metavar="M", help="how many (default 100)")
    parser.add_argument(
        "--package", action="append", metavar="P", help=f"or a module, below dlpool/ (default {' '.join(PACKAGES)})"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="J", help="mutants at once")
    parser.add_argument("--seconds", type=float, default=240, metavar="S", help="of tests a mutant (default 240)")
    parser.add_argument("--record", action="store_true", help="record again what the tests cover")
    given = parser.parse_args()
    if given.record:
        shutil.rmtree(KEPT, ignore_errors=True)
    files = [path for path in sorted(ROOT.glob("tests/test_*.py")) if str(path.relative_to(ROOT)) not in SKIPPED]
    known = record(files, given.jobs)
    mutants = chosen_mutants(given.package or PACKAGES, given.seed, given.mutants)
    verdicts = judge(mutants, known, given.jobs, given.seconds)
    endings = Counter(verdict.ending for verdict in verdicts)
    changing = len(verdicts) - endings["equivalent"]
    share = endings["killed"] / changing if changing else 1.0
    print(f"seed {given.seed}: {len(verdicts)} mutants: {dict(endings)}")
    print(f"{share:.1%} of those that change behaviour were killed")
    return 0 if share >= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
