"""P_l: audio tokens -> the input space of decoder layer l.

Every layer receives audio at its own level of abstraction. Source: arXiv 2506.10423v3 ("per_layer"); "shared" and
"low_rank" are our choice, as is the closing RMSNorm where the layer itself norms nothing before attention.
"""

from torch import Tensor, nn

from pal_audio.integration.config import LalConfig


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

    def common(self, tokens: Tensor) -> Tensor | None:
        """What all layers have in common of these tokens, (..., hidden_size), computed once; None: nothing."""
        return None if self.shared is None else self.shared(tokens)

    def forward(self, layer: int, tokens: Tensor, common: Tensor | None = None) -> Tensor:
        """Inputs (..., hidden_size) of layer `layer`.

        Args:
            layer: its number.
            tokens: audio tokens (..., token_size).
            common: of these tokens, where it was computed before.
        """
        name = str(layer)
        projected = self.own[name](tokens) if name in self.own else None
        if self.shared is not None:
            common = self.common(tokens) if common is None else common
            projected = common if projected is None else common + projected
        assert projected is not None
        return self.norms[name](projected) if name in self.norms else projected


class _LowRank(nn.Module):
    """A rank-r linear map that starts at zero, as LoRA's does."""

    def __init__(self, input_size: int, output_size: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(input_size, rank, bias=False)
        self.up = nn.Linear(rank, output_size, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.up(self.down(tokens))
