"""The world's instruments by fluidsynth and a soundfont: each over its range there, at pitches between those of the world."""

import struct
from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path

import numpy as np
import soundfile
from benchmarks.lab.elsewhere.programs import called

from pal_audio.errors import PalError

PROGRAM, PACKAGE = "fluidsynth", "fluidsynth"
SOUNDFONT, SOUNDFONT_PACKAGE = Path("/usr/share/sounds/sf2/TimGM6mb.sf2"), "timgm6mb-soundfont"
INSTRUMENTS = {
    "piano": (0, 46), "harpsichord": (6, 46), "marimba": (12, 46), "organ": (19, 46), "acoustic guitar": (24, 46),
    "electric guitar": (27, 46), "bass guitar": (33, 29), "violin": (40, 56), "cello": (42, 37), "harp": (46, 46),
    "choir": (52, 49), "trumpet": (56, 55), "saxophone": (65, 51), "clarinet": (71, 51), "flute": (73, 61), "sitar": (104, 46),
}  # fmt: skip
"""Label: General MIDI program, from 0, and the lowest pitch as a MIDI number."""
PITCH_STEPS = range(0, 28, 3)
VELOCITIES = (60, 100)
_RATE_HZ = 44_100
_NOTE_S, _CLIP_S, _SLOT_S = 1.2, 1.5, 4.0
_TICKS_S = 960  # 480 a quarter note, of which the default tempo has two a second

Note = tuple[int, int]
"""Pitch and velocity, as MIDI numbers."""


def notes_of(instrument: str) -> list[Note]:
    lowest = INSTRUMENTS[instrument][1]
    return [(lowest + step, velocity) for step, velocity in zip(PITCH_STEPS, cycle(VELOCITIES), strict=False)]


def rendered(instrument: str, soundfont: Path, folder: Path) -> Iterator[tuple[Note, np.ndarray, int]]:
    """Each note with its samples (S,) float64 and their rate in Hz; the folder holds files on the way."""
    notes = notes_of(instrument)
    score, sound = folder / "notes.mid", folder / "notes.wav"
    score.write_bytes(_midi(INSTRUMENTS[instrument][0], notes))
    dry = ["-R", "0", "-C", "0"]
    command = [PROGRAM, "-n", "-i", "-q", *dry, "-g", "0.5", "-r", str(_RATE_HZ), "-F", str(sound), str(soundfont), str(score)]
    called(*command)
    wave, rate_hz = soundfile.read(sound, always_2d=True)
    for number, note in enumerate(notes):
        start = round(number * _SLOT_S * rate_hz)
        yield note, wave[start : start + round(_CLIP_S * rate_hz)].mean(axis=1), rate_hz


def version() -> str:
    """What the program says of itself."""
    return called(PROGRAM, "--version").splitlines()[0].strip()


def name_of(soundfont: Path) -> str:
    """The name that a soundfont has inside.

    Raises:
        PalError: it is none, or the one that the world's notes were rendered from.
    """
    head = soundfont.read_bytes()[:4096] if soundfont.is_file() else b""
    at = head.find(b"INAM")
    if head[:4] != b"RIFF" or head[8:12] != b"sfbk" or at < 0:
        raise PalError(f"--soundfont {soundfont}: no soundfont (.sf2)")
    (size,) = struct.unpack("<I", head[at + 4 : at + 8])
    name = head[at + 8 : at + 8 + size].split(b"\0")[0].decode("latin-1").strip()
    if "fluid" in name.lower():
        raise PalError(f"--soundfont {soundfont} is {name!r}, which the world's own notes come from; give another")
    return name


def _midi(program: int, notes: Sequence[Note]) -> bytes:
    """A score of one track: the notes one after another, each at the beginning of a slot of its own."""
    events, wait = bytes([0, 0xC0, program]), 0
    held, rest = round(_NOTE_S * _TICKS_S), round((_SLOT_S - _NOTE_S) * _TICKS_S)
    for pitch, velocity in notes:
        events += _delta(wait) + bytes([0x90, pitch, velocity]) + _delta(held) + bytes([0x80, pitch, 0])
        wait = rest
    events += _delta(wait) + b"\xff\x2f\x00"
    return b"MThd" + struct.pack(">IHHH", 6, 0, 1, _TICKS_S // 2) + b"MTrk" + struct.pack(">I", len(events)) + events


def _delta(ticks: int) -> bytes:
    """A time as MIDI writes it: seven bits a byte, the highest first."""
    found = [ticks & 127]
    while ticks := ticks >> 7:
        found.append(ticks & 127 | 128)
    return bytes(reversed(found))
