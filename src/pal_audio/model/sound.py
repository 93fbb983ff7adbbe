"""Sound of a model: features -> frames -> tokens of every stream, as clips of one forward or as a memory for many prompts.

    input_features ── encoders ── frames ── streams ── ClipTokens ─┬─ grad: LiveAudio
                                                                   └─ no grad: AudioMemory

Shapes: C clips, W encoder windows, A audio tokens, D width.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn

from pal_audio.encoders.base import Frames
from pal_audio.errors import PalError
from pal_audio.integration.fingerprint import Fingerprint
from pal_audio.integration.flamingo import BlockKey, FlamingoBlock
from pal_audio.integration.key_values import LayerKeyValues, max_positions
from pal_audio.integration.memory import AudioMemory, ClipTokens, LiveAudio
from pal_audio.integration.recompute import Recompute
from pal_audio.integration.unprojected import Projections
from pal_audio.model.configuration import AudioConfig, PalConfig
from pal_audio.model.streaming import append_audio
from pal_audio.model.streams import by_encoder, check_same_clips, frames_of, join_slots

MAX_WINDOWS = 16  # encoder windows in one pass without gradients: bounds memory on long clips

Features = Tensor | Frames | dict[str, Tensor | Frames]
Lengths = Tensor | dict[str, Tensor]


class SoundMixin(nn.Module):
    """What `PalForConditionalGeneration` does with sound before any text is there."""

    config: PalConfig
    encoders: nn.ModuleDict
    streams: nn.ModuleList
    marker: nn.Parameter
    language_model: Any
    recompute_audio: Recompute
    projections_at_once: int
    projections: Projections
    _audio: AudioConfig
    _key_layers: list[frozenset[int]]
    _rules: dict[int, LayerKeyValues]
    _fingerprint: Fingerprint
    _blocks: dict[BlockKey, FlamingoBlock]

    def encode(
        self,
        input_features: Features,
        audio_num_samples: Lengths,
        max_windows: int | None = None,
        first_frames: dict[str, int] | None = None,
    ) -> LiveAudio:
        """Run encoders and connectors: clips with everything but each layer's keys and values.

        Args:
            input_features: (W, ...) windows of all clips, or the `Frames` that a frozen encoder gave for them before (a frame
                cache); a dict by encoder name where the model has several encoders.
            audio_num_samples: (C,) int64 samples of each clip; likewise.
            max_windows: encoder windows in one pass; None = all.
            first_frames: by encoder name, frames that the clips have already; see `append_audio`.

        Raises:
            PalError: an encoder's clips are missing or not as many as another's, or frames are not of the encoder's shape, or of
                one that is not frozen while gradients are on, or `projections` is none of its words.
        """
        per_stream = self._stream_tokens(input_features, audio_num_samples, max_windows, first_frames)
        num_clips = len(per_stream[0][1])
        slots, keys, inputs, widths = [], [], [], []
        keeps_all = torch.is_grad_enabled() and self._keeps_all()
        if self.projections not in get_args(Projections):
            raise PalError(f"projections: {self.projections!r} is not one of {', '.join(get_args(Projections))}")
        at_once = self.projections_at_once if keeps_all else 1
        # A step that is not compiled launches each small operation by itself: composed maps have more of these.
        composes = keeps_all and (self.projections == "composed" or at_once > 1)
        projections = self.projections if composes else "apart"
        for stream, (tokens, lengths) in zip(self.streams, per_stream, strict=True):
            if not stream.gives_keys:
                slots.append((tokens[0], lengths))
            else:
                keys.append(lengths)
                widths.append(tokens[0].shape[1])
                inputs.append(stream.layer_inputs(tokens, self._rules, at_once, projections))
        none = torch.zeros(num_clips, dtype=torch.int64)
        slots_CAD, num_slots_C = join_slots(slots) if slots else (None, none)
        num_keys_SC = torch.stack(keys) if keys else none.new_zeros(0, num_clips)
        with_positions = [lengths for stream, (_, lengths) in zip(self.streams, per_stream, strict=True) if stream.blocks is None]
        clips = ClipTokens(slots_CAD, num_slots_C, num_keys_SC, torch.stack([none, *with_positions]).amax(0))
        return LiveAudio(clips, inputs, self._key_layers, widths, recompute=self.recompute_audio)

    def _keeps_all(self) -> bool:
        """Whether a training step keeps what LAL layers compute of audio."""
        checkpointed = (getattr(rule.layer, "gradient_checkpointing", False) for rule in self._rules.values())
        return self.recompute_audio == "none" and not any(checkpointed)

    @torch.no_grad()
    def encode_audio(self, input_features: Features, audio_num_samples: Lengths) -> AudioMemory:
        """Encode clips once for any number of prompts.

        Args:
            input_features, audio_num_samples: as the processor gives them; see `encode`.

        Raises:
            PalError: a clip alone takes more positions than the LLM has.
        """
        samples = {name: item.cpu().to(torch.int64) for name, item in self._by_encoder(audio_num_samples).items()}
        self._check_spans(samples)
        with self._in_eval_mode():
            live = self.encode(input_features, audio_num_samples, MAX_WINDOWS)
            memory = AudioMemory.of(live, self._rules, self._blocks, self.audio_fingerprint())
        return replace(memory, samples=samples)

    def _check_spans(self, samples: dict[str, Tensor]) -> None:
        """That no clip alone takes all positions of the LLM; it is told before anything is encoded."""
        limit = max_positions(self.language_model, self._audio.positions)
        if limit is None:
            return
        check_same_clips(samples)
        name, first_C = next(iter(samples.items()))
        num_clips = len(first_C)
        for clip in range(num_clips):
            span = self._audio.span({name: int(samples_C[clip]) for name, samples_C in samples.items()})
            if span >= limit:  # its marker takes one more
                seconds = int(first_C[clip]) / self.encoders[name].config.sampling_rate_hz
                what = f"clip {clip + 1} of {num_clips} lasts {seconds:.1f} s and takes {span} positions"
                why = f"the LLM was trained on {limit}, about {seconds * limit / span:.1f} s of sound"
                mend = "use shorter clips, or a model of `positions: zero` or of fewer tokens a second"
                raise PalError(f"{what}, but {why}; {mend}")

    @torch.no_grad()
    def append_audio(
        self, memory: AudioMemory, input_features: Features, audio_num_samples: Lengths, clip: int = -1
    ) -> AudioMemory:
        """A memory in which one clip goes on by a chunk of sound: a live stream. `memory` itself does not change.

        Args:
            memory: of this model.
            input_features, audio_num_samples: of the chunk alone, one clip, as the processor gives them.
            clip: which clip of the memory goes on.

        Returns:
            What encoding that clip's whole sound would give: what is there keeps its place and value.

        Raises:
            PalError: the clip does not end where an encoder window and a token end (the message names the next such time), a
                connector reads the whole clip, or the memory is another model's.
        """
        return append_audio(self, memory, input_features, audio_num_samples, clip, MAX_WINDOWS)

    @torch.no_grad()
    def get_audio_features(self, input_features: Features, audio_num_samples: Lengths) -> list[tuple[Tensor, Tensor]]:
        """Audio tokens of each stream before the integration: (tokens CAD, lengths (C,)) in the order of the streams."""
        with self._in_eval_mode():
            per_stream = self._stream_tokens(input_features, audio_num_samples, MAX_WINDOWS)
        return [(tokens[-1], lengths) for tokens, lengths in per_stream]

    def _stream_tokens(
        self,
        input_features: Features,
        audio_num_samples: Lengths,
        max_windows: int | None,
        first_frames: dict[str, int] | None = None,
    ) -> list[tuple[list[Tensor], Tensor]]:
        """Tokens and lengths of every stream; each encoder runs once, however many streams read it."""
        device = self.marker.device
        features = {name: item.to(device, non_blocking=True) for name, item in self._by_encoder(input_features).items()}
        samples = {name: item.cpu() for name, item in self._by_encoder(audio_num_samples).items()}
        check_same_clips(samples)
        frames = {
            name: frames_of(name, encoder, features[name], samples[name], max_windows) for name, encoder in self.encoders.items()
        }
        return [stream.tokens(frames, first_frames) for stream in self.streams]

    @contextmanager
    def _in_eval_mode(self) -> Iterator[None]:
        """A memory has no dropout in it, also in the middle of training; every module goes back to its own mode."""
        training = [module for module in self.modules() if module.training]
        for module in training:
            module.training = False
        try:
            yield
        finally:
            for module in training:
                module.training = True

    def audio_fingerprint(self) -> str:
        """What an audio memory depends on: encoders, connectors, P_l, the LAL layers' key/value path, dtype, configuration."""
        listeners = [(name, self.encoders[name]) for name in sorted(self.encoders)]  # as a saved folder does
        path = [("", module) for rule in self._rules.values() for module in rule.modules()]
        return self._fingerprint(
            [*listeners, ("", self.streams), *path], [_as_heard(self.config.audio_config), self.config.adapter]
        )

    def check_fingerprint(self, memory: AudioMemory) -> None:
        """That a memory was made by this model as it is now, and has what this model makes.

        Raises:
            PalError: it was not, or has not.
        """
        if memory.fingerprint != self.audio_fingerprint():
            raise PalError("this audio memory was made by another model (or before its weights changed); encode the audio again")
        self.check_whole(memory)

    def check_whole(self, memory: AudioMemory) -> None:
        """That a memory has what this model makes, whoever made it.

        Raises:
            PalError: it has not.
        """
        if [frozenset(keys) for keys in memory.keys] != self._key_layers or not set(memory.samples) <= set(self.encoders):
            raise PalError("this audio memory is not whole: its layers or encoders are not the model's; encode the audio again")

    def _by_encoder(self, value: Any) -> dict[str, Any]:
        return by_encoder(value, list(self.encoders))

    def _learns_to_hear(self) -> bool:
        return any(p.requires_grad for p in (self.marker, *self.encoders.parameters(), *self.streams.parameters()))

    def _dummy(self) -> LiveAudio:
        """A hidden clip of one sample, so that a batch without audio still touches every trainable part."""
        features: dict[str, Tensor | Frames] = {}
        samples = {}
        for name, config in self._audio.encoders.items():
            features[name] = config.front_end()(np.zeros(1, dtype=np.float32))
            samples[name] = torch.ones(1, dtype=torch.int64)
        live = self.encode(features, samples)
        live.hidden = True
        return live


def _as_heard(audio_config: dict[str, Any] | None) -> dict[str, Any]:
    """An audio configuration without what changes no memory: the dropout of connectors."""
    assert audio_config is not None
    streams = [
        {**stream, "connector": {key: value for key, value in stream["connector"].items() if key != "dropout"}}
        for stream in audio_config["streams"]
    ]
    return {**audio_config, "streams": streams}
