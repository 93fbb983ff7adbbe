"""All sound enters here: path, bytes, stream, URL or array -> mono float32 waveform at one sampling rate.

`load_audio` works top-down: the source becomes an array or an open seekable file (`sources`); libsndfile reads the file by
its content, never by its name (`libsndfile`); what it cannot read goes to FFmpeg in a process of its own (`ffmpeg`,
`pyav_decode`); blocks of samples are counted, mixed to mono and resampled as they come (`samples`), so no header decides how
much memory is used.
"""

from pal_audio.audio.headers import header_seconds, stated_seconds
from pal_audio.audio.loading import SilentAudioWarning, TruncatedAudioWarning, load_audio
from pal_audio.audio.request import MAX_BYTES, MAX_CHANNELS, MAX_SECONDS, AudioError

__all__ = [
    "MAX_BYTES",
    "MAX_CHANNELS",
    "MAX_SECONDS",
    "AudioError",
    "SilentAudioWarning",
    "TruncatedAudioWarning",
    "header_seconds",
    "load_audio",
    "stated_seconds",
]
