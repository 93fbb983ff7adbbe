"""Decoding by libsndfile, and what a header says of the length through it.

S samples, C channels.
"""

import os
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
import soundfile as sf

from pal_audio.audio.request import Request
from pal_audio.audio.samples import BLOCK_FRAMES, Decoded, UndecodableError, collect

_STREAMED_BYTES = 0x7FFF_0000  # a data size from here on is what a program writes that does not know it yet
_SEEK_MARGIN_S = 2.0  # of MP3 and Ogg: after a seek the first MP3 frames are damaged, and Vorbis' last page slips by some ms


class LenientFile:
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


class Sound(sf.SoundFile):
    """A file that is read straight on. soundfile seeks after every read where it can, which ruins MP3: frames there borrow bits
    from frames before them, and libsndfile forgets these when it seeks; whole blocks come out as zeros, without an error."""

    def seekable(self) -> bool:
        return False


def decode_soundfile(file: BinaryIO, request: Request) -> Decoded:
    """By libsndfile: WAV, FLAC, Ogg Vorbis and Opus, MP3, AIFF, AU, CAF and more."""
    file.seek(0)
    try:
        with Sound(LenientFile(file)) as sound:
            if sound.format == "MP3" and not _states_mp3_length(file):
                raise UndecodableError("libsndfile guesses the length and drops what follows")
            rate_hz = request.check_format(sound.samplerate, sound.channels)
            first, last = request.bounds(rate_hz)
            if 0 < sound.frames <= first:
                request.fail_start(sound.frames / rate_hz)
            return collect(_soundfile_blocks(sound, first, last), rate_hz, _promised_s(sound), request)
    except sf.LibsndfileError as error:
        raise UndecodableError(error.error_string) from None


def _soundfile_blocks(sound: Any, first: int, last: int) -> Iterator[np.ndarray]:
    """(S, C) float32 blocks of samples [first, last), up to the first damage."""
    margin = int(_SEEK_MARGIN_S * sound.samplerate) if sound.format in ("MP3", "OGG") else 0
    position = max(0, first - margin)
    if position:
        sound.seek(position)
    buffer_SC = np.empty((BLOCK_FRAMES, sound.channels), np.float32)
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
