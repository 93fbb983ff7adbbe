"""Keys and values of layers whose projectors share a map: equal to one after another, forward and backward, and less is kept."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from pal_audio.integration.normed_projection import NormedMap, normed_projection, rms_norm
from pal_audio.integration.shared_projection import _SharedProjections, shared_projections

from .test_composed_projection import check_gradients_with_a_graph, kept_of_each, relative
from .test_normed_projection import NoChange

D, R, OUT = 32, 5, 12
Way = Callable[..., Sequence[Tensor]]


def apart(shared_ND: Tensor, lows: Sequence[Tensor], ups: Sequence[Tensor], seconds: Sequence[NormedMap]) -> list[Tensor]:
    if not lows:
        return [normed_projection(shared_ND, second) for second in seconds]
    layers = zip(lows, ups, seconds, strict=True)
    return [normed_projection(shared_ND + low @ up.T, second) for low, up, second in layers]


def made(
    num_layers: int, rank: int, dtype: torch.dtype = torch.float64, kind: type[nn.Module] = LlamaRMSNorm, size: int = 40
) -> tuple[Tensor, list[Tensor], list[Tensor], list[NormedMap]]:
    """Inputs of both ways, all of which learn; without lows and ups where `rank` is 0."""
    torch.manual_seed(0)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape).to(dtype).requires_grad_()

    numbers = range(num_layers if rank else 0)
    lows, ups = [leaf(size, rank) for _ in numbers], [leaf(D, rank) for _ in numbers]
    seconds = []
    for number in range(num_layers):
        norm = kind(D, eps=1e-2)
        nn.init.normal_(norm.weight)  # type: ignore[arg-type]
        formula = rms_norm(norm.to(dtype))
        assert formula is not None
        seconds.append(NormedMap(formula, leaf(OUT + number, D), leaf(OUT + number)))
    return leaf(size, D), lows, ups, seconds


def leaves_of(inputs: tuple[Tensor, list[Tensor], list[Tensor], list[NormedMap]]) -> list[Tensor]:
    shared, lows, ups, seconds = inputs
    maps = [leaf for second in seconds for leaf in (second.weight_OD, second.bias_O, second.norm.norm.weight)]
    return [leaf for leaf in (shared, *lows, *ups, *maps) if leaf is not None and leaf.requires_grad]


def gradients(way: Way, inputs: tuple[Tensor, list[Tensor], list[Tensor], list[NormedMap]]) -> list[Tensor]:
    """Outputs, then gradients of what learns."""
    outputs = way(*inputs)
    loss = sum((output * torch.linspace(-1, 2, output.numel()).view(output.shape)).sum() for output in outputs)
    return [*outputs, *torch.autograd.grad(loss, leaves_of(inputs))]  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [LlamaRMSNorm, Gemma2RMSNorm])
@pytest.mark.parametrize("rank", [0, R])
@pytest.mark.parametrize("num_layers", [1, 3])
def test_it_is_the_maps_one_after_another(num_layers: int, rank: int, kind: type[nn.Module]) -> None:
    inputs = made(num_layers, rank, kind=kind)
    for ours, theirs in zip(gradients(shared_projections, inputs), gradients(apart, inputs), strict=True):
        assert theirs.abs().max() > 0.1
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("frozen", ["shared", "lows", "ups", "weights", "ups and weights", "first"])
@pytest.mark.parametrize("rank", [0, R])
def test_what_learns_nothing_changes_no_gradient_of_the_others(frozen: str, rank: int) -> None:
    inputs = made(2, rank)
    parts = {"shared": [inputs[0]], "lows": inputs[1], "ups": inputs[2], "weights": [each.weight_OD for each in inputs[3]]}
    parts["first"] = [*inputs[1][:1], *inputs[2][:1], inputs[3][0].weight_OD, inputs[3][0].norm.norm.weight]
    for name in frozen.split(" and "):
        for leaf in parts[name]:
            leaf.requires_grad_(False)
    if frozen == "weights":  # the norm's weight would make a leaf of the product
        for second in inputs[3]:
            second.norm.norm.weight.requires_grad_(False)
    for ours, theirs in zip(gradients(shared_projections, inputs), gradients(apart, inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("rank", [0, 2])
def test_gradients_are_those_of_differences(rank: int) -> None:
    torch.manual_seed(1)
    shapes = [(3, 6)] + 2 * ([(4, 6), (3, rank), (6, rank)] if rank else [(4, 6)])
    sides = [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in shapes]

    def call(*given: Tensor) -> tuple[Tensor, ...]:
        outputs: tuple[Tensor, ...] = _SharedProjections.apply(1e-2, 2, *given)  # type: ignore[no-untyped-call]
        return outputs

    assert torch.autograd.gradcheck(call, sides)
    assert torch.autograd.gradgradcheck(call, sides)


@pytest.mark.parametrize("rank", [0, R])
def test_gradients_that_have_gradients_are_those_that_have_none(rank: int) -> None:
    inputs = made(2, rank)
    check_gradients_with_a_graph(
        lambda: torch.cat([output.square().flatten() for output in shared_projections(*inputs)]).sum(), leaves_of(inputs)
    )


@pytest.mark.parametrize(("dtype", "autocast"), [(torch.float32, False), (torch.bfloat16, False), (torch.float32, True)])
@pytest.mark.parametrize("rank", [0, R])
def test_it_is_as_exact_as_the_maps_one_after_another(dtype: torch.dtype, autocast: bool, rank: int) -> None:
    exact = gradients(apart, made(2, rank, torch.float64, size=256))  # the same numbers as below, but for their rounding
    errors = []
    for way in (shared_projections, apart):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            found = gradients(way, made(2, rank, dtype, size=256))
        errors.append([relative(one, other) for one, other in zip(found, exact, strict=True)])
    for ours, theirs in zip(*errors, strict=True):
        assert ours < 1.5 * theirs + 1e-7


@pytest.mark.parametrize("rank", [0, R])
def test_tokens_and_maps_may_be_wider_than_the_llm(rank: int) -> None:
    shared, lows, ups, seconds = made(2, rank, torch.float32)
    _, _, _, narrow = made(2, rank, torch.bfloat16)
    outputs = shared_projections(shared, lows, ups, narrow)
    assert [output.dtype for output in outputs] == [torch.bfloat16] * 2
    for output, exact in zip(outputs, apart(shared, lows, ups, seconds), strict=True):
        assert relative(output, exact) < 1e-2
    sum(output.float().sum() for output in outputs).backward()  # type: ignore[union-attr]
    assert all(leaf.grad is not None and leaf.grad.dtype == torch.float32 for leaf in (shared, *lows, *ups))


@pytest.mark.parametrize("rank", [0, R])
def test_what_is_kept_is_what_is_shared_and_as_wide_as_the_rank(rank: int) -> None:
    inputs = made(3, rank, torch.float32, size=100)
    outputs = sum(OUT + number for number in range(3))
    composed = kept_of_each(100, lambda: shared_projections(*inputs))
    assert composed == outputs + D + 3 * 2 * rank + (3 if rank else 1), "a number each, 1 / rms, too"
    assert kept_of_each(100, lambda: apart(*inputs)) == outputs + (3 * (D + rank) if rank else D) + 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rank", [0, R])
def test_nothing_inside_is_converted_to_what_it_is(dtype: torch.dtype, rank: int) -> None:
    """See the test of that name for `normed_projection`."""
    shapes = [(3, D)] + 2 * ([(OUT, D), (3, rank), (D, rank)] if rank else [(OUT, D)])
    sides = [torch.randn(*shape, dtype=dtype, requires_grad=True) for shape in shapes]
    with NoChange():
        outputs = _SharedProjections.apply(1e-6, 2, *sides)
        kept = outputs[0].grad_fn.saved_tensors
        context = SimpleNamespace(saved_tensors=kept, needs_input_grad=(False, False, *(True,) * len(sides)), eps=1e-6)
        found = _SharedProjections.backward(context, *(torch.ones_like(output) for output in outputs))
    assert [output.dtype for output in outputs] == [dtype] * 2
    assert [side is not None and side.dtype for side in found[2:]] == [dtype] * len(sides)


@pytest.mark.parametrize("rank", [0, R])
def test_compiled_it_has_the_gradients_of_the_eager_one(rank: int) -> None:
    inputs = made(2, rank, torch.float32)
    eager, compiled = (gradients(way, inputs) for way in (shared_projections, torch.compile(shared_projections)))
    for one, other in zip(eager, compiled, strict=True):
        assert one.abs().max() > 0.1
        assert relative(other, one) < 1e-6
