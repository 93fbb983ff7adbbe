"""Questions and answers: they follow from what sounds, and the text of a question tells nothing of its answer."""

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

from pal_audio.data import Composer, Example, Message, chance, read_catalogue
from pal_audio.data.balance import BLOCK
from pal_audio.data.mixing import tasks as kinds
from pal_audio.data.mixing.tasks import NUMBER_WORDS, TASK_KINDS, Plan
from pal_audio.data.sounds import Split

from .sets import SOURCES, make_all, mix

BEHIND = {"background": {"sound": "sound"}}
OTHERS: dict[str, Any] = {
    "transcribe": {"scene": {"num_digits": [3, 10]}},
    "background": {"scene": BEHIND},
    "pitch": {"scene": {"interval": [1, 12]}},
    "higher": {"scene": {"interval": [1, 12]}},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_all(tmp_path_factory.mktemp("sets"))


def planned(root: Path, kind: str, num: int, split: Split = "train", **task: Any) -> list[Plan]:
    """What so many items of one kind hold and ask; nothing is decoded."""
    config = mix(root, tasks={kind: OTHERS.get(kind, {}) | task}, scene={"num_events": [1, 4]})
    composer = Composer(config, read_catalogue(config))
    return [next(composer.plans(split, index))[1] for index in range(num)]


def examples(plans: list[Plan], task: str) -> list[Example]:
    return [
        Example(
            id=str(n), task=task, messages=[Message(role="user", content=p.question), Message(role="assistant", content=p.answer)]
        )
        for n, p in enumerate(plans)
        if p.answer is not None
    ]


def names(plan: Plan) -> list[str]:
    return [event.clip.label for event in plan.events]


# The best that a reader of the question can do: one of as many answers as there are, or what was named is ruled out (`after`).
BEST = {
    "classify": 1 / 5, "presence": 1 / 2, "first": 1 / 5, "last": 1 / 5, "before": 1 / 2, "after": 1 / 4, "count": 1 / 4,
    "background": 1 / 5, "pitch": 1 / 2, "higher": 1 / 2, "transcribe": 0.005,
}  # fmt: skip


@pytest.mark.parametrize("kind", BEST)
def test_text_alone_gets_no_more_than_the_best_constant_answer(root: Path, kind: str) -> None:
    train, test = (examples(planned(root, kind, num, split), kind) for split, num in (("train", 6000), ("test", 1000)))  # type: ignore[arg-type]
    slack = 0.02 if kind == "after" else 0.001
    assert chance(train, test) <= BEST[kind] + slack
    if kind == "transcribe":
        return
    answers = Counter(example.answer for example in train)
    assert max(answers.values()) - min(answers.values()) <= 1
    by_question: dict[str, Counter[str | None]] = defaultdict(Counter)
    for example in train:
        by_question[example.question][example.answer] += 1
    for question, counts in by_question.items():
        if kind == "after":
            assert len(counts) == 4
            assert max(counts.values()) / counts.total() < 0.32, question
        else:
            assert max(counts.values()) - min(counts.values()) <= 1, question
            assert len(counts) == round(1 / BEST[kind]), question
    assert len(by_question) >= (2 if kind == "higher" else 3), "several wordings"


@pytest.mark.parametrize("split", ["train", "test"])
def test_answers_follow_from_what_sounds(root: Path, split: Split) -> None:
    for plan in planned(root, "classify", 60, split):
        assert names(plan) == [plan.answer]
    for plan in planned(root, "first", 60, split):
        assert names(plan)[0] == plan.answer
        assert len(set(names(plan))) == len(plan.events) >= 2
    for plan in planned(root, "last", 60, split):
        assert names(plan)[-1] == plan.answer
    for plan in planned(root, "count", 60, split):
        assert len(set(names(plan))) == len(plan.events) == 1 + NUMBER_WORDS.index(str(plan.answer))
    catalogue = read_catalogue(mix(root))
    noun = {label: catalogue.noun(label) for label in catalogue.labels(["sound"])}
    for plan in planned(root, "presence", 120, split):
        (asked,) = (label for label in noun if plan.question in [w.format(noun[label]) for w in kinds._PRESENCE])
        assert plan.answer == ("yes" if asked in names(plan) else "no")
    for plan in planned(root, "before", 240, split):
        pairs = [(a, b) for a in noun for b in noun if plan.question in [w.format(noun[a], noun[b]) for w in kinds._BEFORE]]
        ((one, other),) = pairs
        assert plan.answer == ("yes" if names(plan).index(one) < names(plan).index(other) else "no")
    for plan in planned(root, "after", 120, split):
        (asked,) = (label for label in noun if plan.question in [w.format("sound", noun[label]) for w in kinds._AFTER])
        assert names(plan)[names(plan).index(asked) + 1] == plan.answer
        assert names(plan).count(asked) == 1
    either, higher = (planned(root, kind, 120, split) for kind in ("pitch", "higher"))
    assert {plan.question for plan in either} == {*kinds._HIGHER, *kinds._LOWER}
    assert {plan.question for plan in higher} == {*kinds._HIGHER}
    for plan in (*either, *higher):
        pitches = [event.pitch for event in plan.events]
        asked_for = max if plan.question in kinds._HIGHER else min
        assert plan.answer == ("the first", "the second")[pitches.index(asked_for(pitches))]  # type: ignore[type-var]
        assert 1 <= abs(pitches[0] - pitches[1]) <= 12  # type: ignore[operator]
        assert len({event.clip.label for event in plan.events}) == 1


def test_digit_strings_are_of_one_speaker_and_every_length(root: Path) -> None:
    lengths: Counter[int] = Counter()
    for split, speakers in (("train", {"lucas", "yweweler"}), ("test", {"lucas", "yweweler", "theo"})):
        heard = set()
        for plan in planned(root, "transcribe", 400, split):  # type: ignore[arg-type]
            assert " ".join(names(plan)) == plan.answer
            (speaker,) = {event.clip.speaker for event in plan.events}
            heard.add(speaker)
            lengths[len(plan.events)] += 1
        assert heard == speakers
    assert set(lengths) == set(range(3, 11))
    assert min(lengths.values()) > 60


def test_presence_does_not_show_in_the_number_of_sounds(root: Path) -> None:
    counts = {"yes": Counter[int](), "no": Counter[int]()}
    for plan in planned(root, "presence", 4000):
        counts[str(plan.answer)][len(plan.events)] += 1
    for number in range(1, 5):
        assert abs(counts["yes"][number] - counts["no"][number]) < 100


def test_pairs_are_asked_about_in_every_order_and_wording(root: Path) -> None:
    """Of five labels there are twenty ordered pairs: three blocks of items hold each, in each wording, with both answers."""
    asked = Counter((plan.question, plan.answer) for plan in planned(root, "before", 3 * BLOCK))
    assert len(asked) == 20 * 3 * 2
    assert set(asked.values()) == {2, 3}
    few = {plan.question for plan in planned(root, "before", 30)}
    assert len(few) > 15


def test_procedural_notes_have_pitches_too() -> None:
    sources = [{"type": "procedural", "category": "instrument", "labels": ["guitar", "whistle"]}]
    config = mix(sources=sources, tasks={"pitch": {"scene": {"interval": [2, 7]}}})
    composer = Composer(config, read_catalogue(config))
    for index in range(20):
        pitches = [event.pitch for event in next(composer.plans("test", index))[1].events]
        assert 2 <= abs(pitches[0] - pitches[1]) <= 7  # type: ignore[operator]


def test_shares_are_as_the_weights_say_and_order_in_the_recipe_changes_nothing(root: Path) -> None:
    tasks = {"first": 1, "classify": 2, "count": 1}
    config, turned = (mix(root, tasks=dict(order)) for order in (tasks.items(), reversed(tasks.items())))
    composer, other = (Composer(c, read_catalogue(c)) for c in (config, turned))
    plans = [next(composer.plans("train", index)) for index in range(BLOCK)]
    assert Counter(name for name, _ in plans) == {"first": 25, "classify": 50, "count": 25}
    assert plans == [next(other.plans("train", index)) for index in range(BLOCK)]


def test_every_kind_says_what_it_is() -> None:
    assert set(BEST) | {"caption"} == set(TASK_KINDS)


def test_sources_of_one_label_are_taken_by_weight(root: Path) -> None:
    sources = [
        SOURCES[0] | {"labels": ["dog", "rain", "siren"], "weight": 3},
        {"type": "procedural", "labels": ["dog", "rain", "siren"]},
    ]
    config = mix(root, sources=sources)
    composer = Composer(config, read_catalogue(config))
    taken = Counter(next(composer.plans("train", index))[1].events[0].clip.source for index in range(2000))
    assert taken[0] / 2000 == pytest.approx(0.75, abs=0.03)


def test_words_of_the_recipe_take_the_place_of_ours(root: Path) -> None:
    words = {"nouns": {"dog": "a hound"}, "clauses": {"dog": "a hound bays"}}
    config = mix(root, sources=[SOURCES[0] | words], tasks={"presence": 1})
    composer = Composer(config, read_catalogue(config))
    questions = {next(composer.plans("train", index))[1].question for index in range(BLOCK)}
    assert "Can you hear a hound?" in questions
    assert not any("dog" in question for question in questions)
    assert composer.catalogue.clauses_of(["sound"])["dog"] == "a hound bays"


def test_each_category_is_asked_about_in_its_own_words() -> None:
    assert [kinds.wordings_of("classify", [name])[0] for name in ("digit", "instrument", "sound", "bird")] == [
        "Which digit is spoken?",
        "What instrument is this?",
        "What sound is this?",
        "What sound is this?",
    ]
    assert kinds.wordings_of("classify", ["digit", "instrument"])[0] == "What sound is this?"
    assert kinds.wordings_of("transcribe", ("digit",))[0] == "Which digits are spoken?"
    assert kinds.wordings_of("transcribe", ["speech"])[0] == "What is said?"
