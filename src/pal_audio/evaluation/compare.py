"""Two models on the same items: a paired test of each task and method that both were asked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pal_audio.errors import PalError
from pal_audio.evaluation.items import Item, portable
from pal_audio.evaluation.metrics.matching import TextEmbedder
from pal_audio.evaluation.metrics.statistics import paired_difference
from pal_audio.evaluation.scoring import read_evaluation
from pal_audio.evaluation.store import TaskInfo


def compare(first: Path, second: Path, embedder: TextEmbedder | None = None) -> list[dict[str, Any]]:
    """Score differences, first minus second, with the sign turned for error rates: positive means that the first is better.

    Args:
        first, second: folders of finished evaluations.
        embedder: for the method `match`.

    Raises:
        PalError: a folder is not finished, or no task was asked of both in the same way.
    """
    a, b = read_evaluation(first), read_evaluation(second)
    tasks_b = {task.name: task for task in b.info.tasks}
    rows, others = [], []
    for task in a.info.tasks:
        other = tasks_b.get(task.name)
        if other is None or _asked(task) != _asked(other) or not _same_items(a.items[task.name], b.items[task.name]):
            others.append(task.name)
            continue
        for method in (method for method in task.methods if method in other.methods):
            if not a.judgeable(task):
                continue
            ours = a.judged(task, method, "real", embedder)
            theirs = b.judged(other, method, "real", embedder)
            if ours.paired is not None and theirs.paired is not None:
                found = paired_difference(ours.paired, theirs.paired, a.sources(task))
            else:
                found = paired_difference(ours.values, theirs.values, a.sources(task), ours.statistic)
            sign = 1 if ours.higher_is_better else -1
            low, high = sorted((sign * found.interval.low, sign * found.interval.high))
            rows.append(
                {
                    "task": task.name,
                    "method": method,
                    "same_prompt": task.prompts[method] == other.prompts[method],
                    "num": len(a.judgeable(task)),
                    "score": ours.headline,
                    "first": ours.score,
                    "second": theirs.score,
                    "compared_by": ours.paired_name or ours.headline,
                    "difference": sign * found.difference,
                    "interval": [low, high],
                    "p_value": found.p_value,
                }
            )
    if not rows:
        what = f" (other items, split or version: {', '.join(others)})" if others else ""
        raise PalError(f"{first} and {second} share no task that was asked of both in the same way{what}")
    return rows


def _asked(task: TaskInfo) -> tuple[str, int]:
    return task.split, task.version


def _same_items(first: Sequence[Item], second: Sequence[Item]) -> bool:
    return [portable(item) for item in first] == [portable(item) for item in second]
