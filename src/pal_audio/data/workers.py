"""Work done ahead in worker processes of torch's DataLoader; what comes out does not depend on how many there are.

    tasks ──pickled──► worker: make(task) ──shared memory──► results, in the order of the tasks

A worker gets `make` and tasks, so neither may hold a model. Workers come from a fork server, which imports this package once and
never touches an accelerator: a fork of a process that has one is not safe, and a spawned process would import all anew. Each
computes on one thread, has two tasks at a time, leaves signals to the main process and ends with it.
"""

import atexit
import multiprocessing
import signal
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import forkserver
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from pal_audio.data.pool import end_with_parent
from pal_audio.errors import PalError

Task = TypeVar("Task")
Result = TypeVar("Result")

_AHEAD = 2  # tasks of each worker that are made or wait to be taken


def in_workers(
    make: Callable[[Task], Result], tasks: Iterable[Task], num_workers: int, pin_memory: bool = False
) -> Generator[Result]:
    """`map(make, tasks)`, made ahead by worker processes; the caller closes the iterator, which ends them.

    Args:
        make: a function of a module, or an object of a class of a module; pickled once for each worker.
        tasks: iterated in this process, ahead of the results; each is pickled.
        num_workers: 0 makes all in this process, each when it is asked for.
        pin_memory: put tensors into page-locked memory, from which a CUDA device copies beside other work. With workers only.

    Raises:
        PalError: as `make` does, in this process, where the task's turn comes; or a worker died.
    """
    if num_workers == 0:
        yield from map(make, tasks)
        return
    start_server(getattr(make, "__module__", type(make).__module__))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")  # more than there are cores: the user asked for it
        loader = DataLoader(
            _Making(make),
            batch_size=None,
            sampler=_in_turn(tasks),
            num_workers=num_workers,
            prefetch_factor=_AHEAD,
            collate_fn=_as_it_is,
            worker_init_fn=_begin,
            multiprocessing_context="forkserver",
            generator=torch.Generator(),  # its seed for workers is not drawn from the training's random numbers
            pin_memory=pin_memory,
        )
        results = iter(loader)
    # They hear no SIGTERM, so a program that ends with an open iterator must tell them, before multiprocessing waits for them.
    atexit.register(results._shutdown_workers)  # type: ignore[attr-defined]
    said: set[str] = set()  # several workers may meet the same clip
    try:
        while True:
            try:
                made = next(results)
            except StopIteration:
                return
            except RuntimeError as error:
                if "DataLoader worker" not in str(error) or "Caught" in str(error):
                    raise
                raise PalError(
                    "a worker process that reads sound died; was it killed, or is memory or /dev/shm full? A script must do this "
                    "under `if __name__ == '__main__':`. workers=0 reads in the main process"
                ) from error
            for category, message in made.warnings:
                if message not in said:
                    said.add(message)
                    warnings.warn(message, category, stacklevel=2)
            if made.error is not None:
                raise made.error
            yield made.result
    finally:
        results._shutdown_workers()  # type: ignore[attr-defined] # now, and not when the last traceback lets go of it
        atexit.unregister(results._shutdown_workers)  # type: ignore[attr-defined]


def start_server(module: str) -> None:
    """Start the server that workers are forked from, if it does not run yet: its imports take seconds, beside other work.

    Args:
        module: it imports this one, which `in_workers`' `make` comes from.
    """
    multiprocessing.get_context("forkserver").set_forkserver_preload([__name__, module])
    forkserver.ensure_running()


@dataclass
class _Made(Generic[Result]):
    result: Result | None
    error: PalError | None
    warnings: list[tuple[type[Warning], str]]

    def pin_memory(self) -> "_Made[Result]":
        return _Made(torch.utils.data._utils.pin_memory.pin_memory(self.result), self.error, self.warnings)


class _Making(Dataset[Any], Generic[Task, Result]):
    """Tasks are its keys. What a user has to be told goes back as a value: torch would wrap it in a traceback of the worker."""

    def __init__(self, make: Callable[[Task], Result]) -> None:
        self.make = make

    def __getitem__(self, task: Task | PalError) -> _Made[Result]:
        result, error = None, None
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            try:
                if isinstance(task, PalError):
                    raise task
                result = self.make(task)
            except PalError as raised:
                error = raised
                error.__traceback__ = None
        return _Made(result, error, [(item.category, str(item.message)) for item in caught])


def _in_turn(tasks: Iterable[Task]) -> Iterator[Task | PalError]:
    """Tasks are taken ahead; one that cannot be had is an error when its turn comes, and not before."""
    try:
        yield from tasks
    except PalError as error:
        yield error


def _as_it_is(result: Any) -> Any:
    return result


def _begin(_: int) -> None:
    """The main process hears signals and decides: a worker that died by the same one would break what it saves."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    end_with_parent()
