"""What the loop needs of an objective.

    examples ── inputs ──► dict of tensors ── loss(wrapped module) ──► sum over units / units of the whole step

A *unit* is what the loss is a mean over: a supervised token, or a clip. The mean is over all units of a step, in whatever
processes and parts they are computed, so that the step does not depend on how it was cut.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from pal_audio.data.manifest import Example
from pal_audio.training.batches import Size


class Objective(ABC):
    """How a stage learns.

    Attributes:
        module: what steps. It is wrapped where there are many processes, and its state is what a checkpoint holds.
    """

    module: nn.Module

    def begin(self) -> None:  # noqa: B027
        """Called before the module is spread over processes, `end` after the last step; nothing by default."""

    def end(self) -> None:  # noqa: B027
        """See `begin`."""

    @abstractmethod
    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups for the optimizer (`params`, `lr`, `initial_lr`, `weight_decay`); freezes all other parameters."""

    @abstractmethod
    def size(self, example: Example) -> Size:
        """What an example takes in a batch."""

    @abstractmethod
    def inputs(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Inputs of some examples, on the CPU."""

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
