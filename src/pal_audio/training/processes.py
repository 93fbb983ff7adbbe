"""The processes of a run, as `torchrun` or `accelerate launch` starts them, and what they tell each other between steps.

Numbers go over a CPU group of their own (gloo). Its waits may be long, as while the main process composes data, yet it ends at
once where a process has died. Gradients go over the default group (NCCL on GPUs), each step right after a word over this one.
"""

import atexit
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import DistributedType, parse_flag_from_env

from pal_audio.errors import PalError
from pal_audio.training.interrupt import StopRequest

Item = TypeVar("Item")

_LONGEST_WAIT = timedelta(hours=24)
_WORDS_OF_LOSS = ("gloo", "nccl", "by peer")  # in what torch says when another process has gone


@dataclass(frozen=True)
class Processes:
    """This process among those of the run; as it stands, the only one.

    Attributes:
        rank: its number; 0 is the main process, which alone writes and shows.
        num: of all processes.
        group: for numbers on the CPU; None where there is one process.
    """

    rank: int = 0
    num: int = 1
    group: Any = None

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def total(self, value: float) -> float:
        """The sum of every process's value."""
        return self._reduced(value, dist.ReduceOp.SUM)

    def highest(self, value: float) -> float:
        """The greatest of every process's values."""
        return self._reduced(value, dist.ReduceOp.MAX)

    def main_says(self, value: int) -> int:
        """The main process's value, in every process."""
        return int(self.total(value if self.is_main else 0))

    def _reduced(self, value: float, how: Any) -> float:
        if self.num == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(tensor, how, group=self.group)
        return float(tensor)

    def share(self, examples: Sequence[Item], num_parts: int) -> list[list[Item]]:
        """What this process computes of a step's batch, in at most `num_parts` parts of like size, one after another.

        Every n-th example is its own, since a batch is sorted by length. All processes have equally many parts; the last
        ones may be empty.
        """
        own = list(examples[self.rank :: self.num])
        most = -(-len(examples) // self.num)
        size = -(-most // num_parts)
        return [own[start : start + size] for start in range(0, most, size)]

    def more_seed(self, part: int) -> list[int]:
        """What tells the random numbers of a step's parts and processes apart; nothing for the first part of the main one."""
        return [part, self.rank] if self.rank else [part] if part else []

    @contextmanager
    def checked(self) -> Iterator[None]:
        """What all processes do: where one fails, all end.

        Raises:
            ConnectionAbortedError: it failed in another process.
        """
        num_failed = 1.0
        try:
            yield
            num_failed = 0.0
        finally:
            num_failed = self.total(num_failed)
        if num_failed:
            raise ConnectionAbortedError(self._end("has failed"))

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """What the main process does before the others, which wait, and end where it fails."""
        if self.is_main:
            with self.checked():
                yield
        else:
            with self.checked():
                pass
            yield

    @contextmanager
    def loss_named(self) -> Iterator[None]:
        """Make one clear line of what torch says when another process has died.

        Raises:
            ConnectionAbortedError: this is so.
        """
        try:
            yield
        except RuntimeError as error:
            text = f"{type(error).__name__}: {error}".lower()
            if self.num == 1 or not (isinstance(error, dist.DistError) or any(word in text for word in _WORDS_OF_LOSS)):
                raise
            raise ConnectionAbortedError(self._end("has ended or cannot be reached")) from error

    def _end(self, what: str) -> str:
        return f"process {self.rank} of {self.num} ends: another process {what}, its own message says why; --resume goes on"

    def stopping(self, request: StopRequest) -> Callable[[], bool]:
        """A function that says in all processes whether one of them was asked to stop, to be called by all at once."""

        def asked() -> bool:
            number = int(self.highest(request.signal or 0))
            if number:
                request.signal = signal.Signals(number)
            return request.made()

        return asked


@cache
def join() -> Processes:
    """The processes of this run; connects them where a launcher has started several.

    Raises:
        PalError: they cannot be connected, or the launcher was told to shard by itself (accelerate's FSDP, DeepSpeed, ...).
    """
    promised = os.environ.get("WORLD_SIZE", "1")
    if promised != "1" and "RANK" not in os.environ:  # accelerate would write a launcher's variables here, then raise
        raise PalError(f"WORLD_SIZE is {promised} but no launcher has set RANK; start the processes with torchrun, or unset it")
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available())
    if promised != str(state.num_processes):
        raise PalError(f"WORLD_SIZE is {promised} but processes connected: {state.num_processes}; start them with torchrun")
    if state.num_processes == 1:
        return Processes()
    if state.distributed_type not in (DistributedType.MULTI_GPU, DistributedType.MULTI_CPU):
        raise PalError(
            f"launched with {state.distributed_type.value}: start with plain torchrun or `accelerate launch --multi_gpu`, "
            "and write `parallel: fsdp` in the recipe to shard"
        )
    atexit.register(_end_numbers)
    return Processes(state.process_index, state.num_processes, dist.new_group(backend="gloo", timeout=_LONGEST_WAIT))


def leave() -> None:
    """Disconnect at the end of a program; NCCL warns of processes that do not."""
    _end_numbers()
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def _end_numbers() -> None:
    """End the group for numbers and its threads, however the program ends; its collectives are over when they return.

    A thread of gloo's lets go of a tensor some time after the collective has returned, and takes Python's lock for that. Where
    the interpreter is ending by then, Python before 3.14 ends the thread within a destructor: the process aborts. A group
    waits for its threads when the last reference to it goes.
    """
    if join.cache_info().currsize and (group := join().group) is not None and dist.is_initialized():
        dist.destroy_process_group(group)
    join.cache_clear()
