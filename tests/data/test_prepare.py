"""`data.prepare`: scenes and manifests by one way, with weights, and clear words on what is missing."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from pal_audio.config import parse_config
from pal_audio.data import DataConfig, Example, ManifestsConfig, build, prepare
from pal_audio.errors import PalError
from tests.training.shrink import write_clips


def config(folder: Path, **changes: Any) -> ManifestsConfig:
    train = [{"path": folder / "a.jsonl"}, {"path": folder / "b.jsonl", "weight": 2.5, "name": "open"}]
    values = {"train": train, "test": [folder / "t.jsonl"], **changes}
    return parse_config(TypeAdapter(ManifestsConfig), values, "data")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, num in (("a", 4), ("b", 4), ("t", 2)):
        write_clips(tmp_path / "sets", name, num)
    return tmp_path / "sets"


def test_manifests_are_read_weighted_and_split_by_source(folder: Path, tmp_path: Path) -> None:
    data = prepare(config(folder), tmp_path / "out")
    assert list(data.sources) == ["a", "open"]
    assert [example.id for example in data.sources["a"]] == ["a-0", "a-1", "a-2", "a-3"]
    assert sorted(Counter(example.id for example in data.sources["open"]).values()) == [2, 2, 3, 3]
    assert len(data.train()) == 14
    assert data.train(["a"]) == data.sources["a"]
    assert len(data.test) == 2
    assert data.chance == 0.5
    assert data.chance_by_task == {"name": 0.5}
    assert not (tmp_path / "out").exists(), "manifests are read where they are"
    assert prepare(config(folder), tmp_path) == data
    half = {"path": folder / "b.jsonl", "weight": 0.5}
    chosen = {tuple(e.id for e in prepare(config(folder, train=[half], seed=s), tmp_path).train()) for s in range(8)}
    assert len(chosen) > 1
    assert {len(ids) for ids in chosen} == {2}


def guessed(train: list[Example], test: list[Example]) -> float:
    """What is right by the question's most frequent answer or the task's own, counted one by one."""

    def most(examples: list[Example]) -> str | None:
        return Counter(example.answer for example in examples).most_common(1)[0][0]

    by_question, by_task = 0, 0
    for example in test:
        same = [other for other in train if other.question == example.question]
        by_question += most(same or [other for other in train if other.task == example.task]) == example.answer
        by_task += most([other for other in test if other.task == example.task]) == example.answer
    return max(by_question, by_task) / len(test)


def test_what_guessing_gets_of_each_task_is_counted_in_one_walk(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, lines = np.random.default_rng(0), {"a": 60, "t": 40}
    for name, num in lines.items():
        rows = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        made = []
        for number in range(num):
            asked = rng.integers(3 if name == "a" else 4)  # one wording is new
            question, answer = f"which {asked}?", f"a {(asked if rng.random() < 0.8 else rng.integers(4)) % 4}"
            user = {"role": "user", "content": [rows[0]["messages"][0]["content"][0], {"type": "text", "text": question}]}
            messages = [user, {"role": "assistant", "content": answer}]
            made.append({"id": f"{name}{number}", "task": f"task {rng.integers(5)}", "messages": messages})
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    only = config(folder, train=[str(folder / "a.jsonl")])
    data = prepare(only, tmp_path)
    assert data.chance == guessed(data.train(), data.test)
    assert data.chance_by_task == {
        task: guessed(data.train(), [example for example in data.test if example.task == task])
        for task in sorted({example.task for example in data.test})
    }
    assert len(data.chance_by_task) == 5
    asked: list[str] = []
    question = Example.question.fget
    assert question is not None
    monkeypatch.setattr(Example, "question", property(lambda self: (asked.append(self.id), question(self))[1]))
    prepare(only, tmp_path)
    assert len(asked) <= 60 + 2 * 40, "each training example once, each held-out one for all and for its task"


def test_a_plain_path_is_a_source_and_scenes_are_one(folder: Path, tmp_path: Path) -> None:
    assert list(prepare(config(folder, train=[str(folder / "a.jsonl")]), tmp_path).sources) == ["a"]
    seen: list[tuple[int, int]] = []
    data = prepare(DataConfig(num_train=3, num_test=2, seconds=2.0), tmp_path / "out", lambda *done: seen.append(done))
    assert (list(data.sources), len(data.train()), len(data.test)) == (["scenes"], 3, 2)
    assert seen[-1] == (5, 5)


def test_what_is_missing_is_named(folder: Path, tmp_path: Path) -> None:
    (folder / "empty.jsonl").write_text("\n")
    open_end = {"id": "x", "messages": [{"role": "user", "content": "and?"}]}
    (folder / "open.jsonl").write_text(json.dumps(open_end) + "\n")
    outside = {"id": "y", "messages": [{"role": "user", "content": [{"type": "audio", "path": "../far.wav"}]}]}
    (folder / "outside.jsonl").write_text(json.dumps(outside) + "\n")
    (folder / "a-2.wav").unlink()
    cases = [
        ({}, "1 sound files are not there, the first is .*a-2.wav"),
        ({"train": ["none.jsonl"]}, r"data.train\[0\]: no such manifest none.jsonl; .*--set data.train.0.path=FILE"),
        ({"test": ["none.jsonl"]}, r"data.test\[0\]: no such manifest none.jsonl; .*--set data.test.0=FILE"),
        ({"roots": [tmp_path / "none"]}, r"data.roots\[0\]: no such folder"),
        ({"train": [folder / "empty.jsonl"]}, "holds no example"),
        ({"train": [folder / "open.jsonl"]}, "1 examples have no answer .* 'x'"),
        ({"train": [folder / "outside.jsonl"]}, "leaves the manifest's folder"),
        ({"train": [{"path": folder / "b.jsonl", "weight": 0.01}]}, "weight 0.01 leaves none of 4"),
    ]
    for changes, words in cases:
        with pytest.raises(PalError, match=words) as caught:
            prepare(config(folder, **changes), tmp_path / "out")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train": []}, "train"),
        ({"test": []}, "test"),
        ({"train": ["x/a.jsonl", "y/a.jsonl"]}, "two sources are called 'a'"),
        ({"train": [{"path": "a.jsonl", "wieght": 2}]}, "did you mean 'weight'"),
        ({"train": [{"path": "a.jsonl", "weight": 0}]}, "weight"),
        ({"root": "x"}, "did you mean 'roots'"),
    ],
)
def test_configuration_faults_are_one_clear_line(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(PalError, match=words) as caught:
        config(tmp_path, **changes)
    assert "\n" not in str(caught.value)


def test_nothing_is_composed_of_manifests(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(PalError, match="nothing to compose"):
        build(config(folder), tmp_path / "out")
