"""What headers say of a length, without decoding: to plan and to group by."""

import contextlib
import io
import os

import soundfile as sf

from pal_audio.audio.libsndfile import LenientFile, Sound
from pal_audio.audio.loading import load_audio

_PLANNING_RATE_HZ = 8_000  # enough to count seconds by


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
            sound = stack.enter_context(Sound(LenientFile(file)))
            return float(sound.frames / sound.samplerate)
    except (sf.SoundFileError, OSError, ZeroDivisionError):
        return None
