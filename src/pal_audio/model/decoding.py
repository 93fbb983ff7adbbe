"""Greedy answers without the cost of `generate`: which models can have them, and the call; `decoder` is the loop itself."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pal_audio.errors import PalError
from pal_audio.integration.attention import INNER_KERNELS
from pal_audio.model.decoder import Decoder
from pal_audio.model.generation import end_tokens

if TYPE_CHECKING:
    from pal_audio.model.modeling import PalForConditionalGeneration

# Settings of a generation config that change what greedy decoding gives, and the values that change nothing.
CHANGING = {
    "repetition_penalty": 1.0, "encoder_repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0,
    "min_length": 0, "min_new_tokens": 0, "bad_words_ids": None, "sequence_bias": None, "suppress_tokens": None,
    "begin_suppress_tokens": None, "forced_bos_token_id": None, "forced_eos_token_id": None, "guidance_scale": 1.0,
    "exponential_decay_length_penalty": None, "watermarking_config": None, "stop_strings": None, "max_time": None,
    "penalty_alpha": None, "dola_layers": None, "token_healing": False,
}  # fmt: skip

AUDIO = ("input_features", "audio_num_samples", "audio_memory")  # what `forward` hears by


def why_plain(model: "PalForConditionalGeneration") -> str | None:
    """What this model has that a static step cannot do, so that `greedy` takes `generate`; None: nothing.

    Soft-capped attention and sinks need the eager kernel; rotary frequencies that follow the text's length are worked out on the
    host; autocast keeps copies of weights; a setting such as `repetition_penalty` changes the logits.
    """
    config = model.language_model.config.get_text_config()
    if torch.is_autocast_enabled(model.marker.device.type):
        return "autocast"
    if model.language_model.config._attn_implementation not in ("sdpa", INNER_KERNELS["sdpa"]):
        return f"the {model.language_model.config._attn_implementation} kernel"
    if not model.language_model._supports_attention_backend:
        return f"the attention of {config.model_type}"
    parameters = getattr(config, "rope_parameters", None) or {}
    ropes = [parameters, *(item for item in parameters.values() if isinstance(item, dict))]
    for kind in (rope.get("rope_type") for rope in ropes):
        if kind in ("dynamic", "longrope"):
            return f"rotary embedding of type {kind}"
    kinds = set(getattr(config, "layer_types", None) or []) - {"full_attention", "sliding_attention"}
    if kinds:
        return f"layers of kind {min(kinds)}"
    for name, neutral in CHANGING.items():
        if getattr(model.generation_config, name, None) not in (None, neutral):
            return f"generation_config.{name}"
    return None


@torch.no_grad()
def greedy(
    model: "PalForConditionalGeneration",
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    max_new_tokens: int,
    eos_token_id: int | Sequence[int] | None = None,
    pad_token_id: int | None = None,
    compile: bool | None = None,
    decoder: Decoder | None = None,
    **audio: Any,
) -> Tensor:
    """The tokens of `model.generate(..., do_sample=False)`, faster.

    A model that a static step cannot serve (`why_plain` names the reason) is decoded by `generate` itself.

    Args:
        model: in eval mode.
        input_ids: (B, L) prompts, padded on the left.
        attention_mask: (B, L); all ones if None.
        max_new_tokens: at most so many a row.
        eos_token_id: ends a row; None: as the generation config says; an empty list: nothing does.
        pad_token_id: follows the end of a row; None: as the generation config says, else the first end token, else 0.
        compile: by torch.compile, and on a GPU in a CUDA graph; None: on a GPU.
        decoder: of an earlier call, whose compiled code and graph are used again where shapes agree; None: a new one.
        audio: `audio_memory`, or `input_features` and `audio_num_samples`, as in `forward`.

    Returns:
        (B, L + n) int64, n <= max_new_tokens: up to where the last row ended.

    Raises:
        PalError: a prompt is not padded on the left, an option is not greedy decoding's, the decoder is another model's, or what
            `forward` raises.
    """
    stray = sorted(audio.keys() - AUDIO)
    if stray:
        raise PalError(f"greedy: no option {stray[0]!r}; it takes {', '.join(AUDIO)}, and `generate` what samples or searches")
    if decoder is not None and decoder.model is not model:
        raise PalError("decoder: made for another model; give each model its own")
    if max_new_tokens < 1:
        raise PalError(f"max_new_tokens: {max_new_tokens} is not a positive number")
    options = model.generation_config
    ends = end_tokens(options.eos_token_id if eos_token_id is None else eos_token_id)
    pad = options.pad_token_id if pad_token_id is None else pad_token_id
    pad = (ends[0] if ends else 0) if pad is None else pad
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    if not bool(mask[:, -1].all()):
        raise PalError("greedy: prompts of a batch are padded on the left; the processor does so without return_labels")
    if why_plain(model) is not None:
        # -1 is no token: a row then ends at its last one
        plain: Tensor = model.generate(
            input_ids, attention_mask=mask, max_new_tokens=max_new_tokens, eos_token_id=ends or [-1], pad_token_id=pad,
            do_sample=False, num_beams=1, **audio,
        )  # fmt: skip
        return plain
    decoder = Decoder(model, compile) if decoder is None else decoder
    return decoder.decode(input_ids, mask, max_new_tokens, ends, pad, **audio)
