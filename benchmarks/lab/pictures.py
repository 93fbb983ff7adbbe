"""Two small pictures of a grid: learning curves, and score against cost."""

from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.lab.analysis import Grid, cost_of
from benchmarks.lab.collecting import mean_score

CURVES, COST = "lab-curves.png", "lab-cost.png"
_DPI = 70
_SIZE = 12.5, 4.2
_SHOWN = 0.5  # of the best arm's score


def draw(grid: Grid, folder: Path) -> list[str]:
    """Draw what there is to draw.

    Returns:
        File names; none where matplotlib is not installed, or of ablations alone.
    """
    if not grid.arms():
        return []
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return []
    figure = Figure(figsize=_SIZE, layout="constrained")
    loss, right = figure.subplots(1, 2)
    for arm in grid.arms():
        curves = [grid.results[arm, seed]["curve"] for seed in grid.seeds(arm)]
        _curve(loss, arm, curves, "loss")
        _curve(right, arm, curves, "right")
    loss.set(xlabel="step", ylabel="held-out loss", yscale="log")
    right.set(xlabel="step", ylabel="held-out answers right")
    figure.legend(*right.get_legend_handles_labels(), loc="outside right center", fontsize="small")
    figure.savefig(folder / CURVES, dpi=_DPI)
    figure = Figure(figsize=_SIZE, layout="constrained")
    time, size = figure.subplots(1, 2)
    _points(time, grid, "median", 1e3, "ms a step, median")
    with_memory = all(cost_of(grid, arm).peak_bytes is not None for arm in grid.arms())
    key, unit, label = ("peak_bytes", 2**-20, "peak MiB") if with_memory else ("trainable", 1e-6, "trained parameters, millions")
    _points(size, grid, key, unit, label)
    figure.legend(*size.get_legend_handles_labels(), loc="outside right center", fontsize="small")
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
    """Score and cost of each arm. One far below the best, as that hears nothing, is named alone and presses nothing together."""
    scores = {arm: [mean_score(grid.results[arm, seed]["tasks"]) for seed in grid.seeds(arm)] for arm in grid.arms()}
    best = max(np.mean(values) for values in scores.values())
    for arm, values in scores.items():
        x, y = getattr(cost_of(grid, arm), key) * unit, float(np.mean(values))
        if y < best * _SHOWN:
            axis.plot([], [], "o", label=f"{arm}: {y:.2f}, below")
            continue
        (line,) = axis.plot(x, y, "o", label=arm)
        axis.vlines(x, min(values), max(values), color=line.get_color())
    axis.set(xlabel=label, ylabel="mean over tasks")
