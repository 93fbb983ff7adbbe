"""Scenes: one to four sounds in a row, with exact questions and answers.

`scene(seed, split, index, settings)` is a pure function of its arguments. Items come in blocks of `BLOCK`; a permutation drawn
for the block gives each item a slot, the slot gives task, answer and wording by counting, so that over the blocks every answer of
a task is asked for equally often under every wording and the question's text tells nothing. All else comes from the item's own
generator.

Shape suffix: S samples. Source: our choice.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from pydantic import Field, field_validator

from pal_audio.config import StrictConfig
from pal_audio.data.balance import check_weights, deal
from pal_audio.data.sounds import KINDS, MIN_RATE_HZ, SoundParams, Split, coloured_noise, draw, render

SceneTask = Literal["classify", "first", "last", "count", "presence"]
SCENE_TASKS: tuple[str, ...] = get_args(SceneTask)
NUMBER_WORDS = ("one", "two", "three", "four")
WORDINGS: dict[str, tuple[str, ...]] = {
    "classify": ("What sound is this?", "What do you hear?", "Which sound is in this recording?", "Name the sound."),
    "first": (
        "Which sound comes first?",
        "What is the first sound?",
        "What do you hear first?",
        "Of the two sounds, which is the earlier one?",
    ),
    "last": (
        "Which sound comes last?",
        "What is the last sound?",
        "What do you hear last?",
        "Of the two sounds, which is the later one?",
    ),
    "count": (
        "How many times does the sound occur?",
        "How often do you hear the sound?",
        "How many sounds are there?",
        "Count the sounds.",
    ),
    "presence": ("Is there {}?", "Can you hear {}?", "Does the recording contain {}?"),
}
DEFAULT_TASKS: dict[str, float] = {"classify": 0.4, "first": 0.2, "last": 0.2, "count": 0.2}

_GAP_S = 0.12  # the shortest silence between two events
_SPLIT_IDS = {"train": 0, "test": 1}
_ITEM_STREAM, _BLOCK_STREAM = 1, 2  # keep the generators of items and of blocks apart


class SceneSettings(StrictConfig):
    """How scenes sound and what is asked about them."""

    seconds: float = Field(default=3.0, ge=2, le=30)
    sampling_rate_hz: int = Field(default=16000, ge=MIN_RATE_HZ, le=48000)
    tasks: dict[str, float] = Field(default_factory=lambda: dict(DEFAULT_TASKS), description="weight of each task")
    gain_db: float = Field(default=12.0, ge=0, le=40, description="events are this much apart in level, at most")
    snr_db: tuple[float, float] | None = Field(default=(10.0, 30.0), description="softest event over background; None = silence")

    @field_validator("tasks")
    @classmethod
    def _known_tasks(cls, tasks: dict[str, float]) -> dict[str, float]:
        unknown = [name for name in tasks if name not in SCENE_TASKS]
        if unknown:
            raise ValueError(f"unknown task {unknown[0]!r}; known are {', '.join(SCENE_TASKS)}")
        return check_weights(tasks)

    @field_validator("snr_db")
    @classmethod
    def _ordered(cls, snr_db: tuple[float, float] | None) -> tuple[float, float] | None:
        if snr_db is not None and snr_db[0] > snr_db[1]:
            raise ValueError(f"snr_db gives lowest and highest, got {snr_db}")
        return snr_db


@dataclass(frozen=True)
class Event:
    """One sound in a scene: its kind, where it begins and ends in seconds, its level and its source."""

    kind: str
    start_s: float
    end_s: float
    gain_db: float
    params: SoundParams


@dataclass(frozen=True)
class Scene:
    """A composed recording (`wav_S`: float32, peak below 1) with one question."""

    wav_S: npt.NDArray[np.float32]
    events: tuple[Event, ...]
    task: str
    question: str
    answer: str


def answers(task: str) -> tuple[str, ...]:
    """All answers of a task, each equally frequent."""
    if task == "presence":
        return ("yes", "no")
    return NUMBER_WORDS if task == "count" else tuple(kind.answer for kind in KINDS.values())


def scene(seed: int, split: Split, index: int, settings: SceneSettings) -> Scene:
    """Compose one item.

    Args:
        seed: Seed of the whole set, 0 .. 2**32 - 1.
        split: Whose cells of the sources' parameters are used, see `sounds`.
        index: Item number, from 0.
        settings: Length, tasks, levels.
    """
    task, answer_index, rank = _plan(seed, split, index, settings.tasks)
    rng = np.random.default_rng([_ITEM_STREAM, seed, _SPLIT_IDS[split], index])
    wordings = WORDINGS[task]
    names = list(KINDS)
    answer = answers(task)[answer_index]
    if task == "presence":
        asked = names[rank % len(names)]
        question = wordings[rank // len(names) % len(wordings)].format(KINDS[asked].answer)
        others = _others(rng, asked, 2)
        kinds = others if answer == "no" else [asked, others[0]]
        rng.shuffle(kinds)
    else:
        question = wordings[rank % len(wordings)]
        if task == "count":
            strokes = [name for name in names if KINDS[name].stroke]
            kinds = [strokes[int(rng.integers(len(strokes)))]] * (answer_index + 1)
        elif task == "classify":
            kinds = [names[answer_index]]
        else:
            kinds = [names[answer_index], *_others(rng, names[answer_index], 1)]
            if task == "last":
                kinds.reverse()
    wav_S, events = _compose(rng, kinds, split, settings, repeated=task == "count")
    return Scene(wav_S, events, task, question, answer)


def _others(rng: np.random.Generator, kind: str, num: int) -> list[str]:
    rest = [name for name in KINDS if name != kind]
    return [rest[i] for i in rng.permutation(len(rest))[:num]]


def _plan(seed: int, split: Split, index: int, tasks: dict[str, float]) -> tuple[str, int, int]:
    """Give an item its task, the number of its answer, and how often that answer was asked for before."""
    weights = [tasks.get(name, 0.0) for name in SCENE_TASKS]  # in our order, so that the user's order changes nothing
    number, within = deal([_BLOCK_STREAM, seed, _SPLIT_IDS[split]], index, weights)
    task = SCENE_TASKS[number]
    rank, answer_index = divmod(within, len(answers(task)))
    return task, answer_index, rank


def _compose(
    rng: np.random.Generator, kinds: list[str], split: Split, settings: SceneSettings, repeated: bool
) -> tuple[npt.NDArray[np.float32], tuple[Event, ...]]:
    """Lay sounds in a row with random gaps and levels over a soft background; `repeated`: one source sounds several times."""
    rate_hz, num_samples = settings.sampling_rate_hz, round(settings.seconds * settings.sampling_rate_hz)
    # A repeated sound has the same longest duration whatever its number, so that length does not give the count away.
    slot_s = settings.seconds / (len(NUMBER_WORDS) if repeated else len(kinds))
    sources = [draw(kind, split, rng, min(slot_s * rng.uniform(0.5, 0.8), 2.5)) for kind in kinds]
    if repeated:
        sources = [replace(sources[0], seed=source.seed) for source in sources]
    waves = [render(kind, source, rate_hz) for kind, source in zip(kinds, sources, strict=True)]
    gains_db = -rng.uniform(0, settings.gain_db, len(waves))
    gap = round(_GAP_S * rate_hz)
    spare = num_samples - sum(len(wave_S) for wave_S in waves) - gap * (len(waves) - 1)
    assert spare >= 0, "slots leave room for every event and gap"
    gaps = np.floor(spare * rng.dirichlet(np.ones(len(waves) + 1))).astype(int)
    wav_S = np.zeros(num_samples)
    events, start, softest_rms = [], int(gaps[0]), np.inf
    for i, (kind, source, wave_S) in enumerate(zip(kinds, sources, waves, strict=True)):
        loud_S = wave_S * 10 ** (gains_db[i] / 20)
        wav_S[start : start + len(loud_S)] = loud_S
        softest_rms = min(softest_rms, float(np.sqrt(np.mean(loud_S**2))))
        events.append(Event(kind, start / rate_hz, (start + len(loud_S)) / rate_hz, float(gains_db[i]), source))
        start += len(loud_S) + gap + int(gaps[i + 1])
    if settings.snr_db is not None:
        noise_rms = softest_rms * 10 ** (-rng.uniform(*settings.snr_db) / 20)
        slope = rng.uniform(0, 1)  # from white to a fall of 6 dB an octave
        wav_S += noise_rms * coloured_noise(rng, num_samples, rate_hz, lambda hz: np.maximum(hz, 50.0) ** -slope)
    wav_S *= 10 ** (-rng.uniform(1, 10) / 20) / np.max(np.abs(wav_S))
    return wav_S.astype(np.float32), tuple(events)
