"""`load_audio`: any source -> mono float32 waveform at one sampling rate; see the package's header for the way through.

S samples of a mono waveform.
"""

import math
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from pal_audio.audio.ffmpeg import decode_pyav
from pal_audio.audio.libsndfile import decode_soundfile
from pal_audio.audio.request import MAX_BYTES, MAX_CHANNELS, MAX_SECONDS, Request
from pal_audio.audio.samples import Decoded, UndecodableError, decode_array, samples_of
from pal_audio.audio.sources import name_of, open_source

_SLACK_S = 0.05  # lengths closer than this count as equal: encoder delay and padding, rounded times in manifests
_SILENCE = 2.0**-16  # half a step of 16-bit audio


class SilentAudioWarning(UserWarning):
    """The waveform is silence."""


class TruncatedAudioWarning(UserWarning):
    """Less decodes than the source promises."""


def load_audio(
    source: Any,
    sampling_rate_hz: int = 16_000,
    *,
    start_s: float | None = None,
    end_s: float | None = None,
    max_seconds: float = MAX_SECONDS,
    max_bytes: int = MAX_BYTES,
    max_channels: int = MAX_CHANNELS,
    allow_url: bool = False,
    source_rate_hz: int | None = None,
) -> np.ndarray:
    """Read any source of sound as one mono waveform.

    Args:
        source: One of
            a path (`str`, `os.PathLike`); "-" is standard input; an "https://" URL if `allow_url`;
            encoded audio as `bytes`, or a binary file object, which is read from where it stands to its end;
            samples: an array or CPU tensor with `source_rate_hz`, a pair (array, rate in Hz), or what `datasets` gives:
            {"array", "sampling_rate"}, {"bytes", "path"} or its `AudioDecoder`.
            A 2-D array has its channels on the smaller axis (the first of two equal ones). Integers (8 to 32 bits) are scaled
            to [-1, 1] by their type, floats are taken as they are.
        sampling_rate_hz: Rate of the result.
        start_s: First second of the segment; None is the beginning.
        end_s: Last second of the segment; None is the end.
        max_seconds: Longest segment, counted in decoded samples, whatever the header says.
        max_bytes: Largest encoded source.
        max_channels: Most channels of the source.
        allow_url: Fetch an https URL. It and every redirect must lead to a public address. No proxy is used.
        source_rate_hz: Rate of an array that comes without one. Must agree where the source states its rate.

    Returns:
        (S,) float32, the mean of the channels, nominally in [-1, 1], finite, S >= 1; a copy, never the caller's memory.

    Raises:
        AudioError: The source cannot be read, is not audio, has no sample, has NaN or infinite samples, is beyond a limit, does
            not reach the segment (by more than 0.05 s), or an argument is out of range. One line: source, defect, mend.

    Warns:
        SilentAudioWarning: The result is silence (below half a step of 16-bit audio).
        TruncatedAudioWarning: The source states at least 0.05 s more than decodes; the result is what decodes before the damage.

    Source: our choice; limits and tolerances too.
    """
    first_s, last_s = 0.0 if start_s is None else start_s, math.inf if end_s is None else end_s
    limits = (max_seconds, max_bytes, max_channels)
    request = Request(name_of(source), sampling_rate_hz, source_rate_hz, first_s, last_s, *limits)
    if isinstance(source, Mapping) and "array" not in source and "bytes" in source:
        source = source["path"] if source["bytes"] is None else source["bytes"]
    samples = samples_of(source, request)
    if samples is not None:
        decoded = decode_array(*samples, request)
    else:
        with open_source(source, request, allow_url) as file:
            try:
                decoded = decode_soundfile(file, request)
            except UndecodableError:
                try:
                    decoded = decode_pyav(file, request)
                except UndecodableError as error:
                    request.fail(f"nothing in it decodes as audio ({error})", "check that it is an audio file and is complete")
    _check_length(decoded, request)
    wav_S = decoded.wav_S
    if max(wav_S.max(), -wav_S.min()) < _SILENCE:
        warnings.warn(f"{request.name}: silent (as mono, peak below {_SILENCE:.1e})", SilentAudioWarning, stacklevel=2)
    return wav_S


def _check_length(decoded: Decoded, request: Request) -> None:
    source_end_s = decoded.end_s if decoded.promised_s is None else max(decoded.promised_s, decoded.end_s)
    if not math.isinf(request.end_s) and request.end_s > source_end_s + _SLACK_S:
        request.fail(f"end_s={request.end_s:g} is beyond its end at {source_end_s:.3f} s", "choose an earlier end_s")
    wanted_s = min(request.end_s, source_end_s)
    if decoded.end_s <= wanted_s - _SLACK_S:
        got_s, promised_s = decoded.end_s - request.start_s, wanted_s - request.start_s
        message = f"{request.name}: truncated or damaged, got {got_s:.3f} s of {promised_s:.3f} s promised"
        warnings.warn(message, TruncatedAudioWarning, stacklevel=3)
