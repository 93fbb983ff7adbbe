"""Clips and the text of one call: where sound comes from, where it stands, and what goes on behind a kept text cache.

    sound of the call, or what the cache was made with ── context_of ─┬─ the whole prompt ─────── model.attach
                                                                     └─ behind a kept cache ─── attach_behind

Shapes: B rows, L text tokens of this call.
"""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from pal_audio.errors import PalError
from pal_audio.integration.attached import AttachedAudio
from pal_audio.integration.extension import check_same_positions, extend, whole_text
from pal_audio.integration.key_values import max_positions
from pal_audio.integration.memory import AudioMemory, LiveAudio
from pal_audio.model.configuration import PalConfig
from pal_audio.model.sound import Features, Lengths

if TYPE_CHECKING:
    from pal_audio.model.modeling import PalForConditionalGeneration


def is_audio(config: PalConfig, input_ids: Tensor) -> Tensor:
    """Where markers and slots stand: bool, as `input_ids`."""
    if config.audio_token_id is None:
        return torch.zeros_like(input_ids, dtype=torch.bool)
    marker_id, slot_id = config.audio_ids
    return (input_ids == marker_id) | (input_ids == slot_id)


def audio_of(cache: Any) -> AttachedAudio | None:
    """The audio that a text cache was made with; what follows it is checked."""
    audio = getattr(cache, "pal_audio", None)
    return None if audio is None else replace(audio, trusted=False)


def context_of(
    model: "PalForConditionalGeneration",
    input_ids: Tensor,
    attention_mask: Tensor | None,
    input_features: Features | None,
    audio_num_samples: Lengths | None,
    audio: AudioMemory | AttachedAudio | LiveAudio | None,
    past_key_values: Any = None,
    remember: bool = True,
) -> AttachedAudio | None:
    """The clips of one call, placed in its text; None where there is nothing to hear.

    Args:
        model, ...: as in `PalForConditionalGeneration.forward`.
        remember: see `integration.memory.attach`.

    Raises:
        PalError: markers and clips do not match, or audio is missing, given twice or another prompt's.
    """
    if isinstance(audio, AttachedAudio):
        if not audio.trusted:
            past = past_key_values.get_seq_length() if past_key_values is not None else 0
            is_2d = isinstance(attention_mask, Tensor) and attention_mask.ndim == 2
            audio.check(input_ids, attention_mask.shape[1] if is_2d else past + input_ids.shape[1])  # type: ignore[union-attr]
        return audio
    audio = sound_of(model, input_ids, input_features, audio_num_samples, audio)
    if audio is None:
        if not (model.training and torch.is_grad_enabled() and model._learns_to_hear()):
            return None
        audio = model._dummy()
    if past_key_values is not None and (past_key_values.get_seq_length() or audio_of(past_key_values) is not None):
        return attach_behind(model, audio, input_ids, attention_mask, past_key_values)
    return model.attach(audio, input_ids, attention_mask, remember)


def sound_of(
    model: "PalForConditionalGeneration",
    input_ids: Tensor,
    input_features: Features | None,
    audio_num_samples: Lengths | None,
    audio: AudioMemory | LiveAudio | None,
) -> AudioMemory | LiveAudio | None:
    """The clips of one call, encoded where features are given; None where text has none.

    Raises:
        PalError: audio is missing or given twice.
    """
    if input_features is not None:
        if audio is not None:
            raise PalError("give input_features or audio_memory, not both")
        if audio_num_samples is None:
            raise PalError("input_features need audio_num_samples beside them, as the processor gives them")
        # A sharded layer's tensors are whole inside its own forward alone, so that no memory can be made of it beforehand.
        if torch.is_grad_enabled() or isinstance(model, FSDPModule):
            return model.encode(input_features, audio_num_samples)
        return model.encode_audio(input_features, audio_num_samples)
    if audio is None:
        num_audio = int(is_audio(model.config, input_ids).sum())
        if num_audio:
            num_markers = int((input_ids == model.config.audio_ids[0]).sum())
            what = f"{num_markers} audio markers" if num_markers else f"{num_audio} audio slots"
            raise PalError(f"the text holds {what} but no audio was given")
    return audio


def attach_behind(
    model: "PalForConditionalGeneration", memory: AudioMemory | LiveAudio, input_ids: Tensor, mask: Tensor | None, cache: Any
) -> AttachedAudio:
    """Place clips where a text cache is kept: the new ones behind it alone, or all clips of the whole text.

    Raises:
        PalError: the cached text would move, or clips and markers do not match.
    """
    if isinstance(memory, LiveAudio):
        raise PalError("new sound beside a kept text cache is for inference: call under torch.no_grad(), or leave the cache out")
    known = audio_of(cache)
    if mask is None:
        mask = torch.ones(input_ids.shape[0], cache.get_seq_length() + input_ids.shape[1], dtype=torch.int64)
    if mask.ndim != 2:
        raise PalError("new sound beside a kept text cache needs a 2D attention mask")
    whole = whole_text(known, input_ids, mask)
    if known is None or memory.num_markers == int((whole == model.config.audio_ids[0]).sum()):
        attached = model.attach(memory, whole, mask)
        if known is not None:
            check_same_positions(known, attached.placement)
        return attached
    model.check_fingerprint(memory)
    limit = max_positions(model.language_model, model._audio.positions)
    sees = model._audio.summary_sees_audio
    return extend(known, memory, whole, mask, model._audio.positions, model.marker.device, sees, limit)


def positions_of(context: AttachedAudio, input_ids: Tensor, attention_mask: Any, position_ids: Tensor | None) -> Tensor:
    """Position ids (B, L): the caller's, checked against the clips', or made from them.

    Raises:
        PalError: they leave no room for the clips, or cannot be made from the mask.
    """
    is_2d = isinstance(attention_mask, Tensor) and attention_mask.ndim == 2
    if position_ids is None and not is_2d:
        raise PalError("position_ids: needed beside a 4D attention mask when there is audio")
    if position_ids is None:
        return context.position_ids(input_ids, attention_mask)
    position_ids = position_ids.expand(input_ids.shape[0], -1)
    if not context.trusted and is_2d:
        expected = context.position_ids(input_ids, attention_mask)
        shown = attention_mask[:, -input_ids.shape[1] :].bool()
        if not torch.equal(position_ids[shown], expected[shown]):
            raise PalError("position_ids do not leave room for the clips' spans; leave them out, the model makes them")
    return position_ids
