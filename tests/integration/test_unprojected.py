"""Keys and values of several layers at once: made when the first asks, by what they have in common, and let go."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from pal_audio.integration.normed_projection import NormedMap, rms_norm
from pal_audio.integration.unprojected import Composing


class Maps:
    """Outputs are the layers' numbers; layer 3 is not composed."""

    def __init__(self) -> None:
        self.made: list[list[int]] = []

    def composes(self, layer: int, num_outputs: int) -> bool:
        return layer != 3

    def compose(self, layers: Sequence[int], seconds: Sequence[NormedMap]) -> list[Tensor]:
        self.made.append(list(layers))
        return [torch.tensor(float(layer)) for layer in layers]


def rules(outputs: dict[int, int], eps: dict[int, float]) -> dict[int, Any]:
    found = {}
    for layer, number in outputs.items():
        norm = rms_norm(LlamaRMSNorm(4, eps=eps.get(layer, 1e-6)))
        assert norm is not None
        normed = NormedMap(norm, torch.zeros(number, 4))
        found[layer] = SimpleNamespace(normed_map=lambda normed=normed: normed)
    return found


def test_layers_of_a_part_are_made_when_the_first_asks_by_what_they_have_in_common() -> None:
    maps = Maps()
    composing = Composing(maps, [[0, 1, 2, 3, 4, 5], [6]], rules(dict.fromkeys(range(7), 8) | {2: 16}, {4: 1e-3}))
    assert not maps.made
    assert composing.outputs(1) == 1
    assert maps.made == [[0, 1, 5], [2], [4]]
    assert [composing.outputs(layer) for layer in (5, 4, 2, 0)] == [5, 4, 2, 0]
    assert composing.outputs(3) is None
    assert len(maps.made) == 3
    assert composing.outputs(6) == 6
    assert maps.made[3:] == [[6]]
    assert not composing._made, "nothing is held once it was given"


def test_a_layer_without_a_plain_map_is_left_to_itself() -> None:
    maps = Maps()
    found = rules({0: 8, 1: 8}, {}) | {1: SimpleNamespace(normed_map=lambda: None)}
    composing = Composing(maps, [[0, 1]], found)
    assert composing.outputs(1) is None
    assert composing.outputs(0) == 0
    assert maps.made == [[0]]
