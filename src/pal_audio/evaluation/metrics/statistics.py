"""How sure a score is: intervals and tests that resample source clips, since items of one clip are not independent.

N items; values are (N,) for a mean, or (N, K) where the statistic needs K numbers of an item, as a ratio of sums does.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pal_audio.errors import PalError
from pal_audio.evaluation.metrics.extras import load

Statistic = Callable[[NDArray[np.float64]], Any]


@dataclass(frozen=True)
class Interval:
    """From `low` to `high`, in the unit of the score."""

    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


@dataclass(frozen=True)
class PairedDifference:
    """How two systems differ on the same items.

    Args:
        difference: score of the first minus score of the second.
        interval: of the difference, by bootstrap over clusters.
        p_value: two-sided, of the hypothesis that which system gave which answer does not matter.
    """

    difference: float
    interval: Interval
    p_value: float


def mean(values: NDArray[np.float64]) -> float:
    """Mean of (N,) values: of right answers it is the accuracy."""
    return float(np.mean(values))


def ratio_of_sums(values: NDArray[np.float64]) -> float:
    """Sum of the first column over sum of the second, for (N, 2) values such as errors and words: the word error rate."""
    numerator, denominator = values.sum(axis=0)
    return float(numerator / denominator) if denominator else 0.0


def bootstrap_interval(
    values: NDArray[Any],
    clusters: Sequence[str],
    statistic: Statistic = mean,
    num: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap that draws whole clusters with replacement.

    Args:
        values: of the items, (N,) or (N, K).
        clusters: name of each item's source clip. All items of a clip are drawn together.
        statistic: from values of the shape given (with another N) to one number.
        num: resamples.
        level: share of resamples inside the interval, between 0 and 1.
        seed: of the draws.

    Returns:
        The interval. One cluster says nothing about spread: its interval is -inf to inf.

    Raises:
        PalError: The lists do not fit, a value or a resample's statistic is not finite, or an option is out of range.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", chapter 13; whole clusters, Davison and Hinkley, section
    3.8.
    """
    values, rows = _checked(values, clusters, num, level)
    if len(rows) < 2:
        return Interval(-np.inf, np.inf)
    generator = np.random.default_rng(seed)
    order, sizes = np.concatenate(rows), np.array([len(row) for row in rows])
    starts = np.cumsum(sizes) - sizes
    drawn = np.empty(num)
    for index in range(num):
        picked = generator.integers(len(rows), size=len(rows))
        lengths = sizes[picked]
        offsets = np.repeat(starts[picked] - (np.cumsum(lengths) - lengths), lengths)
        drawn[index] = statistic(values[order[offsets + np.arange(len(offsets))]])
    return _percentiles(drawn, level)


def paired_difference(
    a: NDArray[Any],
    b: NDArray[Any],
    clusters: Sequence[str],
    statistic: Statistic = mean,
    num: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> PairedDifference:
    """The difference of two systems on the same items, with its interval and the p-value of a paired permutation test.

    The test exchanges the two systems' values in whole clusters (for means: flips the sign of a cluster's differences) and
    counts how often the difference gets at least as far from 0. All exchanges are tried where there are no more than `num`,
    otherwise `num` random ones, and then the p-value is (count + 1) / (num + 1), never 0.

    Args:
        a: values of the first system, (N,) or (N, K).
        b: of the second, for the same items in the same order.
        clusters: name of each item's source clip.
        statistic: from values of one system to its score.
        num: resamples of the interval, and exchanges of the test.
        level: of the interval.
        seed: of the draws.

    Raises:
        PalError: As `bootstrap_interval`, or the two differ in shape.

    Source: Fisher's permutation test; clusters as units, our choice.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape:
        raise PalError(
            f"a paired test needs the same items of both systems, got values of shapes {first.shape} and {second.shape}"
        )
    pair = np.stack([first, second], axis=1)
    pair, rows = _checked(pair, clusters, num, level)

    def difference(values: NDArray[np.float64]) -> float:
        return float(statistic(values[:, 0]) - statistic(values[:, 1]))

    observed = difference(pair)
    interval = bootstrap_interval(pair, clusters, difference, num, level, seed)
    cluster_of = np.empty(len(pair), dtype=np.int64)
    for index, row in enumerate(rows):
        cluster_of[row] = index
    swapped = pair[:, ::-1]
    moving = [index for index, row in enumerate(rows) if (pair[row] != swapped[row]).any()]
    exact = 2 ** min(len(moving), 64) <= num
    generator = np.random.default_rng(seed)
    count, exchange = 0, np.zeros(len(rows), dtype=bool)
    for trial in range(2 ** len(moving) if exact else num):
        bits = [trial >> place & 1 for place in range(len(moving))] if exact else generator.integers(2, size=len(moving))
        exchange[moving] = np.asarray(bits, dtype=bool)
        mask = exchange[cluster_of].reshape(-1, *[1] * (pair.ndim - 1))
        count += abs(difference(np.where(mask, swapped, pair))) >= abs(observed) - 1e-12
    p_value = count / 2 ** len(moving) if exact else (count + 1) / (num + 1)
    return PairedDifference(observed, interval, p_value)


def difference_over_seeds(
    a: NDArray[Any],
    b: NDArray[Any],
    clusters: Sequence[str],
    statistic: Statistic = mean,
    num: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, Interval]:
    """How two ways of training differ: the mean of their runs' differences, run by run on the same items, and its interval.

    Each resample draws whole clusters of items and, by itself, runs. With S runs the drawn runs' distance from the mean of all is
    stretched by sqrt(S / (S - 1)) and by Student's quantile of S - 1 degrees over the normal one: few drawn runs spread too
    little. In simulations with normal effects of items and of 3 runs, 94 to 98% of the 95% intervals held the true difference,
    where drawing runs without the stretch gave 75 to 94%.

    Args:
        a: values of the first, (S, N) or (S, N, K), a row a run.
        b: of the second, for the same items and for runs that belong together pair by pair (of one seed).
        clusters: name of each item's source clip.
        statistic: from (N,) or (N, K) values of a run to its score.
        num, level, seed: as `bootstrap_interval`.

    Returns:
        Difference and interval. Of a single run the interval is over items alone.

    Raises:
        PalError: as `bootstrap_interval`, or the two differ in shape.

    Source: Davison and Hinkley, "Bootstrap Methods and their Application", sections 2.3 and 3.8; the stretch is our choice.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape or first.ndim < 2 or not len(first):
        raise PalError(f"runs are compared pair by pair on the same items, got values of shapes {first.shape} and {second.shape}")
    num_runs = len(first)
    stretch = 0.0
    if num_runs > 1:
        scipy = load("scipy.stats", "intervals over runs")
        upper = (1 + level) / 2
        ratio = float(scipy.t.ppf(upper, num_runs - 1) / scipy.norm.ppf(upper))
        stretch = float(np.sqrt(num_runs / (num_runs - 1))) * ratio
    generator = np.random.default_rng([seed, 1])

    def of_runs(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.array([statistic(values[:, 0, run]) - statistic(values[:, 1, run]) for run in range(num_runs)])

    def drawn(values: NDArray[np.float64]) -> float:
        differences = of_runs(values)
        center = differences.mean()
        picked = differences[generator.integers(num_runs, size=num_runs)].mean()
        return float(center + stretch * (picked - center))

    pair = np.moveaxis(np.stack([first, second]), 2, 0)  # items, the two, runs
    return float(of_runs(pair).mean()), bootstrap_interval(pair, clusters, drawn, num, level, seed)


def _checked(
    values: NDArray[Any], clusters: Sequence[str], num: int, level: float
) -> tuple[NDArray[np.float64], list[NDArray[np.intp]]]:
    """Values as float64, and the rows of each cluster in the order of its first item."""
    values = np.asarray(values, dtype=np.float64)
    if values.ndim < 1 or len(values) != len(clusters):
        raise PalError(
            f"resampling needs a source clip for each item, got values of shape {values.shape} and {len(clusters)} clips"
        )
    if not len(values):
        raise PalError("there are no items to resample")
    if not np.isfinite(values).all():
        raise PalError("resampling needs finite values: count an unparsable answer as wrong, do not leave it undefined")
    if num < 1 or not 0 < level < 1:
        raise PalError(f"resampling needs num of at least 1 and a level between 0 and 1, got num={num} and level={level}")
    index = {name: position for position, name in enumerate(dict.fromkeys(clusters))}
    cluster_of = np.array([index[name] for name in clusters])
    order = np.argsort(cluster_of, kind="stable")
    return values, np.split(order, np.cumsum(np.bincount(cluster_of))[:-1])


def _percentiles(drawn: NDArray[np.float64], level: float) -> Interval:
    if not np.isfinite(drawn).all():
        raise PalError("the statistic of a resample is not a finite number: it must be defined for any choice of the items")
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))
