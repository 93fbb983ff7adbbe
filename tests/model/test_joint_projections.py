"""Projections of several LAL layers as one product: only where a training step keeps them, and nothing but that changes."""

from typing import Any

import pytest
import torch
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing

from pal_audio.integration import projectors
from pal_audio.integration.projectors import LayerProjectors
from pal_audio.model import compiling
from tests.tiny import batch, message, noise, tiny_model


def gradients(model: Any, inputs: Any) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(**inputs).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def watch_products(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Maps of each joined product of projectors, from now on."""
    sizes: list[int] = []
    one_product = projectors.one_product

    def watched(maps: Any, product: Any, **options: Any) -> Any:
        sizes.append(len(maps))
        return one_product(maps, product, **options)

    monkeypatch.setattr(projectors, "one_product", watched)
    return sizes


@pytest.mark.parametrize("arm", ["lal", "pal"])
def test_losses_and_gradients_are_those_of_layers_alone(arm: str) -> None:
    model, processor = tiny_model("llama", arm, llm={"num_hidden_layers": 6})
    answered = [
        [*message(noise(seconds, seed)), {"role": "assistant", "content": "a dog"}] for seed, seconds in enumerate((1.3, 0.6))
    ]
    inputs = batch(processor, answered, return_labels=True)
    expected = gradients(model, inputs)
    model.projections_at_once = 4
    found = gradients(model, inputs)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


def test_where_projections_are_not_kept_each_layer_makes_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    common = LayerProjectors.common

    def watched(self: LayerProjectors, tokens: Any, layers: Any, whole_at_once: int = 1) -> Any:
        seen.append(whole_at_once)
        return common(self, tokens, layers, whole_at_once)

    monkeypatch.setattr(LayerProjectors, "common", watched)
    model, processor = tiny_model("llama", "lal")
    inputs = batch(processor, [message(noise(1.3, 1))])
    model(**inputs)
    assert set(seen) == {1}, "by layers, unless the decoder is compiled"
    seen.clear()
    compiling.enable(model)
    compiling.disable(model)
    assert model.projections_at_once == 1
    model.projections_at_once = 4
    model(**inputs)
    assert set(seen) == {4}
    seen.clear()
    with torch.no_grad():
        model(**inputs)
    model.recompute_audio = "full"
    model(**inputs)
    model.recompute_audio = "none"
    model.gradient_checkpointing_enable()
    model.train()
    model(**inputs).logits.sum().backward()
    assert set(seen) == {1}


def test_activation_checkpointing_of_others_recomputes_a_layer_alone() -> None:
    model, processor = tiny_model("llama", "lal", llm={"num_hidden_layers": 4})
    inputs = batch(processor, [message(noise(1.3, 1))])
    model.train()
    for encoder in model.encoders.values():
        encoder.eval()
    model(**inputs).logits.sum().backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    layer_type = type(model.get_decoder().layers[0])
    apply_activation_checkpointing(model, check_fn=lambda module: isinstance(module, layer_type))
    model(**inputs).logits.sum().backward()
    assert len(expected) > 20
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, expected[name.replace("_checkpoint_wrapped_module.", "")])


def test_a_compiled_decoder_of_more_layers_than_one_product_has_equals_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = tiny_model("llama", "lal", llm={"num_hidden_layers": 8})
    answered = [
        [*message(noise(seconds, seed)), {"role": "assistant", "content": "a dog"}] for seed, seconds in enumerate((1.3, 0.6))
    ]
    inputs = batch(processor, answered, return_labels=True)
    expected = gradients(model, inputs)
    sizes = watch_products(monkeypatch)
    compiling.enable(model)
    try:
        found = gradients(model, inputs)
    finally:
        compiling.disable(model)
    assert sizes == [4, 2, 2], "each product once, as the graph is made"
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}")
