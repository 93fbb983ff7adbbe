"""`answer`: the audio-LLM learns the assistant's words from sound and question."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from pal_audio.data.collation import Collator
from pal_audio.data.manifest import Example
from pal_audio.model import PalForConditionalGeneration
from pal_audio.training.batches import Size
from pal_audio.training.groups import parameter_groups
from pal_audio.training.objectives.base import Objective
from pal_audio.training.recipe import Stage


class AnswerObjective(Objective):
    """Cross-entropy over exactly the assistant's tokens (units).

    Args:
        model: its named parts train.
        collator: makes its inputs.
        stage: says which parts, and how a batch is computed.
    """

    def __init__(self, model: PalForConditionalGeneration, collator: Collator, stage: Stage) -> None:
        self.module = model
        self.model = model
        self.collator = collator
        self.stage = stage

    def begin(self) -> None:
        self.model.recompute_audio = self.stage.recompute_audio
        if self.stage.checkpointing:
            self.model.gradient_checkpointing_enable()
        if self.stage.compile:
            self.model.get_decoder().compile()

    def end(self) -> None:
        self.model.recompute_audio = False
        if self.stage.checkpointing:
            self.model.gradient_checkpointing_disable()
        if self.stage.compile:
            self.model.get_decoder()._compiled_call_impl = None

    def parameter_groups(self) -> list[dict[str, Any]]:
        return parameter_groups(self.model, self.stage.train, self.stage.weight_decay)

    def size(self, example: Example) -> Size:
        num_tokens = self.collator.num_tokens(example) if self.stage.by_budget else 0
        return Size(self.collator.seconds(example), num_tokens, example.id)

    def inputs(self, examples: Sequence[Example]) -> dict[str, Any]:
        return self.collator.training_batch(examples)

    def num_units(self, inputs: dict[str, Any]) -> int:
        return int((inputs["labels"][:, 1:] >= 0).sum())

    def loss(self, module: nn.Module, inputs: dict[str, Any], num_units: int) -> Tensor:
        loss: Tensor = module(**inputs, num_items_in_batch=num_units, use_cache=False, packed=self.stage.packing).loss
        return loss
