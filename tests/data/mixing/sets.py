"""Small sets in the official layouts, every clip a sound of its own, and the mix that is made of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile

from pal_audio.data import MixConfig

RATE_HZ = 16000
SOUNDS = ("dog", "rain", "siren", "church_bells", "rooster")
SPEAKERS = ("theo", "lucas", "yweweler")
Wave = npt.NDArray[np.float64]


def burst(seed: int, seconds: float, pause_s: float = 0.2) -> Wave:
    """Noise between two pauses."""
    rng = np.random.default_rng(seed)
    sounds = rng.standard_normal(round(seconds * RATE_HZ)) * rng.uniform(0.05, 0.3)
    return np.concatenate([np.zeros(round(pause_s * RATE_HZ)), np.clip(sounds, -1, 1), np.zeros(round(pause_s * RATE_HZ))])


def click(seed: int) -> Wave:
    """A single sample in silence."""
    wave = np.zeros(8000)
    wave[3000 + 7 * seed] = 0.5 + 0.001 * seed
    return wave


def write(path: Path, wave: Wave) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave, RATE_HZ, subtype="PCM_16")


def make_sounds(root: Path, wave: Callable[[int], Wave] | None = None, num: int = 2) -> Path:
    """ESC-50's layout: five classes of ESC-10, `num` clips a fold."""
    rows = ["filename,fold,target,category,esc10,src_file,take"]
    for target, category in enumerate(SOUNDS):
        for fold in range(1, 6):
            for take in range(num):
                name = f"{fold}-{1000 + take}-A-{target}.wav"
                seed = 100 * target + 10 * fold + take
                write(root / "audio" / name, burst(seed, 1.5) if wave is None else wave(seed))
                rows.append(f"{name},{fold},{target},{category},True,{100 * fold + take},A")
    (root / "meta").mkdir()
    (root / "meta" / "esc50.csv").write_text("\n".join(rows) + "\n")
    return root


def make_digits(root: Path) -> Path:
    """Free Spoken Digit's layout: three speakers, two training takes, one for development, one official test take."""
    for digit in range(10):
        for number, speaker in enumerate(SPEAKERS):
            for index in (0, 5, 6, 45):
                seed = 1000 + 100 * digit + 10 * number + index
                write(root / "recordings" / f"{digit}_{speaker}_{index}.wav", burst(seed, 0.15 + 0.01 * digit, 0.05))
    return root


def make_notes(root: Path) -> Path:
    """A table of notes: two instruments, six pitches to train and three to test."""
    rows = ["filename,instrument,midi_pitch,velocity,split"]
    time_s = np.arange(RATE_HZ) / RATE_HZ
    for number, instrument in enumerate(("piano", "bass_guitar")):
        for pitch in (*range(48, 60, 2), 51, 55, 61):
            name = f"{instrument}-{pitch:03d}-060.wav"
            tone = np.sin(2 * np.pi * 440 * 2 ** ((pitch - 69) / 12) * time_s) * np.exp(-(2 + number) * time_s)
            write(root / "audio" / name, 0.3 * tone)
            rows.append(f"{name},{instrument},{pitch},60,{'test' if pitch % 2 else 'train'}")
    (root / "meta.csv").write_text("\n".join(rows) + "\n")
    return root


def make_all(root: Path) -> Path:
    make_sounds(root / "esc10")
    make_digits(root / "fsdd")
    make_notes(root / "gm_notes")
    return root


SOURCES: list[dict[str, Any]] = [
    {"type": "esc10", "root": "esc10"},
    {"type": "fsdd", "root": "fsdd", "category": "digit", "hold_out": {"speaker": ["theo"]}},
    {
        "type": "table", "root": "gm_notes", "category": "instrument",
        "file": "audio/{filename}", "label": "instrument", "pitch": "midi_pitch",
    },
]  # fmt: skip


def mix(root: Path | None = None, **changes: Any) -> MixConfig:
    """A mix of classification out of procedural sounds, or of the sets below `root`, with some settings changed."""
    sources = [{"type": "procedural"}] if root is None else SOURCES
    values: dict[str, Any] = {
        "type": "mix",
        "root": root,
        "sources": sources,
        "tasks": {"classify": 1},
        "num_train": 4,
        "num_test": 4,
    }
    return MixConfig(**values | changes)
