"""Where text meets audio: the attention function that decoder layers call, and the context that brings audio to it.

    decoder layer ── q, k, v of text ──► pal_attention(..., pal_audio=context) ── inner kernel on [audio; text]
                                         with pal_packing=...: rows are unpacked before and packed after
                                         in training steps on a GPU: `training_kernel` on [audio | text]

The function is registered with transformers under two names, one per inner kernel, together with SDPA's mask function
(a name missing in the mask registry would lose padding in silence). Audio keys come first, so the text's own mask keeps
its place at the right. Without a context the stock kernel runs with its stock arguments.

Shapes: B rows, H query heads, K key/value heads, L text tokens of this call, T text keys (cache included), A audio keys.
"""

import math
import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from pal_audio.errors import PalError
from pal_audio.integration.decode_attention import DecodingStep, Keys, one_query_attention
from pal_audio.integration.key_values import UnsupportedLlmError
from pal_audio.integration.packing import Packing
from pal_audio.integration.recompute import Recompute, recomputed
from pal_audio.integration.shared_attention import rows_at_once, shared_attention, shared_mask
from pal_audio.integration.training_attention import Bounds, StepKernel, why_not

if TYPE_CHECKING:
    from pal_audio.integration.prompt_attention import PromptStep

# The user's name of an inner kernel -> ours in transformers' registry. Names containing "sdpa", "flash" or
# "flex_attention" make transformers check or load other things.
INNER_KERNELS = {"sdpa": "pal", "eager": "pal_eager"}


Inner = Callable[..., tuple[Tensor, Tensor | None]]


class AudioContext(Protocol):
    """What brings audio to the layers of one forward."""

    consumed: set[int]
    kernel: StepKernel | None  # of this forward, if it is a training step that has one

    @property
    def recompute(self) -> Recompute:
        """What a LAL layer computes again for its gradients."""
        ...

    @property
    def expected(self) -> frozenset[int]:
        """The LAL layers."""
        ...

    def keys_values(self, layer: int) -> tuple[Tensor, Tensor]:
        """Rotated keys and values (B, K, A, d) of one LAL layer; (1, K, A, d) where all rows share them."""
        ...

    def visible(self, layer: int) -> Tensor:
        """(B, 1, L, A) bool: which text token of this call sees which key."""
        ...

    def heard(self, layer: int) -> Bounds:
        """What `visible` follows from, where there is a `kernel`."""
        ...

    def once(self, layer: int, text_mask: Tensor | None, make: Callable[[], Tensor]) -> Tensor:
        """What `make` gives, made once in a forward for all layers that see the same audio under the same text mask."""
        ...


def check_consumed(context: AudioContext | DecodingStep) -> None:
    """The guard against lost audio: every LAL layer must have attended to audio in this forward.

    Raises:
        RuntimeError: a layer did not call our attention, as after `language_model.set_attn_implementation(...)`.
    """
    if context.consumed != context.expected:
        lost = sorted(context.expected - context.consumed)
        raise RuntimeError(
            f"audio did not reach layers {lost}: the LLM's attention was replaced; "
            'choose the inner kernel with set_attn_implementation("sdpa" or "eager") on the PAL model instead'
        )


def _attend(
    inner: Inner,
    inner_with_audio: Inner,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    pal_audio: AudioContext | None = None,
    pal_packing: Packing | None = None,
    pal_decoding: "DecodingStep | PromptStep | None" = None,
    pal_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    if pal_decoding is not None:  # one token, or a whole prompt
        return pal_decoding.attend(module, query, key, value, **kwargs)
    if pal_packing is not None:
        pal_packing.num_calls += 1
        query, key, value = (pal_packing.unpack_heads(heads) for heads in (query, key, value))
        layer: int = module.layer_idx  # type: ignore[assignment]
        mask, kwargs["pal_window"] = pal_packing.text_mask(layer), pal_packing.windows[layer]
        output, weights = _attend(inner, inner_with_audio, module, query, key, value, mask, pal_audio, **kwargs)
        return pal_packing.pack(output), weights
    number = getattr(module, "layer_idx", None)
    if pal_audio is None or number not in pal_audio.expected:
        return inner(module, query, key, value, attention_mask, **kwargs)
    assert isinstance(number, int)
    hear: Inner = partial(_hear, inner_with_audio, pal_audio, number, module, pal_window, **kwargs)
    pal_audio.consumed.add(number)
    pair: tuple[Tensor, Tensor | None] = recomputed(pal_audio.recompute, hear, query, key, value, attention_mask)
    return pair


def _hear(
    inner_with_audio: Inner,
    pal_audio: AudioContext,
    layer: int,
    module: nn.Module,
    window: int | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention of one LAL layer over [audio; text]; `window` of text, if the mask says that and no more."""
    audio_keys, audio_values = pal_audio.keys_values(layer)
    if pal_audio.kernel is not None and torch.is_grad_enabled():
        text, audio, bounds = (key, value), (audio_keys, audio_values), pal_audio.heard(layer)
        is_masked = attention_mask is not None and window is None
        is_sdpa = inner_with_audio is _folded_inner
        reason = why_not(query, text, audio, bounds, is_masked, kwargs) if is_sdpa else "the inner kernel is not SDPA"
        if reason is None:
            return _hear_by_kernel(pal_audio.kernel, query, text, audio, bounds, window, **kwargs), None
        if pal_audio.kernel.is_strict:
            raise PalError(f"audio_kernel 'triton': layer {layer} cannot attend by the kernel: {reason}; take 'auto'")
    key, value = _filled(query, key, value, attention_mask)
    if audio_keys.shape[0] != query.shape[0]:  # held once for all rows
        if inner_with_audio is _folded_inner and (attention_mask is None or attention_mask.dtype == torch.bool):
            return _hear_shared(pal_audio, layer, query, (key, value), (audio_keys, audio_values), attention_mask, **kwargs), None
        audio_keys, audio_values = (side.expand(query.shape[0], -1, -1, -1) for side in (audio_keys, audio_values))

    def joint_mask() -> Tensor:
        text_mask, visible = _text_mask(query, key, attention_mask), pal_audio.visible(layer)
        if text_mask.dtype != torch.bool:  # an additive mask of the caller's own
            visible = _additive(visible, text_mask.dtype)
        mask = torch.cat([visible, text_mask], dim=-1)
        return _folded_mask(mask, query.shape[1] // key.shape[1], value.dtype) if inner_with_audio is _folded_inner else mask

    mask = pal_audio.once(layer, attention_mask, joint_mask)
    keys = torch.cat([audio_keys.to(key.dtype), key], dim=2)
    values = torch.cat([audio_values.to(value.dtype), value], dim=2)
    # The window is in the text's mask already; audio keys are exempt from it.
    return inner_with_audio(module, query, keys, values, mask, **(kwargs | {"sliding_window": None}))


def _hear_by_kernel(
    kernel: StepKernel,
    query: Tensor,
    text: tuple[Tensor, Tensor],
    audio: tuple[Tensor, Tensor],
    bounds: Bounds,
    window: int | None,
    scaling: float | None = None,
    **_: Any,
) -> Tensor:
    """`_hear` without joined keys and without a mask."""
    dtype = text[1].dtype  # under autocast, rotation has promoted queries and keys
    query, *sides = (heads.to(dtype) for heads in (query, *text, *audio))
    scale = 1 / math.sqrt(query.shape[-1]) if scaling is None else scaling
    return kernel.attend(query, (sides[0], sides[1]), (sides[2], sides[3]), bounds, window, scale)


def _hear_shared(
    pal_audio: AudioContext,
    layer: int,
    query: Tensor,
    text: tuple[Tensor, Tensor],
    audio: tuple[Tensor, Tensor],
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: Any,
) -> Tensor:
    """`_hear` where all rows share their audio, by SDPA or, for one token, without a copy."""
    rows, heads, num_tokens, size = query.shape

    def masks() -> tuple[Tensor, Tensor]:
        return _text_mask(query, text[0], attention_mask).expand(-1, -1, num_tokens, -1)[:, 0], pal_audio.visible(layer)[:, 0]

    if num_tokens == 1 and not dropout:
        seen, hears = masks()
        scale = 1 / math.sqrt(size) if scaling is None else scaling
        return one_query_attention(query[:, :, 0], Keys(*text, seen[:, 0]), Keys(*audio, hears[:, 0]), scale)[:, None]
    at_once = rows_at_once(rows, text[0].shape[2], audio[0].shape[2])
    groups, dtype = heads // text[0].shape[1], text[1].dtype
    mask = pal_audio.once(layer, attention_mask, lambda: _folded_mask(shared_mask(*masks(), at_once), groups, dtype))
    attend = partial(folded_sdpa, mask=mask, dropout=dropout, scale=scaling)
    return shared_attention(attend, query, text, audio, at_once).transpose(1, 2).contiguous()


def _folded_inner(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """`folded_sdpa` as an attention function of transformers."""
    unknown = [name for name in ("softcap", "s_aux", "position_bias") if kwargs.get(name) is not None]
    if unknown:
        raise ValueError(f"SDPA has no {unknown[0]}; use the eager kernel")
    output = folded_sdpa(query, key, value, attention_mask, kwargs.get("dropout", 0.0), kwargs.get("scaling"))
    return output.transpose(1, 2).contiguous(), None


def folded_sdpa(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, dropout: float = 0.0, scale: float | None = None
) -> Tensor:
    """Grouped-query attention under a mask without a copy of keys and values for each query head.

    The query heads that share a key head become more queries of it: (B, H, L, d) -> (B, K, H/K * L, d). Text is short and
    audio long in LAL, so this moves far less than expanded keys and values. Source: our choice.

    Args:
        query: (B, H, L, d).
        key, value: (B, K, T, d).
        mask: (B, 1, L, T) bool or additive, or (B, 1, H/K * L, T), folded already.
        dropout: of the weights.
        scale: of the scores; 1 / sqrt(d) if None.

    Returns:
        (B, H, L, d).
    """
    rows, heads, num_tokens, size = query.shape
    groups = heads // key.shape[1]
    if query.dtype != value.dtype or key.dtype != value.dtype:  # under autocast, rotation has promoted queries and keys
        query, key = query.to(value.dtype), key.to(value.dtype)
    folded = query.reshape(rows, heads // groups, groups * num_tokens, size)
    if mask.shape[2] == num_tokens:
        mask = _folded_mask(mask, groups, value.dtype)
    output = nn.functional.scaled_dot_product_attention(folded, key, value, attn_mask=mask, dropout_p=dropout, scale=scale)
    return output.reshape(rows, heads, num_tokens, size)


def _folded_mask(mask: Tensor, groups: int, dtype: torch.dtype) -> Tensor:
    """(B, 1, L, T) -> (B, 1, groups * L, T), additive: what SDPA would make of a bool mask in every layer."""
    mask = _additive(mask, dtype) if mask.dtype == torch.bool else mask.to(dtype)
    return mask[:, :, None].expand(-1, -1, groups, -1, -1).flatten(2, 3)


def _eager_inner(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """The family's own eager attention, which knows its soft-cap and sinks; it wants an additive mask."""
    eager = sys.modules[type(module).__module__].eager_attention_forward
    key, value = _filled(query, key, value, attention_mask)
    attention_mask = _text_mask(query, key, attention_mask)
    if attention_mask.dtype == torch.bool:
        attention_mask = _additive(attention_mask, query.dtype)
    return eager(module, query, key, value, attention_mask, **kwargs)


def _filled(query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Keys and values without what an empty static cache has not filled yet, in a prefill."""
    num_queries = query.shape[2]
    if attention_mask is None and 1 < num_queries < key.shape[2]:
        return key[:, :, :num_queries], value[:, :, :num_queries]
    return key, value


def _text_mask(query: Tensor, key: Tensor, attention_mask: Tensor | None) -> Tensor:
    """The (B, 1, L, T) mask, also where `sdpa_mask` left it out: causal in a prefill, everything for one token."""
    if attention_mask is not None:
        return attention_mask.expand(query.shape[0], -1, -1, -1)
    num_queries, num_keys = query.shape[2], key.shape[2]
    causal = torch.ones(num_queries, num_keys, dtype=torch.bool, device=query.device).tril(num_keys - num_queries)
    return causal.expand(query.shape[0], 1, -1, -1)


def _additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """A bool mask (True = valid) as a mask to add to scores."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill(~visible, torch.finfo(dtype).min)


def pal_attention(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    """Attention over [audio; text] by PyTorch's SDPA."""
    return _attend(sdpa_attention_forward, _folded_inner, *args, **kwargs)


def pal_eager_attention(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    """Attention over [audio; text] by the family's own eager function."""
    return _attend(_eager_inner, _eager_inner, *args, **kwargs)


def has_sdpa(llm: Any) -> bool:
    """Whether SDPA computes this LLM's attention. It has no soft-cap, which some transformers pass over in silence."""
    return bool(llm._supports_sdpa) and getattr(llm.config.get_text_config(), "attn_logit_softcapping", None) is None


def install(llm: Any, inner: str, hooked: bool) -> None:
    """Choose the kernel of an LLM's attention, with our hook around it or as it is.

    Args:
        llm: a transformers model.
        inner: "sdpa" or "eager", or our own name of one; without the hook any name that the LLM has.
        hooked: let audio and packing in.

    Raises:
        PalError: there is no hook around such a kernel, or the LLM does not have it.
        UnsupportedLlmError: its attention cannot be hooked.
    """
    inner = next((kernel for kernel, ours in INNER_KERNELS.items() if ours == inner), inner)
    family = llm.config.get_text_config().model_type
    if inner == "sdpa" and not has_sdpa(llm):
        raise PalError(f"attn_implementation 'sdpa': {family} does not support it (soft-cap or sinks); use 'eager'")
    if not hooked:
        if inner in INNER_KERNELS:  # directly: some families refuse the call although they have the kernel
            llm.config._attn_implementation = inner
        else:
            llm.set_attn_implementation(inner)
        return
    if inner not in INNER_KERNELS:
        raise PalError(
            f"attn_implementation {inner!r}: with LAL or packing the inner kernel is one of {', '.join(INNER_KERNELS)}"
        )
    if not llm._supports_attention_backend:
        raise UnsupportedLlmError(
            f"{family}: the attention of its layers does not go through transformers' attention interface, "
            "so neither LAL nor packing can enter it; PLITS without packing works"
        )
    llm.config._attn_implementation = INNER_KERNELS[inner]
    llm.config.get_text_config()._attn_implementation = INNER_KERNELS[inner]


def register() -> None:
    """Make both names known to transformers. Safe to call again."""
    for name, function in (("pal", pal_attention), ("pal_eager", pal_eager_attention)):
        AttentionInterface.register(name, function)
        AttentionMaskInterface.register(name, sdpa_mask)


register()
