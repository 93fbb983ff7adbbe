"""A stream as a module: its connector, and P_l (LAL) or its Flamingo blocks. Encoders stand beside, shared by streams.

Shapes: C clips, T encoder frames, A audio tokens, D width.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pal_audio import connectors
from pal_audio.connectors import ConnectorConfig, JointConnector, JointConnectorConfig
from pal_audio.connectors.base import drop_channels
from pal_audio.encoders.base import AudioEncoder, Frames
from pal_audio.errors import PalError
from pal_audio.integration.config import FlamingoConfig, LalConfig, parse_layers
from pal_audio.integration.flamingo import FlamingoBlock
from pal_audio.integration.key_values import LayerKeyValues, compute_dtype
from pal_audio.integration.projectors import Common, ComposableMaps, LayerProjectors, in_parts
from pal_audio.integration.unprojected import Composing, Projections, Unprojected
from pal_audio.model.configuration import AudioConfig, StreamConfig, check_every_encoder


class Stream(nn.Module):
    """Frames -> audio tokens, and on to the inputs of LAL layers or Flamingo blocks.

    Args:
        config: the stream's options.
        audio: the whole audio configuration, for the encoder's sizes.
        hidden_size: the LLM's width.
        num_layers: the LLM's decoder layers.
        num_heads: of the LLM's attention.
        own_norm: the LLM's layers norm nothing before attention.
        init_rms: RMS that PLITS tokens start with: that of the LLM's embedded text.
    """

    def __init__(
        self,
        config: StreamConfig,
        audio: AudioConfig,
        hidden_size: int,
        num_layers: int,
        num_heads: int,
        own_norm: bool,
        init_rms: float,
    ) -> None:
        super().__init__()
        self.config = config
        read = [audio.encoders[name] for name in config.encoders]
        integration = config.integration
        lal = integration if isinstance(integration, LalConfig) else None
        flamingo = integration if isinstance(integration, FlamingoConfig) else None
        self.gives_keys = lal is not None or flamingo is not None  # else its tokens are PLITS slots
        chosen = lal or flamingo
        self.layers: tuple[int, ...] = () if chosen is None else parse_layers(chosen.layers, num_layers)
        self.num_llm_layers = num_layers
        rms = 1.0 if self.gives_keys else init_rms
        sizes, rates_hz = [encoder.frame_size for encoder in read], [encoder.frame_rate_hz for encoder in read]
        self.connector: nn.Module
        if isinstance(config.connector, JointConnectorConfig):
            self.connector = config.connector.build(sizes, hidden_size, rates_hz, rms)
        else:
            assert isinstance(config.connector, ConnectorConfig)
            self.connector = connectors.build(config.connector, sizes[0], hidden_size, rates_hz[0], rms)
        self.projectors = None if lal is None else LayerProjectors(lal, self.layers, hidden_size, hidden_size, own_norm)
        self.blocks: nn.ModuleDict | None = None
        if flamingo is not None:
            widths = hidden_size, hidden_size, num_heads
            self.blocks = nn.ModuleDict({str(layer): FlamingoBlock(flamingo, layer, *widths) for layer in self.layers})

    def tokens(self, frames: Mapping[str, Frames], first_frames: Mapping[str, int] | None = None) -> tuple[list[Tensor], Tensor]:
        """Audio tokens: one CAD tensor, or one per encoder layer, and their lengths (C,).

        Args:
            frames: by encoder name.
            first_frames: likewise, where the frames go on: those that a clip has already; for local connectors.
        """
        dtype, names = compute_dtype(self.connector), self.config.encoders
        if isinstance(self.connector, JointConnector):
            read = [frames[name] for name in names]
            layers = [self._dropped(item.layers[-1].to(dtype)) for item in read]
            tokens_CAD, lengths_C = self.connector(layers, [item.lengths for item in read])
            return [tokens_CAD], lengths_C
        heard, first_frame = frames[names[0]], (first_frames or {}).get(names[0], 0)
        later = {"first_frame": first_frame} if first_frame else {}
        outputs = [self.connector(self._dropped(layer.to(dtype)), heard.lengths, **later) for layer in heard.layers]
        return [tokens for tokens, _ in outputs], outputs[0][1]

    def _dropped(self, frames_CTD: Tensor) -> Tensor:
        return drop_channels(frames_CTD, self.config.connector.dropout, self.training)

    def layer_inputs(
        self,
        tokens: list[Tensor],
        rules: Mapping[int, LayerKeyValues],
        at_once: int = 1,
        projections: Projections = "apart",
    ) -> Callable[[int], Tensor | Unprojected]:
        """The function layer -> (C, A, D) inputs of that LAL layer, P_l of the tokens it reads, or of that block: the tokens.

        With one token sequence per encoder layer, LLM layer l of n reads the one at the same relative depth (our choice).

        Args:
            tokens: (C, A, M) of each encoder layer.
            rules: of LAL layers.
            at_once: layers whose maps are made at once; see `in_parts`.
            projections: but for "apart" P_l is left to the layer.
        """
        if self.projectors is None:
            return lambda layer: tokens[-1]
        # As rows of a matrix, so that the gradients of layers are products added to those before, not held until the last one.
        sources, shape = [], (tokens[0].shape[0], tokens[0].shape[1])
        for number, each in enumerate(tokens):
            flat, layers = each.flatten(0, 1), [layer for layer in self.layers if self._source(layer, len(tokens)) == number]
            common, composing = self.projectors.common(flat, layers, at_once), None
            if projections != "apart":
                maps = ComposableMaps(self.projectors, flat, common, projections == "composed")
                composing = Composing(maps, in_parts(layers, at_once), rules)
            sources.append((flat, common, composing))
        return partial(self._project, self.projectors, sources, shape)

    def _source(self, layer: int, num_sources: int) -> int:
        depth = layer / max(1, self.num_llm_layers - 1)
        return round(depth * (num_sources - 1))

    def _project(
        self,
        projectors: LayerProjectors,
        sources: list[tuple[Tensor, Common, Composing | None]],
        shape: tuple[int, int],
        layer: int,
    ) -> Tensor | Unprojected:
        tokens_NM, common, composing = sources[self._source(layer, len(sources))]

        def apart() -> Tensor:
            inputs_ND: Tensor = projectors(layer, tokens_NM, common)
            return inputs_ND

        return apart().unflatten(0, shape) if composing is None else Unprojected(layer, shape, composing, apart)


def by_encoder(value: Any, names: Sequence[str]) -> dict[str, Any]:
    """Features or lengths of clips by encoder name; of a model with one encoder they may come without it.

    Raises:
        PalError: an encoder's are missing, or there are some of no encoder.
    """
    if isinstance(value, Tensor | Frames):
        if len(names) > 1:
            raise PalError(f"this model has encoders {list(names)}: pass a dict by encoder name, as the processor does")
        return {names[0]: value}
    if not isinstance(value, Mapping):
        raise PalError(f"features and lengths of clips come as tensors, or dicts by encoder name, not {type(value).__name__}")
    check_every_encoder(value, names, "the input has clips for")
    return {name: value[name] for name in names}


def check_same_clips(samples: Mapping[str, Tensor]) -> None:
    """That every encoder hears the same number of clips.

    Args:
        samples: by encoder name, the samples of each clip (C,).

    Raises:
        PalError: two encoders have different numbers of clips.
    """
    counts = {name: len(samples_C) for name, samples_C in samples.items()}
    if len(set(counts.values())) > 1:
        raise PalError(f"audio_num_samples has clips {counts} by encoder; every encoder hears every clip, so give each the same")


def frames_of(name: str, encoder: AudioEncoder, clips: Tensor | Frames, samples_C: Tensor, max_windows: int | None) -> Frames:
    """An encoder's frames of clips: computed from features, or those that were computed before, checked."""
    if isinstance(clips, Tensor):
        try:
            return encoder(clips, samples_C, max_windows)
        except PalError as error:
            raise PalError(f"encoder {name!r}: {error}") from error
    config = encoder.config
    if torch.is_grad_enabled() and not config.frozen:
        raise PalError(f"encoder {name!r} is not frozen, so ready frames would leave it untrained; write frozen: true")
    lengths = [config.output_lengths(num_samples) for num_samples in samples_C.tolist()]
    shape = (len(lengths), max(lengths, default=0), config.frame_size)
    num_layers = 1 if isinstance(config.encoder_layers, list) else len(config.layer_indices)
    found = [tuple(layer.shape) for layer in clips.layers]
    if found != [shape] * num_layers or clips.lengths.tolist() != lengths:
        raise PalError(f"ready frames of encoder {name!r} have shapes {found}; these clips ask for {num_layers} of {shape}")
    return clips


def join_slots(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """PLITS tokens of several streams, one stream after another within each clip.

    Args:
        parts: (tokens CAD, lengths (C,)) of each stream.

    Returns:
        tokens CAD padded to the longest clip, and their lengths (C,).
    """
    if len(parts) == 1:
        return parts[0]
    lengths_C = torch.stack([lengths for _, lengths in parts]).sum(0)
    rows = [torch.cat([tokens[clip, : lengths[clip]] for tokens, lengths in parts]) for clip in range(len(lengths_C))]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True), lengths_C
