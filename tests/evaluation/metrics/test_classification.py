"""Accuracy, F1, confusion and mean average precision: by hand, and against scikit-learn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, confusion_matrix, f1_score

from pal_audio.errors import PalError
from pal_audio.evaluation.metrics.classification import accuracy, confusion, macro_f1, mean_average_precision, micro_f1

PAIRS = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abcd")), min_size=1, max_size=30)


def test_accuracy() -> None:
    assert accuracy([True, False, True, True]) == 0.75
    assert accuracy([np.bool_(True), np.bool_(False)]) == 0.5
    with pytest.raises(PalError, match="no answers"):
        accuracy([])


def test_macro_f1_by_hand() -> None:
    # cat: precision 1/2, recall 1/2, F1 1/2. dog: precision 1, recall 1/2, F1 2/3.
    assert macro_f1(["cat", "cat", "dog", "dog"], ["cat", None, "dog", "cat"]) == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_an_unreadable_answer_lowers_recall_and_is_no_class() -> None:
    truths = ["cat", "cat", "dog"]
    assert macro_f1(truths, ["cat", None, "dog"]) == pytest.approx((2 / 3 + 1) / 2)
    assert macro_f1(truths, [None, None, None]) == 0
    assert micro_f1(truths, ["cat", None, "dog"]) == pytest.approx(2 / 3)  # not 2 right of 2 given


def test_macro_f1_over_labels_that_never_occur() -> None:
    assert macro_f1(["cat"], ["cat"], labels=["cat", "dog"]) == 0.5


@settings(deadline=None, max_examples=50)
@given(PAIRS)
def test_f1_is_that_of_scikit_learn(pairs: list[tuple[str, str]]) -> None:
    truths, predictions = [truth for truth, _ in pairs], [said for _, said in pairs]
    assert macro_f1(truths, predictions) == pytest.approx(f1_score(truths, predictions, average="macro", zero_division=0))
    assert micro_f1(truths, predictions) == pytest.approx(np.mean([truth == said for truth, said in pairs]))


@settings(deadline=None, max_examples=50)
@given(PAIRS)
def test_confusion_is_that_of_scikit_learn(pairs: list[tuple[str, str]]) -> None:
    truths, predictions = [truth for truth, _ in pairs], [said for _, said in pairs]
    counts = confusion(truths, predictions, "abcd")
    assert counts.shape == (4, 5)
    assert (counts[:, :4] == confusion_matrix(truths, predictions, labels=list("abcd"))).all()
    assert not counts[:, 4].any()


def test_confusion_keeps_unreadable_answers() -> None:
    assert confusion(["b", "a", "a"], ["a", None, "a"], ["a", "b"]).tolist() == [[1, 0, 1], [1, 0, 0]]


@pytest.mark.parametrize(
    ("truths", "predictions", "labels", "message"),
    [
        (["a"], ["x"], ["a", "b"], "'x' is not among the 2 labels"),
        (["y"], ["a"], ["a", "b"], "'y' is not among the 2 labels"),
        (["a"], ["a", "b"], ["a", "b"], "1 truths but 2 predictions"),
        ([], [], ["a"], "no truths"),
        (["a"], ["a"], ["a", "a"], "twice"),
    ],
)
def test_what_a_confusion_cannot_be_made_of(truths: list[str], predictions: list[str], labels: list[str], message: str) -> None:
    with pytest.raises(PalError, match=message):
        confusion(truths, predictions, labels)


def test_mean_average_precision_by_hand() -> None:
    # Class 0 ranks its two positives 1st and 3rd: (1/1 + 2/3) / 2. Class 1 ranks its one 2nd: 1/2. Class 2 has none.
    truth = np.array([[1, 0, 0], [0, 1, 0], [1, 0, 0]], dtype=bool)
    score = np.array([[0.9, 0.8, 0.5], [0.7, 0.3, 0.5], [0.6, 0.1, 0.5]])
    result = mean_average_precision(truth, score)
    assert result.per_class == (pytest.approx(5 / 6), pytest.approx(1 / 2), None)
    assert result.mean == pytest.approx((5 / 6 + 1 / 2) / 2)
    assert result.num_undefined == 1


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_mean_average_precision_is_that_of_scikit_learn(seed: int) -> None:
    generator = np.random.default_rng(seed)
    truth, score = generator.random((20, 4)) < 0.4, generator.integers(6, size=(20, 4)) / 5
    truth[0] = True
    assert mean_average_precision(truth, score).mean == pytest.approx(average_precision_score(truth, score, average="macro"))


@pytest.mark.parametrize(
    ("truth", "score", "message"),
    [
        (np.zeros((2, 2)), np.zeros((2, 2)), "no class has a positive"),
        (np.ones((2, 2)), np.zeros((2, 3)), "two .items, classes. arrays"),
        (np.ones(2), np.zeros(2), "two .items, classes. arrays"),
        (np.full((1, 1), 2), np.zeros((1, 1)), "0 or 1"),
        (np.ones((1, 2)), np.array([[0, np.nan]]), "item 0 for class 1 is nan"),
    ],
)
def test_what_has_no_mean_average_precision(truth: np.ndarray, score: np.ndarray, message: str) -> None:
    with pytest.raises(PalError, match=message):
        mean_average_precision(truth, score)
