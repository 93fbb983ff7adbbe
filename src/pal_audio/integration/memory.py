"""Audio as a value: what a model made of some clips, before it is attached to a prompt (`attached`).

    AudioMemory      keys and values per LAL layer, *un-rotated*, and per Flamingo block, and PLITS tokens: independent of
                     any prompt
    LiveAudio        the source of keys and values in training: tokens and projectors, computed inside each layer's
                     attention call, so that checkpointing recomputes them; `AudioMemory` computes them once

A *key stream* is one that gives keys: by LAL or to Flamingo blocks.

Shapes: C clips, A audio tokens, K key/value heads, d head width, D width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pal_audio.errors import PalError
from pal_audio.integration import joining, memory_file
from pal_audio.integration.flamingo import BlockKey, FlamingoBlock
from pal_audio.integration.key_values import LayerKeyValues
from pal_audio.integration.recompute import Recompute


@dataclass
class ClipTokens:
    """What every source of audio knows of its clips.

    Attributes:
        slots_CAD: tokens to insert by PLITS, padded; None where no stream goes by PLITS.
        num_slots_C: PLITS tokens of each clip.
        num_keys_SC: tokens of each key stream (first axis) and clip.
        spans_C: N, the tokens of the clip's longest stream; Flamingo streams have no positions and do not count.

    The numbers stay on the CPU: clips are placed in text there, so that nothing waits for the accelerator.
    """

    slots_CAD: Tensor | None
    num_slots_C: Tensor
    num_keys_SC: Tensor
    spans_C: Tensor

    @property
    def num_clips(self) -> int:
        return self.num_slots_C.shape[0]


@dataclass
class LiveAudio:
    """Clips whose keys and values are computed when a layer asks.

    Attributes:
        clips: see `ClipTokens`.
        inputs: for each key stream, a function layer -> (C, A, D) inputs of that layer (P_l of the tokens) or block (the tokens);
            a layer that may compose its maps gets `Unprojected` tokens.
        layers: the layers of each key stream.
        widths: A of each key stream.
        hidden: True hides every key from every query: a dummy clip that only keeps the graph whole.
        recompute: what a LAL layer computes again for its gradients; see `integration.recompute`.
    """

    clips: ClipTokens
    inputs: list[Callable[[int], Any]]
    layers: list[frozenset[int]]
    widths: list[int]
    hidden: bool = False
    recompute: Recompute = "none"

    def keys_values(self, rule: LayerKeyValues | FlamingoBlock, stream: int) -> tuple[Tensor, Tensor]:
        """Un-rotated keys and values (C, K, A, d) of one stream in one layer or block."""
        return rule.project(self.inputs[stream](rule.index))


@dataclass
class AudioMemory:
    """What a model made of some clips: reusable over questions, turns and requests.

    Attributes:
        clips: see `ClipTokens`.
        keys, values: for each key stream, layer -> (C, K, A, d); keys are normed and projected, not rotated.
        widths: A of each key stream.
        fingerprint: of the model that made it; another model refuses it.
        samples: by encoder name, samples of each clip (C,) at that encoder's rate: where a clip that goes on is.
        order: clip of each marker that the memory serves, in reading order; None: each clip serves one. See `share`.

    Source: our choice.
    """

    clips: ClipTokens
    keys: list[dict[int, Tensor]]
    values: list[dict[int, Tensor]]
    widths: list[int]
    fingerprint: str
    samples: dict[str, Tensor] = field(default_factory=dict)
    order: Tensor | None = None

    @property
    def num_clips(self) -> int:
        return self.clips.num_clips

    @property
    def num_markers(self) -> int:
        """Markers that the memory serves."""
        return self.num_clips if self.order is None else len(self.order)

    def share(self, times: int) -> "AudioMemory":
        """The same memory for several prompts over its clips: no tensor is repeated.

        Where the prompts are alike up to the last marker (or positions are `zero`), attaching does not repeat them either;
        elsewhere each row gets rotated keys of its own. Share last: a shared memory is not concatenated, and a file of it
        holds the clips alone.

        Args:
            times: number of prompts; each holds all clips in this order.

        Raises:
            PalError: it is below 1.
        """
        if times < 1:
            raise PalError(f"share: {times} prompts; give 1 or more")
        return replace(self, order=torch.arange(self.num_clips).repeat(times))

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensors held."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self._tensors().values())

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return next((tensor.device for tensor in self._tensors().values()), torch.device("cpu"))

    def tensors(self) -> list[Tensor]:
        """The tensors held."""
        slots = [] if self.clips.slots_CAD is None else [self.clips.slots_CAD]
        return slots + [tensor for side in (self.keys, self.values) for layers in side for tensor in layers.values()]

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {
            f"{name}.{stream}.{layer}": tensor
            for name, side in (("keys", self.keys), ("values", self.values))
            for stream, layers in enumerate(side)
            for layer, tensor in layers.items()
        }
        return tensors if self.clips.slots_CAD is None else {"slots": self.clips.slots_CAD} | tensors

    def save(self, path: str | Path) -> None:
        """Write the memory as one safetensors file, whole or not at all; a file of that name is replaced.

        Raises:
            PalError: there is no such folder.
        """
        clips = self.clips
        header = {
            "fingerprint": self.fingerprint,
            "widths": self.widths,
            "layers": [sorted(stream) for stream in self.keys],
            "num_slots": clips.num_slots_C.tolist(),
            "num_keys": clips.num_keys_SC.tolist(),
            "spans": clips.spans_C.tolist(),
            "samples": {name: samples_C.tolist() for name, samples_C in self.samples.items()},
        }
        memory_file.write(Path(path), header, self._tensors())

    @classmethod
    def load(cls, path: str | Path, max_bytes: int = memory_file.MAX_BYTES) -> "AudioMemory":
        """Read a memory that `save` wrote, onto the CPU. The model that it is given to checks the fingerprint.

        Args:
            path: the file.
            max_bytes: a larger file is refused before it is read.

        Raises:
            PalError: the file is missing, foreign, damaged or too large.
        """
        header, tensors = memory_file.read(Path(path), max_bytes)
        num_clips = len(header.spans)
        keys, values = (
            [{layer: tensors[f"{side}.{s}.{layer}"] for layer in layers} for s, layers in enumerate(header.layers)]
            for side in ("keys", "values")
        )
        clips = ClipTokens(
            tensors.get("slots"),
            torch.tensor(header.num_slots, dtype=torch.int64),
            torch.tensor(header.num_keys, dtype=torch.int64).view(len(header.layers), num_clips),
            torch.tensor(header.spans, dtype=torch.int64),
        )
        samples = {name: torch.tensor(lengths, dtype=torch.int64) for name, lengths in header.samples.items()}
        return cls(clips, keys, values, header.widths, header.fingerprint, samples)

    @staticmethod
    def concatenate(memories: "Sequence[AudioMemory]") -> "AudioMemory":
        """The clips of several memories in one, in this order; see `joining.concatenate`."""
        return joining.concatenate(memories)

    @classmethod
    @torch.no_grad()
    def of(
        cls, live: LiveAudio, rules: dict[int, LayerKeyValues], blocks: dict[BlockKey, FlamingoBlock], fingerprint: str
    ) -> "AudioMemory":
        """Compute every layer's and block's keys and values once, by the same path as in training."""
        keys: list[dict[int, Tensor]] = []
        values: list[dict[int, Tensor]] = []
        for stream, (inputs, layers) in enumerate(zip(live.inputs, live.layers, strict=True)):
            paths = {layer: blocks[stream, layer] if (stream, layer) in blocks else rules[layer] for layer in sorted(layers)}
            pairs = {layer: path.project(inputs(layer)) for layer, path in paths.items()}
            keys.append({layer: pair[0] for layer, pair in pairs.items()})
            values.append({layer: pair[1] for layer, pair in pairs.items()})
        return cls(live.clips, keys, values, live.widths, fingerprint)

    def to(self, device: torch.device | str) -> "AudioMemory":
        """The same memory on another device.

        Raises:
            PalError: a dtype was given; a memory has the dtype of the model that made it.
        """
        if isinstance(device, torch.dtype):
            raise PalError("a memory moves to a device, not to a dtype: encode the audio with a model of that dtype")
        slots_CAD = self.clips.slots_CAD
        clips = replace(self.clips, slots_CAD=None if slots_CAD is None else slots_CAD.to(device))
        keys = [{layer: tensor.to(device) for layer, tensor in stream.items()} for stream in self.keys]
        values = [{layer: tensor.to(device) for layer, tensor in stream.items()} for stream in self.values]
        return replace(self, clips=clips, keys=keys, values=values)

    def select(self, clips_N: Tensor) -> "AudioMemory":
        """The given clips, in this order and as often as they are named: several prompts share a clip that was encoded once.

        Raises:
            PalError: there is no clip of such a number.
        """
        stray = [number for number in clips_N.tolist() if not 0 <= number < self.num_clips]
        if stray:
            raise PalError(f"select: clip {stray[0]} is not among the memory's {self.num_clips}, which count from 0")

        def chosen(tensor: Tensor, axis: int = 0) -> Tensor:
            return tensor.index_select(axis, clips_N.to(tensor.device))  # numbers lie on the CPU, tokens where the model is

        def sides(side: list[dict[int, Tensor]]) -> list[dict[int, Tensor]]:
            return [{layer: chosen(tensor) for layer, tensor in stream.items()} for stream in side]

        clips = ClipTokens(
            None if self.clips.slots_CAD is None else chosen(self.clips.slots_CAD),
            chosen(self.clips.num_slots_C),
            chosen(self.clips.num_keys_SC, 1),
            chosen(self.clips.spans_C),
        )
        samples = {name: chosen(samples_C) for name, samples_C in self.samples.items()}
        return replace(self, clips=clips, keys=sides(self.keys), values=sides(self.values), samples=samples, order=None)
