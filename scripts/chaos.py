"""What scripts/chaos runs: tests/chaos, with a line for each fault and a table at the end. It ends with 1 when
something was lost, doubled or left behind."""

from __future__ import annotations

import argparse
import random
import resource
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.chaos.backends import KINDS  # noqa: E402
from tests.chaos.run import Report, run  # noqa: E402


def show(report: Report, console: Console) -> None:
    table = Table(title=f"seed {report.seed}", title_justify="left")
    table.add_column("what")
    table.add_column("how many", justify="right")
    for name, count in sorted(report.faults.items()):
        table.add_row(name.replace("_", " "), str(count))
    table.add_section()
    table.add_row("faults in all", str(sum(report.faults.values())))
    for name, count in sorted(report.ends.items()):
        table.add_row(f"jobs {name}" if name != "poison" else "of them poison", str(count))
    console.print(table)
    for name, text in report.lines.items():
        print(f"{name}: {text}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=None, help="repeat a run (default: another one each time)")
    parser.add_argument("--minutes", type=float, default=1.0, help="of faults; a run takes longer (default 1)")
    parser.add_argument(
        "--redis",
        choices=KINDS,
        default="",
        dest="kind",
        help="one Redis, or a master with a replica and a Sentinel that change roles (default: as the seed decides)",
    )
    parser.add_argument("--keep", action="store_true", help="leave the folder, with all logs")
    arguments = parser.parse_args()
    seed = random.randrange(1_000_000) if arguments.seed is None else arguments.seed
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))  # what was started ends with us
    folder = Path(tempfile.mkdtemp(prefix="dlpool-chaos-"))
    try:
        report = run(folder, seed, arguments.minutes * 60, lambda text: print(text, flush=True), kind=arguments.kind)
    finally:
        if not arguments.keep:
            shutil.rmtree(folder, ignore_errors=True)
    show(report, Console())
    for violation in report.violations:
        print(f"\nVIOLATION: {violation}")
    kind = f" --redis {arguments.kind}" if arguments.kind else ""
    again = f"scripts/chaos --seed {seed} --minutes {arguments.minutes:g}{kind}"
    print(f"\n{len(report.violations)} violations; to repeat it: {again}")
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
