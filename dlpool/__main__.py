"""Runs the command line: ``python -m dlpool``."""

import sys

from dlpool.cli.main import main

sys.exit(main())
