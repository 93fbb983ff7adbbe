"""Decoded clips, kept in memory up to a bound, and stretches of them that begin and end where there is sound.

Shape suffixes: S samples, T frames. Source: our choice.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pal_audio.audio import load_audio
from pal_audio.data.mixing.catalogue import Clip
from pal_audio.errors import PalError

MAX_CLIP_S = 60.0
MEMORY_BYTES = 2**29  # of decoded clips in one process
_FRAME_S = 0.01
_QUIET_DB = -35.0  # a frame this far below the loudest one is silence
_FAINT_DB = -10.0  # a stretch this far below the loudest of its length is passed over

Wave = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Sound:
    """A clip without the silence at its ends: `wav_S`, the frames in which it sounds, and the energy before each frame."""

    wav_S: Wave
    active_T: npt.NDArray[np.int32]
    energy_T: npt.NDArray[np.float64]  # one longer: the last is all of it
    frame: int  # samples

    @property
    def num_bytes(self) -> int:
        return self.wav_S.nbytes + self.active_T.nbytes + self.energy_T.nbytes


def trimmed(wav_S: Wave, rate_hz: int, name: str) -> Sound:
    """Cut silence off both ends, but for one frame, and note which frames sound.

    Raises:
        PalError: there is nothing but silence.
    """
    frame = round(_FRAME_S * rate_hz)
    padded_S = np.pad(wav_S, (0, -len(wav_S) % frame))
    level_T = np.sqrt(np.mean(padded_S.reshape(-1, frame).astype(np.float64) ** 2, axis=1))
    if level_T.max() < 2.0**-16:
        raise PalError(f"{name} is silent; leave it out of the source")
    active_T = np.flatnonzero(level_T > level_T.max() * 10 ** (_QUIET_DB / 20)).astype(np.int32)
    first, end = max(int(active_T[0]) - 1, 0), int(active_T[-1]) + 2
    energy_T = np.concatenate([[0.0], np.cumsum(level_T[first:end] ** 2)])
    return Sound(wav_S[first * frame : end * frame].copy(), active_T - first, energy_T, frame)


def stretch(sound: Sound, num_samples: int, rng: np.random.Generator, from_start: bool = False) -> Wave:
    """A part of at most so many samples, faded at its ends.

    It begins in a frame that sounds and ends with one, and is not much fainter than the loudest part of its length: what hums
    behind a bark is no dog. A shorter clip is taken whole. `from_start`: only the end is cut off.
    """
    if len(sound.wav_S) <= num_samples:
        return faded(sound.wav_S, sound.frame // 2)
    num_frames = max(num_samples // sound.frame, 2)
    starts = sound.active_T[sound.active_T + num_frames < len(sound.energy_T)]
    if from_start or not len(starts):
        start = 0
    else:
        energies = sound.energy_T[starts + num_frames] - sound.energy_T[starts]
        starts = starts[energies >= energies.max() * 10 ** (_FAINT_DB / 10)]
        start = int(starts[int(rng.integers(len(starts)))])
    last = int(sound.active_T[sound.active_T < start + num_frames][-1])
    first = start * sound.frame
    return faded(sound.wav_S[first : min(first + num_samples, (last + 2) * sound.frame)], sound.frame // 2)


def faded(wav_S: Wave, fade: int) -> Wave:
    """A copy that rises and falls over `fade` samples at its ends."""
    wav_S = wav_S.copy()
    fade = min(fade, len(wav_S) // 2)
    ramp = (0.5 - 0.5 * np.cos(np.pi * (np.arange(fade) + 0.5) / max(fade, 1))).astype(np.float32)
    wav_S[:fade] *= ramp
    wav_S[len(wav_S) - fade :] *= ramp[::-1]
    return wav_S


def looped(wav_S: Wave, num_samples: int, start: int, fade: int) -> Wave:
    """A clip that goes round, from sample `start` on, its end faded into its beginning."""
    fade = min(fade, len(wav_S) // 2)
    ramp = np.sqrt((np.arange(fade, dtype=np.float32) + 0.5) / max(fade, 1))
    ring_S = wav_S[fade:].copy()
    ring_S[len(ring_S) - fade :] = ring_S[len(ring_S) - fade :] * ramp[::-1] + wav_S[:fade] * ramp
    return np.resize(np.roll(ring_S, -start % len(ring_S)), num_samples)


class ClipStore:
    """Decodes clips and keeps those used last.

    Args:
        rate_hz: of the waveforms.
        max_bytes: kept at most.
    """

    def __init__(self, rate_hz: int, max_bytes: int = MEMORY_BYTES) -> None:
        self.rate_hz = rate_hz
        self.max_bytes = max_bytes
        self._sounds: OrderedDict[tuple[str, float | None, float | None], Sound] = OrderedDict()
        self.num_bytes = 0

    def sound(self, clip: Clip) -> Sound:
        """The clip, decoded and trimmed.

        Raises:
            PalError: it cannot be read, is silent, or longer than `MAX_CLIP_S`.
        """
        key = clip.path, clip.start_s, clip.end_s
        if key in self._sounds:
            self._sounds.move_to_end(key)
            return self._sounds[key]
        wav_S = load_audio(clip.path, self.rate_hz, start_s=clip.start_s, end_s=clip.end_s, max_seconds=MAX_CLIP_S)
        sound = trimmed(wav_S, self.rate_hz, clip.path)
        self._sounds[key] = sound
        self.num_bytes += sound.num_bytes
        while self.num_bytes > self.max_bytes and len(self._sounds) > 1:
            self.num_bytes -= self._sounds.popitem(last=False)[1].num_bytes
        return sound
