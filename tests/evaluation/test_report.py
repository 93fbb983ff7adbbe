"""What the report says of planted answers, and how two evaluations are compared."""

import builtins
import json
from pathlib import Path
from typing import Any

import pytest

from pal_audio.errors import PalError
from pal_audio.evaluation import aac
from pal_audio.evaluation.compare import compare
from pal_audio.evaluation.official import write_official
from pal_audio.evaluation.report import write_report
from pal_audio.evaluation.run import Request, ask, plan
from pal_audio.evaluation.scoring import NOT_TESTED, read_evaluation, score
from tests.evaluation import sets
from tests.evaluation.planted import Planted

TASKS = {"csv": sets.csv, "mmau": sets.mmau, "captions": sets.captions, "fsdd-strings": sets.fsdd}


def evaluated(folder: Path, names: list[str], out: str = "out", wrong: int = 0, **options: Any) -> Path:
    """A scored evaluation of a model that is wrong about the first so many items of each task."""
    roots = {name: folder / name for name in names}
    for name, root in roots.items():
        if not root.exists():
            TASKS[name](root)
    planned = plan(Request(names, roots, **{"conditions": ["shuffled"], **options}))
    items = [item for found in planned.items.values() for item in found]
    mistakes = {item.id: "zzz" for found in planned.items.values() for item in found[:wrong]}
    ask(Planted.of(items, mistakes), planned, folder / out)
    score(read_evaluation(folder / out))
    return folder / out


def test_the_report_says_what_a_reader_must_know(tmp_path: Path) -> None:
    out = evaluated(tmp_path, ["csv", "mmau", "captions"], wrong=1, limit=11)
    text = write_report(out).read_text()
    for said in (
        "| csv | rank | 11 | accuracy | 81.8%",
        "| csv | generate | 11 | accuracy | 72.7%",
        "11 items, 11 source clips, a part of the 12 of this split",
        "prompt: `What sound is this?`",
        r'the first item as the model reads it: `"[user] What sound is this?\n"`',
        "read by: parsers.parse_label",
        "prompt: each item's own question",
        "the official string rule of MMAU and MMAR",
        "unparsable answers: 1",
        "left out: 2 items, counted as wrong",
        "no such audio file",
        "| task | n | accuracy | 95% interval |",
        "| difficulty | n |",
        "- spice: needs aac-metrics in an environment of its own",
        "**It listens: another item's sound makes it worse.**",
        "![csv-rank-confusion](csv-rank-confusion.png)",
        "![mmau-generate-groups](mmau-generate-groups.png)",
    ):
        assert said in text, said
    for picture in ("csv-rank-confusion.png", "mmau-generate-groups.png"):
        assert (out / picture).read_bytes().startswith(b"\x89PNG")


def test_a_condition_that_was_not_asked_is_not_tested(tmp_path: Path) -> None:
    out = evaluated(tmp_path, ["csv"], conditions=["muted"])
    scores = json.loads((out / "scores.json").read_text())["tasks"]["csv"]["methods"]["rank"]
    assert scores["listening"] == NOT_TESTED
    assert scores["conditions"]["muted"]["better"]
    assert "was not tested" in write_report(out).read_text()


def test_the_report_stands_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = evaluated(tmp_path, ["csv"])
    imported = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "matplotlib":
            raise ImportError(name)
        return imported(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    assert "Pictures were not drawn: matplotlib is not installed" in write_report(out).read_text()
    assert not list(out.glob("*.png"))


def test_tags_and_the_embedder_are_named(tmp_path: Path) -> None:
    planned = plan(Request(["fsd50k"], {"fsd50k": sets.fsd50k(tmp_path / "set")}))
    ask(Planted(otherwise="Audio caption: rain falls."), planned, tmp_path / "out")
    found = score(read_evaluation(tmp_path / "out"))["tasks"]["fsd50k"]["methods"]["match"]
    assert found["prompt"] == "Close-ended question: Write an audio caption describing the sound."
    assert found["embedder"] == "bag-of-words (not comparable)"
    assert f"text embedder: {found['embedder']}" in write_report(tmp_path / "out").read_text()


def test_two_evaluations_are_compared_item_by_item(tmp_path: Path) -> None:
    good = evaluated(tmp_path, ["csv", "fsdd-strings"], "good")
    bad = evaluated(tmp_path, ["csv"], "bad", wrong=4, methods=["generate"])
    (row,) = compare(good, bad)
    assert (row["task"], row["method"], row["num"], row["same_prompt"]) == ("csv", "generate", 12, True)
    assert (row["first"], row["second"]) == (pytest.approx(10 / 12), pytest.approx(6 / 12))
    assert row["difference"] == pytest.approx(4 / 12)
    assert row["p_value"] == pytest.approx(2 / 2**4)  # four items differ: all signs the same way, or all the other
    assert compare(bad, good)[0]["difference"] == pytest.approx(-4 / 12)
    assert compare(good, good)[0]["p_value"] == 1


def test_an_error_rate_is_better_when_it_is_lower(tmp_path: Path) -> None:
    good = evaluated(tmp_path, ["fsdd-strings"], "good")
    bad = evaluated(tmp_path, ["fsdd-strings"], "bad", wrong=8)
    (row,) = compare(good, bad)
    assert row["score"] == "wer"
    assert row["first"] < row["second"]
    assert row["difference"] == pytest.approx(row["second"] - row["first"])
    assert row["interval"][0] > 0


def test_other_items_are_not_compared(tmp_path: Path) -> None:
    first = evaluated(tmp_path, ["csv"], "a")
    second = evaluated(tmp_path, ["csv"], "b", limit=5)
    with pytest.raises(PalError, match=r"share no task .* \(other items, split or version: csv\)"):
        compare(first, second)


def test_answers_for_the_official_scripts_hold_every_item(tmp_path: Path) -> None:
    out = evaluated(tmp_path, ["mmau"], wrong=1)
    (path,) = write_official(read_evaluation(out))
    rows = json.loads(path.read_text())
    assert [row["id"] for row in rows] == sets.names()
    assert rows[1]["model_output"] == rows[1]["model_prediction"] == rows[1]["answer"] == "rain"
    assert (rows[0]["model_output"], rows[4]["model_output"]) == ("", "")  # names no choice; left out


def test_an_open_test_set_is_asked_and_not_judged(tmp_path: Path) -> None:
    root = sets.mmau(tmp_path / "mmau")
    rows = json.loads((root / "mmau-test-mini.json").read_text())
    (root / "mmau-test.json").write_text(json.dumps([{key: row[key] for key in row if key != "answer"} for row in rows]))
    planned = plan(Request(["mmau"], {"mmau": root}, splits={"mmau": "test"}))
    ask(Planted(otherwise="rain"), planned, tmp_path / "out")
    found = score(read_evaluation(tmp_path / "out"))["tasks"]["mmau"]
    assert (found["num_items"], found["num_judged"]) == (12, 0)
    assert found["methods"]["generate"]["score"] is None
    assert "no truth to judge by" in write_report(tmp_path / "out").read_text()


def test_scores_of_another_tool_stand_in_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = evaluated(tmp_path, ["captions"])
    asked: list[Any] = []

    def stub(python: Path, candidates: list[str], references: list[list[str]], metrics: list[str], timeout_s: float) -> Any:
        asked.append((python, candidates, references, metrics, timeout_s))
        return type("Scores", (), {"corpus": {"spice": 0.25}, "version": "0.5.5"})

    monkeypatch.setattr(aac, "score_with_aac_metrics", stub)
    aac.score_captions(out, Path("other/python"), ["spice"], 60)
    ((_, candidates, references, metrics, _),) = asked
    assert len(candidates) == len(references) == 12
    assert candidates[4] == ""  # left out, and still there
    assert metrics == ["spice"]
    text = write_report(out).read_text()
    assert "By aac-metrics 0.5.5:\n\n- spice: 0.25" in text
    assert "- spice: needs" not in text
    assert "- fense: needs" in text
    with pytest.raises(PalError, match="scores captions, and no task"):
        aac.score_captions(evaluated(tmp_path, ["csv"], "other"), Path("python"), ["spice"], 60)
