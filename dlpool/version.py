"""The version of the package, which is also available as ``dlpool.__version__``."""

__version__ = "0.1.0"
