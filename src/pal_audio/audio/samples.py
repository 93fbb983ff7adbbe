"""Samples of any kind -> mono float32 at one rate: the array ways in, and the mixing and resampling that every decoder ends in.

S samples of a mono waveform, C channels.
"""

import numbers
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import soxr

from pal_audio.audio.request import Request

BLOCK_FRAMES = 2**14


class UndecodableError(Exception):
    """One decoder got nothing out of a file; the other may."""


class Decoded(NamedTuple):
    wav_S: np.ndarray  # the segment, at the requested rate
    end_s: float  # how far into the source decoding got
    promised_s: float | None  # the length that the source states


def samples_of(source: Any, request: Request) -> tuple[Any, Any] | None:
    """(array, rate) if the source is samples, None if it is encoded."""
    if isinstance(source, Mapping):
        if source.get("array") is None or source.get("sampling_rate") is None:
            request.fail(f"a dict with the keys {list(source)}", "give 'array' and 'sampling_rate', or 'bytes' and 'path'")
        return source["array"], source["sampling_rate"]
    if hasattr(source, "get_all_samples"):  # torchcodec's decoder, which datasets gives
        decoded = source.get_all_samples()
        return decoded.data, decoded.sample_rate
    if isinstance(source, tuple) and len(source) == 2:
        return source
    if hasattr(source, "__array__"):
        if request.source_rate_hz is None:
            request.fail("an array does not say its sampling rate", "give (array, rate) or source_rate_hz")
        return source, request.source_rate_hz
    return None


def decode_array(source: Any, rate_hz: Any, request: Request) -> Decoded:
    """Samples in an array, checked and cut to the segment."""
    if isinstance(rate_hz, bool) or not isinstance(rate_hz, numbers.Real):
        request.fail(f"its sampling rate is of type {type(rate_hz).__name__}", "give (array, rate) with the rate in Hz")
    try:
        array = np.asarray(source)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists, tensors on a device or with a gradient
        request.fail(f"cannot be read as an array ({error})", "give a NumPy array of samples")
    if array.ndim not in (1, 2) or 0 in array.shape:
        request.fail(f"an array of shape {array.shape}", "give samples (S,), (C, S) or (S, C), none of them 0")
    samples_SC = array[:, None] if array.ndim == 1 else array if array.shape[0] > array.shape[1] else array.T
    rate_hz = request.check_format(float(rate_hz), samples_SC.shape[1])
    first, last = request.bounds(rate_hz)
    length = len(samples_SC)
    if first >= length:
        request.fail_start(length / rate_hz)
    segment_SC = samples_SC[first:last]
    blocks = (_as_float(segment_SC[i : i + BLOCK_FRAMES], request) for i in range(0, len(segment_SC), BLOCK_FRAMES))
    return collect(blocks, rate_hz, length / rate_hz, request)


def _as_float(block: np.ndarray, request: Request) -> np.ndarray:
    if block.dtype.kind == "f":
        return block
    if block.dtype.kind not in "iu" or block.dtype.itemsize > 4:  # no one agrees on the full scale of 64-bit samples
        request.fail(f"its samples are of type {block.dtype}", "give floats in [-1, 1] or integers of 8 to 32 bits")
    full_scale = 2.0 ** (8 * block.dtype.itemsize - 1)
    return block / full_scale - (1.0 if block.dtype.kind == "u" else 0.0)


def collect(blocks: Iterable[np.ndarray], rate_hz: int, promised_s: float | None, request: Request) -> Decoded:
    """Mix (S, C) blocks of the segment to mono and resample them as they come, within the limit of seconds."""
    resampler = None
    if rate_hz != request.sampling_rate_hz:
        resampler = soxr.ResampleStream(rate_hz, request.sampling_rate_hz, 1, dtype="float32")
    parts: list[np.ndarray] = []
    head_S, num_samples = np.zeros(0, np.float32), 0
    for block_SC in blocks:
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused just below
            mean_S = block_SC[:, 0] if block_SC.shape[1] == 1 else block_SC.mean(axis=1, dtype=np.float64)
            mono_S = mean_S.astype(np.float32)  # a copy: the block's memory is the decoder's
        num_samples += len(mono_S)
        if num_samples > request.max_seconds * rate_hz:
            defect = f"longer than max_seconds={request.max_seconds:g}"
            request.fail(defect, "choose a segment by start_s and end_s, or raise the limit")
        if not np.isfinite(mono_S).all():
            request.fail("it has NaN or infinite samples", "repair it at its origin, or write it as integers")
        head_S = head_S if parts else mono_S
        parts.append(mono_S if resampler is None else resampler.resample_chunk(mono_S))
    if num_samples == 0:
        raise UndecodableError("it has 0 samples" + (f" from start_s={request.start_s:g} on" if request.start_s else ""))
    if resampler is not None:
        parts.append(resampler.resample_chunk(np.zeros(0, np.float32), last=True))
    wav_S = np.concatenate(parts)
    if not len(wav_S):  # less than half a sample at the new rate; such a clip lies within the first block
        wav_S = head_S.mean(keepdims=True)
    if not np.isfinite(wav_S).all():
        request.fail("its samples overflow float32", "scale them to [-1, 1]")
    return Decoded(wav_S, request.start_s + num_samples / rate_hz, promised_s)
