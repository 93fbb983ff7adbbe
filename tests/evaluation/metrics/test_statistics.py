"""Intervals and paired tests that resample clusters: by enumeration, against scipy, and their coverage."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap, permutation_test

from pal_audio.errors import PalError
from pal_audio.evaluation.metrics.statistics import (
    Interval,
    bootstrap_interval,
    difference_over_seeds,
    paired_difference,
    ratio_of_sums,
)

RIGHT = np.array([1, 1, 0, 1, 0, 1, 1, 0, 1, 1], dtype=bool)
OWN = [str(index) for index in range(10)]


def test_items_of_their_own_give_the_interval_of_scipy() -> None:
    ours = bootstrap_interval(RIGHT, OWN, num=20_000)
    theirs = bootstrap((RIGHT.astype(float),), np.mean, n_resamples=20_000, method="percentile", rng=0).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)  # the resamples' means are tenths


def test_whole_clusters_are_drawn() -> None:
    values, clusters = np.array([1.0, 2.0, 10.0]), ["x", "y", "x"]
    seen: set[tuple[float, ...]] = set()

    def remember(drawn: np.ndarray) -> float:
        seen.add(tuple(sorted(drawn)))
        return float(drawn.mean())

    bootstrap_interval(values, clusters, remember, num=100)
    assert seen == {(1.0, 1.0, 10.0, 10.0), (1.0, 2.0, 10.0), (2.0, 2.0)}


def test_copies_of_an_item_do_not_make_it_surer() -> None:
    once = bootstrap_interval(RIGHT, OWN)
    tenfold = bootstrap_interval(np.repeat(RIGHT, 10), np.repeat(OWN, 10).tolist())
    assert tenfold == once
    as_if_independent = bootstrap_interval(np.repeat(RIGHT, 10), [str(index) for index in range(100)])
    assert as_if_independent.high - as_if_independent.low < 0.5 * (once.high - once.low)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        of_clip = generator.random(40) < 0.5  # two items of a clip are right together
        covered += 0.5 in bootstrap_interval(np.repeat(of_clip, 2), np.repeat(np.arange(40), 2).tolist(), num=300, seed=trial)
    assert 0.90 <= covered / 200 <= 0.99


def test_the_same_seed_gives_the_same_interval() -> None:
    values = np.random.default_rng(0).random(50)
    names = [str(index) for index in range(50)]
    assert bootstrap_interval(values, names, seed=3) == bootstrap_interval(values, names, seed=3)
    assert bootstrap_interval(values, names, seed=3) != bootstrap_interval(values, names, seed=4)


def test_a_wider_level_gives_a_wider_interval() -> None:
    narrow, wide = (bootstrap_interval(RIGHT, OWN, level=level) for level in (0.5, 0.99))
    assert wide.low < narrow.low <= narrow.high < wide.high


def test_a_ratio_of_sums_is_resampled_as_one() -> None:
    interval = bootstrap_interval(np.array([[1.0, 2.0], [3.0, 30.0]]), ["x", "y"], ratio_of_sums, num=500, level=0.99)
    assert interval == Interval(pytest.approx(0.1), pytest.approx(0.5))


def test_one_cluster_says_nothing() -> None:
    assert bootstrap_interval(np.ones(3), ["x"] * 3) == Interval(-np.inf, np.inf)


def every_exchange(a: np.ndarray, b: np.ndarray, clusters: list[str]) -> float:
    """The exact p-value, written out."""
    names = sorted(set(clusters))
    sums = [sum(x - y for x, y, cluster in zip(a, b, clusters, strict=True) if cluster == name) for name in names]
    totals = [abs(np.dot(signs, sums)) for signs in itertools.product((1, -1), repeat=len(sums))]
    return float(np.mean([total >= abs(sum(sums)) - 1e-9 for total in totals]))


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.sampled_from("uvwxyz")), min_size=1, max_size=14))
@settings(max_examples=40, deadline=None)
def test_the_p_value_is_exact_for_few_clusters(items: list[tuple[bool, bool, str]]) -> None:
    a, b = (np.array([item[side] for item in items], dtype=float) for side in (0, 1))
    clusters = [name for *_, name in items]
    found = paired_difference(a, b, clusters, num=100)
    assert found.difference == pytest.approx(a.mean() - b.mean())
    assert found.p_value == pytest.approx(every_exchange(a, b, clusters))


def test_the_p_value_is_that_of_scipy() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.normal(0.4, 1, 60), generator.normal(0, 1, 60)
    theirs = permutation_test((a, b), lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=20_000, rng=0)
    ours = paired_difference(a, b, [str(index) for index in range(60)], num=20_000)
    assert 0.01 < theirs.pvalue < 0.2
    assert ours.p_value == pytest.approx(theirs.pvalue, abs=0.01)


def test_a_clear_difference_and_none() -> None:
    names = [str(index) for index in range(40)]
    better, worse = np.ones(40), np.zeros(40)
    worse[:10] = 1
    found = paired_difference(better, worse, names)
    assert found.difference == 0.75
    assert found.p_value == pytest.approx(1 / 2001)
    assert 0 not in found.interval
    same = paired_difference(worse, worse, names)
    assert (same.difference, same.p_value, same.interval) == (0, 1, Interval(0, 0))


def test_one_clip_with_many_items_is_one_observation() -> None:
    found = paired_difference(np.ones(40), np.zeros(40), ["x"] * 20 + ["y"] * 20)
    assert found.p_value == 0.5


def test_the_difference_of_two_error_rates() -> None:
    a, b = np.array([[1.0, 10.0], [2.0, 10.0]]), np.array([[4.0, 10.0], [8.0, 10.0]])
    found = paired_difference(a, b, ["x", "y"], ratio_of_sums)
    assert found.difference == pytest.approx(3 / 20 - 12 / 20)
    assert found.p_value == 0.5
    assert found.interval == Interval(pytest.approx(-0.6), pytest.approx(-0.3))


@pytest.mark.parametrize(
    ("values", "clusters", "options", "message"),
    [
        (np.ones(2), ["x"], {}, "for each item"),
        (np.ones(0), [], {}, "no items"),
        (np.array([1.0, np.nan]), ["x", "y"], {}, "finite values"),
        (np.ones(2), ["x", "y"], {"num": 0}, "num=0"),
        (np.ones(2), ["x", "y"], {"level": 1.0}, "level=1.0"),
        (np.ones(2), ["x", "y"], {"statistic": lambda values: np.nan}, "statistic of a resample"),
    ],
)
def test_what_cannot_be_resampled(values: np.ndarray, clusters: list[str], options: dict, message: str) -> None:
    with pytest.raises(PalError, match=message):
        bootstrap_interval(values, clusters, **options)


def test_a_paired_test_needs_the_same_items() -> None:
    with pytest.raises(PalError, match=r"\(2,\) and \(3,\)"):
        paired_difference(np.ones(2), np.ones(3), ["x", "y"])


def test_runs_differ_by_the_mean_of_their_differences() -> None:
    a, b = np.array([[1, 1, 0, 0], [1, 1, 1, 0]]), np.array([[0, 1, 0, 0], [0, 0, 1, 0]])
    difference, interval = difference_over_seeds(a, b, list("wxyz"))
    assert difference == pytest.approx((1 / 4 + 2 / 4) / 2)
    assert difference in interval
    errors = np.array([[[1, 4], [0, 2]]]), np.array([[[3, 4], [0, 2]]])
    assert difference_over_seeds(*errors, ["x", "y"], ratio_of_sums)[0] == pytest.approx(1 / 6 - 3 / 6)


def test_a_single_run_has_the_interval_of_its_items() -> None:
    other = np.roll(RIGHT, 3)
    _, interval = difference_over_seeds(RIGHT[None], other[None], OWN, num=500)
    assert interval == paired_difference(RIGHT, other, OWN, num=500).interval


def test_the_interval_over_runs_covers_the_truth_when_runs_differ() -> None:
    generator = np.random.default_rng(0)
    covered, names = 0, [str(index) for index in range(60)]
    for trial in range(150):
        of_items, of_runs = generator.normal(0, 1, 60), generator.normal(0, 0.2, (3, 1))
        values = of_items + of_runs + generator.normal(0, 0.1, (3, 60))
        covered += 0.0 in difference_over_seeds(values, np.zeros_like(values), names, num=200, seed=trial)[1]
    assert covered / 150 >= 0.93, "drawing three runs without a stretch covers about 0.85"


@pytest.mark.parametrize("shape", [(2, 5), (10,), (0, 10)])
def test_runs_that_do_not_belong_together_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(PalError, match="pair by pair"):
        difference_over_seeds(np.zeros((2, 10)) if len(shape) == 2 and shape[0] else np.zeros(shape), np.zeros(shape), OWN)
