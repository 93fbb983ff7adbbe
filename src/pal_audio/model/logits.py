"""What stands between the model's logits and transformers' own logits processors."""

from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList


class VocabularyOnly(LogitsProcessorList):
    """Keeps marker and slot ids away from logits: they may lie outside the vocabulary, and are never an answer."""

    def __init__(self, processors: list[LogitsProcessor], audio_ids: tuple[int, int]) -> None:
        super().__init__(processors)
        self.audio_ids = audio_ids

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        inside = [token for token in self.audio_ids if token < scores.shape[-1]]
        if inside:
            scores = scores.clone()
            scores[:, inside] = -torch.inf
        is_audio = (input_ids == self.audio_ids[0]) | (input_ids == self.audio_ids[1])
        first_text = (~is_audio).int().argmax(1, keepdim=True)
        return super().__call__(torch.where(is_audio, input_ids.gather(1, first_text), input_ids), scores, **kwargs)
