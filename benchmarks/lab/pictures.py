"""Two small pictures of a grid: learning curves, and score against cost."""

from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.lab.analysis import Grid, cost_of
from benchmarks.lab.collecting import mean_score

CURVES, COST = "lab-curves.png", "lab-cost.png"
_DPI = 70


def draw(grid: Grid, folder: Path) -> list[str]:
    """Draw what there is to draw.

    Returns:
        File names; none where matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return []
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    loss, right = figure.subplots(1, 2)
    for arm in grid.arms():
        curves = [grid.results[arm, seed]["curve"] for seed in grid.seeds(arm)]
        _curve(loss, arm, curves, "loss")
        _curve(right, arm, curves, "right")
    loss.set(xlabel="step", ylabel="held-out loss")
    right.set(xlabel="step", ylabel="held-out answers right")
    right.legend(fontsize="small")
    figure.savefig(folder / CURVES, dpi=_DPI)
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    time, size = figure.subplots(1, 2)
    _points(time, grid, "median", 1e3, "ms a step, median")
    with_memory = all(cost_of(grid, arm).peak_bytes is not None for arm in grid.arms())
    key, unit, label = ("peak_bytes", 2**-20, "peak MiB") if with_memory else ("trainable", 1e-6, "trained parameters, millions")
    _points(size, grid, key, unit, label)
    figure.savefig(folder / COST, dpi=_DPI)
    return [CURVES, COST]


def _curve(axis: Any, arm: str, curves: list[list[dict[str, Any]]], key: str) -> None:
    """Mean over seeds, and lowest to highest, at the steps that all have."""
    by_step = [{row["step"]: row[key] for row in curve if row[key] is not None} for curve in curves]
    steps = sorted(set.intersection(*(set(found) for found in by_step)))
    if not steps:
        return
    values = np.array([[found[step] for step in steps] for found in by_step])
    (line,) = axis.plot(steps, values.mean(0), "o-", markersize=3, label=arm)
    axis.fill_between(steps, values.min(0), values.max(0), color=line.get_color(), alpha=0.15)


def _points(axis: Any, grid: Grid, key: str, unit: float, label: str) -> None:
    for arm in grid.arms():
        scores = [mean_score(grid.results[arm, seed]["tasks"]) for seed in grid.seeds(arm)]
        x = getattr(cost_of(grid, arm), key)
        (line,) = axis.plot(x * unit, np.mean(scores), "o")
        axis.vlines(x * unit, min(scores), max(scores), color=line.get_color())
        axis.annotate(arm, (x * unit, float(np.mean(scores))), textcoords="offset points", xytext=(4, 4), fontsize="small")
    axis.set(xlabel=label, ylabel="mean over tasks")
