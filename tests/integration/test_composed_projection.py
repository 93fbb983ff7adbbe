"""Projector, norm, key and value maps of a LAL layer as one composed map: equal to one after another, forward and backward."""

import math
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from pal_audio.integration.composed_projection import (
    _ComposedProjections,
    _weighted_moments,
    composed_projections,
    is_fewer_operations,
)
from pal_audio.integration.normed_projection import NormedMap, RmsNorm, normed_projection, rms_norm

from .test_normed_projection import NoChange

M, D, OUT = 24, 32, 12


def found(norm: nn.Module) -> RmsNorm:
    formula = rms_norm(norm)
    assert formula is not None
    return formula


def made(
    kind: type[nn.Module] = LlamaRMSNorm, dtype: torch.dtype = torch.float32, bias: bool = True
) -> tuple[nn.Linear, nn.Module]:
    torch.manual_seed(0)
    own, norm = nn.Linear(M, D, bias=bias), kind(D, eps=1e-2)
    nn.init.normal_(norm.weight)  # type: ignore[arg-type]
    return own.to(dtype), norm.to(dtype)


def apart(tokens_NM: Tensor, own: nn.Linear, norm: RmsNorm, weight_OD: Tensor, bias_O: Tensor | None = None) -> Tensor:
    return normed_projection(own(tokens_NM), NormedMap(norm, weight_OD, bias_O))


def composed(tokens_NM: Tensor, own: nn.Linear, norm: RmsNorm, weight_OD: Tensor, bias_O: Tensor | None = None) -> Tensor:
    return composed_projections(tokens_NM, [own], [NormedMap(norm, weight_OD, bias_O)])[0]


def gradients(way: Callable[..., Tensor], leaves: list[Tensor], *rest: object) -> tuple[Tensor, list[Tensor]]:
    output = way(*rest)
    cotangent = torch.linspace(-1, 2, output.numel(), dtype=output.dtype).view(output.shape)
    return output.detach(), list(torch.autograd.grad(output, leaves, cotangent))


@pytest.mark.parametrize("kind", [LlamaRMSNorm, Gemma2RMSNorm])
@pytest.mark.parametrize("bias", [True, False])
def test_it_is_the_maps_one_after_another(kind: type[nn.Module], bias: bool) -> None:
    own, norm = made(kind, torch.float64, bias)
    tokens = torch.randn(40, M, dtype=torch.float64, requires_grad=True)
    weight, bias_O = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((OUT, D), (OUT,)))
    leaves = [tokens, *own.parameters(), norm.weight, weight, bias_O]
    pairs = [gradients(way, leaves, tokens, own, found(norm), weight, bias_O) for way in (composed, apart)]
    torch.testing.assert_close(pairs[0][0], pairs[1][0], rtol=1e-10, atol=1e-10)
    for ours, theirs in zip(pairs[0][1], pairs[1][1], strict=True):
        assert theirs.abs().max() > 0.1
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("frozen", ["own", "map", "bias", "weight", "tokens"])
def test_what_learns_nothing_changes_no_gradient_of_the_others(frozen: str) -> None:
    own, norm = made(dtype=torch.float64)
    tokens, weight = torch.randn(40, M, dtype=torch.float64), torch.randn(OUT, D, dtype=torch.float64)
    parts = {"map": own.weight, "bias": own.bias, "weight": weight, "tokens": tokens}
    for name, tensor in parts.items():
        tensor.requires_grad_(name != frozen and not (frozen == "own" and name in ("map", "bias")))
    leaves = [tensor for tensor in parts.values() if tensor.requires_grad]
    ours, theirs = (gradients(way, leaves, tokens, own, found(norm), weight)[1] for way in (composed, apart))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_gradients_are_those_of_differences() -> None:
    own, norm = made(dtype=torch.float64)
    tokens, weight = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((3, M), (2, D)))

    def call(x: Tensor, w: Tensor, m: Tensor, b: Tensor) -> Tensor:
        (output,) = _ComposedProjections.apply(x, m[None], b[None], w[None], found(norm).eps)  # type: ignore[no-untyped-call]
        return output  # type: ignore[no-any-return]

    inputs = (tokens, weight, *own.parameters())
    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs)


def test_gradients_that_have_gradients_are_those_that_have_none() -> None:
    own, norm = made(dtype=torch.float64)
    tokens, weight = (0.1 * torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((40, M), (OUT, D)))
    check_gradients_with_a_graph(
        lambda: composed(tokens, own, found(norm), weight).square().sum(), [tokens, weight, *own.parameters()]
    )


def check_gradients_with_a_graph(loss: Callable[[], Tensor], leaves: list[Tensor]) -> None:
    """That they are those without one."""
    plain, again = (torch.autograd.grad(loss(), leaves, create_graph=with_graph) for with_graph in (False, True))
    for one, other in zip(plain, again, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-12)


def relative(ours: Tensor, exact: Tensor) -> float:
    return float((ours.detach().double() - exact.detach()).norm() / exact.detach().norm())


@pytest.mark.parametrize(("dtype", "autocast"), [(torch.float32, False), (torch.bfloat16, False), (torch.float32, True)])
@pytest.mark.parametrize("tokens_are", ["plain", "alike", "few directions"])
def test_it_is_as_exact_as_the_maps_one_after_another(dtype: torch.dtype, autocast: bool, tokens_are: str) -> None:
    torch.manual_seed(1)
    width = 256
    tokens = torch.randn(512, width)
    if tokens_are == "alike":
        tokens = 0.3 * tokens + 2 * torch.randn(width)
    if tokens_are == "few directions":
        tokens = torch.randn(512, 8) @ torch.randn(8, width) / 3 + 0.05 * tokens
    own, weight = nn.Linear(width, width), torch.randn(width // 2, width) / math.sqrt(width)

    def all_of(way: Callable[..., Tensor], dtype: torch.dtype, autocast: bool) -> list[Tensor]:
        own_, norm_ = nn.Linear(width, width).to(dtype), LlamaRMSNorm(width).to(dtype)
        own_.load_state_dict({name: value.bfloat16().to(dtype) for name, value in own.state_dict().items()})
        x, w = (side.bfloat16().to(dtype).requires_grad_() for side in (tokens, weight))
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            output, made = gradients(way, [x, *own_.parameters(), w], x, own_, found(norm_), w)
        return [output, *made]

    exact = all_of(apart, torch.float64, False)
    ours, theirs = (
        max(relative(one, other) for one, other in zip(all_of(way, dtype, autocast), exact, strict=True))
        for way in (composed, apart)
    )
    assert ours < 1.5 * theirs


def test_where_the_map_loses_nearly_all_it_is_as_inexact_as_its_module_says() -> None:
    torch.manual_seed(2)
    width = 256
    left, sizes, right = torch.linalg.svd(nn.Linear(width, width).weight.detach().double())
    sizes[:8] *= 1e-3
    tokens = 5 * torch.randn(128, 8, dtype=torch.float64) @ right[:8]
    own = nn.Linear(width, width, bias=False)
    with torch.no_grad():
        own.weight.copy_(left @ torch.diag(sizes) @ right)
    weight, norm = torch.randn(16, width), found(LlamaRMSNorm(width, eps=1e-12))
    exact = normed_projection(tokens.float().double() @ own.weight.double().T, NormedMap(norm, weight.double()))
    error = relative(composed(tokens.float(), own, norm, weight), exact)
    assert torch.isfinite(composed(tokens.bfloat16(), own.bfloat16(), norm, weight.bfloat16())).all()
    assert 1e-4 < error < 2e-2


def test_what_is_kept_is_no_more_than_apart() -> None:
    own, norm = made()
    inputs = torch.randn(100, M, requires_grad=True), own, found(norm), nn.Parameter(torch.randn(OUT, D))
    # tokens, what their gradient needs, a number each, and the outputs
    assert kept_of_each(100, lambda: composed(*inputs)) == M + M + 1 + OUT
    assert kept_of_each(100, lambda: apart(*inputs)) == M + D + 1 + OUT


def kept_of_each(num_tokens: int, compute: Callable[[], object]) -> float:
    """Numbers that are kept of each token for gradients."""
    numbers: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if len(tensor) == num_tokens:
            numbers[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = compute()
    assert outputs is not None
    return sum(numbers.values()) / num_tokens


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_inside_is_converted_to_what_it_is(dtype: torch.dtype) -> None:
    """See the test of that name for `normed_projection`."""
    sides = [torch.randn(*shape, dtype=dtype, requires_grad=True) for shape in ((3, M), (2, D, M), (2, D), (2, OUT, D))]
    with NoChange():
        outputs = _ComposedProjections.apply(*sides, 1e-6)
        kept = outputs[0].grad_fn.saved_tensors
        context = SimpleNamespace(saved_tensors=kept, needs_input_grad=(*(True,) * 4, False), eps=1e-6)
        made = _ComposedProjections.backward(context, *(torch.ones_like(output) for output in outputs))
    assert [output.dtype for output in outputs] == [dtype] * 2
    assert [side is not None and side.dtype for side in made[:4]] == [dtype] * 4


def test_compiled_it_has_the_gradients_of_the_eager_one() -> None:
    own, norm = made()
    tokens, weight = torch.randn(40, M, requires_grad=True), torch.randn(OUT, D, requires_grad=True)
    leaves = [tokens, weight, *own.parameters()]
    eager, compiled = (gradients(way, leaves, tokens, own, found(norm), weight)[1] for way in (composed, torch.compile(composed)))
    for one, other in zip(eager, compiled, strict=True):
        assert one.abs().max() > 0.1
        assert relative(other, one) < 1e-6


def test_it_is_fewer_operations_where_tokens_are_many() -> None:
    """The counts of the module's docstring, for Llama-3.2-1B."""
    own = nn.Linear(2048, 2048, device="meta")
    first = next(num for num in range(1, 20_000) if is_fewer_operations(num, own, 1024))
    assert first == 5214
    wide = nn.Linear(4096, 256, device="meta")  # of no width is it less where h is much narrower than the tokens
    assert not is_fewer_operations(10**6, wide, 64)


def operations(way: Callable[..., Tensor], num_tokens: int, size: int, num_outputs: int) -> float:
    own, norm = nn.Linear(size, size), found(LlamaRMSNorm(size))
    tokens, weight = (torch.randn(*shape, requires_grad=True) for shape in ((num_tokens, size), (num_outputs, size)))
    with FlopCounterMode(display=False) as counter:
        way(tokens, own, norm, weight).sum().backward()
    return counter.get_total_flops()


def test_operations_are_those_that_are_counted() -> None:
    size, num_outputs = 64, 32
    vectors = 4 * size * size + 4 * num_outputs * size  # maps of one vector, which the docstring leaves out
    for way, of_token, once in (
        (apart, 6 * size * size + 6 * size * num_outputs, 0),
        (composed, (6 * num_outputs + 3.25 * size + 2) * size, size * (6 * size * num_outputs + 4 * size * size) + vectors),
    ):
        few, many = (operations(way, number, size, num_outputs) for number in (1000, 3000))
        assert (many - few) / 2000 == of_token
        assert few - 1000 * of_token == once


@pytest.mark.parametrize("size", [8, 12, 10, 9])
def test_moments_by_blocks_are_the_whole_product(size: int) -> None:
    tokens, weights = (torch.randn(30, number, dtype=torch.float64) for number in (size, 3))
    for moments, weight in zip(_weighted_moments(tokens, weights), weights.T, strict=True):
        torch.testing.assert_close(moments, (tokens * weight[:, None]).T @ tokens)


@pytest.mark.parametrize("frozen", [None, "tokens", "first"])
def test_several_layers_at_once_are_each_alone(frozen: str | None) -> None:
    torch.manual_seed(4)
    tokens = torch.randn(40, M, dtype=torch.float64).requires_grad_(frozen != "tokens")
    maps = [nn.Linear(M, D, bias=bias).double() for bias in (True, False, True)]
    maps[0].requires_grad_(frozen != "first")
    weights = [torch.randn(OUT, D, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    seconds = [NormedMap(found(LlamaRMSNorm(D, eps=1e-2).double()), weight) for weight in weights]
    leaves = [leaf for leaf in (tokens, *weights, *(each for own in maps for each in own.parameters())) if leaf.requires_grad]
    at_once = composed_projections(tokens, maps, seconds)
    alone = [normed_projection(own(tokens), second) for own, second in zip(maps, seconds, strict=True)]
    for ours, theirs in zip(at_once, alone, strict=True):
        torch.testing.assert_close(ours, theirs)
    losses = [sum((number + 1) * output.square().sum() for number, output in enumerate(way)) for way in (at_once, alone)]
    made = [torch.autograd.grad(loss, leaves) for loss in losses]  # type: ignore[arg-type]
    for one, other in zip(*made, strict=True):
        assert other.abs().max() > 0.1
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


def test_a_stack_of_maps_is_not_kept_by_a_compiled_step() -> None:
    """Of 16 layers of width 2,048 it is 128 MiB; each map is there anyway."""
    tokens, maps = torch.randn(40, M, requires_grad=True), [nn.Linear(M, D) for _ in range(3)]
    seconds = [NormedMap(found(LlamaRMSNorm(D)), nn.Parameter(torch.randn(OUT, D))) for _ in range(3)]
    kept: list[torch.Size] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.shape)
        return tensor

    def step(tokens: Tensor) -> tuple[Tensor, ...]:
        return composed_projections(tokens, maps, seconds)

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        torch.compile(step, backend="aot_eager_decomp_partition", fullgraph=True)(tokens)
    assert (3, D, M) not in kept
    assert torch.Size((D, M)) in kept
    assert torch.Size((3 * OUT, M)) in kept, "composed maps are"


def test_tokens_and_map_may_be_wider_than_the_llm() -> None:
    own, norm = made()
    narrow = found(LlamaRMSNorm(D, eps=1e-2).bfloat16())
    narrow.norm.weight.data.copy_(norm.weight.data)  # type: ignore[arg-type]
    tokens, weight = torch.randn(40, M, requires_grad=True), torch.randn(OUT, D)
    output = composed(tokens, own, narrow, weight.bfloat16())
    assert output.dtype == torch.bfloat16
    assert relative(output, apart(tokens, own, found(norm), weight)) < 1e-2
    output.float().sum().backward()
    assert all(leaf.grad is not None and leaf.grad.dtype == torch.float32 for leaf in (tokens, *own.parameters()))


def test_a_layer_whose_output_is_not_used_takes_no_part() -> None:
    tokens = torch.randn(40, M, dtype=torch.float64, requires_grad=True)
    maps, weight = [nn.Linear(M, D).double() for _ in range(2)], torch.randn(OUT, D, dtype=torch.float64)
    seconds = [NormedMap(found(LlamaRMSNorm(D).double()), weight)] * 2
    leaves = [tokens, maps[0].weight]
    ours = torch.autograd.grad(composed_projections(tokens, maps, seconds)[0].square().sum(), leaves)
    theirs = torch.autograd.grad(normed_projection(maps[0](tokens), seconds[0]).square().sum(), leaves)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("left", "least", "most"), [(1.0, 1e-3, 6e-3), (0.3, 4e-3, 2e-2), (0.1, 1e-2, 6e-2)])
def test_in_bfloat16_the_error_grows_with_what_a_bias_takes_away(left: float, least: float, most: float) -> None:
    torch.manual_seed(3)
    own, weight = nn.Linear(256, 256), torch.randn(64, 256)
    tokens = left * torch.randn(256, 256) + torch.randn(256)
    with torch.no_grad():
        own.bias.copy_(-own.weight @ tokens.mean(0))
    own, tokens, weight = own.bfloat16(), tokens.bfloat16(), weight.bfloat16()
    norm = found(LlamaRMSNorm(256))
    wide = nn.Linear(256, 256).double()
    wide.load_state_dict({name: value.double() for name, value in own.state_dict().items()})
    exact = normed_projection(wide(tokens.double()), NormedMap(norm, weight.double()))
    assert relative(apart(tokens, own, norm, weight), exact) < 6e-3
    assert least < relative(composed(tokens, own, norm, weight), exact) < most


def live_at(operator: str, nbytes: int, call: Callable[[], object]) -> list[int]:
    """How many allocations of a size are there whenever an operator is called, by the profiler; on the CPU."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
        call()
    live, found = 0, []
    for event in sorted(seen.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]" and abs(event.nbytes()) == nbytes:
            live += 1 if event.nbytes() > 0 else -1
        elif event.name() == operator:
            found.append(live)
    return found


def test_a_compiled_step_lets_go_of_what_the_tokens_gradient_was_made_of() -> None:
    """Else it is summed at the end, where u of every layer is still held: 1 GiB of 16 layers at 16 x 1,024 tokens."""
    num_tokens, num_parts, num_layers = 640, 3, 2
    tokens = torch.randn(num_tokens, M, requires_grad=True)
    maps = [nn.Linear(M, D) for _ in range(num_parts * num_layers)]
    seconds = [NormedMap(found(LlamaRMSNorm(D)), nn.Parameter(torch.randn(OUT, D))) for _ in maps]
    leaves = [tokens, *(parameter for own in maps for parameter in own.parameters())]

    def step(tokens: Tensor) -> Tensor:
        hidden = torch.zeros(num_tokens, OUT)
        for first in range(0, len(maps), num_layers):
            part = slice(first, first + num_layers)
            for output in composed_projections(tokens, maps[part], seconds[part]):
                hidden = (hidden + output).tanh()
        return hidden.sum()

    compiled = torch.compile(step, fullgraph=True)
    expected = torch.autograd.grad(step(tokens), leaves)
    torch.testing.assert_close(torch.autograd.grad(compiled(tokens), leaves), expected, atol=1e-3, rtol=1e-3)
    live = live_at("pal_audio::settle", num_tokens * num_layers * M * 4, lambda: torch.autograd.grad(compiled(tokens), leaves))
    assert len(live) == num_parts
    assert all(num <= num_parts - number + 1 for number, num in enumerate(live)), "u of parts to come, and two at work"
    assert not live_at("pal_audio::settle", 1, lambda: torch.autograd.grad(step(tokens), leaves)), "in compiled steps alone"
