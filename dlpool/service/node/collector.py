"""Python's garbage collector, for processes that live long and make many small objects
that die at once."""

from __future__ import annotations

import gc

THRESHOLD = 5000  # objects; the default, 700, is a collection every few small jobs


def tune_garbage_collector() -> None:
    """Collect now, then rarely, and never again what is there by now: modules, classes,
    settings."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(THRESHOLD)
