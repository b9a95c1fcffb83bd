"""Holds the version of the package, for modules below ``dlpool`` itself."""

__version__ = "0.1.0"
