"""Chunks of items to sound files and examples: composed scenes, mixes, and recordings that stay where they are."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile

from pal_audio.data.importers.recordings import RECORDING_TASKS, Recording
from pal_audio.data.manifest import AudioPart, Example, Message, TextPart
from pal_audio.data.mixing.compose import Composed, Composer
from pal_audio.data.mixing.telling import as_text
from pal_audio.data.scenes import SceneSettings, scene
from pal_audio.data.sounds import Split

Chunk = tuple[Split, range]  # which items of a split
SHARD = 5000  # files of a mix in one folder


def write_scenes(shared: tuple[int, SceneSettings, Path], chunk: Chunk) -> list[Example]:
    """Compose and write scenes of `scenes.scene`; `shared` is seed, settings and folder."""
    (seed, settings, folder), (split, indices) = shared, chunk
    examples = []
    for index in indices:
        item = scene(seed, split, index, settings)
        name = f"audio/{split}/{index:06d}.flac"
        _write_sound(folder / name, item.wav_S, settings.sampling_rate_hz)
        events = [{"kind": e.kind, "start_s": round(e.start_s, 4), "end_s": round(e.end_s, 4)} for e in item.events]
        examples.append(_example(split, index, name, item.question, item.answer, item.task, {"events": events}))
    return examples


def write_mix(shared: tuple[Composer, Path], chunk: Chunk) -> list[Example]:
    """Compose and write items of a mix, or tell them as text alone; `shared` is composer and folder."""
    (composer, folder), (split, indices) = shared, chunk
    examples = []
    for index in indices:
        name = f"audio/{split}/{index // SHARD:03d}/{index:06d}.{composer.config.audio_format}"
        item = composer.told(split, index) if composer.config.text_only else composer.item(split, index)
        example = _example(split, index, name, item.question, item.answer, item.task, item.meta)
        if isinstance(item, Composed):
            _write_sound(folder / name, item.wav_S, composer.config.sampling_rate_hz)
        else:
            example = as_text(example)
        examples.append(example)
    return examples


def _write_sound(path: Path, wav_S: npt.NDArray[np.float32], rate_hz: int) -> None:
    """A file of 16 bit, of the format that its name ends in; libsndfile rounds for FLAC as is done here, and down for WAV."""
    pcm_S = np.clip(np.rint(wav_S * 2**15), -(2**15), 2**15 - 1).astype(np.int16)
    path.parent.mkdir(parents=True, exist_ok=True)
    encoded = io.BytesIO()  # one write a file: many small ones are several times slower on some file systems
    soundfile.write(encoded, pcm_S, rate_hz, subtype="PCM_16", format=path.suffix[1:].upper())
    path.write_bytes(encoded.getvalue())


def _example(split: Split, index: int, path: str, question: str, answer: str, task: str, meta: dict[str, Any]) -> Example:
    messages = [
        Message(role="user", content=[AudioPart(path=path), TextPart(text=question)]),
        Message(role="assistant", content=answer),
    ]
    return Example(id=f"{split}-{index:06d}", messages=messages, task=task, meta=meta)


def recorded(tasks: dict[str, float], num: int, seed: int, root: Path, split: Split) -> list[Example]:
    """Take recordings by the tasks' weights, classes in turn: `train` goes round them, `test` takes each at most once."""
    bounds = np.rint(np.cumsum([0.0, *tasks.values()]) / sum(tasks.values()) * num).astype(int)
    examples = []
    for number, task in enumerate(tasks):
        rng = np.random.default_rng([3, seed, ("train", "test").index(split), number])
        ranked = _classes_in_turn(RECORDING_TASKS[task](root, split), rng)
        quota = int(bounds[number + 1] - bounds[number])
        for i in range(quota if split == "train" else min(quota, len(ranked))):
            recording, rank = ranked[i % len(ranked)]
            examples.append(recording.example(rank + i // len(ranked)))
    return examples


def _classes_in_turn(recordings: Sequence[Recording], rng: np.random.Generator) -> list[tuple[Recording, int]]:
    """Shuffle, then order by each recording's number within its class, which is given with it."""
    ranked: list[tuple[Recording, int]] = []
    seen: Counter[str] = Counter()
    for i in rng.permutation(len(recordings)):
        recording = recordings[int(i)]
        ranked.append((recording, seen[recording.answer]))
        seen[recording.answer] += 1
    return sorted(ranked, key=lambda pair: pair[1])
