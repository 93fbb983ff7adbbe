"""What every encoder shares: the strict configuration, windows, the layers it gives, and the way back from windows to clips.

A clip is cut into consecutive windows without overlap; the last one is as long as what remains. Windows of all clips of a
batch stand one after another in one tensor (processor, `FrontEnd`), the encoder sees windows, and `AudioEncoder.forward`
joins the valid frames of a clip's windows in time order.

Shapes: C clips, W encoder windows, S samples, T encoder frames, D width.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn

from pal_audio.config import StrictConfig
from pal_audio.errors import PalError
from pal_audio.transfer import send

FRAMES_AT_ONCE = 128
"""Frames of samples that a front end transforms together: their spectra stay in a core's cache (dev/LOG.md)."""


class FrontEnd(ABC):
    """Waveform to features, without weights: it runs in the processor, or where that is `Samples`, in the encoder."""

    def __init__(self, window_samples: int) -> None:
        self.window_samples = window_samples

    def __call__(self, wav_S: np.ndarray) -> Tensor:
        """Features of one clip.

        Args:
            wav_S: mono waveform at the encoder's rate, float, nominally in [-1, 1].

        Returns:
            (W, ...) float32, one row a window; shorter rows are padded with zeros at the end of the first axis. A clip of
            one window has exactly its own length (encoders of a fixed input size excepted).
        """
        assert wav_S.ndim == 1, f"a front end takes one mono clip, not shape {wav_S.shape}"
        wav_S = np.ascontiguousarray(wav_S if len(wav_S) else np.zeros(1), dtype=np.float32)
        windows = [wav_S[start : start + self.window_samples] for start in range(0, len(wav_S), self.window_samples)]
        return nn.utils.rnn.pad_sequence([self.features(window_S) for window_S in windows], batch_first=True)

    @abstractmethod
    def features(self, wav_S: np.ndarray) -> Tensor:
        """Features of one window of 1 to `window_samples` samples, float32; the axis that may vary comes first."""


@dataclass(frozen=True)
class Samples(FrontEnd):
    """Samples as they are, for an encoder that makes its features itself. Two that cut windows of one length are equal."""

    window_samples: int

    def features(self, wav_S: np.ndarray) -> Tensor:
        """(S,) float32."""
        return torch.from_numpy(wav_S)


class EncoderConfig(StrictConfig, ABC):
    """What the user chooses of an encoder; every length and size is a function of this alone, without weights."""

    type: str
    checkpoint: str | None = None
    """Hub id or folder; None: fresh weights from the fields of this config."""
    frozen: bool = False
    """No gradient, always in eval mode."""
    encoder_layers: Literal["last", "per_llm_layer"] | list[int] = "last"
    """`last`; hidden states by index, concatenated on the width (0 enters the first layer, n leaves layer n, negative
    from the end); `per_llm_layer`: the output of every layer, one entry each."""

    if TYPE_CHECKING:  # a member has each of these two as a property, or as a field that the user may set

        @property
        def sampling_rate_hz(self) -> int: ...

        @property
        def hidden_size(self) -> int:
            """Width of one encoder layer's output."""

    @property
    @abstractmethod
    def num_hidden_layers(self) -> int: ...

    @property
    @abstractmethod
    def window_samples(self) -> int:
        """Longest input of one pass; a longer clip becomes several windows."""

    @abstractmethod
    def window_frames(self, num_samples: int) -> int:
        """Frames that describe a window of 1 to `window_samples` samples; at least 1. The encoder's one length formula."""

    @abstractmethod
    def front_end(self) -> FrontEnd: ...

    def front_end_for(self, device: torch.device) -> FrontEnd:
        """The front end for an encoder on a device: `Samples` where that makes features in less time than a core reads sound."""
        return self.front_end()

    @abstractmethod
    def build(self) -> "AudioEncoder": ...

    def resolved(self) -> Self:
        """The same encoder without `checkpoint`: everything but the weights is in the fields. For self-contained folders."""
        return self.model_copy(update={"checkpoint": None})

    @property
    def layer_indices(self) -> list[int]:
        """Indices into the hidden states (0 .. num_hidden_layers) that `encoder_layers` asks for.

        Raises:
            PalError: an index is out of range, or no layer is left.
        """
        num_layers = self.num_hidden_layers
        if self.encoder_layers == [] or (self.encoder_layers == "per_llm_layer" and num_layers == 0):
            raise PalError(f"encoder_layers: {self.encoder_layers!r} names no layer of the {num_layers}; name one, or 'last'")
        if self.encoder_layers == "last":
            return [num_layers]
        if self.encoder_layers == "per_llm_layer":
            return list(range(1, num_layers + 1))
        for index in self.encoder_layers:
            if not -num_layers - 1 <= index <= num_layers:
                raise PalError(f"encoder_layers: {index} is out of range: this encoder has 0 to {num_layers}, or -1 from the end")
        return [index % (num_layers + 1) for index in self.encoder_layers]

    @property
    def frame_size(self) -> int:
        """Width of what a connector receives: `hidden_size` times the number of concatenated layers."""
        return self.hidden_size * (len(self.layer_indices) if isinstance(self.encoder_layers, list) else 1)

    @property
    def frame_rate_hz(self) -> float:
        """Frames of a full window over its seconds."""
        return self.window_frames(self.window_samples) * self.sampling_rate_hz / self.window_samples

    def window_lengths(self, num_samples: int) -> list[int]:
        """Samples of each window of a clip; an empty clip counts as one sample."""
        num_full, rest = divmod(max(num_samples, 1), self.window_samples)
        return [self.window_samples] * num_full + [rest] * (rest > 0)

    def output_lengths(self, num_samples: int) -> int:
        """Frames of a clip of `num_samples` samples over all its windows; at least 1."""
        *full, last = self.window_lengths(num_samples)
        return len(full) * self.window_frames(self.window_samples) + self.window_frames(last)


@dataclass
class Frames:
    """What an encoder gives: `layers`, CTD each (one entry, or one per encoder layer), and `lengths`, (C,) int64.

    Frames past a clip's length are zero. Lengths stay on the CPU wherever the frames are: Python reads them, and reading one
    from an accelerator would wait for all work that is queued there."""

    layers: list[Tensor]
    lengths: Tensor

    def to(self, device: str | torch.device, non_blocking: bool = False) -> "Frames":
        """The same frames on a device; the lengths stay where they are."""
        return Frames([layer.to(device, non_blocking=non_blocking) for layer in self.layers], self.lengths)

    def pin_memory(self) -> "Frames":
        """The same frames in page-locked memory, from which they are copied while other work goes on."""
        return Frames([layer.pin_memory() for layer in self.layers], self.lengths)


def join_frames(parts: Sequence[Frames]) -> Frames:
    """Frames of several groups of clips of one encoder, one group after another, padded with zeros to the longest clip."""
    lengths_C = torch.cat([part.lengths for part in parts])
    rows = [[clip for part in parts for clip in part.layers[number]] for number in range(len(parts[0].layers))]
    layers = [nn.utils.rnn.pad_sequence(clips, batch_first=True) for clips in rows]
    return Frames([layer[:, : int(lengths_C.max())] for layer in layers], lengths_C)


class AudioEncoder(nn.Module, ABC):
    """Base of all encoders: a member writes `hidden_states`, the rest is done here once."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.layer_indices = config.layer_indices

    @abstractmethod
    def hidden_states(self, features: Tensor, samples_W: Sequence[int]) -> list[Tensor]:
        """Encode windows.

        Args:
            features: (W, ...) float32 as the front end gives them; a member casts them to what it computes in.
            samples_W: samples of each window.

        Returns:
            `num_hidden_layers` + 1 tensors WTD: what enters the first layer, then every layer's output, the last after the
            encoder's final norm. Row w is right in its first `window_frames(samples_W[w])` frames whatever its neighbours are.
        """

    def forward(self, features: Tensor, num_samples_C: Tensor, max_windows: int | None = None) -> Frames:
        """Frames of clips.

        Args:
            features: (W, ...) windows of all clips one after another, float.
            num_samples_C: int64, samples of each clip at the encoder's rate.
            max_windows: windows in one pass at most; None: all at once. It changes memory, not results.

        Raises:
            PalError: the number of windows is not what the clips' lengths ask for.
        """
        clips = [self.config.window_lengths(num_samples) for num_samples in num_samples_C.tolist()]
        samples_W = [num_samples for clip in clips for num_samples in clip]
        if len(samples_W) != len(features):
            raise PalError(f"features hold {len(features)} windows, the lengths of {len(clips)} clips ask for {len(samples_W)}")
        frames_W = [self.config.window_frames(num_samples) for num_samples in samples_W]
        lengths_C = torch.tensor([self.config.output_lengths(n) for n in num_samples_C.tolist()])
        step = max_windows or len(samples_W)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.frozen):
            passes = [slice(start, start + step) for start in range(0, len(samples_W), step)]
            parts = [self._valid_frames(features[part], samples_W[part], frames_W[part]) for part in passes]
            layers = [_to_clips(torch.cat(part_layers), lengths_C) for part_layers in zip(*parts, strict=True)]
        return Frames(layers, lengths_C)

    def _valid_frames(self, features: Tensor, samples_W: list[int], frames_W: list[int]) -> list[Tensor]:
        """The chosen layers of some windows, their valid frames one after another: (frames, D) each."""
        states = self.hidden_states(features, samples_W)
        assert len(states) == self.config.num_hidden_layers + 1, f"{len(states)} hidden states"
        chosen = [states[index] for index in self.layer_indices]
        if isinstance(self.config.encoder_layers, list):
            chosen = [torch.cat(chosen, dim=-1)]
        mask_WT = length_mask(torch.tensor(frames_W), chosen[0].shape[1])
        valid = mask_WT.flatten().nonzero()[:, 0].to(features.device, non_blocking=True)
        return [state_WTD.flatten(0, 1)[valid] for state_WTD in chosen]

    def save_checkpoint(self, folder: Path) -> None:
        """Write what `checkpoint: FOLDER` of this type reads: weights in safetensors, the rest as JSON."""
        raise NotImplementedError(f"an encoder of type {self.config.type!r} cannot be saved as a checkpoint")

    def train(self, mode: bool = True) -> Self:
        """As usual, except that a frozen encoder stays in eval mode."""
        return super().train(mode and not self.config.frozen)

    def _finish(self) -> None:
        """To be called at the end of a member's constructor: applies `frozen` and the member's own `train`."""
        if self.config.frozen:
            self.requires_grad_(False)
        self.train()


def keep_batch_statistics(module: nn.Module) -> None:
    """Put batch norms in eval mode, whatever the module's own: a batch's statistics would mix clips."""
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.eval()


def length_mask(lengths: Tensor, size: int, device: torch.device | None = None) -> Tensor:
    """Bool mask (len(lengths), size), True within the length; on `device`, or beside the lengths."""
    lengths = lengths if device is None else send(lengths, device)
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def _to_clips(frames_D: Tensor, lengths_C: Tensor) -> Tensor:
    """Rows (frames of all clips, D) to CTD with zeros past each clip's length."""
    num_frames = int(lengths_C.max()) if len(lengths_C) else 0
    frames_CTD = frames_D.new_zeros(len(lengths_C), num_frames, frames_D.shape[-1])
    assert len(frames_D) == int(lengths_C.sum()), f"{len(frames_D)} frames, lengths {lengths_C.tolist()}"
    places = length_mask(lengths_C, num_frames).flatten().nonzero()[:, 0]
    return frames_CTD.flatten(0, 1).index_copy(0, send(places, frames_D.device), frames_D).view_as(frames_CTD)


def ceil_div(number: int, divisor: int) -> int:
    """Whole parts of size `divisor` that cover `number`."""
    return -(-number // divisor)
