"""From result files to numbers: scores over seeds, paired differences with intervals, verdicts, costs.

A difference is of two arms on the same items, seed by seed, in shares (0.01 is a point), and positive where the first is better;
error rates are turned round. Its 95% interval draws recordings and seeds, see `statistics.difference_over_seeds`. Ablations have
one seed: theirs is over recordings alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any, Literal

import numpy as np
from benchmarks.lab.collecting import FORMAT
from benchmarks.lab.questions import read_index, read_json
from benchmarks.lab.rates import read_choice
from benchmarks.lab.recipes import ARMS, PLITS
from numpy.typing import NDArray

from pal_audio.errors import PalError
from pal_audio.evaluation.metrics.statistics import Interval, difference_over_seeds, ratio_of_sums
from pal_audio.evaluation.metrics.statistics import mean as share

MARGIN = 0.03  # of non-inferiority
Verdict = Literal["holds", "does not hold", "undecided"]
GROUPS = ("single recordings", "general sound", "order", "counting", "captions", "speech", "single digits", "pitch")


@dataclass(frozen=True)
class Difference:
    """The first arm minus the second on a group of tasks.

    Attributes:
        value, interval: in shares; positive where the first is better.
        seeds: that both have.
        num_items, num_sources: of the group.
    """

    value: float
    interval: Interval
    seeds: list[int]
    num_items: int
    num_sources: int

    @property
    def non_inferior(self) -> Verdict:
        """Whether the first is at most `MARGIN` worse."""
        return self.above(-MARGIN)

    @property
    def better(self) -> Verdict:
        """Whether the first is better at all."""
        return self.above(0.0)

    def above(self, bound: float) -> Verdict:
        """Whether the difference is above a bound: the interval is wholly on that side, wholly on the other, or neither."""
        if self.interval.low > bound:
            return "holds"
        return "does not hold" if self.interval.high < bound else "undecided"


@dataclass(frozen=True)
class Grid:
    """The results that are there.

    Attributes:
        index: what was asked.
        results: by arm and seed.
        robust: of the best arm, by seed.
        elsewhere: of the best arm on sound from elsewhere, by seed.
        rates: what was tried of the learning rates of families, and chosen.
        best: the best arm, where it is known.
        paces: costs of runs that had the machine to themselves, by arm.
        expected: arms and seeds of the last run of the lab; None where they are not told.
    """

    index: dict[str, Any]
    results: dict[tuple[str, int], dict[str, Any]]
    robust: dict[int, dict[str, Any]]
    best: str | None
    paces: dict[str, dict[str, Any]]
    expected: tuple[list[str] | None, list[int]] | None
    elsewhere: dict[int, dict[str, Any]]
    rates: dict[str, dict[str, Any]]

    def arms(self, ablations: bool = False) -> list[str]:
        """Arms with a result, in the order of `ARMS`."""
        there = [arm for arm in dict.fromkeys(arm for arm, _ in sorted(self.results)) if self._is_ablation(arm) == ablations]
        return [arm for arm in ARMS if arm in there] + [arm for arm in there if arm not in ARMS]

    def baseline(self) -> str | None:
        """The arm that others are compared with: `plits`, or where that was not chosen, the first of its family that was."""
        if PLITS in self._chosen():
            return PLITS
        families = {arm: told["family"] for (arm, _), told in self.results.items()}
        return next((arm for arm in self._chosen() if families.get(arm) == PLITS), PLITS if PLITS in families else None)

    def shows(self, first: str, second: str) -> bool:
        """Whether two arms are to be compared: both were chosen, or both have results."""
        there = {arm for arm, _ in self.results}
        return any({first, second} <= set(arms) for arms in (self._chosen(), there))

    def _chosen(self) -> Sequence[str]:
        """Arms that the lab was to run; those that it has run where the choice is not told."""
        return self.arms() if self.expected is None else self.expected[0] or ARMS

    def _is_ablation(self, arm: str) -> bool:
        """Whether it ran as an ablation alone, and was not named among the arms."""
        named = self.expected is not None and arm in (self.expected[0] or ())
        return not named and all(told["ablation"] for (name, _), told in self.results.items() if name == arm)

    def seeds(self, arm: str) -> list[int]:
        return sorted(seed for name, seed in self.results if name == arm)

    def groups(self) -> dict[str, list[str]]:
        """Tasks by group."""
        found: dict[str, list[str]] = {}
        for name, task in self.index["tasks"].items():
            found.setdefault(task["group"], []).append(name)
        return {group: found[group] for group in GROUPS if group in found}

    def missing(self) -> list[str]:
        """Runs that the lab was to do and that have no result, a line for each arm."""
        if self.expected is None:
            return []
        arms, seeds = self.expected
        lines = []
        for arm in ARMS if arms is None else arms:
            left = [str(seed) for seed in seeds if (arm, seed) not in self.results]
            lines += [f"{arm}: seeds {', '.join(left)}"] if left else []
        return lines + ([] if self.robust else ["the best arm under other conditions"])

    def values(self, arm: str, seed: int, tasks: Sequence[str]) -> NDArray[np.float64]:
        """Right or wrong (N,), or errors and words (N, 2), of each item of some tasks of one metric."""
        told = self.results[arm, seed]["tasks"]
        return np.concatenate([as_array(told[name]["values"]) for name in tasks])

    def in_errors(self, tasks: Sequence[str]) -> bool:
        return self.index["tasks"][tasks[0]]["metric"] == "errors"

    def score(self, arm: str, seed: int, tasks: Sequence[str]) -> float:
        return float(statistic_of(self.in_errors(tasks))(self.values(arm, seed, tasks)))

    def difference(self, first: str, second: str, tasks: Sequence[str]) -> Difference | None:
        """The first arm minus the second; None where they share no seed."""
        seeds = [seed for seed in self.seeds(first) if seed in self.seeds(second)]
        if not seeds:
            return None
        ours, theirs = (np.stack([self.values(arm, seed, tasks) for seed in seeds]) for arm in (first, second))
        sources = [source for name in tasks for source in self.index["tasks"][name]["sources"]]
        return paired(ours, theirs, sources, seeds, self.in_errors(tasks))


def paired(
    first: NDArray[np.float64], second: NDArray[np.float64], sources: Sequence[str], seeds: list[int], in_errors: bool
) -> Difference:
    """The difference of two sets of runs, (S, N) or (S, N, 2); error rates turned round."""
    value, interval = difference_over_seeds(first, second, sources, statistic_of(in_errors))
    if in_errors:
        value, interval = -value, Interval(-interval.high, -interval.low)
    return Difference(value, interval, seeds, first.shape[1], len(set(sources)))


def statistic_of(in_errors: bool) -> Callable[[NDArray[np.float64]], float]:
    return ratio_of_sums if in_errors else share


def as_array(values: str | list[list[int]]) -> NDArray[np.float64]:
    """What a result file holds of each item."""
    return np.array([int(mark) for mark in values] if isinstance(values, str) else values, dtype=np.float64)


def read_grid(out: Path) -> Grid:
    """All results of OUT, or of a packed copy.

    Raises:
        PalError: there are none, or one is of other questions or damaged.
    """
    index = read_index(out)
    results = {}
    for path in sorted((out / "results").glob("*.json")):
        if path.name == "index.json":
            continue
        told = read_json(path)
        if told.get("format") != FORMAT:
            raise PalError(f"{path}: format {told.get('format')}, this version reads {FORMAT}")
        if told["tests_hash"] != index["hash"]:
            raise PalError(f"{path}: of other questions than index.json; results of two worlds cannot be compared")
        results[told["arm"], told["seed"]] = told
    if not results:
        raise PalError(f"{out / 'results'}: no result of a run is there yet; see `python -m benchmarks.lab status {out}`")
    robust = {told["seed"]: told for told in map(read_json, sorted((out / "robust").glob("*.json")))}
    mark = out / "marks" / "best.json"
    best = read_json(mark)["arm"] if mark.is_file() else None
    paces = {told["arm"]: told["cost"] for told in map(read_json, sorted((out / "pace").glob("*.json")))}
    settings = out / "lab.json"
    last = read_json(settings)["last"] if settings.is_file() else None
    elsewhere = {told["seed"]: told for told in map(read_json, sorted((out / "elsewhere").glob("*.json")))}
    rates = {path.stem: read_choice(path) for path in sorted((out / "rates").glob("*.json"))}
    expected = None if last is None else (last["arms"], last["seeds"])
    return Grid(index, results, robust, best, paces, expected, elsewhere, rates)


@dataclass(frozen=True)
class Cost:
    """What a run of an arm costs.

    Attributes:
        trainable, total: parameters.
        peak_bytes: None where the device does not tell.
        median, p10, p90: seconds a step.
        alone: whether runs had the machine to themselves.
    """

    trainable: int
    total: int
    peak_bytes: float | None
    median: float
    p10: float
    p90: float
    alone: bool


def cost_of(grid: Grid, arm: str) -> Cost:
    """The cost of an arm that has results: of its run alone where there is one, else the mean over seeds of its runs."""
    told = [grid.results[arm, seed] for seed in grid.seeds(arm)]
    measured = [grid.paces[arm]] if arm in grid.paces else [item["cost"] for item in told]
    peaks = [item["peak_bytes"] for item in measured]
    median, p10, p90 = (mean(item["step_s"][name] for item in measured) for name in ("median", "p10", "p90"))
    parameters, alone = told[0]["parameters"], all(item["jobs"] == 1 for item in measured)
    return Cost(parameters["trainable"], parameters["total"], None if None in peaks else mean(peaks), median, p10, p90, alone)
