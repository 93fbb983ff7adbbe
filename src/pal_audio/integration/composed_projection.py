"""Keys and values of audio tokens by one map in place of two with a norm between them: fewer operations in a training step.

    h = W x + b,   output = V h / rms(h)         as a LAL layer computes it: its projector, its norm, its key and value maps
           = (V W x + V b) / rms(h)              V W is made once a step
    D rms(h)^2 = x . (u + W'b) + |b|^2           of u = W'h = W'W x + W'b, without h

A token's gradient needs u again and no product: what the norm takes away lies along h, and W' of that is u. So h, whose
gradients are products with W, is never made. Operations of a token, forward and backward, and of the weights:

    apart      6 M D + 6 D O
    composed   6 M O + 4 M M,  and D times that once a step

For Llama-3.2-1B (M = D = 2,048, O = 1,024) that is 29.4 of 37.7 million a token, and less in all from 7,200 tokens on; where not
all of it learns, the counts are others. Kept for the gradients is u in place of h, as large, and V W. Source: our choice.

Where W loses most of a token, or b cancels W x, rms(h) is a small difference of larger numbers, and its error grows with the
square of what is lost. In bfloat16 it is 0.3% with or without, 0.8% where a third is left, 2.5% of a tenth, and of a thirtieth
nothing is sure; of a thousandth float32 keeps two digits (the tests hold it). Of a gradient that the norm takes nearly all of,
what is left was seen with twice the error of maps apart, in bfloat16.

Shapes: N tokens, M their width, D the LLM's width, O outputs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pal_audio.integration.normed_projection import RmsNorm, as_dtype, product_dtype, wide

Projections = Literal["apart", "auto", "composed"]
"""Of plain maps: one after another; composed where that is fewer operations, if all of it learns; composed."""


@dataclass(frozen=True)
class Unprojected:
    """Audio tokens before the map that makes a layer's inputs of them, and how to make them.

    Attributes:
        tokens_NM: of all clips, one behind another.
        map: plain, see `are_plain`.
        shape: (C, A): clips, and tokens of each.
        apart: gives the inputs (N, D).
        always: compose also where that is no fewer operations.
    """

    tokens_NM: Tensor
    map: nn.Linear
    shape: tuple[int, int]
    apart: Callable[[], Tensor]
    always: bool = False

    def projected(self) -> Tensor:
        """The layer's inputs (C, A, D)."""
        return self.apart().unflatten(0, self.shape)

    def composes(self, num_outputs: int) -> bool:
        """Whether so many outputs come by a composed map: a training step has fewer operations then, or it is to be `always`."""
        width, token_size = self.map.weight.shape
        apart = 6 * width * (token_size + num_outputs)
        composed = 6 * token_size * num_outputs + 4 * token_size * token_size
        return self.always or self.tokens_NM.shape[0] * (apart - composed) > width * composed


def composed_projection(given: Unprojected, norm: RmsNorm, weight_OD: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """`linear(norm(map(tokens)), weight, bias)`.

    Args:
        given: tokens and their map.
        norm: between the maps.
        weight_OD, bias_O: of the second one.

    Returns:
        (C, A, O) in the dtype of the product, which autocast may change.
    """
    weight_OD = norm.scaled(weight_OD)
    dtype = product_dtype(weight_OD)
    bias_D = given.map.bias if given.map.bias is not None else given.map.weight.new_zeros(given.map.out_features)
    sides = (given.tokens_NM, given.map.weight, bias_D, weight_OD)
    output: Tensor = _ComposedProjection.apply(*(side.to(dtype) for side in sides), norm.eps)  # type: ignore[no-untyped-call]
    output = output if bias_O is None else output + bias_O.to(output.dtype)
    return output.unflatten(0, given.shape)


class _ComposedProjection(torch.autograd.Function):
    """The product. Nothing in it is converted to what it is; see `normed_projection`."""

    @staticmethod
    def forward(ctx: Any, tokens_NM: Tensor, map_DM: Tensor, bias_D: Tensor, weight_OD: Tensor, eps: float) -> Tensor:
        composed_OM = weight_OD @ map_DM
        back_NM, inverse, output = _computed(tokens_NM, map_DM, bias_D, weight_OD, composed_OM, eps)
        ctx.save_for_backward(tokens_NM, map_DM, bias_D, weight_OD, composed_OM, back_NM, inverse, output)
        ctx.eps = eps
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        tokens_NM, map_DM, bias_D, weight_OD, composed_OM, back_NM, inverse, output = ctx.saved_tensors
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # gradients of gradients: these depend on the inputs
            composed_OM = weight_OD @ map_DM
            back_NM, inverse, output = _computed(tokens_NM, map_DM, bias_D, weight_OD, composed_OM, ctx.eps)
        dtype, gradient = tokens_NM.dtype, wide(gradient)
        scaled_NO = as_dtype(gradient * inverse, dtype)
        along = (gradient * output).sum(-1, keepdim=True) * inverse.square() / map_DM.shape[0]  # of h, in units of itself
        of_tokens = of_map = of_bias = of_weight = None
        if ctx.needs_input_grad[0]:
            of_tokens = as_dtype(wide(scaled_NO @ composed_OM) - back_NM * along, dtype)
        of_map_needed, of_bias_needed, of_weight_needed = ctx.needs_input_grad[1:4]
        if of_map_needed or of_weight_needed:
            of_composed_OM = scaled_NO.T @ tokens_NM
        if of_bias_needed or of_weight_needed:
            of_offset_O = scaled_NO.sum(0)
        if of_map_needed or of_bias_needed:
            along_NM = tokens_NM * along
            along_M, along_1 = as_dtype(along_NM.sum(0), dtype), as_dtype(along.sum(0), dtype)
        if of_map_needed:
            moments_MM = as_dtype(along_NM, dtype).T @ tokens_NM
            of_map = weight_OD.T @ of_composed_OM - map_DM @ moments_MM - torch.outer(bias_D, along_M)
        if of_bias_needed:
            of_bias = weight_OD.T @ of_offset_O - (map_DM @ along_M + bias_D * along_1)
        if of_weight_needed:
            of_weight = of_composed_OM @ map_DM.T + torch.outer(of_offset_O, bias_D)
        return of_tokens, of_map, of_bias, of_weight, None


def _computed(
    tokens_NM: Tensor, map_DM: Tensor, bias_D: Tensor, weight_OD: Tensor, composed_OM: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """u (N, M), 1 / rms (N, 1) and the output (N, O)."""
    offset_M = map_DM.T @ bias_D
    back_NM = torch.addmm(offset_M, tokens_NM, map_DM.T @ map_DM)
    squares = (wide(tokens_NM) * (wide(back_NM) + offset_M)).sum(-1, keepdim=True) + wide(bias_D).square().sum()
    inverse = torch.rsqrt(squares.clamp_min(0) / map_DM.shape[0] + eps)  # rounding can make a square less than nothing
    output = torch.addmm(weight_OD @ bias_D, tokens_NM, composed_OM.T)
    return back_NM, inverse, as_dtype(wide(output) * inverse, tokens_NM.dtype)
