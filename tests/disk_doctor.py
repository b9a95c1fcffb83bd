"""What ``dlpool doctor`` finds in a folder while file system calls fail: run under ``disk_faults.c``.

Arguments: the folder, and a fault as JSON for each call that fails always.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from dlpool.cli.doctor_disk import check_file_system
from dlpool.config import Settings
from tests.disk_faults import ALWAYS, DiskFaults, Fault


def main() -> None:
    """Print the findings as one JSON object a line."""
    folder, *given = sys.argv[1:]
    faults = DiskFaults()
    faults.watch(folder)
    for fields in given:
        faults.add(Fault(nth=1, last=ALWAYS, **json.loads(fields)))
    for finding in check_file_system(Settings(), Path(folder)):
        print(json.dumps(finding.as_json()))


if __name__ == "__main__":
    main()
