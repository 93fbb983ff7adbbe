"""Support is proved, not promised: our keys and values are compared with the decoder layer's own.

The layer itself is called on two random tokens with a cache whose `update` stops the call and hands out what the layer
was about to store: its own normed, projected, rotated keys and values, whatever the family. Source: our choice.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from pal_audio.integration.key_values import LayerKeyValues, UnsupportedLlmError, audio_kv


class _StopError(Exception):
    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values


class _Capture:
    """Stands in for a cache; the first `update` ends the call."""

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> NoReturn:
        raise _StopError(keys, values)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0


@contextmanager
def _evaluating(layer: nn.Module) -> Iterator[None]:
    was_training = layer.training
    layer.eval()
    try:
        yield
    finally:
        layer.train(was_training)


@torch.no_grad()
def layer_own_kv(rule: LayerKeyValues, inputs_BAD: Tensor, positions_BA: Tensor) -> tuple[Tensor, Tensor]:
    """The layer's own keys and values (B, K, A, d) for `inputs_BAD` as its input. The oracle of `prove` and of tests."""
    kwargs: dict[str, Any] = {"attention_mask": None, "position_ids": positions_BA, "past_key_values": _Capture()}
    if rule.rotary_emb is not None:
        extra = () if rule.rope_layer_type is None else (rule.rope_layer_type,)
        kwargs["position_embeddings"] = rule.rotary_emb(inputs_BAD, positions_BA, *extra)
    with _evaluating(rule.layer):  # a checkpointing layer in training mode would drop the cache
        try:
            rule.layer(inputs_BAD, use_cache=True, **kwargs)
        except _StopError as stop:
            return stop.keys, stop.values
    raise UnsupportedLlmError(f"{rule.family}: layer {rule.index} keeps no key/value cache, so LAL cannot be proved for it")


@torch.no_grad()
def prove(rules: list[LayerKeyValues]) -> None:
    """Compare our keys and values with each layer's own on two random tokens.

    Raises:
        UnsupportedLlmError: they differ; names layer and family.
    """
    for rule in rules:
        weight = next(parameter for parameter in rule.attention.parameters() if parameter.is_floating_point())
        width = rule.attention.config.hidden_size
        generator = torch.Generator().manual_seed(rule.index)
        inputs = torch.randn(1, 2, width, generator=generator).to(weight.device, _compute_dtype(rule.layer))
        positions = torch.tensor([[3, 11]], device=weight.device)
        expected = layer_own_kv(rule, inputs, positions)
        with _evaluating(rule.layer):  # an adapter's dropout would make both differ
            ours = audio_kv(rule, inputs, positions)
        tolerance = 1e-5 if inputs.dtype == torch.float32 else 2e-2
        for name, got, want in zip(("keys", "values"), ours, expected, strict=True):
            if got.shape != want.shape or not torch.allclose(got.float(), want.float(), rtol=tolerance, atol=tolerance):
                raise UnsupportedLlmError(
                    f"{rule.family}: the {name} of layer {rule.index} are not computed as LAL expects; "
                    "this family (or this version of transformers) is not supported by LAL, PLITS works"
                )


def _compute_dtype(layer: nn.Module) -> torch.dtype:
    floats = [
        parameter.dtype for parameter in layer.parameters() if parameter.dtype in (torch.float32, torch.bfloat16, torch.float16)
    ]
    return floats[0] if floats else torch.get_default_dtype()
