"""Keys and values of audio tokens by one map in place of two with a norm between them: fewer operations in a training step.

    h = W x + b,   output = V h / rms(h)         as a LAL layer computes it: its projector, its norm, its key and value maps
           = (V W x + V b) / rms(h)              V W is made once a step
    D rms(h)^2 = x . (u + W'b) + |b|^2           of u = W'h = W'W x + W'b, without h

What the norm takes out of a token's gradient needs u again and no product: it lies along h, and W' of that is u. So h, whose
gradients are products with W, is never made. Of its share in the gradient of W, the moments of tokens weighted by a number
each, half is a mirror of the other: of 4 x 4 blocks 10 are computed. Operations of a token, forward and backward, and of the
weights:

    apart      6 M D + 6 D O
    composed   6 M O + 3.25 M M,  and D (6 M O + 4 M M) once a step

For Llama-3.2-1B (M = D = 2,048, O = 1,024) that is 26.2 of 37.7 million a token, and less in all from 5,200 tokens on; where not
all of it learns, the counts are others. Kept for the gradients is u in place of h, M wide and not D, and V W. Layers of one call
share one gradient of the tokens: a product for all, and no sum of several. Source: our choice.

Where W loses most of a token, or b cancels W x, rms(h) is a small difference of larger numbers, and its error grows with the
square of what is lost. In bfloat16 it is 0.3% with or without, 0.8% where a third is left, 2.5% of a tenth, and of a thirtieth
nothing is sure; of a thousandth float32 keeps two digits (the tests hold it). Of a gradient that the norm takes nearly all of,
what is left was seen with twice the error of maps apart, in bfloat16.

Shapes: N tokens, M their width, D the LLM's width, O outputs, L layers.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pal_audio.integration.normed_projection import NormedMap, as_dtype, product_dtype, settled, wide
from pal_audio.integration.recompute import recomputed

_BLOCKS = 4  # of the moments' columns


def is_fewer_operations(num_tokens: int, own: nn.Linear, num_outputs: int) -> bool:
    """Whether a training step in which all learns has fewer operations by the composed map.

    Args:
        num_tokens: N.
        own: the map from tokens to the layer's inputs.
        num_outputs: O.
    """
    width, token_size = own.weight.shape
    apart = 6 * token_size * width + 6 * width * num_outputs
    composed = 6 * token_size * num_outputs + 2 * token_size**2 + 2 * _moments_share(token_size) * token_size**2
    once = width * (6 * token_size * num_outputs + 4 * token_size**2)
    return num_tokens * (apart - composed) > once


def composed_projections(tokens_NM: Tensor, maps: Sequence[nn.Linear], seconds: Sequence[NormedMap]) -> tuple[Tensor, ...]:
    """`linear(norm(map(tokens)), weight, bias)` of several layers.

    Args:
        tokens_NM: of all clips, one behind another.
        maps: of each layer, plain (see `are_plain`).
        seconds: of each layer, what follows; all of one epsilon and as many outputs.

    Returns:
        (N, O) of each layer, in the dtype of the product, which autocast may change.
    """
    weights_LOD = torch.stack([second.scaled_OD for second in seconds])
    dtype = product_dtype(weights_LOD)
    if len(maps) == 1:
        maps_LDM = as_dtype(maps[0].weight, dtype)[None]
    else:  # a compiled step does not keep the stack for gradients
        maps_LDM = recomputed("full", _stacked, dtype, *(own.weight for own in maps))
    biases_LD = torch.stack([own.weight.new_zeros(own.out_features) if own.bias is None else own.bias for own in maps])
    sides = tokens_NM.to(dtype), maps_LDM, biases_LD.to(dtype), weights_LOD.to(dtype)
    outputs = _ComposedProjections.apply(*sides, seconds[0].norm.eps)  # type: ignore[no-untyped-call]
    return tuple(second.with_bias(output) for second, output in zip(seconds, outputs, strict=True))


def _stacked(dtype: torch.dtype, *weights: Tensor) -> Tensor:
    return torch.stack([as_dtype(weight, dtype) for weight in weights])


class _ComposedProjections(torch.autograd.Function):
    """The products. Nothing in it is converted to what it is; see `normed_projection`."""

    @staticmethod
    def forward(
        ctx: Any, tokens_NM: Tensor, maps_LDM: Tensor, biases_LD: Tensor, weights_LOD: Tensor, eps: float
    ) -> tuple[Tensor, ...]:
        computed = _computed(tokens_NM, maps_LDM, biases_LD, weights_LOD, eps)
        ctx.save_for_backward(tokens_NM, maps_LDM, biases_LD, weights_LOD, *computed)
        ctx.eps = eps
        return computed[-1].unbind(1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        tokens_NM, maps_LDM, biases_LD, weights_LOD, *computed = ctx.saved_tensors
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # gradients of gradients: these depend on the inputs
            computed = _computed(tokens_NM, maps_LDM, biases_LD, weights_LOD, ctx.eps)
        composed_LOM, offset_LM, back_NLM, inverse_NL, output_NLO = computed
        tokens_learn, maps_learn, biases_learn, weights_learn, _ = ctx.needs_input_grad
        dtype, width = tokens_NM.dtype, maps_LDM.shape[1]
        kept = zip(inverse_NL.split(1, 1), output_NLO.unbind(1), strict=True)
        scaled, along = scaled_and_along(gradients, list(kept), width, dtype)
        scaled_NS, along_NL = joined(scaled, 1), joined(along, 1)
        of_tokens = of_maps = of_biases = of_weights = None
        if tokens_learn:
            taken_NM = ((wide(back_NLM) + offset_LM) * along_NL[:, :, None]).sum(1)
            of_tokens = settled(as_dtype(wide(scaled_NS @ composed_LOM.flatten(0, 1)) - taken_NM, dtype))
        if maps_learn or weights_learn:
            of_composed_LOM = (scaled_NS.T @ tokens_NM).view_as(composed_LOM)
        if biases_learn or weights_learn:
            of_offset_LO = scaled_NS.sum(0).unflatten(0, composed_LOM.shape[:2])
        if maps_learn or biases_learn:
            along_LM = as_dtype(along_NL, dtype).T @ tokens_NM
        if maps_learn:
            moments_LMM = _weighted_moments(tokens_NM, along_NL)
            of_maps = weights_LOD.transpose(1, 2) @ of_composed_LOM - maps_LDM @ moments_LMM
            of_maps = of_maps - biases_LD[:, :, None] * along_LM[:, None]
        if biases_learn:
            along_L1 = as_dtype(along_NL.sum(0), dtype)[:, None]
            of_biases = _applied(weights_LOD.transpose(1, 2), of_offset_LO) - _applied(maps_LDM, along_LM) - biases_LD * along_L1
        if weights_learn:
            of_weights = of_composed_LOM @ maps_LDM.transpose(1, 2) + of_offset_LO[:, :, None] * biases_LD[:, None]
        return of_tokens, of_maps, of_biases, of_weights, None


def _computed(
    tokens_NM: Tensor, maps_LDM: Tensor, biases_LD: Tensor, weights_LOD: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """V W (L, O, M), W'b (L, M), W'W x (N, L, M), 1 / rms (N, L) and the outputs (N, L, O)."""
    num_layers, width = maps_LDM.shape[:2]
    back_LMD = maps_LDM.transpose(1, 2)
    composed_LOM, offset_LM = weights_LOD @ maps_LDM, _applied(back_LMD, biases_LD)
    back_NLM = (tokens_NM @ (back_LMD @ maps_LDM).flatten(0, 1).T).unflatten(1, (num_layers, -1))
    squares_NL = (wide(tokens_NM)[:, None] * (back_NLM + 2 * wide(offset_LM))).sum(-1) + wide(biases_LD).square().sum(-1)
    inverse_NL = inverse_rms(squares_NL, width, eps)
    outputs_NLO = (tokens_NM @ composed_LOM.flatten(0, 1).T).unflatten(1, (num_layers, -1))
    outputs_NLO = (wide(outputs_NLO) + _applied(weights_LOD, biases_LD)) * inverse_NL[:, :, None]
    return composed_LOM, offset_LM, back_NLM, inverse_NL, as_dtype(outputs_NLO, tokens_NM.dtype)


def _applied(matrices: Tensor, vectors: Tensor) -> Tensor:
    """Each matrix (L, R, C) times its vector (L, C)."""
    return (matrices @ vectors[:, :, None]).squeeze(-1)


def inverse_rms(squares: Tensor, width: int, eps: float) -> Tensor:
    """1 / rms of sums of squares that were not computed as such: rounding can make one less than nothing."""
    return torch.rsqrt(squares.clamp_min(0) / width + eps)


def scaled_and_along(
    gradients: Sequence[Tensor], computed: Sequence[tuple[Tensor, Tensor]], width: int, dtype: torch.dtype
) -> tuple[list[Tensor], list[Tensor]]:
    """Of each layer, the gradient of V h (N, O) in `dtype`, and what the norm takes out of that of h, in units of h (N, 1).

    Args:
        gradients: of the outputs (N, O).
        computed: 1 / rms (N, 1) and the output (N, O) of each layer.
        width: D.
        dtype: of the products.
    """
    scaled, along = [], []
    for given, (inverse, output) in zip(gradients, computed, strict=True):
        gradient = wide(given)
        scaled.append(as_dtype(gradient * inverse, dtype))
        along.append((gradient * output).sum(-1, keepdim=True) * inverse.square() / width)
    return scaled, along


def _weighted_moments(tokens_NM: Tensor, weights_NL: Tensor) -> Tensor:
    """x' diag(weight) x (L, M, M) of each weight, by the blocks on and above the diagonal."""
    size, num_layers = tokens_NM.shape[1], weights_NL.shape[1]
    blocks = _num_blocks(size)
    width = size // blocks
    # All layers' columns of a block lie side by side: few large products.
    weighted_NBLW = as_dtype(tokens_NM.unflatten(1, (blocks, 1, width)) * weights_NL[:, None, :, None], tokens_NM.dtype)
    rows = []
    for block in range(blocks):
        row_LWM = (weighted_NBLW[:, block].flatten(1).T @ tokens_NM[:, block * width :]).unflatten(0, (num_layers, width))
        rows.append(nn.functional.pad(row_LWM, (block * width, 0)))
    upper_LMM = torch.cat(rows, 1)
    number = torch.arange(size, device=tokens_NM.device) // width
    return torch.where(number[:, None] < number, upper_LMM, 0).transpose(1, 2) + upper_LMM


def _num_blocks(size: int) -> int:
    return _BLOCKS if size % _BLOCKS == 0 else 1


def _moments_share(size: int) -> float:
    """Of the products of all blocks."""
    blocks = _num_blocks(size)
    return (blocks + 1) / 2 / blocks


def joined(parts: Sequence[Tensor], dim: int) -> Tensor:
    """`torch.cat`, without a copy of one part."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim)
