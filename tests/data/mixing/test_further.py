"""Further questions: right by the events of the scene, as even as a task's own, asked of no sound that a task would not have."""

import json
import shutil
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from pal_audio import cli
from pal_audio.data import build, prepare, read_manifest, read_mix
from pal_audio.data.manifest import Example
from pal_audio.data.mixing.captions import parse_caption
from pal_audio.data.mixing.compose import Composer
from pal_audio.data.mixing.reading import read_catalogue
from pal_audio.data.mixing.tasks import NUMBER_WORDS
from pal_audio.errors import PalError

from .sets import make_all, mix

BOTH = ["sound", "instrument"]
SCENE: dict[str, Any] = {"seconds": 6, "num_events": [1, 4], "event_s": [0.3, 0.8], "overlap": {"chance": 0.5}}
TASKS: dict[str, Any] = {
    **{name: {"categories": BOTH} for name in ("first", "last", "before", "after", "count")},
    "caption": {"categories": BOTH, "weight": 2},
    "classify": 1,
    "pitch": 1,
    "transcribe": {"scene": {"num_digits": [1, 3]}},
    "other-first": {"kind": "first", "scene": {"seconds": 7}},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_all(tmp_path_factory.mktemp("sets"))


@pytest.fixture(scope="module")
def world(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("mix") / "out"
    build(mix(root, tasks=TASKS, scene=SCENE, num_train=900, num_test=10, more_questions=3), out)
    return out


def in_order(example: Example) -> list[dict[str, Any]]:
    return sorted(example.meta["events"], key=lambda event: event["onset_s"])


def test_answers_are_those_of_the_events(root: Path, world: Path) -> None:
    config = mix(root, tasks=TASKS, scene=SCENE)
    catalogue = read_catalogue(config)
    clauses = catalogue.clauses_of(BOTH)
    noun_of = {catalogue.noun(label): label for label in catalogue.labels(BOTH)}
    more = read_manifest(world / "more.jsonl")
    assert {example.task for example in more} == {"first", "last", "before", "after", "count", "caption"}
    for example in more:
        events, question, answer = in_order(example), example.question, example.answer
        labels = [event["label"] for event in events]
        asked = sorted((question.find(noun), label) for noun, label in noun_of.items() if noun in question)
        match example.task:
            case "first":
                assert answer == labels[0]
            case "last":
                assert answer == labels[-1]
            case "count":
                assert answer == NUMBER_WORDS[len(labels) - 1]
            case "after":
                assert labels.index(str(answer)) == labels.index(asked[-1][1]) + 1
            case "before":
                one, other = (label for _, label in asked)
                assert answer == ("yes" if labels.index(one) < labels.index(other) else "no")
            case "caption":
                groups = parse_caption(str(answer), clauses)
                assert [label for group in groups for label in group] == labels
                together = {
                    (one["label"], other["label"]) for one, other in pairwise(events) if other["onset_s"] < one["offset_s"]
                }
                assert {tuple(group) for group in groups if len(group) == 2} == together


def test_they_are_about_the_scenes_own_sound_and_ask_something_else(world: Path) -> None:
    hosts = {example.id: example for example in read_manifest(world / "train.jsonl")}
    found: dict[str, list[str]] = {}
    for example in read_manifest(world / "more.jsonl"):
        host_id, _, _ = example.id.rpartition("-")
        host = hosts[host_id]
        assert example.audio == host.audio
        assert example.meta == host.meta
        found.setdefault(host_id, []).append(example.task)
        assert host.task in TASKS
        assert host.task not in ("classify", "pitch", "transcribe", "other-first"), (
            "sounds of other categories, or not single ones"
        )
        assert len(host.meta["events"]) >= (1 if example.task in ("count", "caption") else 2)
        if example.task == "count":
            assert host.task in ("count", "caption"), "scenes of two and more sounds would make `one` rare"
    assert all(len(set(tasks)) == len(tasks) and hosts[host_id].task not in tasks for host_id, tasks in found.items())
    several = [host_id for host_id, host in hosts.items() if host.task in ("first", "count") and len(host.meta["events"]) > 1]
    assert all(len(found[host_id]) == 3 for host_id in several)


def test_answers_are_even(world: Path) -> None:
    more = read_manifest(world / "more.jsonl")
    counts = Counter(example.answer for example in more if example.task == "count")
    assert set(counts) == set(NUMBER_WORDS[:4])
    assert min(counts.values()) > 0.6 * max(counts.values())
    before = Counter(example.answer for example in more if example.task == "before")
    assert min(before.values()) > 0.75 * max(before.values())
    first = Counter(example.answer for example in more if example.task == "first")
    assert len(first) == 7
    assert min(first.values()) > 0.5 * max(first.values())


def test_the_same_questions_whatever_the_processes_and_with_more_scenes(root: Path, world: Path, tmp_path: Path) -> None:
    config = mix(root, tasks=TASKS, scene=SCENE, num_train=300, num_test=10, more_questions=3)
    build(config, tmp_path / "few", workers=2)
    few = (tmp_path / "few" / "more.jsonl").read_bytes()
    assert few
    assert (world / "more.jsonl").read_bytes().startswith(few)
    assert sum(read_mix(tmp_path / "few").num_examples["more"].values()) == few.count(b"\n")
    plain = tmp_path / "plain"
    build(mix(root, tasks=TASKS, scene=SCENE, num_train=300, num_test=10), plain)
    assert not (plain / "more.jsonl").exists()
    assert (plain / "train.jsonl").read_bytes() == (tmp_path / "few" / "train.jsonl").read_bytes(), "scenes stay what they are"


def test_a_folder_without_them_is_not_whole(root: Path, tmp_path: Path) -> None:
    config = mix(root, tasks={"first": 1, "last": 1}, scene=SCENE, num_train=20, num_test=4, more_questions=1)
    build(config, tmp_path / "out", workers=1)
    first = (tmp_path / "out" / "more.jsonl").read_bytes()
    (tmp_path / "out" / "more.jsonl").unlink()
    build(config, tmp_path / "out", workers=1)
    assert (tmp_path / "out" / "more.jsonl").read_bytes() == first
    with pytest.raises(PalError, match=r"another config \(more_questions differ\)"):
        build(config.model_copy(update={"more_questions": 0}), tmp_path / "out", workers=1)
    shutil.rmtree(tmp_path / "out")


def test_where_none_can_be_asked_it_is_said_at_once(root: Path, tmp_path: Path) -> None:
    alone = mix(root, tasks={"first": 1, "classify": 1}, scene=SCENE, more_questions=2)
    with pytest.raises(PalError, match="more_questions: no task may ask about another's scenes"):
        build(alone, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="text_only has none; raise num_train instead"):
        mix(root, tasks={"first": 1, "last": 1}, text_only=True, more_questions=1)


def test_what_would_count_a_background_is_not_asked_of_scenes_that_have_one(root: Path, tmp_path: Path) -> None:
    behind = {"scene": {"background": {"sound": "instrument", "snr_db": 10}}}
    tasks = {"count": 1, "presence": behind, "caption": 1}
    config = mix(root, tasks=tasks, scene=SCENE, num_train=60, num_test=4, more_questions=2)
    build(config, tmp_path / "out", workers=1)
    hosts = {example.id: example.task for example in read_manifest(tmp_path / "out" / "train.jsonl")}
    about = Counter(hosts[example.id.rpartition("-")[0]] for example in read_manifest(tmp_path / "out" / "more.jsonl"))
    assert about.keys() == {"count", "caption"}
    assert Composer(config, read_catalogue(config)).tasks == ["caption", "count", "presence"]


def asked_about(config: Any, out: Path) -> Counter[tuple[str, str]]:
    """(task of the scene, task that asks) of all further questions of a mix."""
    build(config, out, workers=1)
    hosts = {example.id: example.task for example in read_manifest(out / "train.jsonl")}
    return Counter((hosts[example.id.rpartition("-")[0]], example.task) for example in read_manifest(out / "more.jsonl"))


def test_no_scene_has_fewer_sounds_than_the_asking_tasks_own(root: Path, tmp_path: Path) -> None:
    narrow = {"scene": {"num_events": [3, 4]}}
    config = mix(
        root, tasks={"caption": 1, "count": narrow, "first": narrow}, scene=SCENE, num_train=120, num_test=4, more_questions=3
    )
    asked_about(config, tmp_path / "out")
    for example in read_manifest(tmp_path / "out" / "more.jsonl"):
        assert len(example.meta["events"]) >= (1 if example.task == "caption" else 3)


def test_nothing_sounds_behind_that_is_not_behind_the_asking_tasks_own(root: Path, tmp_path: Path) -> None:
    behind = {"scene": {"background": {"sound": "instrument", "snr_db": 10}}}
    config = mix(root, tasks={"first": 1, "last": behind, "after": 1}, scene=SCENE, num_train=60, num_test=4, more_questions=3)
    assert asked_about(config, tmp_path / "out").keys() == {("first", "after"), ("after", "first")}


def test_categories_may_stand_in_any_order(root: Path, tmp_path: Path) -> None:
    tasks = {"first": {"categories": BOTH}, "last": {"categories": BOTH[::-1]}}
    config = mix(root, tasks=tasks, scene=SCENE, num_train=40, num_test=4, more_questions=3)
    assert asked_about(config, tmp_path / "out").keys() == {("first", "last"), ("last", "first")}


def test_two_tasks_of_a_kind_do_not_ask_the_same(root: Path, tmp_path: Path) -> None:
    tasks = {"first": 1, "second-first": {"kind": "first"}, "last": 1}
    config = mix(root, tasks=tasks, scene=SCENE, num_train=60, num_test=4, more_questions=3)
    assert asked_about(config, tmp_path / "out").keys() == {("last", "first"), ("first", "last"), ("second-first", "last")}


def test_what_follows_is_not_asked_where_labels_tell_of_each_other(root: Path, tmp_path: Path) -> None:
    tasks = {name: {"categories": BOTH} for name in ("first", "before", "after")}
    config = mix(root, tasks=tasks, scene=SCENE, num_train=90, num_test=4, more_questions=3)
    pairs = asked_about(config, tmp_path / "out").keys()
    assert ("before", "after") not in pairs, "the pairs of `before` go by their distance in the list of labels"
    assert {("before", "first"), ("first", "after"), ("first", "before"), ("after", "before")} <= pairs


def test_training_on_a_mix_takes_them_as_a_source(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = mix(root, tasks={"first": 1, "last": 1}, scene=SCENE, num_train=20, num_test=4, more_questions=1)
    data = prepare(config, tmp_path / "out")
    assert {name: len(examples) for name, examples in data.sources.items()} == {"scenes": 20, "more": 20}
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(json.dumps({"name": "mine", "data": json.loads(config.resolved().model_dump_json(exclude_unset=True))}))
    assert cli.main(["data", "mix", str(recipe), str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{tmp_path}/out/{name}.jsonl" for name in ("train", "test", "more")]
