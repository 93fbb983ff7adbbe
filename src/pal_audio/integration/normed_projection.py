"""A linear map of RMS-normed inputs that keeps the inputs for its gradients and not the normed ones.

    W (s * y / rms(y))  =  (W * s) y / rms(y)          the norm is one number a token, which the product takes outside

A LAL layer norms what its projector gives and makes keys and values of it. Autograd keeps the projector's outputs and the normed
ones, each as wide as the LLM; of the latter nothing is left here, in memory or in traffic. What the norm takes out of a gradient
is its share along y, and that is the gradient of the outputs times the outputs: D needs no sum. Source: our choice.

Shapes: N tokens, D width, O outputs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from pal_audio.integration.recompute import recomputed

_EPS_NAMES = ("variance_epsilon", "eps", "epsilon")
_PROBE = 8

Product = Callable[[Tensor, Tensor | None], Tensor]
"""Of weight and bias with inputs that it has already."""


class RmsNorm:
    """What an RMS norm of an LLM computes: by how much it scales, and what it adds to the mean square.

    Args:
        norm: its module.
        scale: from the module's weight to the factors.
    """

    def __init__(self, norm: nn.Module, scale: Callable[[Tensor], Tensor]) -> None:
        self.norm: Any = norm
        self.eps = float(_eps(norm))
        self._scale = scale

    @property
    def scale_D(self) -> Tensor:
        """The factors, in float32 at least, as the norm itself computes."""
        return self._scale(wide(self.norm.weight))

    def scaled(self, weight_OD: Tensor) -> Tensor:
        """A map's weight with the factors in it, in the weight's dtype."""
        return (wide(weight_OD) * self.scale_D).to(weight_OD.dtype)


@dataclass(frozen=True)
class NormedMap:
    """A norm and a plain map of what it gives.

    Attributes:
        norm: what it computes.
        weight_OD, bias_O: of the map.
    """

    norm: RmsNorm
    weight_OD: Tensor
    bias_O: Tensor | None = None

    @property
    def scaled_OD(self) -> Tensor:
        """The map's weight with the norm's factors in it."""
        return self.norm.scaled(self.weight_OD)

    def with_bias(self, output: Tensor) -> Tensor:
        """Outputs (..., O) with the map's bias, in their dtype."""
        return output if self.bias_O is None else output + self.bias_O.to(output.dtype)


def is_bare(module: nn.Module) -> bool:
    """Whether calling a module is its class's forward and nothing else: no hooks, no other forward put in its place."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return "forward" not in vars(module) and not any(getattr(module, name) for name in hooks)


def are_plain(*modules: nn.Module) -> bool:
    """Whether calling the modules is their weights' product and nothing else (no adapter, no quantised weights, no hooks), and
    one product can take their place."""
    return all(type(module) is nn.Linear and is_bare(module) for module in modules) and (
        len({(module.bias is None, module.weight.dtype, module.weight.device) for module in modules}) == 1
    )


def one_product(maps: Sequence[nn.Linear], product: Product, join_again: bool = False) -> tuple[Tensor, ...]:
    """Outputs of maps of one input that `are_plain`, by one product of joined weight and bias.

    `join_again`: a compiled step does not keep the joined weight for gradients but joins it once more, in autocast's dtype.
    """
    bias = None if maps[0].bias is None else torch.cat([each.bias for each in maps])
    weights = [each.weight for each in maps]
    weight = recomputed("full", _join, *weights) if join_again else torch.cat(weights)
    return product(weight, bias).split([each.out_features for each in maps], dim=-1)


def _join(*weights: Tensor) -> Tensor:
    dtype = product_dtype(weights[0])
    return torch.cat([as_dtype(weight, dtype) for weight in weights])


def product_dtype(weight: Tensor) -> torch.dtype:
    """Of a product with a weight, which autocast may change."""
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


def rms_norm(norm: nn.Module | None) -> RmsNorm | None:
    """The norm as numbers, or None where its class computes something else."""
    kind: Any = type(norm)
    scale = _formula(kind)
    return None if norm is None or scale is None else RmsNorm(norm, scale)


@cache
def _formula(kind: Any) -> Callable[[Tensor], Tensor] | None:
    """How a class makes factors of its weight, found by asking a small one; None where no formula fits."""
    with torch.device("cpu"), torch.no_grad():
        try:
            made: Any = kind(_PROBE, eps=0.5)
            made.float().weight.copy_(torch.linspace(0.5, 2, _PROBE))
            inputs_ND = torch.linspace(-1, 3, 3 * _PROBE).view(3, _PROBE)
            found_ND, eps = made(inputs_ND), _eps(made)
        except (TypeError, AttributeError, RuntimeError):
            return None
        if eps != 0.5:
            return None
        normed_ND = inputs_ND * torch.rsqrt(inputs_ND.square().mean(-1, keepdim=True) + eps)
        for scale in (_as_it_is, _more_than_one):
            if torch.allclose(found_ND, normed_ND * scale(made.weight), rtol=1e-5, atol=1e-6):
                return scale
    return None


def _as_it_is(weight_D: Tensor) -> Tensor:
    return weight_D


def _more_than_one(weight_D: Tensor) -> Tensor:
    return 1 + weight_D  # Gemma


def _eps(norm: Any) -> Any:
    return next((getattr(norm, name) for name in _EPS_NAMES if hasattr(norm, name)), None)


def normed_projection(inputs: Tensor, second: NormedMap) -> Tensor:
    """`linear(norm(inputs), weight, bias)`.

    Args:
        inputs: (..., D).
        second: norm and map.

    Returns:
        (..., O) in the dtype of the product, which autocast may change.
    """
    weight_OD = second.scaled_OD
    dtype = product_dtype(weight_OD)
    output: Tensor = _NormedProjection.apply(inputs.to(dtype), weight_OD.to(dtype), second.norm.eps)  # type: ignore[no-untyped-call]
    return second.with_bias(output)


class _NormedProjection(torch.autograd.Function):
    """The product. Nothing in it is converted to what it is: compiled by torch 2.11, such a function loses its gradients."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight_OD: Tensor, eps: float) -> Tensor:
        inverse = _inverse_rms(inputs, eps)
        output = _normed(inputs, weight_OD, inverse)
        ctx.save_for_backward(inputs, weight_OD, inverse, output)
        ctx.eps = eps
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:  # type: ignore[override]
        inputs, weight_OD, inverse, output = ctx.saved_tensors
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # gradients of gradients: these depend on the inputs
            inverse = _inverse_rms(inputs, ctx.eps)
            output = _normed(inputs, weight_OD, inverse)
        gradient = wide(gradient)
        scaled = as_dtype(gradient * inverse, inputs.dtype)
        of_inputs = of_weight = None
        if ctx.needs_input_grad[1]:
            of_weight = scaled.reshape(-1, scaled.shape[-1]).T @ inputs.reshape(-1, inputs.shape[-1])
        if ctx.needs_input_grad[0]:
            along = (gradient * output).sum(-1, keepdim=True) * inverse.square() / inputs.shape[-1]
            of_inputs = as_dtype(wide(scaled @ weight_OD) - inputs * along, inputs.dtype)
        return of_inputs, of_weight, None


def _normed(inputs: Tensor, weight_OD: Tensor, inverse: Tensor) -> Tensor:
    return as_dtype(wide(inputs @ weight_OD.T) * inverse, inputs.dtype)


def _inverse_rms(inputs: Tensor, eps: float) -> Tensor:
    return torch.rsqrt(wide(inputs).square().mean(-1, keepdim=True) + eps)


def wide(tensor: Tensor) -> Tensor:
    return as_dtype(tensor, torch.promote_types(tensor.dtype, torch.float32))


def as_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def settled(tensor: Tensor) -> Tensor:
    """The tensor; in a compiled step it is computed here, and what it is made of can be let go.

    Else a sum over many layers is made at its end, where all that is summed is still held.
    """
    if torch.compiler.is_compiling():
        torch.ops.pal_audio.settle(tensor)
    return tensor


@torch.library.custom_op("pal_audio::settle", mutates_args=("tensor",))
def _settle(tensor: Tensor) -> None:
    """Does nothing, and is said to write the tensor: torch.compile has to have it by then."""


@_settle.register_fake
def _(tensor: Tensor) -> None:
    return None
