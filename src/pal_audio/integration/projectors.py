"""P_l: audio tokens -> the input space of decoder layer l.

Every layer receives audio at its own level of abstraction. Source: arXiv 2506.10423v3 ("per_layer"); "shared" and
"low_rank" are our choice, as is the closing RMSNorm where the layer itself norms nothing before attention.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pal_audio.integration.config import LalConfig
from pal_audio.integration.normed_projection import is_bare


@dataclass(frozen=True)
class Common:
    """What is computed of audio tokens once, before any layer asks.

    Attributes:
        shared: (..., hidden_size), of the map that all layers share; None: there is none.
        down: layer -> (..., rank), low-rank maps done together: their gradients of the tokens are then one product, not a sum.
    """

    shared: Tensor | None
    down: Mapping[int, Tensor] = field(default_factory=dict)


class LayerProjectors(nn.Module):
    """P_l for each LAL layer of one stream.

    Args:
        config: projector kind and rank.
        layers: LAL layers.
        token_size: width of audio tokens.
        hidden_size: the LLM's width.
        own_norm: True where the layers have no norm before attention.
    """

    def __init__(self, config: LalConfig, layers: tuple[int, ...], token_size: int, hidden_size: int, own_norm: bool) -> None:
        super().__init__()
        names = [str(layer) for layer in layers]
        self.shared = nn.Linear(token_size, hidden_size) if config.projector != "per_layer" else None
        self.own = nn.ModuleDict()
        if config.projector == "per_layer":
            self.own = nn.ModuleDict({name: nn.Linear(token_size, hidden_size) for name in names})
        elif config.projector == "low_rank":
            self.own = nn.ModuleDict({name: _LowRank(token_size, hidden_size, config.rank) for name in names})
        self.norms = nn.ModuleDict({name: nn.RMSNorm(hidden_size, eps=1e-6) for name in names} if own_norm else {})

    def common(self, tokens: Tensor, layers: Iterable[int]) -> Common:
        """What these layers need of audio tokens (..., token_size), as far as it can be computed together."""
        shared = None if self.shared is None else self.shared(tokens)
        names = [layer for layer in layers if str(layer) in self.own]
        maps = [self.own[str(layer)] for layer in names]
        if not maps or not all(isinstance(own, _LowRank) and own.is_plain for own in maps):
            return Common(shared)
        weights = [own.down.weight for own in maps]
        down = nn.functional.linear(tokens, torch.cat(weights)).split([len(weight) for weight in weights], dim=-1)
        return Common(shared, dict(zip(names, down, strict=True)))

    def forward(self, layer: int, tokens: Tensor, common: Common | None = None) -> Tensor:
        """Inputs (..., hidden_size) of layer `layer`.

        Args:
            layer: its number.
            tokens: audio tokens (..., token_size).
            common: of these tokens, where it was computed before.
        """
        name = str(layer)
        common = self.common(tokens, ()) if common is None else common
        projected = common.shared
        if name in self.own:
            own = self.own[name].up(common.down[layer]) if layer in common.down else self.own[name](tokens)
            projected = own if projected is None else projected + own
        assert projected is not None
        return self.norms[name](projected) if name in self.norms else projected


class _LowRank(nn.Module):
    """A rank-r linear map that starts at zero, as LoRA's does."""

    def __init__(self, input_size: int, output_size: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(input_size, rank, bias=False)
        self.up = nn.Linear(rank, output_size, bias=False)
        nn.init.zeros_(self.up.weight)

    @property
    def is_plain(self) -> bool:
        """Whether its weights' product is all that `down` does: no adapter, no hooks."""
        return type(self.down) is nn.Linear and is_bare(self) and is_bare(self.down)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.up(self.down(tokens))
