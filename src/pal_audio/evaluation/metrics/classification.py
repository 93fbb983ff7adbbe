"""Scores of answers that name a class. N items, C classes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pal_audio.errors import PalError
from pal_audio.evaluation.metrics.extras import load, same_length


@dataclass(frozen=True)
class MapResult:
    """Mean average precision.

    Args:
        mean: over the classes with a positive item, 0 to 1.
        per_class: average precision of each class, None where no item is positive.
        num_undefined: number of classes without a positive item.
    """

    mean: float
    per_class: tuple[float | None, ...]
    num_undefined: int


def accuracy(right: Sequence[bool]) -> float:
    """Share of right answers, 0 to 1. An answer that could not be read is a wrong one and must be in the list.

    Raises:
        PalError: There is no answer.
    """
    same_length(len(right), len(right), ("answers", "answers"))
    return sum(map(bool, right)) / len(right)


def macro_f1(truths: Sequence[str], predictions: Sequence[str | None], labels: Sequence[str] | None = None) -> float:
    """Mean of the classes' F1, 0 to 1.

    Args:
        truths: the class of each item.
        predictions: what was answered; None where the answer could not be read. Such an item costs its class recall; "could not
            be read" is no class of the mean.
        labels: the classes of the mean; by default those that occur in truths or predictions, as in scikit-learn.

    Raises:
        PalError: The lists do not fit, or scikit-learn is missing.

    Source: scikit-learn's `f1_score`; the rule for None is our choice.
    """
    known, codes_true, codes_predicted = _codes(truths, predictions, labels)
    metrics = load("sklearn.metrics", "F1")
    score = metrics.f1_score(codes_true, codes_predicted, labels=range(len(known)), average="macro", zero_division=0)
    return float(score)


def micro_f1(truths: Sequence[str], predictions: Sequence[str | None]) -> float:
    """F1 over all decisions, 0 to 1. With one truth and one prediction an item it equals accuracy.

    An answer that could not be read is a wrong decision here, so that staying silent does not raise precision.

    Args:
        truths: the class of each item.
        predictions: what was answered; None where it could not be read.

    Raises:
        PalError: The lists do not fit, or scikit-learn is missing.

    Source: scikit-learn's `f1_score`; LTU scores DCASE17 task 4 so.
    """
    _, codes_true, codes_predicted = _codes(truths, predictions, None)
    metrics = load("sklearn.metrics", "F1")
    return float(metrics.f1_score(codes_true, codes_predicted, average="micro", zero_division=0))


def confusion(truths: Sequence[str], predictions: Sequence[str | None], labels: Sequence[str]) -> NDArray[np.int64]:
    """How often each class was taken for each other one.

    Args:
        truths: the class of each item.
        predictions: what was answered; None where it could not be read.
        labels: the C classes, in the order of rows and columns.

    Returns:
        Counts of shape (C, C + 1): rows are truths, columns answers, and the last column is "could not be read". A row sums to
        the number of its class's items.

    Raises:
        PalError: A truth or prediction is not among the labels, or the lists do not fit.
    """
    known, codes_true, codes_predicted = _codes(truths, predictions, labels)
    counts = np.zeros((len(known), len(known) + 1), dtype=np.int64)
    np.add.at(counts, (codes_true, codes_predicted), 1)
    return counts


def mean_average_precision(truth_NC: NDArray[Any], score_NC: NDArray[Any]) -> MapResult:
    """Macro mean over classes of average precision.

    A class without a positive item has no average precision: it is left out of the mean and counted. (LTU's script averages in
    whatever scikit-learn returned for it.)

    Args:
        truth_NC: True where class C holds for item N. Shape (N, C).
        score_NC: the higher, the more likely. Shape (N, C), finite.

    Raises:
        PalError: The shapes differ, a truth is not 0 or 1, a score is not finite, or no class has a positive item.

    Source: scikit-learn's `average_precision_score`.
    """
    truth, score = np.asarray(truth_NC), np.asarray(score_NC, dtype=np.float64)
    if truth.ndim != 2 or truth.shape != score.shape:
        raise PalError(
            f"mean average precision needs two (items, classes) arrays of one shape, got {truth.shape} and {score.shape}"
        )
    if not np.isin(truth, (0, 1)).all():
        raise PalError("mean average precision: truths must be 0 or 1")
    if not np.isfinite(score).all():
        item, label = np.argwhere(~np.isfinite(score))[0]
        raise PalError(
            f"mean average precision: the score of item {item} for class {label} is {score[item, label]}, not a finite number"
        )
    metrics = load("sklearn.metrics", "mean average precision")
    columns = [(truth[:, label].astype(bool), score[:, label]) for label in range(truth.shape[1])]
    per_class = tuple(float(metrics.average_precision_score(*column)) if column[0].any() else None for column in columns)
    defined = [value for value in per_class if value is not None]
    if not defined:
        raise PalError("mean average precision: no class has a positive item")
    return MapResult(sum(defined) / len(defined), per_class, len(per_class) - len(defined))


def _codes(
    truths: Sequence[str], predictions: Sequence[str | None], labels: Sequence[str] | None
) -> tuple[list[str], NDArray[np.int64], NDArray[np.int64]]:
    """The classes, and truths and predictions as their indices; None is one index past the last class."""
    same_length(len(truths), len(predictions), ("truths", "predictions"))
    known = list(labels) if labels is not None else sorted({*truths, *(name for name in predictions if name is not None)})
    index = {name: position for position, name in enumerate(known)}
    if len(index) != len(known):
        raise PalError("the labels of a score name a class twice")
    strangers = sorted({name for name in (*truths, *predictions) if name is not None and name not in index})
    if strangers:
        raise PalError(f"{strangers[0]!r} is not among the {len(known)} labels of the score: map answers to labels first")
    predicted = [len(known) if name is None else index[name] for name in predictions]
    return known, np.array([index[name] for name in truths]), np.array(predicted)
