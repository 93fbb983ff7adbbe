"""What `answer` and `text` share: the LLM learns tokens, and its layers are computed as the stage says."""

from typing import Any

from pal_audio.model import PalForConditionalGeneration, compiling
from pal_audio.model.parts import Parts
from pal_audio.training.groups import parameter_groups
from pal_audio.training.objectives.base import Item, Objective
from pal_audio.training.recipe import Stage


class LlmObjective(Objective[Item]):
    """Base: a member makes items and inputs, with `labels` (B, L) among them, and writes the loss.

    Args:
        model: its named parts train.
        stage: says which, and how layers are computed.
    """

    def __init__(self, model: PalForConditionalGeneration | Parts, stage: Stage) -> None:
        self.module = model
        self.model = model
        self.stage = stage

    def begin(self) -> None:
        if self.stage.checkpointing:
            self.model.gradient_checkpointing_enable()
        if self.stage.compile:
            compiling.enable(self.model)

    def end(self) -> None:
        if self.stage.checkpointing:
            self.model.gradient_checkpointing_disable()
        if self.stage.compile:
            compiling.disable(self.model)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return parameter_groups(self.model, self.stage.train, self.stage.weight_decay)

    def num_units(self, inputs: dict[str, Any]) -> int:
        return int((inputs["labels"][:, 1:] >= 0).sum())
