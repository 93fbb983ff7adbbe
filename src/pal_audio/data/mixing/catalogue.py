"""The clips of a mix by split, category and label, and how one is drawn. Reading them is `reading.py`'s part."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from pal_audio.data.mixing.captions import check_clauses
from pal_audio.data.mixing.vocabulary import clause_of, noun_of
from pal_audio.data.sounds import KINDS, SoundParams, Split, draw
from pal_audio.errors import PalError

SPLITS: tuple[Split, Split] = ("train", "test")


@dataclass(frozen=True)
class Clip:
    """A recording, a stretch of one, or (with `kind`) a kind of procedural sound.

    Attributes:
        id: source and file, as in "esc10/1-100032-A-0".
        source: number of its source in the recipe.
        path: its file; "" for a procedural sound.
        pitch: MIDI number of a note.
        speaker: who speaks; "" where nobody says.
        held_out: its source's `hold_out` names it, so it is no training clip.
    """

    id: str
    source: int
    label: str
    category: str
    path: str = ""
    start_s: float | None = None
    end_s: float | None = None
    pitch: float | None = None
    speaker: str = ""
    group: str = ""
    held_out: bool = False
    kind: str = ""


@dataclass(frozen=True)
class Drawn:
    """A clip that an item uses; a procedural one with its parameters."""

    clip: Clip
    params: SoundParams | None = None

    @property
    def pitch(self) -> float | None:
        """MIDI number, where it has one."""
        if self.params is None or "pitch_hz" not in self.params.values:
            return self.clip.pitch
        return float(69 + 12 * np.log2(self.params.values["pitch_hz"] / 440))


@dataclass
class Catalogue:
    """All clips of a mix.

    Attributes:
        clips: of each split.
        weights: of the sources, by number.
        nouns, clauses: of labels, beyond those of the vocabulary.
    """

    clips: dict[Split, list[Clip]]
    weights: Sequence[float]
    nouns: Mapping[str, str] = field(default_factory=dict)
    clauses: Mapping[str, str] = field(default_factory=dict)
    _labels: dict[tuple[str, ...], list[str]] = field(default_factory=dict, init=False, repr=False)
    _speakers: dict[tuple[Split, str], list[str]] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def category_of(self) -> dict[str, str]:
        """The category of every label. A label that two categories have is refused: no answer could tell them apart."""
        found: dict[str, str] = {}
        for clip in (clip for split in SPLITS for clip in self.clips[split]):
            if found.setdefault(clip.label, clip.category) != clip.category:
                both = f"{found[clip.label]!r} and {clip.category!r}"
                raise PalError(f"label {clip.label!r} is of both categories {both}; choose by a source's `labels`")
        return found

    def labels(self, categories: Iterable[str]) -> list[str]:
        """Labels of some categories, sorted."""
        key = tuple(categories)
        if key not in self._labels:
            self._labels[key] = sorted(label for label, category in self.category_of.items() if category in key)
        return self._labels[key]

    def noun(self, label: str) -> str:
        """How a label reads in a question."""
        return self.nouns.get(label) or noun_of(label, self.category_of[label])

    def clauses_of(self, categories: Iterable[str]) -> dict[str, str]:
        """How the labels of some categories read in a caption."""
        labels = self.labels(categories)
        return {label: self.clauses.get(label) or clause_of(label, self.category_of[label]) for label in labels}

    def speakers(self, split: Split, category: str) -> list[str]:
        """Those who say every label of the category, sorted; [""] stands for all where nobody's name is known."""
        if (split, category) not in self._speakers:
            labels = set(self.labels([category]))
            said: dict[str, set[str]] = {}
            for clip in self.clips[split]:
                if clip.category == category:
                    said.setdefault(clip.speaker, set()).add(clip.label)
            self._speakers[split, category] = sorted(speaker for speaker, words in said.items() if words == labels)
        return self._speakers[split, category]

    def draw(self, rng: np.random.Generator, split: Split, label: str, speaker: str | None = None) -> Drawn:
        """Draw a clip of a label: its source by weight, then each clip alike. `speaker`: only from what he or she says."""
        sources = self._by_source[split, label] if speaker is None else self._by_speaker[split, label, speaker]
        weights = np.array([self.weights[number] for number in sources])
        chosen = list(sources.values())[int(rng.choice(len(weights), p=weights / weights.sum())) if len(weights) > 1 else 0]
        clip = chosen[int(rng.integers(len(chosen)))]
        return Drawn(clip, draw(clip.kind, split, rng) if clip.kind else None)

    @cached_property
    def _by_source(self) -> dict[tuple[Split, str], dict[int, list[Clip]]]:
        found: dict[tuple[Split, str], dict[int, list[Clip]]] = {}
        for split in SPLITS:
            for clip in self.clips[split]:
                found.setdefault((split, clip.label), {}).setdefault(clip.source, []).append(clip)
        return found

    @cached_property
    def _by_speaker(self) -> dict[tuple[Split, str, str], dict[int, list[Clip]]]:
        found: dict[tuple[Split, str, str], dict[int, list[Clip]]] = {}
        for split in SPLITS:
            for clip in self.clips[split]:
                found.setdefault((split, clip.label, clip.speaker), {}).setdefault(clip.source, []).append(clip)
        return found

    def check_labels(self, categories: Sequence[str], num_labels: int) -> None:
        """Raise PalError where a label has no clip in a split, or there are fewer labels than a scene needs."""
        labels = self.labels(categories)
        if len(labels) < num_labels:
            raise PalError(f"{num_labels} different labels are needed; {' and '.join(categories)}: {', '.join(labels) or 'none'}")
        for split in SPLITS:
            missing = [label for label in labels if (split, label) not in self._by_source]
            if missing:
                label, category = missing[0], self.category_of[missing[0]]
                raise PalError(
                    f"no {split} clip for label {label!r} of category {category!r}; see its source's `split`, `labels`"
                )

    def check_captions(self, categories: Sequence[str]) -> None:
        """Raise PalError where captions of the categories could not be read back."""
        check_clauses(self.clauses_of(categories))

    def check_speakers(self, category: str) -> None:
        """Raise PalError where a split has nobody who says every label."""
        for split in SPLITS:
            if not self.speakers(split, category):
                raise PalError(f"no speaker of split {split!r} says every label of category {category!r}")

    def check_notes(self, categories: Sequence[str], interval: tuple[float, float]) -> None:
        """Raise PalError where a label has no two notes of a split that lie so far apart."""
        low, high = interval
        for label in self.labels(categories):
            for split in SPLITS:
                clips = [clip for clip in self.clips[split] if clip.label == label]
                if any(clip.kind and "pitch_hz" in KINDS[clip.kind].ranges for clip in clips):
                    continue
                pitches = sorted({clip.pitch for clip in clips if clip.pitch is not None})
                if len({clip.pitch is None for clip in clips}) != 1 or not pitches:
                    raise PalError(f"label {label!r} has {split} clips without a pitch; name its key by the source's `pitch`")
                if not any(low <= b - a <= high for a in pitches for b in pitches):
                    raise PalError(f"label {label!r} has no two {split} notes that lie {low:g} to {high:g} semitones apart")
