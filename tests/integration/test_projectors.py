"""P_l: what layers have in common is computed once and changes nothing."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pal_audio.integration.config import LalConfig
from pal_audio.integration.projectors import LayerProjectors

LAYERS = (0, 2, 3)


def low_rank() -> LayerProjectors:
    torch.manual_seed(0)
    projectors = LayerProjectors(LalConfig(projector="low_rank", rank=2), LAYERS, 8, 6, own_norm=False)
    for own in projectors.own.values():
        nn.init.normal_(own.up.weight)
    return projectors


def plainly(projectors: LayerProjectors, layer: int, tokens: torch.Tensor) -> torch.Tensor:
    own = projectors.own[str(layer)]
    return projectors.shared(tokens) + tokens @ own.down.weight.T @ own.up.weight.T


def test_low_rank_maps_of_all_layers_are_one_product() -> None:
    projectors, tokens = low_rank(), torch.randn(5, 8, requires_grad=True)
    weighting = torch.randn(len(LAYERS), 5, 6)
    expected = torch.stack([plainly(projectors, layer, tokens) for layer in LAYERS])
    names, wanted = zip(*[("tokens", tokens), *projectors.named_parameters()], strict=True)
    expected_gradients = torch.autograd.grad((expected * weighting).sum(), wanted)
    common = projectors.common(tokens, LAYERS)
    assert set(common.down) == set(LAYERS)
    found = torch.stack([projectors(layer, tokens, common) for layer in LAYERS])
    torch.testing.assert_close(found, expected)
    for name, one, other in zip(names, torch.autograd.grad((found * weighting).sum(), wanted), expected_gradients, strict=True):
        torch.testing.assert_close(one, other, msg=lambda text, name=name: f"{name}: {text}")


def per_layer(bias: bool = True) -> LayerProjectors:
    torch.manual_seed(0)
    projectors = LayerProjectors(LalConfig(projector="per_layer"), LAYERS, 8, 6, own_norm=True)
    for name in [] if bias else projectors.own:
        projectors.own[name] = nn.Linear(8, 6, bias=False)
    return projectors


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("at_once", [2, 5, 8])
def test_whole_maps_of_some_layers_are_one_product(at_once: int, bias: bool) -> None:
    projectors, tokens = per_layer(bias), torch.randn(5, 8, requires_grad=True)
    weighting = torch.randn(len(LAYERS), 5, 6)
    names, wanted = zip(*[("tokens", tokens), *projectors.named_parameters()], strict=True)
    outputs = [torch.stack([projectors(layer, tokens) for layer in LAYERS])]
    common = projectors.common(tokens, LAYERS, at_once)
    assert [len(part) for part in common.parts] == {2: [], 5: [2], 8: [3]}[at_once]
    outputs.append(torch.stack([projectors(layer, tokens, common) for layer in LAYERS]))
    assert not common.made, "nothing is kept that was asked for"
    torch.testing.assert_close(projectors(2, tokens, common), outputs[0][1])
    torch.testing.assert_close(*outputs)
    gradients = [torch.autograd.grad((output * weighting).sum(), wanted) for output in outputs]
    for name, one, other in zip(names, *gradients, strict=True):
        torch.testing.assert_close(one, other, msg=lambda text, name=name: f"{name}: {text}")
    assert not projectors.common(tokens, LAYERS).parts, "a memory is made layer by layer: long clips would not fit"


def test_of_the_last_layers_half_as_many_are_one_product() -> None:
    """Their gradients are made when all the others' audio is still kept."""
    layers = tuple(range(16))
    projectors = LayerProjectors(LalConfig(projector="per_layer"), layers, 8, 6, own_norm=True)
    for num_layers, expected in ((16, [4, 4, 4, 2, 2]), (7, [3, 2, 2]), (4, [2, 2]), (5, [2, 2]), (3, [2]), (1, [])):
        common = projectors.common(torch.randn(5, 8), layers[:num_layers], 4)
        assert [len(part) for part in common.parts] == expected
        alone = {5: {0}, 3: {2}, 1: {0}}.get(num_layers, set())
        assert [layer for part in common.parts for layer in part] == [layer for layer in range(num_layers) if layer not in alone]


@pytest.mark.parametrize("autocast", [False, True])
def test_joined_weights_are_not_kept_by_a_compiled_step(autocast: bool) -> None:
    """They are joined again: of 16 layers of width 2,048 they are 128 MiB."""
    projectors, tokens = per_layer(), torch.randn(5, 8, requires_grad=True)

    def step(tokens: Tensor) -> Tensor:
        common = projectors.common(tokens, LAYERS, 8)
        return torch.stack([projectors(layer, tokens, common) for layer in LAYERS])

    def mixed() -> Any:
        return torch.autocast("cpu", torch.bfloat16, enabled=autocast)

    kept: list[torch.Size] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), mixed():
        outputs = torch.compile(step, backend="aot_eager_decomp_partition", fullgraph=True)(tokens)
    assert (len(LAYERS) * 6, 8) not in kept
    assert torch.Size((6, 8)) in kept, "each alone"
    with mixed():
        eager_outputs = torch.stack([projectors(layer, tokens) for layer in LAYERS])
    weighting = torch.randn_like(outputs)
    gradients = [
        torch.autograd.grad((output * weighting).sum(), [tokens, *projectors.parameters()]) for output in (outputs, eager_outputs)
    ]
    for compiled, eager in zip(*gradients, strict=True):
        torch.testing.assert_close(compiled, eager, **({"atol": 0.05, "rtol": 0.02} if autocast else {}))


def test_whole_maps_that_are_more_than_their_weights_are_called() -> None:
    projectors, tokens, called = per_layer(), torch.randn(5, 8), []
    projectors.own["2"].register_forward_hook(lambda module, inputs, output: called.append(module))
    common = projectors.common(tokens, LAYERS, 3)
    assert not common.parts
    projectors(2, tokens, common)
    assert len(called) == 1


def test_a_layer_that_was_not_named_computes_its_own() -> None:
    projectors, tokens = low_rank(), torch.randn(5, 8)
    common = projectors.common(tokens, [2])
    assert set(common.down) == {2}
    torch.testing.assert_close(projectors(3, tokens, common), plainly(projectors, 3, tokens))
    torch.testing.assert_close(projectors(3, tokens), plainly(projectors, 3, tokens))


def test_maps_that_are_more_than_their_weights_are_called() -> None:
    projectors, tokens, called = low_rank(), torch.randn(5, 8), []
    projectors.own["2"].down.register_forward_hook(lambda module, inputs, output: called.append(module))
    common = projectors.common(tokens, LAYERS)
    assert not common.down
    projectors(2, tokens, common)
    assert len(called) == 1
