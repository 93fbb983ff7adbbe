"""Keys and values of audio tokens by one map in place of two with a norm between them: fewer operations in a training step.

    h = W x + b,   output = V h / rms(h)         as a LAL layer computes it: its projector, its norm, its key and value maps
           = (V W x + V b) / rms(h)              V W is made once a step
    D rms(h)^2 = x . (u + W'b) + |b|^2           of u = W'h = W'W x + W'b, without h

A token's gradient needs u again and no product: what the norm takes away lies along h, and W' of that is u. So h, whose
gradients are products with W, is never made. Of its share in the gradient of W, the moments of tokens weighted by a number
each, half is a mirror of the other: of 4 x 4 blocks 10 are computed. Operations of a token, forward and backward, and of the
weights:

    apart      6 M D + 6 D O
    composed   6 M O + 3.25 M M,  and D (6 M O + 4 M M) once a step

For Llama-3.2-1B (M = D = 2,048, O = 1,024) that is 26.2 of 37.7 million a token, and less in all from 5,200 tokens on; where not
all of it learns, the counts are others. Kept for the gradients is u in place of h, as large, and V W. Layers of one call share
one gradient of the tokens: a product for all, and no sum of several. Source: our choice.

Where W loses most of a token, or b cancels W x, rms(h) is a small difference of larger numbers, and its error grows with the
square of what is lost. In bfloat16 it is 0.3% with or without, 0.8% where a third is left, 2.5% of a tenth, and of a thirtieth
nothing is sure; of a thousandth float32 keeps two digits (the tests hold it). Of a gradient that the norm takes nearly all of,
what is left was seen with twice the error of maps apart, in bfloat16.

Shapes: N tokens, M their width, D the LLM's width, O outputs, L layers.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pal_audio.integration.normed_projection import NormedMap, as_dtype, product_dtype, wide

_BLOCKS = 4  # of the moments' columns
_Item = TypeVar("_Item")


def is_fewer_operations(num_tokens: int, map: nn.Linear, num_outputs: int) -> bool:
    """Whether a training step in which all learns has fewer operations by the composed map.

    Args:
        num_tokens: N.
        map: from tokens to the layer's inputs.
        num_outputs: O.
    """
    width, token_size = map.weight.shape
    apart = 6 * token_size * width + 6 * width * num_outputs
    composed = 6 * token_size * num_outputs + 2 * token_size**2 + 2 * _moments_share(token_size) * token_size**2
    once = width * (6 * token_size * num_outputs + 4 * token_size**2)
    return num_tokens * (apart - composed) > once


def composed_projections(tokens_NM: Tensor, maps: Sequence[nn.Linear], seconds: Sequence[NormedMap]) -> tuple[Tensor, ...]:
    """`linear(norm(map(tokens)), weight, bias)` of several layers.

    Args:
        tokens_NM: of all clips, one behind another.
        maps: of each layer, plain (see `are_plain`).
        seconds: of each layer, what follows; all of one epsilon.

    Returns:
        (N, O) of each layer, in the dtype of the product, which autocast may change.
    """
    weights = [second.scaled_OD for second in seconds]
    dtype = product_dtype(weights[0])
    biases = [map.weight.new_zeros(map.out_features) if map.bias is None else map.bias for map in maps]
    sides = [side.to(dtype) for layer in zip((map.weight for map in maps), biases, weights, strict=True) for side in layer]
    outputs = _ComposedProjections.apply(seconds[0].norm.eps, tokens_NM.to(dtype), *sides)  # type: ignore[no-untyped-call]
    return tuple(second.with_bias(output) for second, output in zip(seconds, outputs, strict=True))


class _ComposedProjections(torch.autograd.Function):
    """The products of map_DM, bias_D and weight_OD of each layer. Nothing in it is converted to what it is; see
    `normed_projection`."""

    @staticmethod
    def forward(ctx: Any, eps: float, tokens_NM: Tensor, *sides: Tensor) -> tuple[Tensor, ...]:
        computed = [_computed(tokens_NM, layer, eps) for layer in in_rows(sides, 3)]
        ctx.save_for_backward(tokens_NM, *sides, *chain.from_iterable(computed))
        ctx.eps = eps
        return tuple(output for *_, output in computed)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        num_sides = 3 * len(gradients)
        tokens_NM, *kept = ctx.saved_tensors
        layers, computed = in_rows(kept[:num_sides], 3), in_rows(kept[num_sides:], 4)
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # gradients of gradients: these depend on the inputs
            computed = [_computed(tokens_NM, layer, ctx.eps) for layer in layers]
        dtype, width = tokens_NM.dtype, layers[0][0].shape[0]
        _, tokens_learn, *sides_learn = ctx.needs_input_grad
        maps_learn, biases_learn, weights_learn = (any(sides_learn[side::3]) for side in range(3))
        scaled, along = scaled_and_along(gradients, [(inverse, output) for _, _, inverse, output in computed], width, dtype)
        scaled_NS = joined(scaled, 1)
        of_tokens = None
        if tokens_learn:
            taken = sum(back_NM * along_N1 for (_, back_NM, _, _), along_N1 in zip(computed, along, strict=True))
            of_tokens = as_dtype(wide(scaled_NS @ joined([composed_OM for composed_OM, *_ in computed], 0)) - taken, dtype)
        if maps_learn or weights_learn:
            of_composed = (scaled_NS.T @ tokens_NM).split([each.shape[1] for each in scaled])
        if biases_learn or weights_learn:
            of_offset = scaled_NS.sum(0).split([each.shape[1] for each in scaled])
        if maps_learn or biases_learn:
            along_M = as_dtype(joined(along, 1), dtype).T @ tokens_NM
            along_1 = [as_dtype(each.sum(0), dtype) for each in along]
        if maps_learn:
            moments = _weighted_moments(tokens_NM, along)
        of_sides: list[Tensor | None] = []
        for number, ((map_DM, bias_D, weight_OD), learn) in enumerate(zip(layers, in_rows(sides_learn, 3), strict=True)):
            of_map = of_bias = of_weight = None
            if learn[0]:
                of_map = weight_OD.T @ of_composed[number] - map_DM @ moments[number] - torch.outer(bias_D, along_M[number])
            if learn[1]:
                of_bias = weight_OD.T @ of_offset[number] - (map_DM @ along_M[number] + bias_D * along_1[number])
            if learn[2]:
                of_weight = of_composed[number] @ map_DM.T + torch.outer(of_offset[number], bias_D)
            of_sides += [of_map, of_bias, of_weight]
        return None, of_tokens, *of_sides


def _computed(tokens_NM: Tensor, layer: Sequence[Tensor], eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """V W (O, M), u (N, M), 1 / rms (N, 1) and the output (N, O)."""
    map_DM, bias_D, weight_OD = layer
    composed_OM, offset_M = weight_OD @ map_DM, map_DM.T @ bias_D
    back_NM = torch.addmm(offset_M, tokens_NM, map_DM.T @ map_DM)
    squares = (wide(tokens_NM) * (wide(back_NM) + offset_M)).sum(-1, keepdim=True) + wide(bias_D).square().sum()
    inverse = inverse_rms(squares, map_DM.shape[0], eps)
    output = torch.addmm(weight_OD @ bias_D, tokens_NM, composed_OM.T)
    return composed_OM, back_NM, inverse, as_dtype(wide(output) * inverse, tokens_NM.dtype)


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


def _weighted_moments(tokens_NM: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    """x' diag(weight) x (M, M) of each weight (N, 1), by the blocks on and above the diagonal."""
    size = tokens_NM.shape[1]
    blocks = _num_blocks(size)
    width = size // blocks
    # All layers' columns of a block lie side by side: few large products.
    weighted = as_dtype(tokens_NM.unflatten(1, (blocks, 1, width)) * torch.stack(list(weights), 1)[:, None], tokens_NM.dtype)
    rows = []
    for block in range(blocks):
        row_LcC = (weighted[:, block].flatten(1).T @ tokens_NM[:, block * width :]).unflatten(0, (len(weights), width))
        rows.append(nn.functional.pad(row_LcC, (block * width, 0)))
    upper_LMM = torch.cat(rows, 1)
    number = torch.arange(size, device=tokens_NM.device) // width
    beyond = (number[:, None] < number).to(upper_LMM.dtype)
    return list((upper_LMM + (upper_LMM * beyond).transpose(1, 2)).unbind())


def _num_blocks(size: int) -> int:
    return _BLOCKS if size % _BLOCKS == 0 else 1


def _moments_share(size: int) -> float:
    """Of the products of all blocks."""
    blocks = _num_blocks(size)
    return (blocks + 1) / 2 / blocks


def joined(parts: Sequence[Tensor], dim: int) -> Tensor:
    """`torch.cat`, without a copy of one part."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim)


def in_rows(items: Sequence[_Item], length: int) -> list[Sequence[_Item]]:
    """Items one behind another, in rows of `length`."""
    return [items[first : first + length] for first in range(0, len(items), length)]
