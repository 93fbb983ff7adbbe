"""Audio tokens before the map that makes a LAL layer's inputs of them: the layer may make keys and values of several at once.

projectors ── tokens and maps ──┐
                                ├── Composing ── keys and values of a part of the layers, when its first one asks
LayerKeyValues ── NormedMap ────┘
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor

from pal_audio.integration.normed_projection import NormedMap

Projections = Literal["apart", "auto", "composed"]
"""Of plain maps: one after another; composed in a compiled step where that costs less, if all of it learns; composed."""
DEFAULT_PROJECTIONS: Projections = "auto"


class Maps(Protocol):
    """Maps from tokens to the inputs of layers, and how they are composed with what follows."""

    def composes(self, layer: int, num_outputs: int) -> bool:
        """Whether a layer's map is plain, and composed with so many outputs costs less, or is to be."""

    def compose(self, layers: Sequence[int], seconds: Sequence[NormedMap]) -> Sequence[Tensor]:
        """Outputs (N, O) of the layers."""


class Composing:
    """Keys and values of the layers that read one stream's tokens.

    Args:
        maps: of the stream.
        parts: layers that are made at once.
        rules: layer -> what has `normed_map()`, the map of its keys and values or None; see `LayerKeyValues`.
    """

    def __init__(self, maps: Maps, parts: Iterable[Sequence[int]], rules: Mapping[int, Any]) -> None:
        self._maps = maps
        self._parts = {layer: part for part in parts for layer in part}
        self._rules = rules
        self._made: dict[int, Tensor | None] = {}

    def outputs(self, layer: int) -> Tensor | None:
        """Keys and values (N, O) side by side; None: the layer makes its inputs and goes on from there."""
        if layer not in self._made:
            self._make(self._parts[layer])
        return self._made.pop(layer)

    def _make(self, part: Sequence[int]) -> None:
        seconds: dict[int, NormedMap] = {}
        for layer in part:
            self._made[layer] = None
            second = self._rules[layer].normed_map()
            if second is not None and self._maps.composes(layer, len(second.weight_OD)):
                seconds[layer] = second
        for kind in dict.fromkeys(map(_kind, seconds.values())):
            layers = [layer for layer, second in seconds.items() if _kind(second) == kind]
            outputs = self._maps.compose(layers, [seconds[layer] for layer in layers])
            self._made.update(zip(layers, outputs, strict=True))


def _kind(second: NormedMap) -> tuple[float, int]:
    """What layers that are made at once have in common."""
    return second.norm.eps, len(second.weight_OD)


@dataclass(frozen=True)
class Unprojected:
    """What a layer is given in place of its inputs.

    Attributes:
        layer: its number.
        shape: (C, A): clips, and tokens of each.
        composing: of the layers that read the same tokens.
        apart: gives the inputs (N, D).
    """

    layer: int
    shape: tuple[int, int]
    composing: Composing
    apart: Callable[[], Tensor]

    def inputs(self) -> Tensor:
        """The layer's inputs (C, A, D)."""
        return self.apart().unflatten(0, self.shape)

    def outputs(self) -> Tensor | None:
        """Its keys and values (C, A, O) side by side; None: by its inputs."""
        outputs = self.composing.outputs(self.layer)
        return None if outputs is None else outputs.unflatten(0, self.shape)
