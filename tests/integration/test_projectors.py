"""P_l: what layers have in common is computed once and changes nothing."""

import torch
from torch import nn

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
