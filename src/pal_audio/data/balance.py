"""Items dealt out to tasks in exact shares, and counted within each: what makes answers balanced and an item's place its own.

Items come in blocks of `BLOCK`. A permutation drawn for the block gives each item a slot, and the slots are shared among the
tasks by weight. So an item's task, and its number among the task's items, depend on seed, split and index alone.
Source: our choice.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

BLOCK = 100


def check_weights(tasks: dict[str, float]) -> dict[str, float]:
    """Return task weights unchanged if they are finite, not negative and not all zero, and no share is too small to be met."""
    if any(not 0 <= weight < float("inf") for weight in tasks.values()) or sum(tasks.values()) <= 0:
        raise ValueError(f"task weights must be positive numbers, got {tasks}")
    for name, weight in tasks.items():
        if 0 < weight / sum(tasks.values()) < 2 / BLOCK:
            raise ValueError(f"task {name!r} has a share below {2 / BLOCK:.0%}; raise its weight or set it to 0")
    return tasks


def deal(key: Sequence[int], index: int, weights: Sequence[float]) -> tuple[int, int]:
    """Give an item its task and its number, from 0, among the items of that task.

    Args:
        key: what the permutations are drawn from: a stream, a seed, a split.
        index: of the item, from 0.
        weights: of the tasks, in a fixed order.
    """
    block, place = divmod(index, BLOCK)
    slot = int(np.random.default_rng([*key, block]).permutation(BLOCK)[place])
    bounds = np.rint(np.cumsum([0.0, *weights]) / sum(weights) * BLOCK).astype(int)
    number = int(np.searchsorted(bounds, slot, side="right")) - 1
    return number, block * int(bounds[number + 1] - bounds[number]) + slot - int(bounds[number])
