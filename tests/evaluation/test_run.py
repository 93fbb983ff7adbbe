"""An evaluation's folder: batches, shards, resume, what is refused, and what is left out."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pal_audio.data.folder import locked
from pal_audio.data.manifest import Message
from pal_audio.errors import PalError
from pal_audio.evaluation import store
from pal_audio.evaluation.conditions import CONDITIONS, Donors, clip_key
from pal_audio.evaluation.run import Planned, Request, ask, plan
from pal_audio.evaluation.scoring import read_evaluation, score
from pal_audio.evaluation.shards import join_shards
from tests.evaluation import sets
from tests.evaluation.planted import Planted

FILES = (store.ANSWERS, store.ITEMS, store.RUN)


@pytest.fixture
def planned(tmp_path: Path) -> Planned:
    roots = {"csv": sets.csv(tmp_path / "csv"), "choices": sets.choices(tmp_path / "choices")}
    return plan(Request(["csv", "choices"], roots, conditions=["shuffled"]))


def planted(planned: Planned, **fields: Any) -> Planted:
    """Right about everything but one choice, where it says characters at which text, not files, may be cut into lines."""
    wrong = {planned.items["choices"][1].id: "odd\u2028\x85\x0bones"} if "choices" in planned.items else {}
    return Planted.of([item for items in planned.items.values() for item in items], wrong, **fields)


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


@pytest.mark.parametrize("stop_after", [0, 1, 5, 11])
def test_killed_and_resumed_is_uninterrupted(stop_after: int, planned: Planned, tmp_path: Path) -> None:
    ask(planted(planned), planned, tmp_path / "whole", batch_size=5)
    with pytest.raises(KeyboardInterrupt):
        ask(planted(planned, stop_after=stop_after), planned, tmp_path / "killed", batch_size=5)
    path = tmp_path / "killed" / store.ANSWERS
    if path.is_file():  # a kill in the middle of a line
        with open(path, "ab") as file:
            file.write((tmp_path / "whole" / store.ANSWERS).read_bytes().splitlines()[-1][:30])
    again = planted(planned)
    ask(again, planned, tmp_path / "killed", batch_size=5, resume=True)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    # a batch is asked under two conditions; what was whole before is not asked again
    assert len(again.batches) == 12 - 2 * (stop_after // 2)


def test_a_batch_that_was_cut_between_lines_is_asked_again(planned: Planned, tmp_path: Path) -> None:
    ask(planted(planned), planned, tmp_path / "out", batch_size=5)
    before = contents(tmp_path / "out")
    lines = before[store.ANSWERS].splitlines(keepends=True)
    (tmp_path / "out" / store.ANSWERS).write_bytes(b"".join(lines[:13]))  # 10 lines are a batch under two conditions
    again = planted(planned)
    ask(again, planned, tmp_path / "out", batch_size=5, resume=True)
    assert contents(tmp_path / "out") == before
    assert len(again.batches) == 10


def test_an_item_too_long_to_be_asked_is_left_out_alone(tmp_path: Path) -> None:
    """By name and under every condition; and a clip too long for a question is not put in the place of its own."""
    planned = plan(Request(["answers"], {"answers": sets.answers(tmp_path)}, methods=["generate"]))
    items = planned.items["answers"]
    long = next(item for item in items if item.id == "c3")
    donors, by_key = Donors(items), {clip_key(item.clips[0]): item for item in items}
    first_donor = {item.id: by_key[clip_key(next(donors.of(item.clips[0])))] for item in items}
    readable = [item for item in items if not {sets.GONE, sets.BROKEN} & {item.id[2:], first_donor[item.id].id[2:]}]
    other = next(
        item for item in readable if long not in (item, first_donor[item.id]) and item.question != first_donor[item.id].question
    )
    unfit = first_donor[other.id]

    class Short(Planted):
        def too_long(self, heard: Sequence[str], prompt: list[Message]) -> str:
            pair = heard[0], prompt[-1].text
            return "too long" if heard[0] == clip_key(long.clips[0]) or pair == (clip_key(unfit.clips[0]), other.question) else ""

        def answer(self, heard: list[str], prompt: list[Message]) -> str:
            assert not self.too_long(heard, prompt)
            return super().answer(heard, prompt)

    out = ask(Short.of(items, {}), planned, tmp_path / "out", batch_size=5)
    answers = store.read_answers(out / store.ANSWERS)
    for condition in CONDITIONS:
        faults = {answer.id: answer.fault for answer in answers if answer.condition == condition and answer.fault}
        assert faults[long.id] == "too long"
        assert len(faults) == 3, "the missing and the broken clip beside it"
    scores = score(read_evaluation(out))["tasks"]["answers"]
    assert {"id": long.id, "reason": "too long"} in scores["left_out"]


def test_shards_together_are_the_whole(planned: Planned, tmp_path: Path) -> None:
    ask(planted(planned), planned, tmp_path / "whole", batch_size=5, device="cuda")
    for index in (2, 0):
        ask(planted(planned), planned, tmp_path / "parts", batch_size=5, shard=(index, 3), device=f"cuda:{index}")
    with pytest.raises(PalError, match=r"shard-1-of-3 is missing; run it with --shard 1/3"):
        join_shards(tmp_path / "parts")
    with pytest.raises(KeyboardInterrupt):
        ask(planted(planned, stop_after=2), planned, tmp_path / "parts", batch_size=5, shard=(1, 3), device="cuda:1")
    with pytest.raises(PalError, match=r"unfinished; go on with it by --shard 1/3 --resume"):
        join_shards(tmp_path / "parts")
    ask(planted(planned), planned, tmp_path / "parts", batch_size=5, shard=(1, 3), device="cuda:1", resume=True)
    with locked(tmp_path / "parts" / "shard-2-of-3"), pytest.raises(PalError, match="being written by another process"):
        join_shards(tmp_path / "parts")
    join_shards(tmp_path / "parts")
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    other = planted(planned, fingerprint="another")
    ask(other, planned, tmp_path / "parts", batch_size=5, shard=(1, 3), device="cuda:1", overwrite=True)
    with pytest.raises(PalError, match="holds an evaluation of another model"):
        join_shards(tmp_path / "parts")
    ask(planted(planned), planned, tmp_path / "parts", batch_size=5, shard=(0, 2))
    with pytest.raises(PalError, match=r"shard-0-of-2 and shard-0-of-3 are not of one evaluation"):
        join_shards(tmp_path / "parts")


def test_batches_of_another_size_give_the_same_answers(planned: Planned, tmp_path: Path) -> None:
    for size in (3, 5, 100):
        ask(planted(planned), planned, tmp_path / str(size), batch_size=size)
    by_key = [
        {(line.task, line.condition, line.id): line for line in store.read_answers(tmp_path / str(size) / store.ANSWERS)}
        for size in (3, 5, 100)
    ]
    assert by_key[0] == by_key[1] == by_key[2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fingerprint": "another"}, r"of another model \(planted\)"),
        ({"batch_size": 4}, "in batches of 5"),
        ({"device": "cuda"}, "made on cpu"),
        ({"request": {"prompts": {"csv": "Which?"}}}, "of another csv: its items, prompt"),
        ({"request": {"tasks": ["csv"]}}, r"of other tasks \(csv, choices\)"),
        ({"request": {"conditions": ["muted"]}}, "of another csv"),
        ({"request": {"methods": ["rank"]}}, "of another csv"),
    ],
)
def test_another_evaluation_in_the_same_folder_is_refused(
    change: dict[str, Any], message: str, planned: Planned, tmp_path: Path
) -> None:
    ask(planted(planned), planned, tmp_path / "out", batch_size=5)
    roots = {"csv": tmp_path / "csv" / "mine.csv", "choices": tmp_path / "choices" / "test.jsonl"}
    options = {"tasks": ["csv", "choices"], "conditions": ["shuffled"], **change.get("request", {})}
    other = plan(Request(data={name: roots[name] for name in options["tasks"]}, **options))
    answerer = planted(other, fingerprint=change.get("fingerprint", "planted-1"))
    settings = {"batch_size": change.get("batch_size", 5), "device": change.get("device", "cpu")}
    with pytest.raises(PalError, match=message):
        ask(answerer, other, tmp_path / "out", resume=True, **settings)
    with pytest.raises(PalError, match="go on with --resume, or replace it with --overwrite"):
        ask(answerer, other, tmp_path / "out", **settings)
    ask(answerer, other, tmp_path / "out", overwrite=True, **settings)
    assert read_evaluation(tmp_path / "out").info.fingerprint == answerer.fingerprint


def test_a_changed_set_is_another_evaluation_and_a_moved_one_is_not(planned: Planned, tmp_path: Path) -> None:
    ask(planted(planned), planned, tmp_path / "out", batch_size=5)
    (tmp_path / "csv").rename(tmp_path / "moved")
    request = Request(["csv", "choices"], {"csv": tmp_path / "moved", "choices": tmp_path / "choices"}, conditions=["shuffled"])
    moved = plan(request)
    ask(planted(moved), moved, tmp_path / "out", batch_size=5, resume=True)
    table = tmp_path / "moved" / "mine.csv"
    table.write_text(table.read_text().replace("c3.wav,dog bark", "c3.wav,rain"))
    changed = plan(request)
    with pytest.raises(PalError, match="of another csv"):
        ask(planted(changed), changed, tmp_path / "out", batch_size=5, resume=True)


def test_a_folder_of_something_else_is_never_touched(planned: Planned, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    for options in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(PalError, match="choose a new folder"):
            ask(planted(planned), planned, tmp_path / "out", **options)
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"


def test_an_unfinished_evaluation_is_not_scored(planned: Planned, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        ask(planted(planned, stop_after=6), planned, tmp_path / "out", batch_size=5)
    with pytest.raises(PalError, match="unfinished, 24 of 48 answers are there"):
        read_evaluation(tmp_path / "out")


def test_damaged_answers_are_named(planned: Planned, tmp_path: Path) -> None:
    ask(planted(planned), planned, tmp_path / "out", batch_size=5)
    path = tmp_path / "out" / store.ANSWERS
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:2], "{}\n", *lines[3:]]))
    with pytest.raises(PalError, match=r"answers\.jsonl, line 3"):
        read_evaluation(tmp_path / "out")
    path.write_text("".join([lines[1], lines[0], *lines[2:]]))
    with pytest.raises(PalError, match="stands where"):
        ask(planted(planned), planned, tmp_path / "out", batch_size=5, resume=True)


def test_clips_that_cannot_be_heard_stay_in_the_denominator(planned: Planned, tmp_path: Path) -> None:
    ask(planted(planned), planned, tmp_path / "out", batch_size=5)
    evaluation = read_evaluation(tmp_path / "out")
    found = score(evaluation)["tasks"]["csv"]
    reasons = {item["id"]: item["reason"] for item in found["left_out"]}
    assert len(reasons) == 2
    assert any("no such audio file" in reason for reason in reasons.values())
    assert any("broken" in reason and "c4" in reason for reason in reasons.values())
    assert found["methods"]["rank"]["score"] == pytest.approx(10 / 12)
    answers = evaluation.answers["csv", "shuffled"]  # the same items are left out of every condition, and no others
    assert {answer.id for answer in answers if answer.fault} == set(reasons)


def test_a_part_of_a_set_is_spread_over_it(tmp_path: Path) -> None:
    root = sets.csv(tmp_path / "csv")
    part = plan(Request(["csv"], {"csv": root}, limit=4))
    assert [item.id for item in part.items["csv"]] == ["mine-2", "mine-5", "mine-8", "mine-11"]
    assert (part.infos[0].num_items, part.infos[0].num_in_set) == (4, 12)


def test_a_set_that_is_not_there_leaves_its_task_out(tmp_path: Path) -> None:
    root = sets.csv(tmp_path / "csv")
    (tmp_path / "empty").mkdir()
    planned = plan(
        Request(["csv", "esc50", "clotho", "mmau"], {"csv": root, "esc50": tmp_path / "empty", "clotho": tmp_path / "no"})
    )
    assert list(planned.items) == ["csv"]
    assert "looked for meta/esc50.csv" in planned.left_out["esc50"]
    assert "no such folder" in planned.left_out["clotho"]
    assert "say where it is, --data mmau=ROOT" in planned.left_out["mmau"]
    with pytest.raises(PalError, match="no task can be asked"):
        plan(Request(["esc50"], {"esc50": tmp_path / "empty"}))


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(["esc5"]), "did you mean 'esc50'"),
        (Request(["csv"], prompts={"esc50": "What?"}), "--prompt esc50=...: esc50 is not among --tasks csv"),
        (Request(["clotho"], methods=["rank"]), "--method rank: clotho can be answered by generate"),
    ],
)
def test_a_wrong_request_is_refused(request_: Request, message: str) -> None:
    with pytest.raises(PalError, match=message):
        plan(request_)


def test_one_folder_may_hold_all_sets(tmp_path: Path) -> None:
    sets.csv(tmp_path / "csv")
    sets.esc(tmp_path / "esc10")
    planned = plan(Request(["csv", "esc10"], {"": tmp_path}, splits={"esc10": "val"}))
    assert [info.split for info in planned.infos] == ["all", "val"]
    assert {item.groups["fold"] for item in planned.items["esc10"]} == {"4"}


def test_prompts_are_the_tasks_unless_given(tmp_path: Path) -> None:
    roots = {"csv": sets.csv(tmp_path / "csv"), "choices": sets.choices(tmp_path / "choices")}
    request = Request(["csv", "choices"], roots, methods=["match", "generate"], prompts={"choices": "Well?"})
    first, second = plan(request).infos
    assert first.prompts == {
        "match": "Close-ended question: Write an audio caption describing the sound.",
        "generate": "What sound is this?",
    }
    assert second.prompts == {"generate": "Well?"}
    assert json.loads(first.model_dump_json())["prompts"]["generate"] == "What sound is this?"


def test_a_missing_package_is_named_before_anything_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jiwer", None)
    with pytest.raises(PalError, match=r"jiwer: pip install 'pal-audio\[eval\]'"):
        plan(Request(["transcription"], {"transcription": sets.transcription(tmp_path / "set")}))


def test_one_caption_has_no_word_weights(tmp_path: Path) -> None:
    roots = {"captions": sets.captions(tmp_path / "captions"), "csv": sets.csv(tmp_path / "csv")}
    planned = plan(Request(["captions", "csv"], roots, limit=1))
    assert "two items are needed" in planned.left_out["captions"]
    assert list(planned.items) == ["csv"]


def test_saying_nothing_is_never_right(tmp_path: Path) -> None:
    for number in range(4):
        sets.sound(tmp_path / f"{number}.wav")
    sets.text(
        tmp_path / "mine.csv", "path,question,answer", '0.wav,Well?,"?"', "1.wav,Well?, ", "2.wav,Well?,yes", "gone.wav,Well?,!"
    )
    planned = plan(Request(["csv-answers"], {"csv-answers": tmp_path / "mine.csv"}, conditions=["muted"]))
    ask(Planted(otherwise=""), planned, tmp_path / "out")
    found = score(read_evaluation(tmp_path / "out"))["tasks"]["csv-answers"]
    assert found["methods"]["generate"]["score"] == 0
    assert [item["reason"][:12] for item in found["left_out"]] == ["empty answer", "no such audi"]


def test_two_folders_of_one_label_are_refused(tmp_path: Path) -> None:
    for name in ("dog_bark", "dog bark"):
        sets.sound(tmp_path / "set" / name / "a.wav")
    with pytest.raises(PalError, match="two sub-folders stand for 'dog bark'"):
        plan(Request(["folder"], {"folder": tmp_path / "set"}))
