"""Rendered sounds to a folder of questions, and what is asked of such a folder before it is used."""

import hashlib
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from benchmarks.lab.elsewhere import notes, speech
from benchmarks.lab.questions import described, read_json

from pal_audio.data.manifest import AudioPart, Example, Message, TextPart, read_manifest, write_manifest, write_text
from pal_audio.data.mixing.compose import EVENT_RMS, PEAK
from pal_audio.data.mixing.tasks import wordings_of
from pal_audio.errors import PalError

RATE_HZ = 16_000
_SILENCE = 1e-4
_LEVEL = EVENT_RMS / 2  # the middle of what the world's events have
TASKS: dict[str, dict[str, Any]] = {
    "digit by other voices": {"kind": "classify", "categories": ["digit"], "like": "digit clips"},
    "digits by other voices": {"kind": "transcribe", "categories": ["digit"], "like": "digits-clean"},
    "instrument by another soundfont": {"kind": "classify", "categories": ["instrument"], "like": "instrument clips"},
}
"""Tasks as the world's recipe has them, and the task of the world's tests that comes nearest."""


@dataclass(frozen=True)
class Made:
    """A sound with its answer.

    Attributes:
        task: of `TASKS`.
        name: of its file, with its folder.
        answer: label or words.
        wave, rate_hz: samples (S,).
        slices: what it belongs to.
        meta: how it was made.
    """

    task: str
    name: str
    answer: str
    wave: np.ndarray
    rate_hz: int
    slices: Sequence[str]
    meta: dict[str, Any]


def render(folder: Path, soundfont: Path = notes.SOUNDFONT) -> str:
    """Render everything by espeak-ng and fluidsynth; returns what was made, in a line.

    Raises:
        PalError: a program is missing, the soundfont is the world's own or none, or the folder is not empty.
    """
    missing = [package for program, package in ((speech.PROGRAM, speech.PACKAGE), (notes.PROGRAM, notes.PACKAGE))
               if shutil.which(program) is None]  # fmt: skip
    if soundfont == notes.SOUNDFONT and not soundfont.is_file():
        missing.append(notes.SOUNDFONT_PACKAGE)
    if missing:
        raise PalError(f"not installed here: {', '.join(missing)}; on Debian: apt-get install {' '.join(missing)}")
    speech.check_voices()
    made_by = {
        "speech": speech.version(),
        "voices": [f"{accent}+{variant}" for accent in speech.ACCENTS for variant in speech.VARIANTS],
        "notes": notes.version(),
        "soundfont": notes.name_of(soundfont),
        "soundfont_file": soundfont.name,
        "soundfont_sha256": hashlib.sha256(soundfont.read_bytes()).hexdigest(),
    }
    with tempfile.TemporaryDirectory() as scratch:
        return write(folder, _spoken_and_played(soundfont, Path(scratch)), made_by)


def _spoken_and_played(soundfont: Path, scratch: Path) -> Iterator[Made]:
    single, string, instrument = TASKS
    for said in speech.utterances():
        task = single if len(said.digits) == 1 else string
        meta = {"voice": said.voice, "words_a_minute": said.words_a_minute, "pitch": said.pitch}
        slices = [said.accent, speech.VARIANTS[said.variant]]
        yield Made(task, f"voices/{said.name}", " ".join(said.digits), *said.render(scratch), slices, meta)
    for label in notes.INSTRUMENTS:
        for (pitch, velocity), wave, rate_hz in notes.rendered(label, soundfont, scratch):
            name = f"notes/{label.replace(' ', '_')}-{pitch:03d}-{velocity:03d}"
            yield Made(instrument, name, label, wave, rate_hz, [], {"midi_pitch": pitch, "velocity": velocity})


def write(folder: Path, sounds: Iterator[Made], made_by: dict[str, Any]) -> str:
    """Write sounds and questions; returns what was made, in a line.

    Raises:
        PalError: the folder is not empty, or a sound is silent.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise PalError(f"{folder} is not empty; choose a new folder")
    asked: dict[str, list[Example]] = {task: [] for task in TASKS}
    slices: dict[str, dict[str, list[int]]] = {task: {} for task in TASKS}
    turn: Counter[tuple[str, str]] = Counter()
    digest = hashlib.sha256()  # of sounds, questions and answers; files in Ogg have a serial number drawn anew
    for sound in sounds:
        path = folder.resolve() / "audio" / f"{sound.name}.ogg"
        path.parent.mkdir(parents=True, exist_ok=True)
        wave = soxr.resample(sound.wave, sound.rate_hz, RATE_HZ)
        if len(wave) == 0 or np.abs(wave).max() < _SILENCE:
            raise PalError(f"{sound.name} came out silent; does the soundfont hold General MIDI, and the voice speak?")
        wave *= min(_LEVEL / np.sqrt(np.mean(wave**2)), PEAK / np.abs(wave).max())
        soundfile.write(path, wave, RATE_HZ, subtype="VORBIS")
        digest.update(wave.astype(np.float32).tobytes())
        task = TASKS[sound.task]
        wordings = wordings_of(task["kind"], task["categories"])
        of_answer = (sound.task, sound.answer if task["kind"] == "classify" else "")
        question = TextPart(text=wordings[turn[of_answer] % len(wordings)])
        turn[of_answer] += 1
        for name in sound.slices:
            slices[sound.task].setdefault(name, []).append(len(asked[sound.task]))
        prompt = Message(role="user", content=[AudioPart(path=str(path)), question])
        messages = [prompt, Message(role="assistant", content=sound.answer)]
        digest.update(json.dumps([sound.name, question.text, sound.answer]).encode())
        asked[sound.task].append(Example(id=sound.name, messages=messages, task=sound.task, meta=sound.meta))
    for file, kind in (("exact", "classify"), ("words", "transcribe")):
        write_manifest(folder / f"{file}.jsonl", [item for task in TASKS if TASKS[task]["kind"] == kind for item in asked[task]])
    tasks = {
        name: described(TASKS[name], examples) | {"like": TASKS[name]["like"], "slices": slices[name]}
        for name, examples in asked.items()
    }
    write_text(folder / "made_by.json", json.dumps(made_by, indent=1) + "\n")
    write_text(folder / "index.json", json.dumps({"tasks": tasks, "hash": digest.hexdigest()[:16]}) + "\n")
    num_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return f"{folder}: {', '.join(f'{len(examples)} x {task}' for task, examples in asked.items())}; {num_bytes / 2**20:.1f} MiB"


def read_folder(folder: Path) -> dict[str, Any]:
    """The index of a folder that `render` has finished, with `made_by`.

    Raises:
        PalError: it is none.
    """
    if not (folder / "index.json").is_file():
        raise PalError(f"{folder}: no sound from elsewhere here; render it by `python -m benchmarks.lab elsewhere FOLDER`")
    return read_json(folder / "index.json") | {"made_by": read_json(folder / "made_by.json")}


def check_answers(folder: Path, labels: Sequence[str]) -> None:
    """Every answer must be one that the world has taught.

    Raises:
        PalError: naming one that is not.
    """
    for file in ("exact", "words"):
        for example in read_manifest(folder / f"{file}.jsonl"):
            answer = example.answer or ""
            words = [answer] if file == "exact" else answer.split()
            unknown = [word for word in words if word not in labels]
            if unknown or not words:
                raise PalError(f"{folder}: {example.id} is {answer!r}, and the world has no {(unknown or [''])[0]!r}")
