"""What scripts/bench attacks measures: how long 20 honest jobs and 50 honest uploads take beside an attack, against the
same without one, in pairs. The goal is a ratio of at most 2 for each attack. Needs root, for a small disk."""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.attacks import ATTACKS, honest, place_in  # noqa: E402

GOAL = 2.0


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench attacks", description=__doc__)
    parser.add_argument("--runs", type=int, default=3, help="pairs of each attack")
    parser.add_argument("attacks", nargs="*", metavar="ATTACK", help=f"of: {', '.join(ATTACKS)}")
    options = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("scripts/bench attacks mounts a small file system: run it as root")
    for name in options.attacks or ATTACKS:
        ratios = []
        for _ in range(options.runs):  # each in a place of its own: an attack leaves jobs and tasks
            with tempfile.TemporaryDirectory(prefix="dlpool-bench-") as folder, place_in(Path(folder)) as place:
                honest(place)  # everything is warm
                calm = honest(place)
                with ATTACKS[name](place):
                    beside = honest(place)
            ratios.append((beside.jobs_s / calm.jobs_s, beside.uploads_s / calm.uploads_s))
            print(f"  {calm} / {beside}", flush=True)
        jobs, uploads = (statistics.median(column) for column in zip(*ratios, strict=True))
        print(f"{name:20} jobs {jobs:.2f}, uploads {uploads:.2f} (goal at most {GOAL})", flush=True)


if __name__ == "__main__":
    main()
