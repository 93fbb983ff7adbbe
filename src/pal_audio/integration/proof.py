"""Support is proved, not promised: what we do in a LAL layer is compared with what the layer itself would do.

Two checks for each layer, on random inputs:

1. keys and values: the layer is called with a cache whose `update` stops the call and hands out what the layer was about
   to store: its own normed, projected, rotated keys and values, whatever the family;
2. attention: two audio tokens and three of text. Our way (queries of text alone, audio as keys and values) must give what
   the family's own eager attention gives for text rows when all five stand in its input. This finds what happens to keys
   and values after the cache.

Source: our choice.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from pal_audio.integration.attention import INNER_KERNELS
from pal_audio.integration.key_values import LayerKeyValues, UnsupportedLlmError, audio_kv, compute_dtype
from pal_audio.integration.recompute import Recompute
from pal_audio.integration.training_attention import StepKernel

_NUM_AUDIO, _NUM_TEXT = 2, 3
_POSITIONS = (3, 11, 12, 13, 14)


class _StopError(Exception):
    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values


class _Capture:
    """Stands in for a cache; the first `update` ends the call."""

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> NoReturn:
        raise _StopError(keys, values)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0


class _ProofAudio:
    """An `AudioContext` of one layer, whose keys everything sees."""

    def __init__(self, layer: int, keys: Tensor, values: Tensor) -> None:
        self.expected, self.consumed = frozenset({layer}), set[int]()
        self.pair = keys, values
        self.recompute: Recompute = "none"
        self.kernel: StepKernel | None = None  # the proof is of the mathematics, not of the kernel
        self.blocks: dict[object, object] = {}  # the layer is proved without the Flamingo blocks before it

    def keys_values(self, layer: int) -> tuple[Tensor, Tensor]:
        return self.pair

    def heard(self, layer: int) -> NoReturn:
        raise AssertionError("there is no kernel")

    def once(self, layer: int, text_mask: Tensor | None, make: Callable[[], Tensor]) -> Tensor:
        return make()

    def visible(self, layer: int) -> Tensor:
        return torch.ones(1, 1, _NUM_TEXT, _NUM_AUDIO, dtype=torch.bool, device=self.pair[0].device)


@torch.no_grad()
def layer_own_kv(rule: LayerKeyValues, inputs_BAD: Tensor, positions_BA: Tensor) -> tuple[Tensor, Tensor]:
    """The layer's own keys and values (B, K, A, d) for `inputs_BAD` as its input. The oracle of `prove` and of tests."""
    try:
        _call_layer(rule, inputs_BAD, positions_BA, **{_cache_name(rule): _Capture()}, use_cache=True)
    except _StopError as stop:
        return stop.keys, stop.values
    raise UnsupportedLlmError(f"{rule.family}: layer {rule.index} keeps no key/value cache, so LAL cannot be proved for it")


@torch.no_grad()
def prove(rules: list[LayerKeyValues]) -> None:
    """Run both checks on every layer.

    Raises:
        UnsupportedLlmError: they differ, or the layer cannot be called as a decoder layer; names layer and family.
    """
    for rule in rules:
        where = f"of layer {rule.index}"
        try:
            with _evaluating(rule.layer):
                differing = _differing(rule)
        except UnsupportedLlmError:
            raise
        except (RuntimeError, TypeError, ValueError, AttributeError, KeyError, IndexError) as error:
            reason = str(error).split("\n")[0]
            raise UnsupportedLlmError(f"{rule.family}: the attention {where} cannot be entered by LAL ({reason})") from error
        if differing is not None:
            raise UnsupportedLlmError(
                f"{rule.family}: the {differing} {where} differ from what LAL computes; "
                "this family (or this version of transformers) is not supported by LAL, PLITS works"
            )


def _differing(rule: LayerKeyValues) -> str | None:
    """What differs between our way and the layer's, or None."""
    device = next(parameter.device for parameter in rule.attention.parameters())
    generator = torch.Generator("cpu").manual_seed(rule.index)
    inputs = torch.randn(1, len(_POSITIONS), rule.attention.config.hidden_size, generator=generator, device="cpu")
    inputs = inputs.to(device, compute_dtype(rule.layer))
    positions = torch.tensor([_POSITIONS], device=device)
    audio, text = inputs[:, :_NUM_AUDIO], inputs[:, _NUM_AUDIO:]
    keys, values = audio_kv(rule, audio, positions[:, :_NUM_AUDIO])
    own_keys, own_values = layer_own_kv(rule, audio, positions[:, :_NUM_AUDIO])
    if not _close(keys, own_keys):
        return "keys"
    if not _close(values, own_values):
        return "values"
    causal = torch.ones(len(_POSITIONS), len(_POSITIONS), dtype=torch.bool, device=device).tril()[None, None]
    additive = torch.zeros(causal.shape, dtype=inputs.dtype, device=device).masked_fill(~causal, torch.finfo(inputs.dtype).min)
    with _kernel(rule, "eager"):
        whole = _attention_output(rule, inputs, positions, attention_mask=additive)
    context = _ProofAudio(rule.index, keys, values)
    text_mask = causal[..., _NUM_AUDIO:, _NUM_AUDIO:]
    kernel = rule.attention.config._attn_implementation
    with _kernel(rule, INNER_KERNELS.get(kernel, kernel)):
        ours = _attention_output(rule, text, positions[:, _NUM_AUDIO:], attention_mask=text_mask, pal_audio=context)
    if not context.consumed:
        raise UnsupportedLlmError(f"{rule.family}: the attention of layer {rule.index} does not call the attention interface")
    return None if _close(ours, whole[:, _NUM_AUDIO:]) else "results of the attention"


def _cache_name(rule: LayerKeyValues) -> str:
    """What the family's layers call the cache."""
    known = inspect.signature(type(rule.layer).forward).parameters
    return next((name for name in ("past_key_values", "layer_past") if name in known), "past_key_values")


def _call_layer(rule: LayerKeyValues, inputs_BLD: Tensor, positions_BL: Tensor, **kwargs: Any) -> None:
    kwargs = {"attention_mask": None, "position_ids": positions_BL, **kwargs}
    if rule.rotary_emb is not None:
        extra = () if rule.rope_layer_type is None else (rule.rope_layer_type,)
        kwargs["position_embeddings"] = rule.rotary_emb(inputs_BLD, positions_BL, *extra)
    with _evaluating(rule.layer):
        rule.layer(inputs_BLD, **kwargs)


@contextmanager
def _evaluating(layer: nn.Module) -> Iterator[None]:
    """No dropout, an adapter's included; and a checkpointing layer in training mode would drop the cache."""
    training = [module for module in layer.modules() if module.training]
    layer.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _attention_output(rule: LayerKeyValues, inputs_BLD: Tensor, positions_BL: Tensor, **kwargs: Any) -> Tensor:
    """What the attention module gives to the layer's residual: not drowned in it."""
    seen: list[Tensor] = []
    hook = rule.attention.register_forward_hook(lambda module, args, output: seen.append(output[0]))
    try:
        _call_layer(rule, inputs_BLD, positions_BL, **kwargs)
    finally:
        hook.remove()
    return seen[0]


@contextmanager
def _kernel(rule: LayerKeyValues, name: str) -> Iterator[None]:
    config: Any = rule.attention.config
    ours = config._attn_implementation
    config._attn_implementation_internal = name
    try:
        yield
    finally:
        config._attn_implementation_internal = ours


def _close(ours: Tensor, theirs: Tensor) -> bool:
    if ours.shape != theirs.shape:
        return False
    tolerance = 1e-4 if ours.dtype == theirs.dtype == torch.float32 else 5e-2
    error = (ours.float() - theirs.float()).pow(2).mean().sqrt()
    return bool(error <= tolerance * theirs.float().pow(2).mean().sqrt())
