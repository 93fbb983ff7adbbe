"""What is asked about a scene: kinds of tasks, their wordings, and how an item's sounds and answer are chosen.

An item's number within its task says its answer and its wording by counting, so that every answer is equally frequent under
every wording; a yes-or-no question is asked once for each answer. The rest comes from the item's own generator.
Source: our choice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np

from pal_audio.data.mixing.catalogue import Catalogue, Drawn
from pal_audio.data.mixing.settings import SceneConfig
from pal_audio.data.sounds import Split
from pal_audio.errors import PalError

NUMBER_WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_THINGS = {"instrument": "instrument", "digit": "digit"}  # what a category is called in a question; else "sound"
_NAMING: dict[str, tuple[str, ...]] = {
    "sound": ("What sound is this?", "What do you hear?", "Which sound is in this recording?", "Name the sound."),
    "instrument": ("What instrument is this?", "Which instrument plays?", "Which instrument is heard?", "Name the instrument."),
    "digit": ("Which digit is spoken?", "What number is said?", "Which digit do you hear?", "Name the digit."),
}
_FIRST = ("Which {} comes first?", "What is the first {}?", "Which {} begins before all others?", "Which {} do you hear first?")
_LAST = ("Which {} comes last?", "What is the last {}?", "Which {} begins after all others?", "Which {} do you hear last?")
_PRESENCE = ("Can you hear {}?", "Do you hear {}?", "Does the recording contain {}?")
_BEFORE = ("Do you hear {} before {}?", "Can you hear {} first and {} later?", "Does the recording have {} earlier than {}?")
_AFTER = ("Which {} comes right after {}?", "Which {} is the next after {}?", "What is the {} that follows {}?")
_COUNT = ("How many different {}s are there?", "How many different {}s do you hear?", "Count the different {}s.")
_CAPTION = ("Describe the sounds in their order.", "Write a caption for this recording.", "What happens in this recording?")
_DIGITS = ("Which digits are spoken?", "Write down the digits that you hear.", "Transcribe the digits.", "What numbers are said?")
_SPEECH = ("What is said?", "Transcribe the speech.", "Write down what is said.")
_BEHIND = ("Which sound is behind the voice?", "What do you hear in the background?", "Name the background sound.")
_HIGHER = ("Which of the two notes is higher?", "Which note is higher, the first or the second?")
_LOWER = ("Which of the two notes is lower?", "Which note is lower, the first or the second?")
_EITHER = (_HIGHER[0], _LOWER[0], _HIGHER[1], _LOWER[1])


@dataclass(frozen=True)
class Plan:
    """What an item holds and asks.

    Attributes:
        events: in the order in which they begin.
        answer: None is the caption, which is known when the times are.
        joined: the events are one string of words.
        whole: no event is cut.
        apart: no event overlaps another.
        background: label that must be behind.
    """

    events: tuple[Drawn, ...]
    question: str
    answer: str | None
    joined: bool = False
    whole: bool = False
    apart: bool = False
    background: str | None = None


@dataclass
class Draws:
    """What a kind chooses from: the item's generator, and its task's labels and scene."""

    rng: np.random.Generator
    catalogue: Catalogue
    split: Split
    categories: Sequence[str]
    scene: SceneConfig
    labels: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.labels = self.catalogue.labels(self.categories)

    @property
    def thing(self) -> str:
        """What the sounds are called in a question."""
        return _THINGS.get(self.categories[0], "sound") if len(self.categories) == 1 else "sound"

    def clips(self, labels: Sequence[str], speaker: str | None = None) -> tuple[Drawn, ...]:
        """A clip for each label."""
        return tuple(self.catalogue.draw(self.rng, self.split, label, speaker) for label in labels)

    def others(self, without: Sequence[str], num: int) -> list[str]:
        """So many different labels that are none of these."""
        rest = [label for label in self.labels if label not in without]
        return [rest[int(i)] for i in self.rng.permutation(len(rest))[:num]]

    def one_of(self, wordings: Sequence[str]) -> str:
        """A wording, each alike."""
        return wordings[int(self.rng.integers(len(wordings)))]

    def number(self, span: tuple[int, int]) -> int:
        """A whole number of a range, each alike."""
        return int(self.rng.integers(span[0], span[1] + 1))


@dataclass(frozen=True)
class TaskKind:
    """A kind of task.

    Attributes:
        about: a few words for the list.
        example: a question and its answer.
        categories: where a task names none.
        num_answers: of equally frequent ones; 1 where the answer is no choice.
        make: from draws, how often this answer was asked for before, and the answer's number.
        least: sounds in a scene; `exactly` as many where that is set.
        digits: its events are one string of words, so they need not fit as single ones.
        hears_all: it is about everything that sounds, so nothing but noise may be behind.
        compares_notes: its two events are notes of one label, `scene.interval` apart.
        ask: question and answer about a scene that is there, from draws and the labels of its events in the order in which they
            begin, at least `least`; the answer None is the caption. None: it needs a scene of its own.
        tells: kinds whose scenes `ask` may not be asked about, since their labels tell of each other.
    """

    about: str
    example: tuple[str, str]
    categories: tuple[str, ...]
    num_answers: Callable[[Draws], int]
    make: Callable[[Draws, int, int], Plan]
    least: int = 1
    exactly: int | None = None
    digits: bool = False
    hears_all: bool = False
    compares_notes: bool = False
    ask: Callable[[Draws, Sequence[str]], tuple[str, str | None]] | None = None
    tells: tuple[str, ...] = ()

    @property
    def chooses(self) -> bool:
        """Its answer is one of a few."""
        return self.num_answers is not _one

    def num_events(self, scene: SceneConfig) -> tuple[int, int]:
        """Fewest and most events of a scene; none fit where the first is the larger."""
        if self.exactly is not None:
            return self.exactly, self.exactly
        return max(self.least, scene.num_events[0]), scene.num_events[1]


def wordings_of(kind: Literal["classify", "transcribe"], categories: Sequence[str]) -> tuple[str, ...]:
    """How a kind whose questions name no sound asks about sounds of these categories, in turn."""
    if kind == "transcribe":
        return _DIGITS if tuple(categories) == ("digit",) else _SPEECH
    return _NAMING.get(categories[0] if len(categories) == 1 else "sound", _NAMING["sound"])


def _classify(draws: Draws, rank: int, answer: int) -> Plan:
    wordings = wordings_of("classify", draws.categories)
    label = draws.labels[answer]
    return Plan(draws.clips([label]), wordings[rank % len(wordings)], label)


def _presence(draws: Draws, rank: int, answer: int) -> Plan:
    asked, wording = draws.labels[rank % len(draws.labels)], _PRESENCE[rank // len(draws.labels) % len(_PRESENCE)]
    num = draws.number(draws.scene.num_events)
    labels = draws.others([asked], num)
    if answer == 0:
        labels[int(draws.rng.integers(num))] = asked
    return Plan(draws.clips(labels), wording.format(draws.catalogue.noun(asked)), ("yes", "no")[answer])


def _several(draws: Draws) -> int:
    return draws.number((max(2, draws.scene.num_events[0]), draws.scene.num_events[1]))


def _first(draws: Draws, rank: int, answer: int) -> Plan:
    label = draws.labels[answer]
    labels = [label, *draws.others([label], _several(draws) - 1)]
    return Plan(draws.clips(labels), _FIRST[rank % len(_FIRST)].format(draws.thing), label)


def _ask_first(draws: Draws, labels: Sequence[str]) -> tuple[str, str | None]:
    return draws.one_of(_FIRST).format(draws.thing), labels[0]


def _last(draws: Draws, rank: int, answer: int) -> Plan:
    label = draws.labels[answer]
    labels = [*draws.others([label], _several(draws) - 1), label]
    return Plan(draws.clips(labels), _LAST[rank % len(_LAST)].format(draws.thing), label)


def _ask_last(draws: Draws, labels: Sequence[str]) -> tuple[str, str | None]:
    return draws.one_of(_LAST).format(draws.thing), labels[-1]


def _before(draws: Draws, rank: int, answer: int) -> Plan:
    # All ordered pairs in turn; the second is one label on from the first, then two, so that a few items meet every label.
    num = len(draws.labels)
    turn, place = divmod(rank, num * (num - 1))
    one, other = (draws.labels[number % num] for number in (place, place + 1 + place // num))
    pair = [one, other] if answer == 0 else [other, one]
    labels = draws.others(pair, _several(draws) - 2)
    for at, label in zip(sorted(draws.rng.permutation(len(labels) + 2)[:2]), pair, strict=True):
        labels.insert(int(at), label)
    question = _BEFORE[(place + turn) % len(_BEFORE)].format(draws.catalogue.noun(one), draws.catalogue.noun(other))
    return Plan(draws.clips(labels), question, ("yes", "no")[answer])


def _ask_before(draws: Draws, labels: Sequence[str]) -> tuple[str, str | None]:
    one, other = (int(place) for place in draws.rng.permutation(len(labels))[:2])
    nouns = draws.catalogue.noun(labels[one]), draws.catalogue.noun(labels[other])
    return draws.one_of(_BEFORE).format(*nouns), "yes" if one < other else "no"


def _after(draws: Draws, rank: int, answer: int) -> Plan:
    label = draws.labels[answer]
    asked, *others = draws.others([label], _several(draws) - 1)
    at = int(draws.rng.integers(len(others) + 1))
    labels = [*others[:at], asked, label, *others[at:]]
    question = _AFTER[rank % len(_AFTER)].format(draws.thing, draws.catalogue.noun(asked))
    return Plan(draws.clips(labels), question, label)


def _ask_after(draws: Draws, labels: Sequence[str]) -> tuple[str, str | None]:
    at = int(draws.rng.integers(len(labels) - 1))
    return draws.one_of(_AFTER).format(draws.thing, draws.catalogue.noun(labels[at])), labels[at + 1]


def _count(draws: Draws, rank: int, answer: int) -> Plan:
    num = draws.scene.num_events[0] + answer
    return Plan(draws.clips(draws.others([], num)), _COUNT[rank % len(_COUNT)].format(draws.thing), NUMBER_WORDS[num - 1])


def _ask_count(draws: Draws, labels: Sequence[str]) -> tuple[str, str | None]:
    return draws.one_of(_COUNT).format(draws.thing), NUMBER_WORDS[len(labels) - 1]


def _caption(draws: Draws, rank: int, answer: int) -> Plan:
    labels = draws.others([], draws.number(draws.scene.num_events))
    return Plan(draws.clips(labels), _CAPTION[rank % len(_CAPTION)], None)


def _ask_caption(draws: Draws, labels: Sequence[str]) -> tuple[str, str | None]:
    return draws.one_of(_CAPTION), None


def _transcribe(draws: Draws, rank: int, answer: int) -> Plan:
    wordings = wordings_of("transcribe", draws.categories)
    if tuple(draws.categories) == ("digit",):
        events, text = _digit_string(draws)
        return Plan(events, wordings[rank % len(wordings)], text, joined=True, whole=True)
    label = draws.labels[int(draws.rng.integers(len(draws.labels)))]
    return Plan(draws.clips([label]), wordings[rank % len(wordings)], label, whole=True)


def _background(draws: Draws, rank: int, answer: int) -> Plan:
    assert draws.scene.background is not None
    label = draws.catalogue.labels(draws.scene.background.categories)[answer]
    events, _ = _digit_string(draws)
    return Plan(events, _BEHIND[rank % len(_BEHIND)], label, joined=True, whole=True, background=label)


def _digit_string(draws: Draws) -> tuple[tuple[Drawn, ...], str]:
    """Words of one speaker, each word alike, and what they say."""
    speakers = draws.catalogue.speakers(draws.split, draws.categories[0])
    speaker = speakers[int(draws.rng.integers(len(speakers)))]
    words = [draws.labels[int(i)] for i in draws.rng.integers(len(draws.labels), size=draws.number(draws.scene.num_digits))]
    return draws.clips(words, speaker), " ".join(words)


def _pitch(draws: Draws, rank: int, answer: int, wordings: Sequence[str] = _EITHER) -> Plan:
    wording = wordings[rank % len(wordings)]
    label = draws.labels[int(draws.rng.integers(len(draws.labels)))]
    low, high = draws.scene.interval
    for _ in range(_TRIES):
        pair = draws.clips([label, label])
        pitches = [note.pitch for note in pair]
        assert pitches[0] is not None
        assert pitches[1] is not None
        if low <= abs(pitches[0] - pitches[1]) <= high:
            rises = (answer == 1) == (wording in _HIGHER)  # the second is asked for and higher is, or neither
            events = pair if (pitches[0] < pitches[1]) == rises else (pair[1], pair[0])
            return Plan(events, wording, ("the first", "the second")[answer], apart=True)
    raise PalError(f"interval: {_TRIES} pairs of {label!r} lie not {low:g} to {high:g} semitones apart; widen it")


_TRIES = 1000


def _num_labels(draws: Draws) -> int:
    return len(draws.labels)


def _two(draws: Draws) -> int:
    return 2


def _one(draws: Draws) -> int:
    return 1


def _num_counts(draws: Draws) -> int:
    return draws.scene.num_events[1] - draws.scene.num_events[0] + 1


def _num_behind(draws: Draws) -> int:
    assert draws.scene.background is not None
    return len(draws.catalogue.labels(draws.scene.background.categories))


_SOUND, _DIGIT, _NOTE = ("sound",), ("digit",), ("instrument",)
TASK_KINDS: dict[str, TaskKind] = {
    "classify": TaskKind("one sound", ("What sound is this?", "dog"), _SOUND, _num_labels, _classify, exactly=1),
    "presence": TaskKind("is a sound there", ("Can you hear a dog?", "yes"), _SOUND, _two, _presence),
    "first": TaskKind(
        "which comes first", ("Which sound comes first?", "rain"), _SOUND, _num_labels, _first, least=2, ask=_ask_first
    ),
    "last": TaskKind("which comes last", ("Which sound comes last?", "dog"), _SOUND, _num_labels, _last, least=2, ask=_ask_last),
    "before": TaskKind("order of two", ("Do you hear a dog before rain?", "no"), _SOUND, _two, _before, least=2, ask=_ask_before),
    "after": TaskKind(
        "what follows",
        ("Which sound comes right after rain?", "dog"),
        _SOUND,
        _num_labels,
        _after,
        least=2,
        ask=_ask_after,
        tells=("before",),  # whose pairs are neighbours in the list of labels first
    ),
    "count": TaskKind(
        "how many different",
        ("How many different sounds are there?", "three"),
        _SOUND,
        _num_counts,
        _count,
        hears_all=True,
        ask=_ask_count,
    ),
    "caption": TaskKind(
        "all, in order",
        ("Describe the sounds in their order.", "a dog barks, then rain falls while a siren wails"),
        _SOUND,
        _one,
        _caption,
        hears_all=True,
        ask=_ask_caption,
    ),
    "transcribe": TaskKind(
        "digit strings, or speech",
        ("Which digits are spoken?", "three zero five"),
        _DIGIT,
        _one,
        _transcribe,
        exactly=1,
        digits=True,
    ),
    "background": TaskKind(
        "what is behind a voice",
        ("Which sound is behind the voice?", "sea waves"),
        _DIGIT,
        _num_behind,
        _background,
        exactly=1,
        digits=True,
    ),
    "pitch": TaskKind(
        "which of two notes",
        ("Which of the two notes is lower?", "the second"),
        _NOTE,
        _two,
        _pitch,
        exactly=2,
        compares_notes=True,
    ),
    # Never the lower one: whoever learns both at once from nothing has an exclusive or to find.
    "higher": TaskKind(
        "the higher of two notes",
        ("Which of the two notes is higher?", "the second"),
        _NOTE,
        _two,
        partial(_pitch, wordings=_HIGHER),
        exactly=2,
        compares_notes=True,
    ),
}
