"""Work shared among processes, whose results do not depend on how many there are."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from pal_audio.errors import PalError

TaskT = TypeVar("TaskT")
SharedT = TypeVar("SharedT")
ResultT = TypeVar("ResultT")

_SHARED: Any = None  # of a worker: what every task of its pool needs


def in_processes(
    work: Callable[[SharedT, TaskT], ResultT], shared: SharedT, tasks: Sequence[TaskT], workers: int
) -> Iterator[tuple[TaskT, ResultT]]:
    """Yield tasks with their results as they get done. A few tasks are not worth the start of a process.

    Args:
        work: a function of a module.
        shared: its first argument, sent to each process once.
        tasks: its second argument, one after another.
        workers: processes; with 1 all is done in this one.

    Raises:
        PalError: a process died.
    """
    if workers <= 1 or len(tasks) <= 4:
        for task in tasks:
            yield task, work(shared, task)
        return
    # Spawned, not forked: the caller may hold threads of torch.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(shared,))
    try:
        task_of = {pool.submit(_do, work, task): task for task in tasks}
        for future in as_completed(task_of):
            yield task_of[future], future.result()
    except BrokenProcessPool as error:
        raise PalError(
            "a composing process died; a script must call build() under `if __name__ == '__main__':`, or pass workers=1"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(shared: Any) -> None:
    """Keep what all tasks need; Ctrl-C is the parent's to hear."""
    global _SHARED
    _SHARED = shared
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


def end_with_parent() -> None:
    """End this worker when its parent is killed: left alone it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _do(work: Callable[[Any, TaskT], ResultT], task: TaskT) -> ResultT:
    return work(_SHARED, task)
