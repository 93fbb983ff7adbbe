"""P_l: audio tokens -> the input space of decoder layer l.

Every layer receives audio at its own level of abstraction. Source: arXiv 2506.10423v3 ("per_layer"); "shared" and
"low_rank" are our choice, as is the closing RMSNorm where the layer itself norms nothing before attention.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn

from pal_audio.integration.composed_projection import composed_projections, is_fewer_operations
from pal_audio.integration.config import LalConfig
from pal_audio.integration.normed_projection import NormedMap, are_plain, is_bare, one_product
from pal_audio.integration.shared_projection import shared_projections

_TIMES_AS_WIDE = 4  # composed by itself where the LLM is so many times as wide: else its further operations cost what it saves


@dataclass(frozen=True)
class Common:
    """What is computed of audio tokens once, before any layer asks.

    Maps of several layers that are one product have one product as gradient of the tokens. A sum of products, compiled, copies
    what each is added to.

    Attributes:
        shared: (..., hidden_size), of the map that all layers share; None: there is none.
        down: layer -> (..., rank), of low-rank maps.
        parts: layers whose whole maps are one product, made when the first of them asks: compiled, the gradients of so many are
            then written where the product reads them.
        made: layer -> (..., hidden_size), of those that have not asked yet.
    """

    shared: Tensor | None
    down: Mapping[int, Tensor] = field(default_factory=dict)
    parts: Sequence[Sequence[int]] = ()
    made: dict[int, Tensor] = field(default_factory=dict)


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

    def common(self, tokens: Tensor, layers: Iterable[int], whole_at_once: int = 1) -> Common:
        """What these layers need of audio tokens (..., token_size), as far as it can be computed together.

        Args:
            tokens: of the clips.
            layers: that will ask for it.
            whole_at_once: whole maps in one product; see `in_parts`.
        """
        shared = None if self.shared is None else self.shared(tokens)
        names = [layer for layer in layers if str(layer) in self.own]
        maps = [self.own[str(layer)] for layer in names]
        downs = [own.down for own in maps if isinstance(own, _LowRank) and is_bare(own)]
        if len(downs) == len(maps) and are_plain(*downs):
            down = one_product(downs, partial(nn.functional.linear, tokens))
            return Common(shared, down=dict(zip(names, down, strict=True)))
        if not are_plain(*maps):
            return Common(shared)
        return Common(shared, parts=[part for part in in_parts(names, whole_at_once) if len(part) > 1])

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
            own = self.own[name].up(common.down[layer]) if layer in common.down else self._whole(layer, tokens, common)
            projected = own if projected is None else projected + own
        assert projected is not None
        return self.norms[name](projected) if name in self.norms else projected

    def _whole(self, layer: int, tokens: Tensor, common: Common) -> Tensor:
        part = next((part for part in common.parts if layer in part), None)
        if part is None:
            alone: Tensor = self.own[str(layer)](tokens)
            return alone
        if layer not in common.made:
            maps: list[Any] = [self.own[str(each)] for each in part]
            common.made.update(zip(part, one_product(maps, partial(nn.functional.linear, tokens), join_again=True), strict=True))
        return common.made.pop(layer)


def in_parts(layers: Sequence[int], at_once: int) -> list[Sequence[int]]:
    """Layers whose maps are made at once; outputs and gradients of so many are held then.

    Of the last layers it is half as many: their gradients are made when most of a step is still kept.
    """
    half = max(1, at_once // 2)
    early = layers[: max(0, len(layers) - 2 * half)]
    late = layers[len(early) :]
    parts = [early[first : first + at_once] for first in range(0, len(early), at_once)]
    return parts + [late[first : first + half] for first in range(0, len(late), half)]


@dataclass(frozen=True)
class ComposableMaps:
    """P_l of one sequence of tokens, for layers that compose it with their key and value maps; see `unprojected`.

    Attributes:
        projectors: P_l.
        tokens_NM: of all clips, one behind another.
        common: of these tokens.
        always: compose plain maps also where that costs no less.
    """

    projectors: LayerProjectors
    tokens_NM: Tensor
    common: Common
    always: bool

    def composes(self, layer: int, num_outputs: int) -> bool:
        """Whether a layer's map is plain, and composed costs less: operations, or with a map that is shared, what is written."""
        own, name = self.projectors.own, str(layer)
        if not is_bare(self.projectors):
            return False
        if self.projectors.shared is None:
            whole: Any = own[name]
            return are_plain(whole) and (self.always or is_fewer_operations(len(self.tokens_NM), whole, num_outputs))
        if name not in own:
            return True
        low_rank: Any = own[name]
        is_low = _TIMES_AS_WIDE * low_rank.up.in_features <= low_rank.up.out_features
        return layer in self.common.down and are_plain(low_rank.up) and (self.always or is_low)

    def compose(self, layers: Sequence[int], seconds: Sequence[NormedMap]) -> Sequence[Tensor]:
        """Keys and values (N, O) of the layers."""
        maps: list[Any] = [self.projectors.own[str(layer)] for layer in layers if str(layer) in self.projectors.own]
        if self.common.shared is None:
            return composed_projections(self.tokens_NM, maps, seconds)
        lows = [self.common.down[layer] for layer in layers if layer in self.common.down]
        return shared_projections(self.common.shared, lows, [each.up.weight for each in maps], seconds)


class _LowRank(nn.Module):
    """A rank-r linear map that starts at zero, as LoRA's does."""

    def __init__(self, input_size: int, output_size: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(input_size, rank, bias=False)
        self.up = nn.Linear(rank, output_size, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.up(self.down(tokens))
