"""A clip that goes on: where sound may be cut so that chunks give what the whole gives.

A cut is legal where every encoder's window ends, since windows are encoded alone, and where no token of any stream reaches
across, which each connector knows. Source: our choice.
"""

from fractions import Fraction
from typing import TYPE_CHECKING, Any

import torch

from pal_audio.errors import PalError
from pal_audio.integration import joining
from pal_audio.integration.memory import AudioMemory
from pal_audio.model.configuration import AudioConfig

if TYPE_CHECKING:
    from pal_audio.model.sound import SoundMixin

_MAX_WINDOWS_AHEAD = 10_000


def append_audio(
    model: "SoundMixin",
    memory: AudioMemory,
    input_features: Any,
    audio_num_samples: Any,
    clip: int,
    max_windows: int,
) -> AudioMemory:
    """See `SoundMixin.append_audio`."""
    audio = model.config.audio
    check_local(audio)
    model.check_fingerprint(memory)
    if not -memory.num_clips <= clip < memory.num_clips:
        raise PalError(f"append_audio: clip {clip} is not among the memory's {memory.num_clips}")
    clip %= memory.num_clips
    missing = set(audio.encoders) - set(memory.samples)
    if missing:
        raise PalError(f"append_audio: the memory does not say how many samples of encoder {min(missing)!r} it holds")
    samples = {name: int(memory.samples[name][clip]) for name in audio.encoders}
    check_boundary(audio, samples)
    first_frames = {name: config.output_lengths(samples[name]) for name, config in audio.encoders.items()}
    chunk_samples = {name: item.cpu().to(torch.int64) for name, item in model._by_encoder(audio_num_samples).items()}
    if any(item.shape != (1,) for item in chunk_samples.values()):
        raise PalError("append_audio: give the features of one clip, the chunk that follows")
    if any(int(item) < 1 for item in chunk_samples.values()):
        raise PalError("append_audio: the chunk is empty")
    with model._in_eval_mode():
        live = model.encode(input_features, audio_num_samples, max_windows, first_frames)
        chunk = AudioMemory.of(live, model._rules, model._blocks, memory.fingerprint)
    chunk.samples = chunk_samples
    kinds = [stream.integration.type for stream in audio.streams if stream.integration.type != "plits"]
    return joining.append(memory, chunk, clip, [kind != "flamingo" for kind in kinds])


def check_local(audio: AudioConfig) -> None:
    """That every stream can go on.

    Raises:
        PalError: a connector reads the whole clip, or several PLITS streams stand one after another within a clip.
    """
    for number, stream in enumerate(audio.streams):
        if not stream.connector.is_local:
            raise PalError(
                f"streams[{number}]: connector {stream.connector.type!r} reads the whole clip, so a clip cannot go on; "
                "append needs `mlp`, or `pool` with tokens_per_s"
            )
    if sum(stream.integration.type == "plits" for stream in audio.streams) > 1:
        raise PalError("several PLITS streams stand one after another within a clip, so a clip cannot go on")


def check_boundary(audio: AudioConfig, samples: dict[str, int]) -> None:
    """That a clip of so many samples (by encoder) ends where a chunk may follow.

    Raises:
        PalError: it does not; the message names the next time that is legal.
    """
    if all(_is_boundary(audio, name, number) for name, number in samples.items()):
        return
    ends_s = max(number / audio.encoders[name].sampling_rate_hz for name, number in samples.items())
    following = next_boundary_s(audio, ends_s)
    where = "there is no later time at which it may" if following is None else f"the next time at which it may is {following:g} s"
    raise PalError(
        f"the clip ends at {ends_s:g} s, where an encoder window or a token is not full, so nothing can follow; "
        f"{where}: hold sound back until then"
    )


def next_boundary_s(audio: AudioConfig, after_s: float = 0.0) -> float | None:
    """The first time in seconds, at `after_s` or later and not 0, at which a clip may be cut; None where there is none near."""
    first = next(iter(audio.encoders.values()))
    window_s = Fraction(first.window_samples, first.sampling_rate_hz)
    start = max(1, -(-Fraction(after_s).limit_denominator(10**6) // window_s))
    for number in range(start, start + _MAX_WINDOWS_AHEAD):
        counts = {name: number * window_s * config.sampling_rate_hz for name, config in audio.encoders.items()}
        whole = all(count.denominator == 1 for count in counts.values())
        if whole and all(_is_boundary(audio, name, int(count)) for name, count in counts.items()):
            return float(number * window_s)
    return None


def _is_boundary(audio: AudioConfig, name: str, num_samples: int) -> bool:
    encoder = audio.encoders[name]
    if num_samples < 1 or num_samples % encoder.window_samples:
        return False
    frames = encoder.output_lengths(num_samples)
    connectors = [stream.connector for stream in audio.streams if name in stream.encoders]
    return all(connector.begins_token(frames, encoder.frame_rate_hz) for connector in connectors)
