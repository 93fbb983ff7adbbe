"""Decode one file with PyAV, as a process of its own: a crash or a hang of FFmpeg stays here.

`python pyav_decode.py DEMUXERS START_S STOP_S < file > samples`. stdin must be seekable. stdout: one line of JSON
(`rate_hz`, `num_channels`, `promised_s` or null), then mono float32 samples at that rate. Exit status 1: nothing
decoded, the reason is the last line on stderr. What fails to decode after the first frame ends the output.
"""

import contextlib
import json
import math
import sys
from typing import Any, BinaryIO

import av

SEEK_MARGIN_S = 1.0  # seek this much earlier: a decoder needs some packets before its output is right
SEEKABLE = {"mov", "matroska"}  # containers with true time stamps and a stated length; elsewhere both are estimates


def decode(container: Any, start_s: float, stop_s: float, output: BinaryIO) -> str | None:
    """Write header and samples of [start_s, stop_s). Returns the reason if nothing decoded, else None."""
    if not container.streams.audio:
        return "it has no audio stream"
    stream = container.streams.audio[0]
    exact = bool(SEEKABLE & set(container.format.name.split(",")))
    origin_s = float((stream.start_time or 0) * stream.time_base)
    if exact and start_s > SEEK_MARGIN_S:
        with contextlib.suppress(av.FFmpegError):  # then it decodes from the beginning; time stamps say where we are
            container.seek(int((origin_s + start_s - SEEK_MARGIN_S) * av.time_base))

    resampler = rate_hz = None
    position = 0
    try:
        for frame in container.decode(stream):
            if resampler is None:
                rate_hz, resampler = frame.sample_rate, av.AudioResampler("fltp", frame.layout, frame.sample_rate)
                promised_s = _promised_s(container, stream) if exact else None
                header = {"rate_hz": rate_hz, "num_channels": frame.layout.nb_channels, "promised_s": promised_s}
                output.write(json.dumps(header).encode() + b"\n")
                if exact and frame.time is not None:
                    position = max(0, round((frame.time - origin_s) * rate_hz))
                first = round(start_s * rate_hz)
                last = max(first + 1, round(stop_s * rate_hz)) if math.isfinite(stop_s) else sys.maxsize
            for part in resampler.resample(frame):
                mono_S = part.to_ndarray().mean(axis=0)
                output.write(mono_S[max(0, first - position) : max(0, last - position)].astype("<f4").tobytes())
                position += len(mono_S)
            if position >= last:
                break
    except (av.FFmpegError, ValueError) as error:  # ValueError: the format changed midway
        return _reason(error) if resampler is None else None
    return "it has no audio frames" if resampler is None else None


def _promised_s(container: Any, stream: Any) -> float | None:
    if stream.duration:
        return float(stream.duration * stream.time_base)
    if container.duration and not container.streams.video:  # a container's length is that of its longest stream
        return container.duration / av.time_base
    return None


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def main(demuxers: str, start_s: str, stop_s: str) -> int:
    """Run the command line above; only the named FFmpeg demuxers may read the input, and they may open nothing else."""
    try:
        with av.open(sys.stdin.buffer, options={"format_whitelist": demuxers, "protocol_whitelist": "none"}) as container:
            reason = decode(container, float(start_s), float(stop_s), sys.stdout.buffer)
    except (av.FFmpegError, ValueError) as error:
        reason = _reason(error)
    if reason is not None:
        print(reason, file=sys.stderr)
    return 0 if reason is None else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
