"""Options of the integrations."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from pal_audio.config import StrictConfig
from pal_audio.errors import PalError

LayerSelection = str | list[int]


class PlitsConfig(StrictConfig):
    """Audio tokens stand in the LLM's input sequence, right after their marker.

    Source: arXiv 2506.10423v3 (its name for what LLaVA-style models do).
    """

    type: Literal["plits"] = "plits"


class LalConfig(StrictConfig):
    """Audio tokens are keys and values of chosen layers; they are no queries and pass no FFN.

    Attributes:
        layers: "all", "from:k" (layers k and later), "every:n" (layers 0, n, 2n, ...) or a list of layer numbers ([]: none).
        projector: P_l, the map from audio tokens into layer l's input space: "per_layer" (one linear map a layer),
            "shared" (one for all) or "low_rank" (the shared one plus a rank-`rank` difference per layer).
        rank: rank of that difference.

    Source: arXiv 2506.10423v3; "from:k" is the paper's v1; "every:n", "shared" and "low_rank" are our choice.
    """

    type: Literal["lal"] = "lal"
    layers: LayerSelection = "all"
    projector: Literal["per_layer", "shared", "low_rank"] = "per_layer"
    rank: int = Field(default=64, ge=1)

    @field_validator("layers")
    @classmethod
    def _known_selection(cls, value: LayerSelection) -> LayerSelection:
        _parse(value)
        return value


class FlamingoConfig(StrictConfig):
    """Gated cross-attention blocks, each with a feed-forward network of its own, stand before chosen layers.

    Attributes:
        layers: those that a block stands before; as `LalConfig.layers`.
        attends: "all": text sees every clip whose marker it follows, as in LAL; "last": the last of them alone, the paper's way.
        num_heads: of the cross-attention; None: as many as the LLM's attention has.
        ffn_factor: width of the feed-forward network in widths of the LLM.

    Source: arXiv 2204.14198, section 3.1 (its 3B model has a block before every layer, the 9B before every 4th, the 80B
    before every 7th); `attends: all` as the default is our choice.
    """

    type: Literal["flamingo"] = "flamingo"
    layers: LayerSelection = "every:4"
    attends: Literal["all", "last"] = "all"
    num_heads: int | None = Field(default=None, ge=1)
    ffn_factor: int = Field(default=4, ge=1)

    @field_validator("layers")
    @classmethod
    def _known_selection(cls, value: LayerSelection) -> LayerSelection:
        _parse(value)
        return value


IntegrationConfig = Annotated[PlitsConfig | LalConfig | FlamingoConfig, Field(discriminator="type")]


def _parse(selection: LayerSelection) -> tuple[str, int] | list[int]:
    if isinstance(selection, list):
        return selection
    if selection == "all":
        return ("every", 1)
    kind, _, number = selection.partition(":")
    if kind not in ("from", "every") or not number.isdigit() or (kind == "every" and int(number) == 0):
        raise PalError(f'layers: {selection!r} is not understood; write "all", "from:k", "every:n" or a list of numbers')
    return kind, int(number)


def parse_layers(selection: LayerSelection, num_layers: int) -> tuple[int, ...]:
    """Layer numbers that a selection names, in order.

    Args:
        selection: see `LalConfig.layers`; negative numbers in a list count from the end.
        num_layers: decoder layers of the LLM.

    Raises:
        PalError: the selection repeats a layer, names one that the LLM does not have, or starts behind its last.
    """
    parsed = _parse(selection)
    if isinstance(parsed, tuple):
        kind, number = parsed
        layers = list(range(number, num_layers)) if kind == "from" else list(range(0, num_layers, number))
    else:
        layers = [index + num_layers if index < 0 else index for index in parsed]
    wrong = [index for index in layers if not 0 <= index < num_layers]
    empty = not layers and parsed != []
    if wrong or empty or len(set(layers)) != len(layers):
        raise PalError(f"layers: {selection!r} must name distinct layers of the LLM's {num_layers} (0 to {num_layers - 1})")
    return tuple(sorted(layers))
