"""The chart of docs/benchmarks.md: how much time each tool takes, relative to dlpool."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from scripts.benchmarks.rows import LIMIT, ROWS

BOUNDS = (0.03, 30.0)


def draw(data: Mapping[str, Any], path: Path) -> None:
    """Draw one line for each row and one mark for each tool, on a logarithmic axis; left of 1: faster than dlpool."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "dlpool"  # the same data gives the same file
    from matplotlib import pyplot

    rows = [name for name in ROWS if name in data["rows"]]
    figure, axes = pyplot.subplots(figsize=(10, 0.5 * len(rows) + 1.5))
    for index, name in enumerate(rows):
        tools = data["rows"][name]["tools"]
        for tool, one in tools.items():
            if tool == "dlpool":
                continue
            ratio = median(other / own for other, own in zip(one["wall"], tools["dlpool"]["wall"], strict=True))
            place = min(max(ratio, BOUNDS[0]), BOUNDS[1])
            marker, color = ("|", "black") if tool == LIMIT else ("o", "#1f77b4")
            axes.plot(place, index, marker, markersize=7, color=color)
            axes.annotate(tool, (place, index), xytext=(0, 6), textcoords="offset points", ha="center", fontsize=7)
    axes.axvline(1.0, color="#d62728", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlim(BOUNDS[0] / 1.3, BOUNDS[1] * 1.3)
    axes.set_yticks(range(len(rows)), [ROWS[name].title.replace("`", "") for name in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.8)
    axes.set_xlabel("wall time of the tool / wall time of dlpool (right of the line: dlpool is faster)", fontsize=8)
    axes.grid(visible=True, axis="x", linewidth=0.3)
    figure.tight_layout()
    figure.savefig(path, format="svg", metadata={"Date": None})
    pyplot.close(figure)
