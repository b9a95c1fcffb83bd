"""The entry of the single-file executable: called ``dlpool-supervisor``, by a link, it
is that; else ``dlpool``."""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> int:
    """Run the program of that name, and return its exit code. No traceback reaches the
    user."""
    if Path(sys.argv[0]).name.startswith("dlpool-supervisor"):
        from dlpool.cli.supervisor import main as supervisor

        return supervisor()
    from dlpool.cli.main import main as dlpool

    return dlpool()
