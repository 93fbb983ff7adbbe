"""From an evaluation's folder to its scores: judged answers, intervals over source clips, breakdowns, and whether it listens.

The rule: a model listens to a task if its score with the real sound is better than with the sound of another item, and the 95%
interval of the difference lies wholly on that side of 0. Silence and noise are shown beside it; they do not decide, since a model
may answer at random when it hears nothing that it knows.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pal_audio.data.manifest import write_text
from pal_audio.errors import PalError
from pal_audio.evaluation.items import Item, Method
from pal_audio.evaluation.judging import PARSERS, RESAMPLES, Judged, judge, normaliser_of
from pal_audio.evaluation.metrics import classification
from pal_audio.evaluation.metrics.matching import BagOfWordsEmbedder, TextEmbedder
from pal_audio.evaluation.metrics.statistics import Interval, bootstrap_interval, paired_difference
from pal_audio.evaluation.store import ANSWERS, Answer, RunInfo, TaskInfo, batches, read_answers, read_items, read_run

SCORES = "scores.json"
LISTENS, DEAF, NOT_TESTED = "listens", "does not listen", "not tested"
NOT_COMPUTED = {
    "caption": dict.fromkeys(
        ("spice", "spider", "meteor", "fense"),
        "needs aac-metrics in an environment of its own: pal eval score OUT --with aac-metrics --python PYTHON",
    )
}


@dataclass
class Evaluation:
    """A finished evaluation as it lies in its folder."""

    folder: Path
    info: RunInfo
    items: dict[str, list[Item]]
    answers: dict[tuple[str, str], list[Answer]]  # by task and condition, in the order of the items

    def judgeable(self, task: TaskInfo) -> list[int]:
        """Numbers of the items whose truth is known."""
        return [number for number, item in enumerate(self.items[task.name]) if item.truth]

    def judged(self, task: TaskInfo, method: Method, condition: str, embedder: TextEmbedder | None) -> Judged:
        """A task's answers by a method under a condition, judged."""
        numbers = self.judgeable(task)
        items = [self.items[task.name][number] for number in numbers]
        answers = [self.answers[task.name, condition][number] for number in numbers]
        return judge(task, method, items, answers, embedder_for(task, items, method, embedder))

    def sources(self, task: TaskInfo) -> list[str]:
        """Source clip of each item that is judged."""
        items = self.items[task.name]
        return [items[number].source or items[number].id for number in self.judgeable(task)]


def read_evaluation(folder: Path) -> Evaluation:
    """Read a finished evaluation.

    Raises:
        PalError: there is none, it is not finished, or it is damaged.
    """
    info = read_run(folder)
    items = read_items(folder, info)
    answers = read_answers(folder / ANSWERS)
    keys = [key for batch in batches(info, items) for key in batch.keys]
    if [(answer.task, answer.condition, answer.id) for answer in answers] != keys:
        raise PalError(f"{folder}: unfinished, {len(answers)} of {len(keys)} answers are there; go on with pal eval --resume")
    sorted_answers: dict[tuple[str, str], list[Answer]] = defaultdict(list)
    for answer in answers:
        sorted_answers[answer.task, answer.condition].append(answer)
    return Evaluation(folder, info, items, dict(sorted_answers))


def embedder_for(task: TaskInfo, items: Sequence[Item], method: Method, embedder: TextEmbedder | None) -> TextEmbedder | None:
    """The embedder that a task's answers are matched by, where they are: the one given, or the bag of words of its labels."""
    if method != "match":
        return None
    return embedder or BagOfWordsEmbedder(items[0].choices)


def score(evaluation: Evaluation, embedder: TextEmbedder | None = None) -> dict[str, Any]:
    """Score an evaluation and write `scores.json`.

    Args:
        embedder: for the method `match`; None = bag of words.

    Raises:
        PalError: a package is missing, or a score is not defined on so few items.
    """
    info = evaluation.info
    described = info.model_dump(mode="json", exclude={"tasks", "format"})
    tasks = {task.name: _task_scores(evaluation, task, embedder) for task in info.tasks}
    result = {**described, "tasks": tasks}
    write_text(evaluation.folder / SCORES, json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return result


def _task_scores(evaluation: Evaluation, task: TaskInfo, embedder: TextEmbedder | None) -> dict[str, Any]:
    items = evaluation.items[task.name]
    real = evaluation.answers[task.name, "real"]
    known = evaluation.judgeable(task)
    sources = evaluation.sources(task)
    found: dict[str, Any] = {
        **task.model_dump(mode="json", exclude={"methods", "prompts", "name", "labels"}),
        "num_judged": len(known),
        "num_sources": len(set(sources)),
        "left_out": [{"id": answer.id, "reason": answer.fault} for answer in real if answer.fault],
        "not_computed": NOT_COMPUTED.get(task.kind, {}),
    }
    if task.kind == "transcribe":
        found["normaliser"] = normaliser_of(task)
    if known:
        found["best_guess"] = _best_guess(task, [items[number] for number in known])
    found["methods"] = {
        method: _method_scores(evaluation, task, method, sources, embedder) if known else _unjudged(task, method)
        for method in task.methods
    }
    return found


def _unjudged(task: TaskInfo, method: Method) -> dict[str, Any]:
    return {"prompt": task.prompts[method], "parser": PARSERS[task.kind, method], "score": None}


def _method_scores(
    evaluation: Evaluation, task: TaskInfo, method: Method, sources: list[str], embedder: TextEmbedder | None
) -> dict[str, Any]:
    judged = {condition: evaluation.judged(task, method, condition, embedder) for condition in task.conditions}
    real = judged["real"]
    items = [evaluation.items[task.name][number] for number in evaluation.judgeable(task)]
    used = embedder_for(task, items, method, embedder)
    result: dict[str, Any] = {
        **_unjudged(task, method),
        **({} if used is None else {"embedder": used.name}),
        "headline": real.headline,
        "score": real.score,
        "interval": _interval(bootstrap_interval(real.values, sources, real.statistic, real.resamples)),
        "resamples": real.resamples,
        "others": real.others,
        "num_unparsable": real.num_unparsable,
        "conditions": {
            condition: _against(real, judged[condition], sources) for condition in task.conditions if condition != "real"
        },
        "breakdown": _breakdown(items, real, sources),
    }
    shuffled = result["conditions"].get("shuffled")
    result["listening"] = NOT_TESTED if shuffled is None else LISTENS if shuffled["better"] else DEAF
    if task.kind == "classify":
        labels = items[0].choices
        counts = classification.confusion([item.truth[0] for item in items], real.predictions, labels)
        result["confusion"] = {"labels": labels, "counts": counts.tolist()}
    return result


def _against(real: Judged, other: Judged, sources: list[str]) -> dict[str, Any]:
    """How much better the real sound does than another condition; positive is better for error rates too."""
    if real.paired is not None and other.paired is not None:
        found = paired_difference(real.paired, other.paired, sources, num=RESAMPLES)
    else:
        found = paired_difference(real.values, other.values, sources, real.statistic, RESAMPLES)
    sign = 1 if real.higher_is_better else -1
    low, high = sorted((sign * found.interval.low, sign * found.interval.high))
    return {
        "score": other.score,
        "compared_by": real.paired_name or real.headline,
        "difference": sign * found.difference,
        "interval": _interval(Interval(low, high)),
        "p_value": found.p_value,
        "better": bool(low > 0),
    }


def _breakdown(items: list[Item], real: Judged, sources: list[str]) -> dict[str, dict[str, Any]]:
    """The score by group, where items have groups; mAP is not broken down."""
    if real.paired is not None:
        return {}
    found: dict[str, dict[str, Any]] = {}
    for key in dict.fromkeys(key for item in items for key in item.groups):
        groups: dict[str, list[int]] = defaultdict(list)
        for number, item in enumerate(items):
            if key in item.groups:
                groups[item.groups[key]].append(number)
        found[key] = {}
        for name in sorted(groups):
            numbers = groups[name]
            values, clusters = real.values[numbers], [sources[number] for number in numbers]
            interval = bootstrap_interval(values, clusters, real.statistic, real.resamples)
            found[key][name] = {"num": len(numbers), "score": float(real.statistic(values)), "interval": _interval(interval)}
    return found


def _best_guess(task: TaskInfo, items: list[Item]) -> float | None:
    """The best accuracy without listening: a blind draw among the choices, or the most frequent truth (by group `task`)."""
    if task.kind not in ("classify", "choices", "exact"):
        return None
    told: dict[str, Counter[str]] = defaultdict(Counter)
    for item in items:
        told[item.groups.get("task", "") if task.kind == "exact" else ""][item.truth[0]] += 1
    frequent = sum(max(counts.values()) for counts in told.values()) / len(items)
    drawn = float(np.mean([1 / len(item.choices) if item.choices else 0.0 for item in items]))
    return max(frequent, drawn)


def _interval(interval: Interval) -> list[float] | None:
    """None where one source clip says nothing about spread."""
    return [interval.low, interval.high] if math.isfinite(interval.low) and math.isfinite(interval.high) else None
