"""Inputs of each step, made ahead: by worker processes where the stage has some, else when they are asked for."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import torch

from pal_audio.data.workers import in_workers
from pal_audio.training.batches import Batches
from pal_audio.training.objectives.base import Objective
from pal_audio.training.processes import Processes

Parts = list[tuple[Sequence[Any], float]]  # items and a weight


@dataclass
class StepInputs:
    """What a process computes of a step.

    Attributes:
        parts: inputs with a weight, one after another.
        num_units: of all parts that count.
        unreadable: clips that could not be read so far, with the reason.
    """

    parts: list[tuple[dict[str, Any], float]]
    num_units: int
    unreadable: dict[Any, str] = field(default_factory=dict)

    def pin_memory(self) -> "StepInputs":
        """The same in page-locked memory."""
        pin = torch.utils.data._utils.pin_memory.pin_memory
        return StepInputs([(pin(inputs), weight) for inputs, weight in self.parts], self.num_units, self.unreadable)


@dataclass
class _Make:
    objective: Objective[Any]

    def __call__(self, parts: Parts) -> StepInputs:
        made = [(self.objective.inputs(items), weight) for items, weight in parts]
        num_units = sum(self.objective.num_units(inputs) for inputs, weight in made if weight)
        unreadable = self.objective.collator.unreadable if "collator" in self.objective.inputs_read else {}
        return StepInputs(made, num_units, dict(unreadable))


def step_inputs(
    objective: Objective[Any],
    batches: Batches,
    steps: range,
    num_parts: int,
    num_workers: int,
    everyone: Processes,
    device: torch.device,
) -> Generator[tuple[list[tuple[dict[str, Any], float]], int]]:
    """This process's inputs of each step, part by part with a weight, and the units of the whole step; to be closed.

    Args:
        objective: makes them.
        batches: of all processes.
        steps: which.
        num_parts: that a batch is computed in, at most.
        num_workers: processes that make them ahead of this one.
        everyone: the processes of the run.
        device: that computes.

    Raises:
        PalError: inputs cannot be made, or a worker died.
        ConnectionAbortedError: another process has failed.
    """

    def tasks() -> Iterator[Parts]:
        for _, items in zip(steps, batches.from_step(steps.start), strict=False):
            # Without a part of its own a process takes part in the gradient's reduction all the same, with weight 0.
            yield [(part or items[:1], float(bool(part))) for part in everyone.share(items, num_parts)]

    make = _Make(objective.maker(num_workers))
    with closing(in_workers(make, tasks(), num_workers, device.type == "cuda")) as made:
        while True:
            with everyone.checked():
                step = next(made, None)
            if step is None:
                return
            if step.unreadable:
                objective.collator.unreadable.update(step.unreadable)
            yield step.parts, max(1, int(everyone.total(step.num_units)))
