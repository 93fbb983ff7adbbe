"""How many processes a machine has cores for. Nothing here needs torch."""

import os
from pathlib import Path

MAX_WORKERS = 256
_READING_AT_MOST = 16  # more processes read faster than any one process trains
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def num_cores() -> int:
    """Cores that this process may use: those that it may run on, or what its container is allowed where that is less."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = _QUOTA.read_text(encoding="ascii").split()
        return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):  # no container, or none that says it this way
        return cores


def reading_workers(workers: int | None) -> int:
    """Processes that read beside one that computes.

    Args:
        workers: what the user asked for; None: all cores but one, shared among the processes that a launcher has started on this
            machine, and none on one or two cores, where they would only take turns.
    """
    if workers is not None:
        return workers
    cores = num_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return 0 if cores <= 2 else min(cores - 1, _READING_AT_MOST)
