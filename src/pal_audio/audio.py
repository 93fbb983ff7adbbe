"""All sound enters here: path, bytes, stream, URL or array -> mono float32 waveform at one sampling rate.

`load_audio` works top-down: the source becomes an array or an open seekable file; libsndfile reads the file by its content,
never by its name; what it cannot read goes to FFmpeg in a process of its own (`_pyav_decode.py`); blocks of samples are
counted, mixed to mono and resampled as they come, so no header decides how much memory is used.

S samples of a mono waveform, C channels.
"""

import contextlib
import io
import json
import math
import numbers
import os
import re
import stat
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NoReturn

import numpy as np
import soundfile as sf
import soxr

from pal_audio import _https
from pal_audio.errors import PalError

MAX_SECONDS = 3600.0
MAX_BYTES = 2**30  # an hour of 48 kHz stereo at 24 bits fits
MAX_CHANNELS = 64  # seventh-order ambisonics
MIN_RATE_HZ, MAX_RATE_HZ = 1_000, 384_000
PYAV_TIMEOUT_S = 120.0

_BLOCK_FRAMES = 2**14
_SLACK_S = 0.05  # lengths closer than this count as equal: encoder delay and padding, rounded times in manifests
_SILENCE = 2.0**-16  # half a step of 16-bit audio
_STREAMED_BYTES = 0x7FFF_0000  # a data size from here on is what a program writes that does not know it yet
_PYAV_DECODE = Path(__file__).with_name("_pyav_decode.py")
_SEEK_MARGIN_S = 2.0  # of MP3 and Ogg: after a seek the first MP3 frames are damaged, and Vorbis' last page slips by some ms
# (offset, content there) -> the FFmpeg demuxers that may read the file. Nothing else reaches FFmpeg: among its other
# demuxers are playlists, which open further files and addresses, and ones that take almost anything for audio.
_PYAV_FORMATS = (
    (4, (b"ftyp", b"moov", b"mdat", b"wide"), "mov"),
    (0, (b"\x1aE\xdf\xa3",), "matroska"),
    (0, (b"OggS",), "ogg"),
    (0, (b"RIFF", b"RF64"), "wav,avi"),
    (0, (b"fLaC",), "flac"),
    (0, (b"ID3", b"\xff"), "mp3,aac,flac"),
    (0, (b"FORM",), "aiff"),
    (0, (b"caff",), "caf"),
    (0, (b"0&\xb2u",), "asf"),
    (0, (b"#!AMR",), "amr"),
    (0, (b"FLV\x01",), "flv"),
)


_PLANNING_RATE_HZ = 8_000  # enough to count seconds by


class AudioError(PalError):
    """A source is not usable audio, or an argument of `load_audio` is wrong."""


class SilentAudioWarning(UserWarning):
    """The waveform is silence."""


class TruncatedAudioWarning(UserWarning):
    """Less decodes than the source promises."""


class _UndecodableError(Exception):
    """One decoder got nothing out of a file; the other may."""


@dataclass(frozen=True)
class _Request:
    """The checked arguments of one call, and the name under which errors speak of its source."""

    name: str
    sampling_rate_hz: int
    source_rate_hz: int | None
    start_s: float
    end_s: float  # inf: to the end
    max_seconds: float
    max_bytes: int
    max_channels: int

    def __post_init__(self) -> None:
        rates, limits = (MIN_RATE_HZ, MAX_RATE_HZ), (1.0, math.inf)
        ranges: dict[str, tuple[float, float]] = {"sampling_rate_hz": rates, "source_rate_hz": rates}
        ranges |= {"start_s": (0, 1e9), "end_s": (0, math.inf), "max_seconds": (1e-6, math.inf)}
        ranges |= {"max_bytes": limits, "max_channels": limits}
        for label, (low, high) in ranges.items():
            value = getattr(self, label)
            if value is None and label == "source_rate_hz":
                continue
            if isinstance(value, bool) or not isinstance(value, numbers.Real) or not low <= float(value) <= high:
                self.fail(f"{label}={value!r} is out of range", f"give a number from {low:g} to {high:g}")
            if label.endswith("_hz") and float(value) % 1:
                self.fail(f"{label}={value!r} is not whole", "give a whole number of Hz")
        if self.end_s <= self.start_s:
            self.fail(f"end_s={self.end_s:g} is not after start_s={self.start_s:g}", "give a segment with end_s > start_s")

    def fail(self, defect: str, mend: str) -> NoReturn:
        raise AudioError(_one_line(f"{self.name}: {defect}; {mend}")) from None

    def fail_start(self, length_s: float) -> NoReturn:
        self.fail(f"start_s={self.start_s:g} is not before its end at {length_s:.3f} s", "choose an earlier start_s")

    def check_format(self, rate_hz: float, num_channels: int) -> int:
        if not (MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ and rate_hz == int(rate_hz)):
            self.fail(f"its sampling rate is {rate_hz} Hz", f"rates are whole numbers from {MIN_RATE_HZ} to {MAX_RATE_HZ} Hz")
        if self.source_rate_hz not in (None, rate_hz):
            self.fail(f"its own rate is {rate_hz} Hz, source_rate_hz={self.source_rate_hz}", "leave source_rate_hz out")
        if num_channels < 1:
            self.fail("it has 0 channels", "give at least one")
        if num_channels > self.max_channels:
            self.fail(f"it has {num_channels} channels, max_channels={self.max_channels}", "mix it down or raise the limit")
        return int(rate_hz)

    def bounds(self, rate_hz: int) -> tuple[int, int]:
        """Samples [first, last) of the segment, at least one."""
        first = round(self.start_s * rate_hz)
        return first, sys.maxsize if math.isinf(self.end_s) else max(first + 1, round(self.end_s * rate_hz))


class _Decoded(NamedTuple):
    wav_S: np.ndarray  # the segment, at the requested rate
    end_s: float  # how far into the source decoding got
    promised_s: float | None  # the length that the source states


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
    request = _Request(_name_of(source), sampling_rate_hz, source_rate_hz, first_s, last_s, *limits)
    if isinstance(source, Mapping) and "array" not in source and "bytes" in source:
        source = source["path"] if source["bytes"] is None else source["bytes"]
    samples = _samples_of(source, request)
    if samples is not None:
        decoded = _decode_array(*samples, request)
    else:
        with _open(source, request, allow_url) as file:
            try:
                decoded = _decode_soundfile(file, request)
            except _UndecodableError:
                try:
                    decoded = _decode_pyav(file, request)
                except _UndecodableError as error:
                    request.fail(f"nothing in it decodes as audio ({error})", "check that it is an audio file and is complete")
    _check_length(decoded, request)
    wav_S = decoded.wav_S
    if max(wav_S.max(), -wav_S.min()) < _SILENCE:
        warnings.warn(f"{request.name}: silent (as mono, peak below {_SILENCE:.1e})", SilentAudioWarning, stacklevel=2)
    return wav_S


def header_seconds(source: str | os.PathLike[str] | bytes, start_s: float | None = None, end_s: float | None = None) -> float:
    """Seconds of a file or of encoded sound, or of a stretch of it, as its header says them: fast, good for planning only.

    Where the header says nothing that libsndfile understands, the sound is decoded.

    Raises:
        AudioError: It cannot be read.
    """
    length_s = stated_seconds(source)
    if length_s is None:
        return len(load_audio(source, _PLANNING_RATE_HZ, start_s=start_s, end_s=end_s)) / _PLANNING_RATE_HZ
    return max(0.0, min(length_s, length_s if end_s is None else end_s) - (start_s or 0.0))


def stated_seconds(source: str | os.PathLike[str] | bytes) -> float | None:
    """Length that a header states, without decoding; None where libsndfile does not find one.

    It is a stranger's word: good to group by, never to reserve memory by.
    """
    try:
        with contextlib.ExitStack() as stack:
            file = io.BytesIO(source) if isinstance(source, bytes) else stack.enter_context(open(source, "rb"))
            sound = stack.enter_context(_Sound(_LenientFile(file)))
            return float(sound.frames / sound.samplerate)
    except (sf.SoundFileError, OSError, ZeroDivisionError):
        return None


# ---- names


def _name_of(source: Any) -> str:
    if isinstance(source, Mapping):
        source = source.get("path") or "<audio of a dict>"
    if isinstance(source, (bytes, bytearray, memoryview)):
        return "<bytes>"
    if isinstance(source, (str, os.PathLike)):
        text = os.fsdecode(source)
        if _is_url(text):  # without credentials and signed queries, which must not reach a log
            text = re.sub(r"//[^/?#]*@", "//", text.split("?")[0].split("#")[0])
        return "<stdin>" if text == "-" else _one_line(text)
    name = getattr(source, "name", None)
    return _one_line(name) if isinstance(name, str) else f"<{type(source).__name__}>"


def _one_line(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text)


def _is_url(source: Any) -> bool:
    return isinstance(source, str) and re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", source) is not None


# ---- samples


def _samples_of(source: Any, request: _Request) -> tuple[Any, Any] | None:
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


def _decode_array(source: Any, rate_hz: Any, request: _Request) -> _Decoded:
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
    blocks = (_as_float(segment_SC[i : i + _BLOCK_FRAMES], request) for i in range(0, len(segment_SC), _BLOCK_FRAMES))
    return _collect(blocks, rate_hz, length / rate_hz, request)


def _as_float(block: np.ndarray, request: _Request) -> np.ndarray:
    if block.dtype.kind == "f":
        return block
    if block.dtype.kind not in "iu" or block.dtype.itemsize > 4:  # no one agrees on the full scale of 64-bit samples
        request.fail(f"its samples are of type {block.dtype}", "give floats in [-1, 1] or integers of 8 to 32 bits")
    full_scale = 2.0 ** (8 * block.dtype.itemsize - 1)
    return block / full_scale - (1.0 if block.dtype.kind == "u" else 0.0)


def _collect(blocks: Iterable[np.ndarray], rate_hz: int, promised_s: float | None, request: _Request) -> _Decoded:
    """Mix (S, C) blocks of the segment to mono and resample them as they come, within the limit of seconds."""
    resampler = None
    if rate_hz != request.sampling_rate_hz:
        resampler = soxr.ResampleStream(rate_hz, request.sampling_rate_hz, 1, dtype="float32")
    parts: list[np.ndarray] = []
    head_S, num_samples = np.zeros(0, np.float32), 0
    for block_SC in blocks:
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused just below
            mono_S = block_SC.mean(axis=1, dtype=np.float64).astype(np.float32)
        num_samples += len(mono_S)
        if num_samples > request.max_seconds * rate_hz:
            defect = f"longer than max_seconds={request.max_seconds:g}"
            request.fail(defect, "choose a segment by start_s and end_s, or raise the limit")
        if not np.isfinite(mono_S).all():
            request.fail("it has NaN or infinite samples", "repair it at its origin, or write it as integers")
        head_S = head_S if parts else mono_S
        parts.append(mono_S if resampler is None else resampler.resample_chunk(mono_S))
    if num_samples == 0:
        raise _UndecodableError("it has 0 samples" + (f" from start_s={request.start_s:g} on" if request.start_s else ""))
    if resampler is not None:
        parts.append(resampler.resample_chunk(np.zeros(0, np.float32), last=True))
    wav_S = np.concatenate(parts)
    if not len(wav_S):  # less than half a sample at the new rate; such a clip lies within the first block
        wav_S = head_S.mean(keepdims=True)
    if not np.isfinite(wav_S).all():
        request.fail("its samples overflow float32", "scale them to [-1, 1]")
    return _Decoded(wav_S, request.start_s + num_samples / rate_hz, promised_s)


def _check_length(decoded: _Decoded, request: _Request) -> None:
    source_end_s = decoded.end_s if decoded.promised_s is None else max(decoded.promised_s, decoded.end_s)
    if not math.isinf(request.end_s) and request.end_s > source_end_s + _SLACK_S:
        request.fail(f"end_s={request.end_s:g} is beyond its end at {source_end_s:.3f} s", "choose an earlier end_s")
    wanted_s = min(request.end_s, source_end_s)
    if decoded.end_s <= wanted_s - _SLACK_S:
        got_s, promised_s = decoded.end_s - request.start_s, wanted_s - request.start_s
        message = f"{request.name}: truncated or damaged, got {got_s:.3f} s of {promised_s:.3f} s promised"
        warnings.warn(message, TruncatedAudioWarning, stacklevel=3)


# ---- encoded sources


@contextlib.contextmanager
def _open(source: Any, request: _Request, allow_url: bool) -> Iterator[BinaryIO]:
    """The encoded source as a seekable binary file, not empty and not above the limit of bytes."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        file: BinaryIO = io.BytesIO(source)
    elif _is_url(source):
        if not allow_url:
            request.fail("a URL is not fetched unless it is allowed", "give allow_url=True, or download it and give the path")
        try:
            file = io.BytesIO(_https.fetch(source, request.max_bytes))
        except _https.FetchError as error:
            request.fail(f"cannot be fetched ({error})", "check the URL, or download it and give the path")
    elif isinstance(source, str) and source == "-":
        stdin = getattr(sys.stdin, "buffer", None)
        if stdin is None or sys.stdin.isatty():
            request.fail("standard input is not piped", "pipe an audio file into the command, or give a path")
        file = _read_stream(stdin, request)
    elif isinstance(source, (str, os.PathLike)):
        file = _open_path(source, request)
    elif hasattr(source, "read"):
        file = _read_stream(source, request)
    else:
        request.fail(f"{type(source).__name__} is not a source of audio", "give a path, bytes, a binary file or (array, rate)")
    with file:
        num_bytes = file.seek(0, os.SEEK_END)
        if num_bytes == 0:
            request.fail("empty (0 bytes)", "check how it was written or copied")
        if num_bytes > request.max_bytes:
            request.fail(f"more bytes than max_bytes={request.max_bytes}", "cut or compress it, or raise the limit")
        yield file


def _open_path(path: str | os.PathLike[str], request: _Request) -> BinaryIO:
    try:
        # by descriptor: from a name that ends in .raw, soundfile would take the format
        file = open(os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0)), "rb")  # noqa: SIM115
    except FileNotFoundError:
        request.fail("no such file", "check the path")
    except IsADirectoryError:
        request.fail("a directory, not a file", "give the path of one audio file")
    except (OSError, ValueError) as error:  # ValueError: a null character
        request.fail(f"cannot be opened ({getattr(error, 'strerror', None) or error})", "check the path and its permissions")
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    with file:  # a pipe or a device
        return _read_stream(file, request)


def _read_stream(stream: Any, request: _Request) -> BinaryIO:
    content = io.BytesIO()
    try:
        while content.tell() <= request.max_bytes and (chunk := stream.read(2**16)):
            content.write(chunk)
    except (OSError, ValueError, TypeError) as error:  # ValueError: a closed file; TypeError: text
        request.fail(f"cannot be read ({error})", "give an open file in binary mode ('rb')")
    return content


# ---- decoders


class _LenientFile:
    """A file for libsndfile, which seeks before the beginning of some damaged ones: an exception there would only be printed."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        try:
            return self._file.seek(offset, whence)
        except (OSError, ValueError):
            return self._file.tell()


class _Sound(sf.SoundFile):
    """A file that is read straight on. soundfile seeks after every read where it can, which ruins MP3: frames there borrow bits
    from frames before them, and libsndfile forgets these when it seeks; whole blocks come out as zeros, without an error."""

    def seekable(self) -> bool:
        return False


def _decode_soundfile(file: BinaryIO, request: _Request) -> _Decoded:
    """By libsndfile: WAV, FLAC, Ogg Vorbis and Opus, MP3, AIFF, AU, CAF and more."""
    file.seek(0)
    try:
        with _Sound(_LenientFile(file)) as sound:
            if sound.format == "MP3" and not _states_mp3_length(file):
                raise _UndecodableError("libsndfile guesses the length and drops what follows")
            rate_hz = request.check_format(sound.samplerate, sound.channels)
            first, last = request.bounds(rate_hz)
            if 0 < sound.frames <= first:
                request.fail_start(sound.frames / rate_hz)
            return _collect(_soundfile_blocks(sound, first, last), rate_hz, _promised_s(sound), request)
    except sf.LibsndfileError as error:
        raise _UndecodableError(error.error_string) from None


def _soundfile_blocks(sound: Any, first: int, last: int) -> Iterator[np.ndarray]:
    """(S, C) float32 blocks of samples [first, last), up to the first damage."""
    margin = int(_SEEK_MARGIN_S * sound.samplerate) if sound.format in ("MP3", "OGG") else 0
    position = max(0, first - margin)
    if position:
        sound.seek(position)
    buffer_SC = np.empty((_BLOCK_FRAMES, sound.channels), np.float32)
    got = 1
    while got and position < last:
        try:
            got = len(sound.read(out=buffer_SC[: last - position]))
        except sf.LibsndfileError:
            got = max(0, sound.tell() - position)  # what came before the damage is in the buffer
            last = position + got
        yield buffer_SC[max(0, first - position) : got]
        position += got


def _promised_s(sound: Any) -> float:
    """The length that the header states. libsndfile cuts it to the bytes that are there and says so in its log."""
    stated_s = sound.frames / sound.samplerate
    cut = re.search(r"^ *(?:data|SSND|Data Size) *: (\d+) \(should be (\d+)\)", sound.extra_info, re.MULTILINE)
    if cut and 0 < int(cut[2]) < int(cut[1]) < _STREAMED_BYTES:
        stated_s *= int(cut[1]) / int(cut[2])
    return stated_s


def _states_mp3_length(file: BinaryIO) -> bool:
    """Whether the first MP3 frame holds a Xing, Info or VBRI header."""
    position = file.tell()
    file.seek(0)
    tag = file.read(10)
    file.seek(0)
    if tag[:3] == b"ID3" and len(tag) == 10:  # its size is written in four times seven bits
        file.seek(10 + sum(byte << shift for byte, shift in zip(tag[6:], (21, 14, 7, 0), strict=True)))
    frame = file.read(256)
    file.seek(position)  # libsndfile goes on where it was
    return any(name in frame for name in (b"Xing", b"Info", b"VBRI"))


def _decode_pyav(file: BinaryIO, request: _Request) -> _Decoded:
    """By FFmpeg: M4A, WebM and other containers, and files in which libsndfile finds nothing."""
    file.seek(0)
    head = file.read(16)
    demuxers = next((names for at, magics, names in _PYAV_FORMATS if head[at:].startswith(magics)), None)
    if demuxers is None:
        raise _UndecodableError("no audio format is recognised")
    with contextlib.ExitStack() as stack:
        if isinstance(file, io.BytesIO):  # the process needs a descriptor
            content, file = file, stack.enter_context(tempfile.TemporaryFile())
            file.write(content.getbuffer())
            file.flush()
        os.lseek(file.fileno(), 0, os.SEEK_SET)
        output = stack.enter_context(tempfile.TemporaryFile())
        stop_s = min(request.end_s, request.start_s + request.max_seconds + 1)  # past the limit, for _collect to refuse
        command = [sys.executable, "-P", str(_PYAV_DECODE), demuxers, str(request.start_s), str(stop_s)]
        try:
            done = subprocess.run(command, stdin=file, stdout=output, stderr=subprocess.PIPE, timeout=PYAV_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            request.fail(f"FFmpeg did not finish within {PYAV_TIMEOUT_S:g} s", "convert it to WAV or FLAC")
        if done.returncode:
            reason = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or [f"FFmpeg ended with {done.returncode}"]
            raise _UndecodableError(reason[0])
        output.seek(0)
        header = json.loads(output.readline())
        rate_hz = request.check_format(header["rate_hz"], header["num_channels"])
        if 0 < (header["promised_s"] or 0) <= request.start_s:
            request.fail_start(header["promised_s"])
        return _collect(_float_blocks(output), rate_hz, header["promised_s"], request)


def _float_blocks(file: BinaryIO) -> Iterator[np.ndarray]:
    while content := file.read(4 * _BLOCK_FRAMES):
        yield np.frombuffer(content, "<f4")[:, None]
