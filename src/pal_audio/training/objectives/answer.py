"""`answer`: the audio-LLM learns the assistant's words from sound and question."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pal_audio.audio import AudioError
from pal_audio.data.manifest import Example
from pal_audio.data.texts import Document
from pal_audio.errors import PalError
from pal_audio.integration.training_attention import DEFAULT_KERNEL
from pal_audio.integration.unprojected import DEFAULT_PROJECTIONS
from pal_audio.model import PalForConditionalGeneration
from pal_audio.training.batches import Size
from pal_audio.training.device import to_device
from pal_audio.training.objectives.llm import LlmObjective

PACKED_MULTIPLE = 32
"""What rows of a packed batch on a GPU are padded to a multiple of, in tokens; our choice. Padding costs attention and layout
alone there; cuDNN's attention makes a plan for every new length: 0.15 s forward and backward on an H200 (docs/efficiency.md)."""


class AnswerObjective(LlmObjective[Example]):
    """Cross-entropy over exactly the assistant's tokens (units).

    Args:
        model: its named parts train.
        collator: makes its inputs.
        stage: says which parts, and how a batch is computed.
    """

    model: PalForConditionalGeneration
    inputs_read = ("collator",)

    def begin(self) -> None:
        self.model.recompute_audio = self.stage.recompute_audio
        self.model.audio_kernel = self.stage.audio_kernel
        self.model.projections = self.stage.projections
        super().begin()

    def end(self) -> None:
        self.model.recompute_audio, self.model.audio_kernel = "none", DEFAULT_KERNEL
        self.model.projections = DEFAULT_PROJECTIONS
        super().end()

    def prepare(self, train: Sequence[Example], test: Sequence[Example]) -> Sequence[Example]:
        self._held_out = [example for example in test if not isinstance(example, Document)]
        self._is_silent = not any(example.audio for example in train)
        return train

    def notes(self) -> list[str]:
        deaf = [part for part in self.stage.train if not part.startswith("llm")]
        if not self._is_silent or not deaf:
            return []
        return [f"answer: no training example has sound, so nothing teaches {', '.join(deaf)}"]

    def held_out(self) -> Sequence[Example]:
        return self._held_out

    def size(self, item: Example) -> Size:
        with _mend_named():
            num_tokens = self.collator.num_tokens(item) if self.stage.by_budget else 0
            return Size(self.collator.seconds(item), num_tokens, item.id)

    def inputs(self, items: Sequence[Example]) -> dict[str, Any]:
        with _mend_named():
            return self.collator.training_batch(items)

    def on_device(self, inputs: dict[str, Any], device: torch.device) -> dict[str, Any]:
        """Sound moves; text stays on the CPU, where the model places clips and packs rows before it moves them itself."""
        if device.type != "cuda":
            return inputs
        if self.stage.packing:
            inputs = self._with_even_length(inputs)
        if "input_features" not in inputs:
            return inputs
        return {**inputs, "input_features": to_device(inputs["input_features"], device)}

    def _with_even_length(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The batch padded on the right to a multiple of `PACKED_MULTIPLE`."""
        more = -inputs["input_ids"].shape[1] % PACKED_MULTIPLE
        if not more:
            return inputs
        fills = {"input_ids": self.collator.processor._pad_id, "attention_mask": 0, "labels": -100}
        return {**inputs, **{name: nn.functional.pad(inputs[name], (0, more), value=fill) for name, fill in fills.items()}}

    def loss(self, module: nn.Module, inputs: dict[str, Any], num_units: int) -> Tensor:
        loss: Tensor = module(**inputs, num_items_in_batch=num_units, use_cache=False, packed=self.stage.packing).loss
        return loss


@contextmanager
def _mend_named() -> Iterator[None]:
    """Add to the error of a clip how a run goes on without it."""
    try:
        yield
    except AudioError as error:
        raise PalError(f"{error}; mend it, or go on without it: --resume --set unreadable_clips=skip") from error
