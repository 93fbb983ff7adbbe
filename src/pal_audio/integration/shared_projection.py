"""Keys and values of audio tokens whose projectors share a map: what is as wide as the LLM is made once, not in each layer.

    h_l = s + U_l z_l,   output_l = V_l h_l / rms(h_l)       s = W x and z_l = D_l x, as low-rank projectors make them
              = (V_l s + V_l U_l z_l) / rms(h_l)             V_l U_l is made once a step
    D rms(h_l)^2 = |s|^2 + z_l . (U_l's + t_l)               of t_l = U_l'h_l = U_l's + U_l'U_l z_l, without h_l

The gradient of s is one product for all layers of a call, with what norms take away in it, and so are those of V_l and U_l:

    of s      [g_l | -a_l z_l] [V_l; U_l']  -  (sum of a_l) s          g_l: of V_l h_l;  a_l: a number a token
    of z_l    g_l V_l U_l  -  a_l t_l

Operations are 6 R O + 4 R R a token and layer more than with h_l; what is written, read and kept is less: h_l, its gradient and
the sum of these are N x D each, and t_l is N x R. Without U_l (maps that share all) the same holds of h_l = s. Source: our
choice.

Rounding is as in `composed_projection` where U_l z_l cancels most of s.

Shapes: N tokens, D the LLM's width, R rank, O outputs, L layers.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor

from pal_audio.integration.composed_projection import inverse_rms, joined, scaled_and_along
from pal_audio.integration.normed_projection import NormedMap, as_dtype, product_dtype, settled, wide

_PIECES = 32  # of the tokens
_Item = TypeVar("_Item")


def shared_projections(
    shared_ND: Tensor, lows: Sequence[Tensor], ups: Sequence[Tensor], seconds: Sequence[NormedMap]
) -> tuple[Tensor, ...]:
    """`linear(norm(shared + low @ up.T), weight, bias)` of several layers.

    Args:
        shared_ND: what the layers share, of all clips, one behind another.
        lows: (N, R) of each layer; none where they share all.
        ups: (D, R) of each layer; likewise.
        seconds: of each layer, what follows; all of one epsilon.

    Returns:
        (N, O) of each layer, in the dtype of the product, which autocast may change.
    """
    weights = [second.scaled_OD for second in seconds]
    dtype = product_dtype(weights[0])
    layers = zip(weights, lows, ups, strict=True) if lows else zip(weights, strict=True)
    sides = [side.to(dtype) for layer in layers for side in layer]
    outputs = _SharedProjections.apply(seconds[0].norm.eps, len(seconds), shared_ND.to(dtype), *sides)  # type: ignore[no-untyped-call]
    return tuple(second.with_bias(output) for second, output in zip(seconds, outputs, strict=True))


class _SharedProjections(torch.autograd.Function):
    """The products of weight_OD, and low_NR and up_DR if any, of each layer. Nothing in it is converted to what it is; see
    `normed_projection`."""

    @staticmethod
    def forward(ctx: Any, eps: float, num_layers: int, shared_ND: Tensor, *sides: Tensor) -> tuple[Tensor, ...]:
        computed = _computed(shared_ND, _in_rows(sides, len(sides) // num_layers), eps)
        ctx.save_for_backward(shared_ND, *sides, *chain.from_iterable(computed))
        ctx.eps = eps
        return tuple(output for output, *_ in computed)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        _, _, shared_learns, *sides_learn = ctx.needs_input_grad
        num_layers, num_sides = len(gradients), len(sides_learn)
        of_each = num_sides // num_layers  # weight, or weight, low and up
        shared_ND, *kept = ctx.saved_tensors
        layers = _in_rows(kept[:num_sides], of_each)
        computed = _in_rows(kept[num_sides:], (len(kept) - num_sides) // num_layers)
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # gradients of gradients: these depend on the inputs
            computed = _computed(shared_ND, layers, ctx.eps)
        dtype = shared_ND.dtype
        scaled, along = scaled_and_along(gradients, [(each[1], each[0]) for each in computed], shared_ND.shape[1], dtype)
        has_low = of_each > 1
        parts = scaled  # what comes back by the layer's map, and by its up map
        if has_low:
            parts = [part for given in zip(scaled, map(_taken, along, layers), strict=True) for part in given]
        given_NS, of_shared = joined(parts, 1), None
        if shared_learns:
            maps = [each for layer in layers for each in ((layer[0], layer[2].T) if has_low else layer)]
            of_shared = settled(as_dtype(wide(given_NS @ joined(maps, 0)) - sum(along) * shared_ND, dtype))
        sizes = [part.shape[1] for part in parts]
        if any(learns for side, learns in enumerate(sides_learn) if side % of_each != 1):
            by_shared = (given_NS.T @ shared_ND).split(sizes)
        if has_low:
            by_layer = given_NS.split([sum(row) for row in _in_rows(sizes, 2)], 1)
        of_sides: list[Tensor | None] = []
        for number, (layer, learn) in enumerate(zip(layers, _in_rows(sides_learn, of_each), strict=True)):
            if not has_low:
                of_sides.append(by_shared[number] if learn[0] else None)
                continue
            weight_OD, low_NR, up_DR = layer
            of_weight = of_low = of_up = None
            if learn[0] or learn[2]:
                low_RO, low_RR = _product_over_tokens(low_NR, by_layer[number]).split(sizes[2 * number : 2 * number + 2], 1)
            if learn[0]:
                of_weight = by_shared[2 * number] + low_RO.T @ up_DR.T
            if learn[1]:
                of_low = as_dtype(wide(scaled[number] @ computed[number][3]) - along[number] * computed[number][2], dtype)
            if learn[2]:
                of_up = weight_OD.T @ low_RO.T + by_shared[2 * number + 1].T + up_DR @ low_RR
            of_sides += [of_weight, of_low, of_up]
        return None, None, of_shared, *of_sides


def _computed(shared_ND: Tensor, layers: Sequence[Sequence[Tensor]], eps: float) -> list[Sequence[Tensor]]:
    """Of each layer: the output (N, O), 1 / rms (N, 1) and, with a low rank, t (N, R) and V U (O, R)."""
    width, dtype = shared_ND.shape[1], shared_ND.dtype
    squares = wide(shared_ND).square().sum(-1, keepdim=True)
    if len(layers[0]) == 1:
        inverse = inverse_rms(squares, width, eps)
        return [(as_dtype(wide(shared_ND @ weight_OD.T) * inverse, dtype), inverse) for (weight_OD,) in layers]
    ups = [up_DR for _, _, up_DR in layers]
    asked = (shared_ND @ joined(ups, 1)).split([up_DR.shape[1] for up_DR in ups], dim=1)
    computed: list[Sequence[Tensor]] = []
    for (weight_OD, low_NR, up_DR), asked_NR in zip(layers, asked, strict=True):
        back_NR = as_dtype(wide(low_NR @ (up_DR.T @ up_DR)) + asked_NR, dtype)
        composed_OR = weight_OD @ up_DR
        more = (wide(low_NR) * (wide(asked_NR) + back_NR)).sum(-1, keepdim=True)
        inverse = inverse_rms(squares + more, width, eps)
        output = wide(shared_ND @ weight_OD.T) + low_NR @ composed_OR.T
        computed.append((as_dtype(output * inverse, dtype), inverse, back_NR, composed_OR))
    return computed


def _taken(along_N1: Tensor, layer: Sequence[Tensor]) -> Tensor:
    """What the norm takes out of the gradient of h_l, by z_l."""
    return as_dtype(-along_N1 * layer[1], layer[1].dtype)


def _product_over_tokens(left_NR: Tensor, right_NS: Tensor) -> Tensor:
    """left' right (R, S), by pieces of the tokens: so small an output would leave most of a GPU idle."""
    pieces = _PIECES if len(left_NR) % _PIECES == 0 else 1  # a test that compiled code of any number of tokens can guard
    left, right = (side.unflatten(0, (pieces, -1)) for side in (left_NR, right_NS))
    return as_dtype((left.transpose(1, 2) @ right).sum(0), left_NR.dtype)


def _in_rows(items: Sequence[_Item], length: int) -> list[Sequence[_Item]]:
    """Items one behind another, in rows of `length`."""
    return [items[first : first + length] for first in range(0, len(items), length)]
