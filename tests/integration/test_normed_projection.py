"""A product that takes an RMS norm inside it: equal to norm and linear map one after another, and less is kept."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from pal_audio.integration.normed_projection import NormedMap, _NormedProjection, is_bare, normed_projection, rms_norm

D, OUT = 32, 12


def made(kind: type[nn.Module], dtype: torch.dtype = torch.float32) -> nn.Module:
    norm: nn.Module = kind(D, eps=1e-2)
    nn.init.normal_(norm.weight)  # type: ignore[arg-type]
    return norm.to(dtype)


@pytest.mark.parametrize("kind", [LlamaRMSNorm, Gemma2RMSNorm])
def test_it_is_the_norm_and_the_map(kind: type[nn.Module]) -> None:
    norm = made(kind)
    inputs = (3 * torch.randn(2, 5, D)).requires_grad_()
    weight, bias = torch.randn(OUT, D, requires_grad=True), torch.randn(OUT, requires_grad=True)
    formula = rms_norm(norm)
    assert formula is not None
    ours, theirs = normed_projection(inputs, NormedMap(formula, weight, bias)), nn.functional.linear(norm(inputs), weight, bias)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    cotangent, leaves = torch.randn_like(ours), [inputs, weight, bias, norm.weight]
    pairs = zip(*(torch.autograd.grad(output, leaves, cotangent) for output in (ours, theirs)), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_gradients_are_those_of_differences() -> None:
    formula = rms_norm(made(LlamaRMSNorm, torch.float64))
    assert formula is not None
    inputs, weight = (torch.randn(*shape, D, dtype=torch.float64, requires_grad=True) for shape in ((2, 3), (OUT,)))
    assert torch.autograd.gradcheck(lambda x, w: normed_projection(x, NormedMap(formula, w)), (inputs, weight))
    assert torch.autograd.gradgradcheck(lambda x, w: normed_projection(x, NormedMap(formula, w)), (inputs, weight))
    alone = inputs[0, 0].detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda x, w: normed_projection(x, NormedMap(formula, w)), (alone, weight))


@pytest.mark.parametrize("autocast", [False, True])
def test_in_bfloat16_it_is_as_near_as_the_norm_and_the_map(autocast: bool) -> None:
    norm, inputs, weight = made(LlamaRMSNorm), torch.randn(64, D), torch.randn(OUT, D)
    exact = nn.functional.linear(norm(inputs), weight)
    if not autocast:
        norm, inputs, weight = norm.bfloat16(), inputs.bfloat16(), weight.bfloat16()
    formula = rms_norm(norm)
    assert formula is not None
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        ours, theirs = normed_projection(inputs, NormedMap(formula, weight)), nn.functional.linear(norm(inputs), weight)
    assert ours.dtype == theirs.dtype == torch.bfloat16
    error, usual = ((found.float() - exact).square().mean().sqrt() for found in (ours, theirs))
    assert error < 1.3 * usual


def test_the_normed_inputs_are_not_kept() -> None:
    formula, inputs = rms_norm(made(LlamaRMSNorm)), torch.randn(100, D, requires_grad=True)
    assert formula is not None
    kept: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        normed_projection(inputs, NormedMap(formula, nn.Parameter(torch.randn(OUT, D))))
    num_kept = sum(tensor.numel() for tensor in kept if len(tensor) == len(inputs))
    assert num_kept == 100 * (D + 1 + OUT), "the inputs, a number each, and the outputs"


def test_other_norms_and_hooked_ones_are_left_alone() -> None:
    class Other(LlamaRMSNorm):
        def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
            return super().forward(hidden_states) + 1

    for norm in (None, nn.LayerNorm(D), Other(D), nn.Identity()):
        assert rms_norm(norm) is None
    norm = made(LlamaRMSNorm)
    assert rms_norm(norm) is not None
    assert is_bare(norm)
    handle = norm.register_forward_hook(lambda *_: None)
    assert not is_bare(norm)
    handle.remove()
    norm.forward = lambda x: x  # type: ignore[method-assign]
    assert not is_bare(norm)


def test_factors_are_not_rounded_before_the_product() -> None:
    """Gemma adds 1 to its weight in float32; in bfloat16 the sum would lose most of a small weight."""
    norm = made(Gemma2RMSNorm, torch.bfloat16)
    formula = rms_norm(norm)
    assert formula is not None
    assert torch.equal(formula.scale_D, 1 + norm.weight.float())  # type: ignore[operator]


class NoChange(TorchFunctionMode):
    """Refuses conversions that convert nothing."""

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        made = function(*arguments, **(options or {}))
        assert function is not torch.Tensor.to or made is not arguments[0], "a conversion that converts nothing"
        return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_inside_is_converted_to_what_it_is(dtype: torch.dtype) -> None:
    """torch 2.11 lost all gradients of the compiled function where `.to` in it changed nothing, as in float32."""
    inputs_ND = torch.randn(3, 8, dtype=dtype, requires_grad=True)
    weight_OD = torch.randn(5, 8, dtype=dtype, requires_grad=True)
    with NoChange():
        output = _NormedProjection.apply(inputs_ND, weight_OD, 1e-6)
        assert output.dtype == dtype
        context = SimpleNamespace(saved_tensors=output.grad_fn.saved_tensors, needs_input_grad=(True, True, False), eps=1e-6)
        of_inputs, of_weight, _ = _NormedProjection.backward(context, torch.ones_like(output))
    assert of_inputs is not None
    assert of_weight is not None
    assert of_inputs.dtype == of_weight.dtype == dtype


def test_compiled_it_has_the_gradients_of_the_eager_one() -> None:
    inputs_ND, weight_OD = torch.randn(3, 8, requires_grad=True), torch.randn(5, 8, requires_grad=True)
    norm = rms_norm(LlamaRMSNorm(8))
    assert norm is not None

    def gradients(compiled: bool) -> tuple[Tensor, ...]:
        project: Any = torch.compile(normed_projection) if compiled else normed_projection
        output = project(inputs_ND, NormedMap(norm, weight_OD))
        return torch.autograd.grad(output.square().sum(), (inputs_ND, weight_OD))

    for eager, compiled in zip(gradients(False), gradients(True), strict=True):
        assert eager.abs().max() > 0.1
        torch.testing.assert_close(compiled, eager)
