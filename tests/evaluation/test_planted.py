"""A planted model gets exactly the scores it must for every task; one that ignores the sound is reported so."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from pal_audio.evaluation.items import Item
from pal_audio.evaluation.metrics.captions import cider_d
from pal_audio.evaluation.run import Request, ask, plan
from pal_audio.evaluation.scoring import DEAF, LISTENS, read_evaluation, score
from pal_audio.evaluation.tasks import TASKS
from tests.evaluation.planted import Planted
from tests.evaluation.sets import BROKEN, CASES, GONE, LABELS, Case


def evaluated(case: Case, folder: Path, planted: Planted | None, **options: Any) -> tuple[list[Item], dict[str, Any]]:
    """Items and scores of a task; without an answerer, one that is right about all but the first two items."""
    root = case.make(folder / "set")
    planned = plan(Request([case.task], {case.task: root}, conditions=["shuffled"], **options))
    items = planned.items[case.task]
    answerer = planted or Planted.of(tagged(items, case), wrong_about(items))
    ask(answerer, planned, folder / "out", batch_size=5)
    return items, score(read_evaluation(folder / "out"))["tasks"][case.task]


def tagged(items: list[Item], case: Case) -> list[Item]:
    """Multi-label items say all their labels."""
    if TASKS[case.task].kind != "tags":
        return items
    return [item.model_copy(update={"groups": {"kind": "tags"}}) for item in items]


def heard(items: list[Item]) -> list[Item]:
    return [item for item in items if not any(word in part.path for c in item.clips for part in c for word in (BROKEN, GONE))]


def wrong_about(items: list[Item]) -> dict[str, str]:
    """The first two clips, and whatever else is asked about them."""
    clips = [item.clips for item in heard(items)[:2]]
    return {item.id: "zzz" for item in items if item.clips in clips}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.task)
def test_a_planted_model_gets_what_it_must(case: Case, tmp_path: Path) -> None:
    items, found = evaluated(case, tmp_path, None)
    known = heard(items)
    num_bad = len(items) - len(known)
    assert len(found["left_out"]) == num_bad >= (1 if case.task == "folder" else 2)  # a folder lists only what is there
    assert found["num_judged"] == found["num_items"] == len(items) >= 9
    wrong = wrong_about(items)
    for method, scores in found["methods"].items():
        assert scores["listening"] == LISTENS
        assert scores["interval"][0] <= scores["score"] <= scores["interval"][1]
        assert scores["conditions"]["shuffled"]["score"] != scores["score"]
        if found["kind"] in ("classify", "choices", "exact"):
            lucky = sum(method == "rank" and item.id in wrong and item.truth[0] == item.choices[0] for item in items)
            assert scores["score"] == pytest.approx((len(known) - len(wrong) + lucky) / len(items))
            assert scores["num_unparsable"] == (0 if method == "rank" or found["kind"] == "exact" else 2)
        elif found["kind"] == "tags":
            assert scores["score"] == pytest.approx(planted_map(items, wrong, method))
        elif found["kind"] == "caption":
            said = ["" if item not in known else wrong.get(item.id, item.truth[0]) for item in items]
            assert scores["score"] == pytest.approx(cider_d(said, [item.truth for item in items])[0])
            assert scores["score"] > 0.5
        else:
            words = {item.id: len(item.truth[0].split()) for item in items}
            lost = sum(words[item.id] for item in items if item not in known or item.id in wrong)
            assert scores["score"] == pytest.approx(lost / sum(words.values()))


def planted_map(items: list[Item], wrong: dict[str, str], method: str) -> float:
    """What scores of two levels must give; below both lies an item that was not heard."""
    known = heard(items)
    labels = sorted(LABELS)
    rows = []
    for item in items:
        said = item.truth if item in known and item.id not in wrong else []
        if item not in known:
            rows.append([-9.0] * len(labels))
        elif method == "rank":
            rows.append([0.0 if label in said else -0.9 if number == 0 else -1.0 for number, label in enumerate(labels)])
        else:
            rows.append(bag_of_words(said, labels))
    truth, scored = np.array([[label in item.truth for label in labels] for item in items]), np.array(rows)
    return float(np.mean([average_precision_score(truth[:, column], scored[:, column]) for column in range(len(labels))]))


def bag_of_words(said: list[str], labels: list[str]) -> list[float]:
    """Cosines of word counts; "zzz" has a word that no label has."""
    words = [word for label in said for word in label.split()]
    cosines = []
    for label in labels:
        own = label.split()
        cosines.append(sum(word in words for word in own) / (len(own) ** 0.5 * max(1, len(words)) ** 0.5))
    return cosines


_SHORT = ("csv", "csv-tags", "ltu-json-tags", "choices", "clothoaqa", "captions", "transcription")
ONE_OF_EACH_KIND = [case for case in CASES if case.task in _SHORT]


@pytest.mark.parametrize("case", ONE_OF_EACH_KIND, ids=lambda case: case.task)
def test_a_model_that_ignores_the_sound_is_reported(case: Case, tmp_path: Path) -> None:
    _, found = evaluated(case, tmp_path, Planted(otherwise="yes" if case.task == "clothoaqa" else "rain"))
    for scores in found["methods"].values():
        assert scores["listening"] == DEAF
        assert scores["conditions"]["shuffled"]["difference"] == 0


def test_every_task_has_a_case() -> None:
    assert {case.task for case in CASES} == set(TASKS)
    assert {TASKS[case.task].kind for case in ONE_OF_EACH_KIND} == {task.kind for task in TASKS.values()}
