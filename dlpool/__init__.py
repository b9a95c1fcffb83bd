"""dlpool turns jobs ("this URL, to this path") into files."""

__version__ = "0.1.0"
