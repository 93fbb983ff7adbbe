"""One item of a mix: what sounds when, how loud, behind and within what, and the question with its answer.

Every choice comes from a generator of (seed, split, index) and what it is for. So the number of items, their order and the
process change nothing, and the same item with another background or room has the same events at the same times.
Shape suffix: S samples. Source: our choice.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pal_audio.data.balance import deal
from pal_audio.data.mixing import acoustics
from pal_audio.data.mixing.augmentation import NO_CHANGE, Augment, SoundChange, low_passed
from pal_audio.data.mixing.captions import caption
from pal_audio.data.mixing.catalogue import SPLITS, Catalogue, Drawn
from pal_audio.data.mixing.clips import ClipStore, faded, looped, stretch
from pal_audio.data.mixing.config import MixConfig
from pal_audio.data.mixing.layout import Layout, lay_out, longest_event_s
from pal_audio.data.mixing.settings import NOISES, SceneConfig
from pal_audio.data.mixing.tasks import TASK_KINDS, Draws, Plan
from pal_audio.data.sounds import Split, render
from pal_audio.errors import PalError

EVENT_RMS = 0.1  # of an event at 0 dB
PEAK = 0.99
# What a generator is for; scenes and others use lower numbers.
_BLOCKS, _WHAT, _WHERE, _LEVELS, _BEHIND, _ROOM, _CHANGES = range(20, 27)
_TRIES = 50  # of a string that is too long for its scene
_LOOP_FADE_S = 0.1

Wave = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Told:
    """An item without its sound.

    Attributes:
        meta: what the manifest says of it: events with onset and offset in seconds, gain and clip, duration, background.
    """

    task: str
    question: str
    answer: str
    meta: dict[str, Any]


@dataclass(frozen=True)
class Composed(Told):
    """An item; `meta` has its room and scale too.

    Attributes:
        wav_S: float32, peak at most `PEAK`; the sum of the next two.
        events_S: all events with their room.
        background_S: what is behind them.
    """

    wav_S: npt.NDArray[np.float32]
    events_S: Wave
    background_S: Wave


@dataclass(frozen=True)
class _Chosen:
    """What an item holds and where: all that is drawn before its sound is made, and the waves of its events."""

    task: str
    plan: Plan
    scene: SceneConfig
    layout: Layout
    waves: list[npt.NDArray[np.float32]]
    changes: list[SoundChange]
    augment: Augment
    rngs: dict[int, np.random.Generator]


@dataclass(frozen=True)
class _Behind:
    """What is behind an item's events: a clip or, without one, noise; and what the manifest says of it."""

    snr_db: float
    drawn: Drawn | None
    said: dict[str, str]


class Composer:
    """Composes the items of a mix. It may be pickled; decoded clips stay behind.

    Args:
        config: of the mix.
        catalogue: of its clips.

    Raises:
        PalError: a task cannot be made out of the clips.
    """

    def __init__(self, config: MixConfig, catalogue: Catalogue) -> None:
        self.config, self.catalogue = config, catalogue
        self.tasks = sorted(name for name, task in config.tasks.items() if task.weight > 0)
        self.scenes = {name: config.scene_of(config.tasks[name]) for name in self.tasks}
        self.store = ClipStore(config.sampling_rate_hz)
        for name in self.tasks:
            try:
                self._check(name)
            except PalError as error:
                raise PalError(f"data.tasks.{name}: {error}") from None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"store": ClipStore(self.config.sampling_rate_hz)}

    def _check(self, name: str) -> None:
        task, scene, catalogue = self.config.tasks[name], self.scenes[name], self.catalogue
        kind = TASK_KINDS[task.kind]
        if task.kind == "background" or (task.kind == "transcribe" and task.categories == ["digit"]):
            catalogue.check_labels(task.categories, 1)
            catalogue.check_speakers(task.categories[0])
        elif task.kind == "transcribe":
            if any(not any(clip.category == task.categories[0] for clip in catalogue.clips[split]) for split in SPLITS):
                raise PalError(f"category {task.categories[0]!r} needs clips both to train and to test")
        elif kind.compares_notes:
            catalogue.check_labels(task.categories, 1)
            catalogue.check_notes(task.categories, scene.interval)
        else:
            catalogue.check_labels(task.categories, kind.num_events(scene)[1] + (task.kind == "presence"))
        if task.kind == "caption":
            catalogue.check_captions(task.categories)
        if scene.background is not None:
            for category in scene.background.categories:
                catalogue.check_labels([category], 1)

    def plans(self, split: Split, index: int) -> Iterator[tuple[str, Plan]]:
        """Yield an item's task and what it may hold and ask; the first plan is the item's, unless that is too long for it."""
        key = [self.config.seed, SPLITS.index(split)]
        number, within = deal([_BLOCKS, *key], index, [self.config.tasks[name].weight for name in self.tasks])
        name = self.tasks[number]
        task = self.config.tasks[name]
        kind = TASK_KINDS[task.kind]
        rng = np.random.default_rng([_WHAT, *key, index])
        draws = Draws(rng, self.catalogue, split, task.categories, self.scenes[name])
        while True:
            yield name, kind.make(draws, *divmod(within, kind.num_answers(draws)))

    def item(self, split: Split, index: int) -> Composed:
        """Compose one item, index from 0."""
        chosen = self._chosen(split, index)
        events_S, background_S, meta = self._sound(chosen, split)
        wav_S = (events_S + background_S).astype(np.float32)
        return Composed(chosen.task, chosen.plan.question, self._answer(chosen), meta, wav_S, events_S, background_S)

    def told(self, split: Split, index: int) -> Told:
        """The same item without its sound."""
        chosen = self._chosen(split, index)
        behind = self._behind(chosen, split)
        meta = self._events(chosen, self._gains_db(chosen)) | ({} if behind is None else behind.said)
        return Told(chosen.task, chosen.plan.question, self._answer(chosen), meta)

    def _chosen(self, split: Split, index: int) -> _Chosen:
        """What an item holds, where, and the sounds of its events."""
        key = [self.config.seed, SPLITS.index(split), index]
        rngs = {purpose: np.random.default_rng([purpose, *key]) for purpose in (_WHERE, _LEVELS, _BEHIND, _ROOM, _CHANGES)}
        augment = self.config.augment if split == "train" and self.config.augment is not None else Augment()
        for name, plan in itertools.islice(self.plans(split, index), _TRIES):
            task, scene = self.config.tasks[name], self.scenes[name]
            changes = augment.of_sounds(
                rngs[_CHANGES], [drawn.clip.category for drawn in plan.events], alike=plan.joined or plan.apart
            )
            # Procedural sounds are split by their parameters, which a change would carry over into the test.
            changes = [NO_CHANGE if drawn.params else change for drawn, change in zip(plan.events, changes, strict=True)]
            waves = self._waves(plan, scene, rngs[_WHERE], TASK_KINDS[task.kind].num_events(scene)[1], changes)
            layout = lay_out([len(wave_S) for wave_S in waves], scene, self.config.sampling_rate_hz, rngs[_WHERE], plan)
            if layout is not None:
                return _Chosen(name, plan, scene, layout, waves, changes, augment, rngs)
        what = f"data.tasks.{name}: {split} item {index}"
        raise PalError(f"{what}: its sounds do not fit into {scene.seconds[1]:g} s; raise seconds, or ask for fewer")

    def _answer(self, chosen: _Chosen) -> str:
        if chosen.plan.answer is not None:
            return chosen.plan.answer
        return self._caption(chosen.plan, chosen.layout, self.config.tasks[chosen.task].categories)

    def _waves(
        self, plan: Plan, scene: SceneConfig, rng: np.random.Generator, most: int, changes: list[SoundChange]
    ) -> list[npt.NDArray[np.float32]]:
        """The sounds of the events, cut to length and changed, each at the RMS of 0 dB."""
        rate_hz, longest_s = self.config.sampling_rate_hz, longest_event_s(scene, most)
        waves = []
        for event, change in zip(plan.events, changes, strict=True):
            length = int(rng.uniform(scene.event_s[0], longest_s) * rate_hz)
            if event.params is not None:
                wav_S = render(event.clip.kind, replace(event.params, duration_s=length / rate_hz), rate_hz)
            else:
                sound = self.store.sound(event.clip)
                whole = plan.whole or event.clip.category == "digit"
                needed = int(length * change.speed)
                wav_S = faded(sound.wav_S, sound.frame // 2) if whole else stretch(sound, needed, rng, event.pitch is not None)
                wav_S = change(wav_S, rate_hz)
            waves.append(wav_S * np.float32(EVENT_RMS / np.sqrt(acoustics.power(wav_S))))
        return waves

    def _gains_db(self, chosen: _Chosen) -> list[float]:
        gains_db: list[float] = chosen.rngs[_LEVELS].uniform(*chosen.scene.gain_db, len(chosen.waves)).tolist()
        return [gains_db[0]] * len(gains_db) if chosen.plan.joined else gains_db  # one voice, one distance

    def _events(self, chosen: _Chosen, gains_db: list[float]) -> dict[str, Any]:
        """What the manifest says of events and duration."""
        plan, layout, rate_hz = chosen.plan, chosen.layout, self.config.sampling_rate_hz
        events = [
            _described(event, onset / rate_hz, (onset + len(wav_S)) / rate_hz, gain_db, change)
            for event, onset, wav_S, gain_db, change in zip(
                plan.events, layout.onsets, chosen.waves, gains_db, chosen.changes, strict=True
            )
        ]
        meta: dict[str, Any] = {"events": events, "seconds": round(layout.num_samples / rate_hz, 6)}
        if all(event.clip.category == "digit" for event in plan.events):
            meta["transcript"] = " ".join(event.clip.label for event in plan.events)
        return meta

    def _sound(self, chosen: _Chosen, split: Split) -> tuple[Wave, Wave, dict[str, Any]]:
        """The events with their room, what is behind them, and what the manifest says."""
        layout, scene, rngs, augment = chosen.layout, chosen.scene, chosen.rngs, chosen.augment
        rate_hz = self.config.sampling_rate_hz
        events_S, sounds_S = np.zeros(layout.num_samples), np.zeros(layout.num_samples, bool)
        gains_db = self._gains_db(chosen)
        meta = self._events(chosen, gains_db)
        for onset, wav_S, gain_db in zip(layout.onsets, chosen.waves, gains_db, strict=True):
            events_S[onset : onset + len(wav_S)] += wav_S * acoustics.gain(gain_db)
            sounds_S[onset : onset + len(wav_S)] = True
        rng = rngs[_ROOM]
        if scene.reverb is not None and rng.uniform() < scene.reverb.chance:
            rt60_s, drr_db = rng.uniform(*scene.reverb.rt60_s), rng.uniform(*scene.reverb.drr_db)
            events_S = acoustics.reverberate(events_S, acoustics.impulse_response(rng, rt60_s, drr_db, rate_hz))
            meta |= {"rt60_s": round(rt60_s, 4), "drr_db": round(drr_db, 3)}
        background_S = np.zeros(layout.num_samples)
        behind = self._behind(chosen, split)
        if behind is not None:
            background_S = self._sound_behind(rngs[_BEHIND], behind, layout.num_samples, augment)
            background_S = background_S * acoustics.background_scale(events_S, sounds_S, background_S, behind.snr_db)
            meta |= behind.said | {"snr_db": round(behind.snr_db, 3)}
        changed = augment.of_scene(rngs[_CHANGES])
        if "low_pass_hz" in changed:
            cutoff_hz, order = changed["low_pass_hz"], int(changed["low_pass_order"])
            events_S, background_S = (low_passed(part, cutoff_hz, order, rate_hz) for part in (events_S, background_S))
        level = acoustics.gain(changed.get("level_db", 0.0))
        scale = min(1.0, PEAK / (level * float(np.max(np.abs(events_S + background_S)))))
        events_S, background_S = scale * level * events_S, scale * level * background_S
        meta |= {name: round(value, 3) for name, value in changed.items()}
        meta["scale_db"] = round(20 * float(np.log10(scale)), 3)
        return events_S, background_S, meta

    def _behind(self, chosen: _Chosen, split: Split) -> _Behind | None:
        """What is behind the events; None where nothing is."""
        background, rng = chosen.scene.background, chosen.rngs[_BEHIND]
        if background is None or rng.uniform() >= background.chance:
            return None
        snr_db = rng.uniform(*background.snr_db)
        sound = background.sound[int(rng.integers(len(background.sound)))]
        if sound in NOISES:
            return _Behind(snr_db, None, {"background": sound})
        labels = self.catalogue.labels([sound])
        label = chosen.plan.background or labels[int(rng.integers(len(labels)))]
        drawn = self.catalogue.draw(rng, split, label)
        said = {"background": label, "background_category": drawn.clip.category, "background_clip": drawn.clip.id}
        return _Behind(snr_db, drawn, said)

    def _sound_behind(self, rng: np.random.Generator, behind: _Behind, num_samples: int, augment: Augment) -> Wave:
        """At any level."""
        rate_hz, drawn = self.config.sampling_rate_hz, behind.drawn
        if drawn is None:
            return acoustics.noise(rng, num_samples, rate_hz, behind.said["background"])
        if drawn.params is not None:
            wav_S = render(drawn.clip.kind, replace(drawn.params, duration_s=num_samples / rate_hz), rate_hz)
        else:
            (change,) = augment.of_sounds(rng, [drawn.clip.category], alike=True)
            wav_S = change(self.store.sound(drawn.clip).wav_S, rate_hz)
        ring_S = looped(wav_S, num_samples, int(rng.integers(len(wav_S))), round(_LOOP_FADE_S * rate_hz))
        return ring_S.astype(np.float64)

    def _caption(self, plan: Plan, layout: Layout, categories: list[str]) -> str:
        labels = iter([event.clip.label for event in plan.events])
        return caption([[next(labels) for _ in range(size)] for size in layout.groups], self.catalogue.clauses_of(categories))


def _described(event: Drawn, onset_s: float, offset_s: float, gain_db: float, change: SoundChange) -> dict[str, Any]:
    clip = event.clip
    said: dict[str, Any] = {"label": clip.label, "category": clip.category}
    said |= {"onset_s": round(onset_s, 6), "offset_s": round(offset_s, 6), "gain_db": round(gain_db, 3), "clip": clip.id}
    if event.pitch is not None:
        said["pitch"] = round(event.pitch + change.semitones, 3)
    if clip.speaker:
        said["speaker"] = clip.speaker
    if clip.held_out:
        said["held_out"] = True
    return said | change.meta()
