"""Projections of several LAL layers as one product: only where a training step keeps them, and nothing but that changes."""

from typing import Any

import pytest
import torch

from pal_audio.integration.projectors import LayerProjectors
from pal_audio.model import sound
from tests.tiny import batch, message, noise, tiny_model


def gradients(model: Any, inputs: Any) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(**inputs).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("arm", ["lal", "pal"])
def test_losses_and_gradients_are_those_of_layers_alone(arm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = tiny_model("llama", arm, llm={"num_hidden_layers": 6})
    answered = [
        [*message(noise(seconds, seed)), {"role": "assistant", "content": "a dog"}] for seed, seconds in enumerate((1.3, 0.6))
    ]
    inputs = batch(processor, answered, return_labels=True)
    found = gradients(model, inputs)
    monkeypatch.setattr(sound, "_WHOLE_AT_ONCE", 1)
    expected = gradients(model, inputs)
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
