"""What the loop needs of an objective.

    examples ── prepare ──► items ── inputs ──► dict of tensors ── loss(wrapped module) ──► sum over units / units of the step

An *item* is what batches are made of: an example, or a piece of one. A *unit* is what the loss is a mean over: a supervised
token, a written symbol, or a clip. The mean is over all units of a step, in whatever processes and parts they are computed, so
that the step does not depend on how it was cut.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Generic, Self, TypeVar

import torch
from torch import Tensor, nn

from pal_audio.data.collation import Collator
from pal_audio.data.manifest import Example
from pal_audio.training.batches import Size
from pal_audio.training.device import to_device

Item = TypeVar("Item")


class Objective(ABC, Generic[Item]):
    """How a stage learns.

    Attributes:
        module: what steps, there once `prepare` was called. It is wrapped where there are many processes, and its state is
            what a checkpoint holds.
        collator: makes inputs, and knows which clips could not be read.
        inputs_read: names of the attributes that `inputs` and `num_units` read. No module is among them: they go to worker
            processes.
    """

    module: nn.Module
    collator: Collator
    inputs_read: ClassVar[tuple[str, ...]]

    def begin(self) -> None:
        """Called before the module is spread over processes, `end` after the last step; nothing by default."""

    def end(self) -> None:
        """See `begin`."""

    @abstractmethod
    def prepare(self, train: Sequence[Example], test: Sequence[Example]) -> Sequence[Item]:
        """Look at all examples once, before the first step.

        Args:
            train: of one epoch of the stage.
            test: held out; what `score` is about.

        Returns:
            The items of one epoch.

        Raises:
            PalError: an example cannot be learnt by this objective.
        """

    @abstractmethod
    def held_out(self) -> Sequence[Item]:
        """Held-out items whose loss can be taken; those of which the training examples know no target are left out."""

    def notes(self) -> list[str]:
        """Lines for the plan: what `prepare` found."""
        return []

    def score(self) -> dict[str, float]:
        """Held-out scores at the end of the stage, by name; none where the run is scored as a whole."""
        return {}

    @abstractmethod
    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups for the optimizer (`params`, `lr`, `initial_lr`, `weight_decay`); freezes all other parameters."""

    @abstractmethod
    def size(self, item: Item) -> Size:
        """What an item takes in a batch."""

    def maker(self, num_workers: int = 0) -> Self:
        """A copy that can make inputs and nothing else: for this process, or for each of so many workers."""
        copy = object.__new__(type(self))
        copy.__dict__ = {name: self.__dict__[name] for name in self.inputs_read}
        if num_workers and "collator" in self.inputs_read:
            copy.collator = self.collator.shared_by(num_workers)
        return copy

    @abstractmethod
    def inputs(self, items: Sequence[Item]) -> dict[str, Any]:
        """Inputs of some items, on the CPU."""

    def on_device(self, inputs: dict[str, Any], device: torch.device) -> dict[str, Any]:
        """Inputs where the module computes."""
        moved: dict[str, Any] = to_device(inputs, device)
        return moved

    @abstractmethod
    def num_units(self, inputs: dict[str, Any]) -> int:
        """Units that the loss of these inputs is summed over."""

    @abstractmethod
    def loss(self, module: nn.Module, inputs: dict[str, Any], num_units: int) -> Tensor:
        """Loss of some inputs, a scalar: the sum over their units divided by `num_units`, those of the whole step.

        Args:
            module: `self.module`, perhaps wrapped.
            inputs: as `inputs` gives them, on the module's device.
        """
