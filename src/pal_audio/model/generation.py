"""Generation that hears: clips are encoded and placed once, then every step of transformers' `generate` gets them.

Shapes: B rows, L text tokens.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin, LogitsProcessorList

from pal_audio.errors import PalError
from pal_audio.integration.attached import AttachedAudio
from pal_audio.integration.memory import AudioMemory
from pal_audio.model.logits import VocabularyOnly
from pal_audio.model.placing import audio_of, context_of
from pal_audio.model.sound import Features, Lengths


def end_tokens(eos: int | Sequence[int] | None) -> list[int]:
    """The tokens that end an answer, as a generation config or a caller names them: one, several or none."""
    return [] if eos is None else [eos] if isinstance(eos, int) else list(eos)


class PalGenerationMixin(GenerationMixin):
    """transformers' generation with clips; its name must hold `GenerationMixin`, by which transformers knows who generates."""

    @torch.no_grad()
    def generate(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        input_features: Features | None = None,
        audio_num_samples: Lengths | None = None,
        audio_memory: AudioMemory | AttachedAudio | None = None,
        **kwargs: Any,
    ) -> Any:
        """transformers' `generate`; clips as in `forward`, encoded once before rows are expanded for beams or returns."""
        if input_ids is None:
            input_ids = kwargs.pop("inputs", None)
        if input_ids is None:
            if input_features is not None or audio_memory is not None:
                raise PalError("generate: audio needs input_ids that hold its markers")
            return super().generate(**kwargs)
        mask = kwargs.get("attention_mask")
        if mask is None:
            mask = self._mask_without_padding(input_ids, kwargs.get("generation_config") or self.generation_config)
        cache = kwargs.get("past_key_values")
        if input_features is None and audio_memory is None:
            audio_memory = audio_of(cache)
        elif isinstance(audio_memory, AttachedAudio):
            audio_memory = replace(audio_memory, trusted=False)
        context = context_of(self, input_ids, mask, input_features, audio_num_samples, audio_memory, cache)
        if context is not None:
            if kwargs.get("assistant_model") is not None:
                raise PalError("assistant_model: an assistant does not hear; generate with audio works without one")
            kwargs |= {"audio_memory": replace(context, trusted=True), "attention_mask": mask}
        return super().generate(input_ids, **kwargs)

    @staticmethod
    def _mask_without_padding(input_ids: Tensor, options: Any) -> Tensor:
        """The mask that transformers infers where none is given: padding is hidden unless it is also the end token."""
        pad = options.pad_token_id
        if pad is None or pad in end_tokens(options.eos_token_id):
            return torch.ones_like(input_ids)
        return input_ids.ne(pad).long()

    def _expand_inputs_for_generation(self, expand_size: int = 1, *args: Any, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        audio = kwargs.pop("audio_memory", None)
        input_ids, model_kwargs = super()._expand_inputs_for_generation(expand_size, *args, **kwargs)
        if audio is not None:
            model_kwargs["audio_memory"] = audio.expand(expand_size) if expand_size > 1 else audio
        return input_ids, model_kwargs

    def _prepare_position_ids_for_generation(self, inputs_tensor: Tensor, model_kwargs: dict[str, Any]) -> Tensor:
        audio, mask = model_kwargs.get("audio_memory"), model_kwargs.get("attention_mask")
        if audio is None:
            return super()._prepare_position_ids_for_generation(inputs_tensor, model_kwargs)
        ids = model_kwargs.get("input_ids", inputs_tensor)
        return audio.position_ids(ids, torch.ones_like(ids) if mask is None else mask)

    def _get_logits_processor(self, *args: Any, **kwargs: Any) -> LogitsProcessorList:
        return VocabularyOnly(super()._get_logits_processor(*args, **kwargs), self.config.audio_ids)
