"""Decoding by FFmpeg, in a process of its own (`pyav_decode.py`): what libsndfile cannot read."""

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pal_audio.audio.request import Request
from pal_audio.audio.samples import BLOCK_FRAMES, Decoded, UndecodableError, collect

PYAV_TIMEOUT_S = 120.0
_PYAV_DECODE = Path(__file__).with_name("pyav_decode.py")
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


def decode_pyav(file: BinaryIO, request: Request) -> Decoded:
    """By FFmpeg: M4A, WebM and other containers, and files in which libsndfile finds nothing."""
    file.seek(0)
    head = file.read(16)
    demuxers = next((names for at, magics, names in _PYAV_FORMATS if head[at:].startswith(magics)), None)
    if demuxers is None:
        raise UndecodableError("no audio format is recognised")
    with contextlib.ExitStack() as stack:
        if isinstance(file, io.BytesIO):  # the process needs a descriptor
            content, file = file, stack.enter_context(tempfile.TemporaryFile())
            file.write(content.getbuffer())
            file.flush()
        os.lseek(file.fileno(), 0, os.SEEK_SET)
        output = stack.enter_context(tempfile.TemporaryFile())
        stop_s = min(request.end_s, request.start_s + request.max_seconds + 1)  # past the limit, for collect to refuse
        command = [sys.executable, "-P", str(_PYAV_DECODE), demuxers, str(request.start_s), str(stop_s)]
        try:
            done = subprocess.run(command, stdin=file, stdout=output, stderr=subprocess.PIPE, timeout=PYAV_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            request.fail(f"FFmpeg did not finish within {PYAV_TIMEOUT_S:g} s", "convert it to WAV or FLAC")
        if done.returncode:
            reason = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or [f"FFmpeg ended with {done.returncode}"]
            raise UndecodableError(reason[0])
        output.seek(0)
        header = json.loads(output.readline())
        rate_hz = request.check_format(header["rate_hz"], header["num_channels"])
        if 0 < (header["promised_s"] or 0) <= request.start_s:
            request.fail_start(header["promised_s"])
        return collect(_float_blocks(output), rate_hz, header["promised_s"], request)


def _float_blocks(file: BinaryIO) -> Iterator[np.ndarray]:
    while content := file.read(4 * BLOCK_FRAMES):
        yield np.frombuffer(content, "<f4")[:, None]
